"""A guest that ends, stops or reboots in post-copy, or whose QEMUs do, is told as that; see docs/endings.md."""

from __future__ import annotations

import os
import signal

import pytest

from deploy.lab.fleet import HOSTS
from tests.e2e.guest import Plan
from tests.e2e.lab import PAUSED, Lab
from tests.e2e.letters import PANIC, PC, POWER_OFF, RESET, WRITE, empty, fill, obedient, on_small_disk, tell
from tests.e2e.move import Move, State, Where
from tests.e2e.tables import cases, one_each
from tests.e2e.test_post_copy import hurry, plan_of, start_slow
from tests.e2e.user import resume
from tests.e2e.waiting import until, until_equal

PAIRS = [OLD, NEW] = [("7.2", "7.2"), ("10.0", "10.0")]
KEPT_AT_PANIC = "<on_crash>preserve</on_crash>"


def plan(pair: tuple[str, str], *, beside: str = "") -> Plan:
    """Make a guest that takes letters."""
    return obedient(plan_of(pair), beside=beside)


async def assert_gone(lab: Lab, state: str = "STOPPED") -> None:
    """Fail unless the guest runs nowhere, is defined at the source alone, and can be started there."""
    await until(lambda: not lab.qemus(), "no QEMU left")
    await lab.wait_empty("host-b")
    assert await lab.vms("host-a") == {"web": state}
    await until_equal(lambda: job_of(lab), "")
    await lab.start_vm("host-a", "web")


async def job_of(lab: Lab) -> str:
    return (await lab.vm("host-a", "web")).job


async def wait_told(move: Move) -> None:
    """Wait until the destination has told of what the guest did."""
    await move.wait_destination(lambda half: half.warnings, "a warning")


ENDS = {"powers off": (POWER_OFF, "GUEST_SHUT_DOWN", "powered itself off"), "panics": (PANIC, "GUEST_PANICKED", "panicked")}


@cases(("end", "pair"), (tuple(ENDS), PAIRS), one_each(tuple(ENDS), PAIRS))
async def test_a_guest_that_ends_while_its_memory_follows_ends_the_move_as_that(end, pair, lab: Lab):
    letter, reason, words = ENDS[end]
    guest = await lab.start_guest(plan=plan(pair))
    move = await start_slow(lab, guest, "psk")

    await tell(lab, "host-b", letter)
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_NOWHERE)
    assert outcome.error_reason == reason, outcome.error
    assert words in outcome.error
    assert "host-b" in outcome.error
    assert "lost" not in outcome.error
    await assert_gone(lab)


@cases(("pair",), (PAIRS,), [(NEW,)])
async def test_a_guest_that_reboots_while_its_memory_follows_is_moved(pair, lab: Lab):
    guest = await lab.start_guest(plan=plan(pair))
    move = await start_slow(lab, guest, "psk")

    await tell(lab, "host-b", RESET)
    await wait_told(move)
    await hurry(move)
    outcome = await move.outcome(timeout_s=60)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert "rebooted" in outcome.warnings[-1]
    await guest.console.wait_sweeps(1)
    assert not guest.console.ticks[-1].bad_count
    await lab.assert_only_on("host-b", guest)


@cases(("pair",), (PAIRS,), [(OLD,)])
async def test_a_guest_that_panics_while_its_memory_follows_and_is_to_be_looked_at_arrives_as_it_is(pair, lab: Lab):
    guest = await lab.start_guest(plan=plan(pair, beside=KEPT_AT_PANIC))
    move = await start_slow(lab, guest, "psk")

    await tell(lab, "host-b", PANIC)
    await wait_told(move)
    await hurry(move)
    outcome = await move.outcome(timeout_s=60)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert "the guest panicked" in outcome.warnings[-1]
    assert "stands still on host-b" in outcome.warnings[-1]
    await lab.assert_only_on("host-b", guest, PAUSED)
    guest.assert_whole()


async def test_a_guest_that_cannot_write_to_its_disk_while_its_memory_follows_arrives_as_it_is(lab: Lab):
    if os.geteuid() != 0:
        pytest.skip("a full disk needs root")
    full = obedient(plan_of(("7.2", "10.0")), machine=PC, bus="ide")
    with on_small_disk(lab, full) as directory:
        guest = await lab.start_guest(plan=full)
        move = await start_slow(lab, guest, "psk")
        fill(directory)

        await tell(lab, "host-b", WRITE)
        await wait_told(move)
        await hurry(move)
        outcome = await move.outcome(timeout_s=60)

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert "I/O error (write on " in outcome.warnings[-1]
        assert "stands still on host-b" in outcome.warnings[-1]
        await lab.assert_only_on("host-b", guest, PAUSED)
        empty(directory)
        await resume(lab, "host-b")
        await guest.console.wait_sweeps(1)
        guest.assert_whole()
        await lab.tidy()


@cases(("victim", "pair"), (HOSTS, PAIRS), one_each(HOSTS, PAIRS))
async def test_a_qemu_that_dies_while_the_connection_is_lost_takes_the_guest_along_and_that_is_said(victim, pair, lab: Lab):
    guest = await lab.start_guest(plan=plan(pair))
    move = await start_slow(lab, guest, "tunnel")
    await lab.kill("tunnel-a")
    await move.wait_source_phase("Broken")

    os.kill(await lab.qemu_pid(victim), signal.SIGKILL)
    outcome = await move.outcome()
    await lab.restart("tunnel-a")

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_NOWHERE)
    assert outcome.error_reason == "QEMU_ENDED"
    assert "lost" in outcome.error
    assert victim in outcome.error
    await assert_gone(lab, "CRASHED" if victim == "host-a" else "STOPPED")


@cases(("pair",), (PAIRS,), [(OLD,)])
async def test_a_guest_told_to_power_off_while_the_connection_is_lost_does_so_now_or_when_it_is_back(pair, lab: Lab):
    """It may wait for memory just then; nobody can say."""
    guest = await lab.start_guest(plan=plan(pair))
    move = await start_slow(lab, guest, "tunnel")
    await lab.kill("tunnel-a")
    await move.wait_source_phase("Broken")

    await tell(lab, "host-b", POWER_OFF)
    await lab.restart("tunnel-a")
    outcome = await move.outcome(timeout_s=60)

    assert outcome.state == State.STATE_FAILED
    assert outcome.error_reason == "GUEST_SHUT_DOWN", outcome.error
    await assert_gone(lab)
