"""What is wished of post-copy, and how a way is proved before it is used again."""

from __future__ import annotations

import socket

import pytest

from agent.migration.abilities import ALWAYS
from agent.migration.migrate_uri import PortRange
from agent.migration.order import Options
from agent.migration.path_proof import Echo, first_free_port, prove
from agent.migration.post_copy import PostCopy, When
from agent.migration.progress import Timeline
from agent.migration.qemu_setup import capabilities, parameters
from common.errors import InvalidRequest, Unreachable, WrongState


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"bandwidth_bytes_per_second": -1, "when": When.ALLOWED}, "-1 bytes per second"),
        ({"preempt": True}, "postcopy-preempt without postcopy"),
        ({"bandwidth_bytes_per_second": 1}, "postcopy-bandwidth without postcopy"),
    ],
)
def test_a_wish_that_means_nothing_is_refused(wish, told):
    with pytest.raises(InvalidRequest, match=told):
        PostCopy(**wish)


def test_post_copy_and_multifd_exclude_each_other():
    with pytest.raises(InvalidRequest, match=r"postcopy and multifd \(2 channels\)"):
        Options(multifd_channel_count=2, post_copy=PostCopy(When.ALLOWED))


@pytest.mark.parametrize(
    ("wished", "named", "channels"),
    [
        (PostCopy(), set(), 1),
        (PostCopy(When.ALLOWED), {"postcopy-ram"}, 1),
        (PostCopy(When.IMMEDIATELY, preempt=True), {"postcopy-ram", "postcopy-preempt"}, 2),
    ],
)
def test_both_qemus_get_the_capabilities_that_the_wish_needs(wished, named, channels):
    options = Options(post_copy=wished)

    assert set(capabilities(options, ())) - set(ALWAYS) == named
    assert options.channel_count == channels


def test_the_bound_of_post_copy_is_one_of_its_own():
    options = Options(bandwidth_bytes_per_second=5, post_copy=PostCopy(When.ALLOWED, 7))

    assert parameters(options)["max-bandwidth"] == 5
    assert parameters(options)["max-postcopy-bandwidth"] == 7


def test_the_downtime_of_post_copy_ends_with_resume_and_not_with_the_last_page():
    line = Timeline(
        stopped_at_s=10.0, continued_at_s=10.1, post_copy_at_s=10.3, completed_at_s=90.0, resumed_at_s=10.7, ran_for_s=0.1
    )

    assert [(leg.name, round(leg.duration_s, 3)) for leg in line.downtime_legs()] == [
        ("stop", 0.1),
        ("device", 0.2),
        ("resume", 0.3),
    ]


# the way


async def test_a_way_is_proved_by_bytes_that_come_back():
    port = first_free_port("127.0.0.1", PortRange(40000, 40999), "host-b")
    echo = await Echo.open("127.0.0.1", port)
    try:
        await prove("127.0.0.1", port, for_s=0.0)
    finally:
        await echo.close()

    with pytest.raises(Unreachable, match=f"port {port}"):
        await prove("127.0.0.1", port, for_s=0.0)


async def test_a_port_of_an_echo_that_is_closed_can_be_listened_on_at_once():
    port = first_free_port("127.0.0.1", PortRange(40000, 40999), "host-b")
    echo = await Echo.open("127.0.0.1", port)
    await prove("127.0.0.1", port, for_s=0.0)

    await echo.close()
    again = await Echo.open("127.0.0.1", port)

    await again.close()


async def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(WrongState, match=f"port {port} on 127.0.0.1 is taken"):
            await Echo.open("127.0.0.1", port)
        with pytest.raises(WrongState, match=f"no free port between {port} and {port} on host-b"):
            first_free_port("127.0.0.1", PortRange(port, port), "host-b")
