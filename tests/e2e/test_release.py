"""No coordinator, or a host that is dead for good: what the halves advise ends them, by commands straight to the agents."""

from __future__ import annotations

import os
import signal

from ferry.agent.v1 import migration_pb2 as agent_pb
from tests.e2e.advice import take_advice
from tests.e2e.guest import Guest, Plan
from tests.e2e.held import sent, start_held
from tests.e2e.lab import Lab, frozen, refused
from tests.e2e.move import Move, State, Where, wishes
from tests.e2e.waiting import until

SLOW_MIB_S = 2.0
BUSY = Plan(dirty_mib_s=8.0)


async def start_slow(lab: Lab, plan: Plan | None = None) -> tuple[Guest, Move]:
    guest = await lab.start_guest(plan=plan)
    move = await lab.start_move(options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await move.wait_source_phase("Transferring")
    return guest, move


async def test_without_a_coordinator_a_move_that_was_begun_is_given_up_at_the_agents(lab: Lab):
    guest, move = await start_slow(lab, BUSY)
    await lab.kill("coordinator")

    at_source = await take_advice(lab, move, "host-a", "give the migration up")
    at_destination = await move.wait_destination_phase("Abandoned")
    await lab.restart("coordinator")
    outcome = await move.outcome()

    assert (at_source.phase, at_source.error_reason) == ("Kept", "RELEASED")
    assert at_destination.is_final or at_destination.phase == "Abandoned"
    assert (outcome.state, outcome.guest_location) == (State.STATE_CANCELLED, Where.GUEST_LOCATION_SOURCE)
    await guest.console.wait_ticks(5)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_without_a_coordinator_a_guest_that_has_gone_over_is_kept_and_let_go_at_the_agents(lab: Lab):
    guest, move = await start_slow(lab)
    await lab.kill("coordinator")
    await move.hasten()
    await move.wait_source_phase("HandedOver")

    kept = await take_advice(lab, move, "host-b", "no coordinator")
    let_go = await take_advice(lab, move, "host-a", "no coordinator")
    left = await lab.vm("host-a", guest.name)
    await lab.undefine("host-a", guest.name)
    await lab.restart("coordinator")
    outcome = await move.outcome()

    assert (kept.phase, let_go.phase) == ("Finished", "Retired")
    assert left.moved_to == "host-b"
    assert (outcome.state, outcome.guest_location) == (State.STATE_SUCCEEDED, Where.GUEST_LOCATION_DESTINATION)
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_destination_that_is_dead_for_good_is_fenced_off_and_the_guest_goes_on_at_the_source(lab: Lab):
    guest, move = await start_held(lab)
    process = await lab.qemu_pid("host-b")

    async with sent(lab, guest, move):
        os.kill(process, signal.SIGKILL)
        await lab.kill("agent-b")
    await move.wait(lambda whole: "ferry migration fence" in whole.error, "the command that is advised")
    with refused("GUEST_IN_DOUBT", "ferry migration fence", "ferry migration release"):
        await move.source.ReleaseMigration(agent_pb.ReleaseMigrationRequest(migration_id=move.id))
    await take_advice(lab, move, "host-a", "has not run there")
    await guest.console.wait_ticks(5)
    await lab.restart("agent-b")
    outcome = await move.outcome()

    assert (outcome.state, outcome.guest_location) == (State.STATE_FAILED, Where.GUEST_LOCATION_SOURCE)
    await until(lambda: process not in lab.qemus(), "the end of the destination's QEMU")
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()


async def test_a_source_that_is_dead_for_good_is_fenced_off_and_the_guest_goes_on_at_the_destination(lab: Lab):
    guest, move = await start_held(lab)
    process = await lab.qemu_pid("host-a")
    agent = lab.fleet.pid("agent-a")

    with frozen(agent) as let_source_go_on:
        await guest.wait_stopped(process, 0.1)
        with frozen(await lab.qemu_pid("host-b")) as let_qemu_go_on:
            let_source_go_on()
            await move.wait_source_phase("Switching")
            with frozen(agent):  # it says no Resume, and nothing that outlives it does so soon
                let_qemu_go_on()
                await move.wait_destination_phase("Loaded")
                os.kill(process, signal.SIGKILL)
                await lab.kill("coordinator")
                await lab.kill("agent-a")
    owned = await take_advice(lab, move, "host-b", "dead for good")
    await guest.console.wait_sweeps(1)
    await lab.restart("agent-a")
    await lab.restart("coordinator")
    outcome = await move.outcome()

    assert owned.phase == "Finished"
    assert (outcome.state, outcome.guest_location) == (State.STATE_SUCCEEDED, Where.GUEST_LOCATION_DESTINATION)
    # The source never said that it gave the guest away, so what it has of the definition stays.
    await lab.assert_only_on("host-b", guest, others=(guest.name,))
    guest.assert_whole()


async def test_a_guest_whose_destination_died_with_its_agent_is_let_go_and_found_where_it_ran(lab: Lab):
    guest, move = await start_slow(lab)
    with frozen(lab.fleet.pid("coordinator")):
        await move.hasten()
        await move.wait_source_phase("HandedOver")
        process = await lab.qemu_pid("host-b")
        await lab.kill("agent-b")
        os.kill(process, signal.SIGKILL)
    with refused("NOT_IN_DOUBT", "ferry migration release"):
        await move.source.FenceMigration(agent_pb.FenceMigrationRequest(migration_id=move.id, peer_is_dead=True))
    await take_advice(lab, move, "host-a", "no coordinator")
    left = await lab.vm("host-a", guest.name)
    await lab.restart("agent-b")
    outcome = await move.outcome()

    assert left.moved_to == "host-b"
    assert outcome.guest_location == Where.GUEST_LOCATION_ENDED_AT_DESTINATION
    assert await lab.vms("host-b") == {guest.name: "CRASHED"}
    assert not lab.qemus()
    await lab.undefine("host-a", guest.name)
    await lab.start_vm("host-b", guest.name)
