"""Wishes at the edges and beyond, as only a client of its own can send them: each is refused in words before anything starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from common.errors import FerryError
from common.rpc.status import calls_to
from ferry.common.v1 import migration_pb2 as pb
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes

MOST = (1 << 63) - 1
NOT_TOLD = {"", "BUG", "UNKNOWN", "ERROR"}


def _duration(seconds: int, nanos: int = 0) -> Duration:
    return Duration(seconds=seconds, nanos=nanos)


def _set(path: str, value: object) -> Callable[[], pb.MigrationOptions]:
    def make() -> pb.MigrationOptions:
        options = wishes()
        target: object = options
        *parents, name = path.split(".")
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, Duration):
            getattr(target, name).CopyFrom(value)
        else:
            setattr(target, name, value)
        return options

    return make


REFUSED = {
    "transport beyond the known": _set("transport", 99),
    "channels beyond int16": _set("multifd_channel_count", (1 << 31) - 1),
    "channels below zero": _set("multifd_channel_count", -(1 << 31)),
    "bandwidth below zero": _set("bandwidth_bytes_per_second", -MOST - 1),
    "downtime of no time": _set("max_downtime", _duration(0)),
    "downtime below zero": _set("max_downtime", _duration(-1)),
    "downtime of ages": _set("max_downtime", _duration(1 << 36)),
    "duration below zero": _set("budget.max_duration", _duration(-5)),
    "duration of a moment": _set("budget.max_duration", _duration(0, 1)),
    "duration of ages": _set("budget.max_duration", _duration(1 << 36)),
    "policy beyond the known": _set("budget.policy", 77),
    "time-out action beyond the known": _set("budget.on_timeout", 77),
    "post-copy beyond the known": _set("post_copy.when", 77),
    "post-copy slower than nothing": _set("post_copy.bandwidth_bytes_per_second", -1),
    "preempt without post-copy": _set("post_copy.preempt", True),
    "cache of three bytes": _set("means.xbzrle_cache_bytes", 3),
    "cache of everything": _set("means.xbzrle_cache_bytes", MOST),
    "cache below zero": _set("means.xbzrle_cache_bytes", -1),
    "compression beyond the known": _set("means.compression", 99),
    "throttle of 200 percent": _set("means.auto_converge.initial_percent", 200),
    "switch-over slower than nothing": _set("means.switchover_bandwidth_bytes_per_second", -1),
    "a name of blanks": _set("destination_name", "   "),
    "a name that is a path": _set("destination_name", "../../etc/passwd"),
    "a name of 10000 letters": _set("destination_name", "a" * 10_000),
    "a name with a line's end": _set("destination_name", "web\nweb"),
    "an address of blanks": _set("migrate_uri", "  "),
    "an address that is a command": _set("migrate_uri", "exec:touch /tmp/owned"),
    "an address that is a descriptor": _set("migrate_uri", "fd:0"),
    "an address of 10000 letters": _set("migrate_uri", "tcp:" + "a" * 10_000),
    "a definition that is none": _set("destination_domain_xml", b"\x00\xff<"),
    "a definition with an entity of its own": _set(
        "destination_domain_xml", b"<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain>&a;</domain>"
    ),
}


async def test_each_is_refused_in_words_and_the_guest_notices_nothing(lab: Lab):
    guest = await lab.start_guest()

    for what, make in REFUSED.items():
        try:
            with calls_to("the coordinator"):
                move = await lab.start_move(options=make())
            outcome = await move.outcome()
        except FerryError as error:
            reason, text = error.reason, error.text
        else:
            assert outcome.state == State.STATE_FAILED, f"{what}: {outcome.state}"
            reason, text = outcome.error_reason, outcome.error
        assert reason not in NOT_TOLD, f"{what}: {reason} {text}"
        assert 0 < len(text) < 2100, f"{what}: {text[:200]}"
        assert "Traceback" not in text, what

    await lab.assert_only_on("host-a", guest)
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


@pytest.mark.parametrize(
    "options",
    [
        wishes(bandwidth_mib_s=MOST / (1 << 20) / 2),
        wishes(max_downtime_s=2000),
        wishes(max_downtime_s=0.001),
        wishes(multifd=255),
        wishes(max_duration_s=7 * 24 * 3600.0),
    ],
    ids=["bandwidth", "downtime", "no-downtime", "channels", "duration"],
)
async def test_the_most_that_is_allowed_works(options: pb.MigrationOptions, lab: Lab):
    guest = await lab.start_guest()

    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
