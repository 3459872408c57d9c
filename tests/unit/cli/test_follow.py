"""Following a migration through silences, Ctrl-C and answers."""

from __future__ import annotations

import asyncio
import os

import pytest

from coordinator.cli.exits import ExitCode
from coordinator.cli.follow import Follower
from coordinator.cli.interrupts import Interrupts, Wish
from coordinator.cli.link import Link
from coordinator.cli.migrate import show_result
from coordinator.cli.options import Settings
from coordinator.cli.progress import PlainProgress
from coordinator.cli.screen import Format, Screen
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import migration

M = pb.Migration
RUNNING = migration(M.STATE_TRANSFERRING)
MOVED = migration(M.STATE_SUCCEEDED, M.GUEST_LOCATION_DESTINATION)
WAITING = migration(M.STATE_WAITING, M.GUEST_LOCATION_SWITCHING, error="stopped, waiting for host-b")


@pytest.fixture
async def link(fleet):
    async with Link(Settings(fleet.address, "none")) as link:
        yield link


async def test_a_waiting_guest_is_watched_until_patience_ends_and_is_not_called_failed(fleet, link, capsys):
    fleet.coordinator.story = [WAITING, MOVED]
    screen = Screen()
    follower = Follower(link.coordinator, PlainProgress(screen), patience_s=0.02, may_cancel=True)

    code = show_result(screen, await follower.follow(RUNNING), Format.TABLE)

    told = capsys.readouterr().err
    assert code is ExitCode.UNKNOWN
    assert "web stands still and waits: stopped, waiting for host-b" in told
    assert "ferry migration watch" in told


async def test_a_coordinator_that_comes_back_is_asked_again(fleet, link, capsys):
    fleet.coordinator.story = [RUNNING]  # the stream ends without a final state
    follower = Follower(link.coordinator, PlainProgress(Screen()), patience_s=5, may_cancel=True, retry_s=0.01)

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follower.follow(RUNNING))
        await fleet.coordinator.is_watched.wait()
        fleet.coordinator.story = [MOVED]

    assert following.result().migration == MOVED
    assert "the hosts go on without it, asking again" in capsys.readouterr().err


async def test_a_warning_of_the_coordinator_is_told_once(fleet, link, capsys):
    odd = migration(M.STATE_TRANSFERRING, warnings=["the guest's memory is a multiple of 256 KiB"])
    fleet.coordinator.story = [odd, odd, MOVED]
    fleet.coordinator.is_flowing.set()
    follower = Follower(link.coordinator, PlainProgress(Screen()), patience_s=5, may_cancel=True)

    await follower.follow(RUNNING)

    assert capsys.readouterr().err.count("multiple of 256 KiB") == 1


@pytest.fixture
def keyboard():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


async def wishes_of(answers_fd: int | None, *acts) -> list[Wish]:
    wishes: asyncio.Queue[Wish] = asyncio.Queue()
    seen = []
    with Interrupts(wishes.put_nowait, answers_fd=answers_fd) as interrupts:
        for act in acts:
            act(interrupts)
            seen.append(await wishes.get())
    return seen


def press(interrupts: Interrupts) -> None:
    interrupts.press()


async def test_the_first_ctrl_c_asks_and_the_second_cancels(keyboard):
    assert await wishes_of(keyboard[0], press, press) == [Wish.ASK, Wish.CANCEL]


@pytest.mark.parametrize(("answer", "wish"), [(b"y\n", Wish.CANCEL), (b"n\n", Wish.GO_ON), (b"\n", Wish.GO_ON)])
async def test_an_answer_is_taken_and_no_is_the_default(keyboard, answer, wish):
    assert await wishes_of(keyboard[0], press, lambda _: os.write(keyboard[1], answer)) == [Wish.ASK, wish]


async def test_after_a_no_ctrl_c_asks_again(keyboard):
    seen = await wishes_of(keyboard[0], press, lambda _: os.write(keyboard[1], b"n\n"), press)

    assert seen == [Wish.ASK, Wish.GO_ON, Wish.ASK]


async def test_ctrl_c_after_the_wish_to_cancel_leaves():
    assert await wishes_of(None, press, press) == [Wish.CANCEL, Wish.LEAVE]
