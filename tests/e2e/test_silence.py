"""A process of the other side goes silent: the guest stands still for at most 2 s more than allowed, then runs on at the source."""

from __future__ import annotations

import pytest

from ferry.common.v1.budget_pb2 import POLICY_FAST
from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, frozen, now_s
from tests.e2e.move import WAYS, State, Where, Whole, wishes
from tests.e2e.steps import steps
from tests.e2e.tables import cases, one_each

ALLOWED_S = 1.0
MARGIN_S = 2.0
SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)
# Fits into the buffers of a socket, so that it is sent although nobody reads.
TINY = Plan(megabytes=1, dirty_mib_s=0.1)
# Has more left for the time that it stands still than all buffers of the way hold.
LARGE = Plan(megabytes=32, dirty_mib_s=60.0, sweeps_per_s=0.5)
FILLED = {"all-buffered": TINY, "channel-full": LARGE}
FAST_MIB_S = 30
# The way, and the process that goes silent.
SILENT = [
    ("plain", "qemu"),
    ("psk", "qemu"),
    ("multifd", "qemu"),
    ("tunnel", "qemu"),
    ("tunnel", "tunnel-a"),
    ("tunnel", "tunnel-b"),
]


def assert_given_back(outcome: Whole, reason: str, *words: str) -> None:
    """Fail unless the outcome says that the guest stays at the source, and why."""
    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE
    assert outcome.error_reason == reason, outcome.error
    for word in words:
        assert word in outcome.error


async def silent_pid(lab: Lab, process: str) -> int:
    """Give the process that is to go silent: a server, or the destination's QEMU."""
    return await lab.qemu_pid("host-b") if process == "qemu" else lab.fleet.pid(process)


@pytest.mark.parametrize("version", ["7.2", "10.0"])
@pytest.mark.parametrize("multifd", [0, 4], ids=["1-channel", "4-channels"])
async def test_a_tls_handshake_that_gets_no_answer_frees_the_guest_in_time(version, multifd, lab: Lab):
    guest = await lab.start_guest(plan=Plan(emulator=require(version)))
    async with steps(lab, wishes(multifd=multifd)) as by_hand:
        await by_hand.begin_and_prepare()
        since_s = now_s()

        with frozen(await lab.qemu_pid("host-b")):
            half = await by_hand.perform()

        assert half.phase == "Kept"
        assert half.error_reason == "PEER_SILENT"
        assert "host-b" in half.error
        await guest.console.wait_ticks(5)
        guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@pytest.mark.parametrize(("way", "process"), SILENT)
async def test_silence_while_memory_is_sent_does_not_stop_the_guest_and_can_be_cancelled(way, process, lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    with frozen(await silent_pid(lab, process)):
        await guest.console.wait_ticks(100)
        asked_at_s = now_s()
        await move.cancel()
        half = await move.wait_source_phase("Kept")
        took_s = now_s() - asked_at_s
    outcome = await move.outcome()

    assert took_s < MARGIN_S
    assert half.error_reason == "CANCELLED"
    assert outcome.state == State.STATE_CANCELLED
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_move_whose_bytes_stand_still_gives_up_by_itself(lab: Lab):
    guest = await lab.start_guest(plan=BUSY)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_transferring()
    since_s = now_s()

    with frozen(await lab.qemu_pid("host-b")):
        outcome = await move.outcome(timeout_s=45)

    assert_given_back(outcome, "TRANSFER_STALLED", "30 s", "host-b")
    guest.assert_no_gap(MARGIN_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


@cases(("silent", "filled"), (SILENT, tuple(FILLED)), one_each(SILENT, tuple(FILLED)))
async def test_silence_after_migrate_continue_gives_the_guest_back(silent, filled, lab: Lab):
    (way, process), plan = silent, FILLED[filled]
    bandwidth_mib_s, allowed_s = (FAST_MIB_S, 1.0) if plan is LARGE else (1, ALLOWED_S)
    guest = await lab.start_guest(plan=plan)
    pid = await lab.qemu_pid("host-a")
    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=bandwidth_mib_s, max_downtime_s=allowed_s, policy=POLICY_FAST))
    await move.wait_source_phase("Transferring")

    with frozen(lab.fleet.pid("agent-a")) as let_agent_go_on:
        since_s = now_s()
        await guest.wait_stopped(pid, 0.2)  # it waits for the agent's word
        with frozen(await silent_pid(lab, process)):
            let_agent_go_on()
            await move.wait_source_phase("Kept")
            await guest.console.wait_ticks(5)
            guest.assert_no_gap(allowed_s + MARGIN_S, since_s)
    outcome = await move.outcome()

    assert_given_back(outcome, "STANDSTILL_TOO_LONG", "host-b", "stood still")
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()
