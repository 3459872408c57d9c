"""Tokens open sessions while they are good, and each connection of a session is made once and in order."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from agent.tunnel.exits import REMEMBERED_FOR_S, Exit, ExitOrder, Exits
from common.errors import FerryError, InvalidRequest, Unreachable, WrongState
from tests.unit.agent.tunnel.fakes import Clock, Destination

SECRET = "32-random-bytes"
DIGEST = hashlib.sha256(SECRET.encode()).digest()


def order(path: Path = Path("/run/in.sock"), channel_count: int = 1, session: str = "m", lifetime_s: float = 60.0) -> ExitOrder:
    return ExitOrder(session, DIGEST, path, channel_count, lifetime_s)


def refusal(exits: Exits, token: str) -> str:
    with pytest.raises(WrongState) as refused:
        exits.admit(token)
    assert token not in refused.value.text
    return refused.value.reason


def test_a_token_opens_its_session():
    exits = Exits(Clock())
    exits.open(order())

    assert exits.admit(SECRET).session_id == "m"


def test_a_wrong_token_is_refused():
    exits = Exits(Clock())
    exits.open(order())

    assert refusal(exits, "another") == "TOKEN_WRONG"


def test_a_token_expires():
    clock = Clock()
    exits = Exits(clock)
    exits.open(order(lifetime_s=60.0))

    clock.now_s += 61.0

    assert refusal(exits, SECRET) == "TOKEN_EXPIRED"


def test_a_session_that_nobody_closed_vanishes_when_its_token_has_expired():
    clock = Clock()
    exits = Exits(clock)
    exits.open(order(lifetime_s=60.0))

    clock.now_s += 61.0

    assert exits.all() == []
    assert refusal(exits, SECRET) == "TOKEN_EXPIRED"


def test_the_token_of_a_closed_session_is_told_from_a_wrong_one():
    exits = Exits(Clock())
    exits.open(order())

    exits.close("m")

    assert refusal(exits, SECRET) == "TOKEN_REUSED"


def test_a_closed_session_is_remembered_for_a_bounded_time():
    clock = Clock()
    exits = Exits(clock)
    exits.open(order())
    exits.close("m")

    clock.now_s += REMEMBERED_FOR_S + 1

    assert refusal(exits, SECRET) == "TOKEN_WRONG"


def test_closing_an_unknown_session_is_fine():
    Exits(Clock()).close("nobody")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"session_id": ""}, "SESSION_ID_MISSING"),
        ({"token_sha256": b"short"}, "DIGEST_INVALID"),
        ({"channel_count": 0}, "CHANNEL_COUNT_INVALID"),
        ({"channel_count": 258}, "CHANNEL_COUNT_INVALID"),
        ({"lifetime_s": 0.0}, "LIFETIME_INVALID"),
        ({"lifetime_s": 86401.0}, "LIFETIME_INVALID"),
        ({"socket_path": Path("in.sock")}, "SOCKET_PATH_INVALID"),
        ({"socket_path": Path("/run/" + "x" * 103)}, "SOCKET_PATH_INVALID"),
    ],
)
def test_an_order_out_of_range_is_refused(change, reason):
    values = {"session_id": "m", "token_sha256": DIGEST, "socket_path": Path("/run/in"), "channel_count": 1, "lifetime_s": 60.0}

    with pytest.raises(InvalidRequest) as refused:
        ExitOrder(**{**values, **change})

    assert refused.value.reason == reason


async def make(session: Exit, ordinal: int, made: list[int]) -> None:
    link = await session.connect(ordinal)
    made.append(ordinal)
    link.close()


async def test_connections_are_made_in_order_whatever_order_they_are_asked_for_in(directory):
    qemu = Destination(directory / "in.sock")
    session = Exit(order(qemu.path, 4), 1e9)
    made: list[int] = []

    async with asyncio.TaskGroup() as tasks:
        for ordinal in (3, 1, 2, 0):
            tasks.create_task(make(session, ordinal, made))

    assert made == [0, 1, 2, 3]
    qemu.close()


async def test_a_session_with_every_connection_made_takes_its_token_no_more(directory):
    qemu = Destination(directory / "in.sock")
    exits = Exits(Clock())
    exits.open(order(qemu.path, 1))

    (await exits.admit(SECRET).connect(0)).close()

    assert refusal(exits, SECRET) == "TOKEN_REUSED"
    qemu.close()


@pytest.mark.parametrize(("ordinal", "reason"), [(0, "ORDINAL_USED"), (2, "ORDINAL_INVALID"), (-1, "ORDINAL_INVALID")])
async def test_a_connection_is_made_once_and_within_the_session(directory, ordinal, reason):
    qemu = Destination(directory / "in.sock")
    session = Exit(order(qemu.path, 2), 1e9)
    (await session.connect(0)).close()

    with pytest.raises(FerryError) as refused:
        await session.connect(ordinal)

    assert refused.value.reason == reason
    qemu.close()


async def test_when_one_connection_cannot_be_made_those_after_it_fail_at_once(directory):
    session = Exit(order(directory / "nobody.sock", 2), 1e9)

    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(refused_connect(session, 1))
        first = tasks.create_task(refused_connect(session, 0))

    assert first.result() == "QEMU_NOT_LISTENING"
    assert second.result() == "ORDER_BROKEN"


async def test_a_connection_that_waits_for_its_turn_ends_with_the_session(directory):
    session = Exit(order(directory / "in.sock", 2), 1e9)

    async with asyncio.TaskGroup() as tasks:
        second = tasks.create_task(refused_connect(session, 1))
        tasks.create_task(cut(session))

    assert second.result() == "SESSION_CLOSED"


async def refused_connect(session: Exit, ordinal: int) -> str:
    with pytest.raises((Unreachable, WrongState)) as refused:
        await session.connect(ordinal)
    return refused.value.reason


async def cut(session: Exit) -> None:
    session.cut()
