"""A guest is moved by post-copy: it goes first, the rest of its memory follows, and nothing ends either half meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from agent.qemu import cut
from common.errors import Unreachable, WrongState
from common.rpc.status import calls_to
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.agent.v1 import vm_pb2
from ferry.common.v1 import post_copy_pb2 as post_copy_pb
from tests.e2e.binaries import emulator_of, machine_of
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import Lab, frozen, refused
from tests.e2e.move import WAYS, Move, State, Where, post_copy
from tests.e2e.tables import cases
from tests.e2e.waiting import until, until_equal

PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
PAIRS_OF_11 = [("7.2", "11.1"), ("11.1", "7.2"), ("10.0", "11.1"), ("11.1", "10.0"), ("11.1", "11.1")]
MEGABYTES = 24


# Enough for the test to look while memory follows.
POST_COPY_MIB_S = 16.0


def plan_of(pair: tuple[str, str], *, dirty_mib_s: float = 40.0) -> Plan:
    """Make a guest that pre-copy alone would not move at the bandwidth of these tests."""
    return Plan(
        emulator=emulator_of(pair), machine=machine_of(pair), megabytes=MEGABYTES, dirty_mib_s=dirty_mib_s, sweeps_per_s=2.0
    )


@cases(
    ("pair", "way", "preempt"),
    ([*PAIRS, *PAIRS_OF_11], ("plain", "psk", "tunnel"), ("", "preempt")),
    {
        (("7.2", "7.2"), "plain", "preempt"),
        (("10.0", "10.0"), "tunnel", "preempt"),
        (("7.2", "10.0"), "psk", ""),
        (("10.0", "7.2"), "psk", "preempt"),
        (("7.2", "7.2"), "tunnel", ""),
        (("7.2", "11.1"), "tunnel", ""),
        (("10.0", "11.1"), "psk", "preempt"),
        (("11.1", "11.1"), "psk", ""),
    },
)
async def test_a_guest_that_writes_faster_than_the_link_is_moved_by_post_copy_whole(pair, way, preempt, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(pair))
    wished = post_copy(bandwidth_mib_s=POST_COPY_MIB_S, preempt=bool(preempt))

    move = await lab.start_move(options=WAYS[way](bandwidth_mib_s=16, post_copy=wished))
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
    assert "Following" in [leg.name for leg in outcome.phases]
    assert outcome.HasField("downtime")
    figures = outcome.progress.figures
    assert figures.HasField("blocktime_ms")
    assert len(figures.vcpu_blocktimes_ms) == 1
    assert figures.postcopy_request_count
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


# Pushes so slowly that a test can act while memory follows.
SLOW_MIB_S = 3.0
# Phases of a source from which all of the memory is gone.
SENT_WHOLE = ("HandedOver", "Retiring", "Retired")


async def start_slow(lab: Lab, guest: Guest, way: str, *, to: str = "host-b", preempt: bool = False) -> Move:
    """Move a guest by post-copy that lasts, and wait until the guest runs on the destination."""
    source = "host-a" if to == "host-b" else "host-b"
    wished = post_copy(bandwidth_mib_s=SLOW_MIB_S, preempt=preempt)
    move = await lab.start_move(guest.name, to, WAYS[way](bandwidth_mib_s=16, post_copy=wished), source=source)
    await move.wait_destination_phase("Filling")
    await move.wait_source(lambda half: half.downtime.HasField("total"), "Resume answered")
    return move


async def hurry(move: Move) -> None:
    """Let the rest of the memory follow without a bound, unless it is there already."""

    async def is_done() -> bool:
        half = await move.wait_source_phase("Following", *SENT_WHOLE, timeout_s=60)
        try:
            if half.phase == "Following":
                with calls_to("the coordinator"):
                    await move.update(bandwidth_mib_s=0)
        except (Unreachable, WrongState):  # a server was away, or it does not follow any more
            return False
        return True

    await until_equal(is_done, wanted=True)


async def assert_moved(lab: Lab, guest: Guest, move: Move, host: str = "host-b") -> None:
    """Fail unless the move succeeds and the guest is whole."""
    await hurry(move)
    outcome = await move.outcome(timeout_s=60)
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on(host, guest)
    guest.assert_whole()


async def test_post_copy_by_command_is_taken_only_if_it_was_allowed(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    allowed = post_copy(post_copy_pb.PostCopy.WHEN_ALLOWED)
    move = await lab.start_move(options=WAYS["psk"](bandwidth_mib_s=16, post_copy=allowed))
    await move.wait_transferring()

    await move.start_postcopy()

    await assert_moved(lab, guest, move)
    back = await lab.start_move(to="host-a", options=WAYS["psk"](bandwidth_mib_s=4))
    await back.wait_transferring()
    with refused("POSTCOPY_NOT_ALLOWED", "--postcopy allowed"):
        await back.start_postcopy()
    await back.cancel()
    await back.outcome()


async def test_in_post_copy_nothing_cancels_the_move_or_ends_either_half(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "psk")
    whole = await move.wait(lambda whole: whole.state == State.STATE_POST_COPY, "post-copy")

    assert whole.guest_location == Where.GUEST_LOCATION_DESTINATION
    with refused("GUEST_SENT", "not possible any more", "host-b"):
        await move.cancel()
    for host in ("host-a", "host-b"):
        for force in (False, True):
            with refused("VM_BUSY", "memory"):
                await lab.agents[host].StopVm(vm_pb2.StopVmRequest(vm=guest.name, force=force))
    with refused("GUEST_RAN_HERE", "not possible any more", "host-b"):
        await move.destination.AbandonMigration(agent_pb.AbandonMigrationRequest(epoch=1, migration_id=move.id))
    with refused("GUEST_NOT_SENT"):
        await move.source.ConfirmMigration(agent_pb.ConfirmMigrationRequest(epoch=1, migration_id=move.id))
    with refused("WRONG_PHASE"):
        await move.destination.FinishMigration(agent_pb.FinishMigrationRequest(epoch=1, migration_id=move.id))
    for agent in (move.source, move.destination):
        with refused("NOT_IN_DOUBT"):
            await agent.FenceMigration(agent_pb.FenceMigrationRequest(migration_id=move.id, peer_is_dead=True))

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("server", ["agent-a", "agent-b", "coordinator"])
async def test_a_server_killed_while_memory_follows_finishes_the_move(server, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "psk")

    await lab.kill(server)
    await guest.console.wait_ticks(5)
    await lab.restart(server)

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("server", ["agent-a", "agent-b", "coordinator"])
async def test_a_server_killed_at_the_moment_of_post_copy_finishes_the_move_or_keeps_the_guest(server, lab: Lab):
    """A guest whose agent is away is not given away, and not to a host whose agent is."""
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await lab.start_move(options=WAYS["psk"](bandwidth_mib_s=16, post_copy=post_copy(bandwidth_mib_s=SLOW_MIB_S)))

    await move.wait_source_phase("Leaving", "Crossing", "Following")
    await lab.kill(server)
    await lab.restart(server)
    half = await move.wait_source_phase("Following", "HandedOver", "Retiring", "Retired", "Kept")

    if half.phase == "Kept":
        assert half.error_reason in {"AGENT_AWAY", "PEER_UNREACHABLE", "PEER_SILENT"}, half.error
        await move.outcome()
        await lab.assert_only_on("host-a", guest)
        await lab.wait_reachable()
        move = await lab.start_move(options=WAYS["psk"](post_copy=post_copy()))
    await assert_moved(lab, guest, move)


@cases(
    ("server", "pair"),
    (("tunnel-a", "tunnel-b"), PAIRS),
    {("tunnel-a", ("7.2", "7.2")), ("tunnel-b", ("10.0", "10.0")), ("tunnel-b", ("10.0", "7.2"))},
)
async def test_a_killed_tunnel_is_waited_for_and_the_rest_of_the_memory_follows(server, pair, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(pair))
    move = await start_slow(lab, guest, "tunnel")

    await lab.kill(server)
    half = await move.wait_source(lambda half: half.phase == "Broken" and half.waiting_for, "a lost connection")
    whole = await move.wait(lambda whole: whole.state == State.STATE_WAITING, "a wait")
    for text in (half.waiting_for, whole.error):
        assert "runs on host-b and waits for memory that is still on host-a" in text
    assert f"ferry migration recover {move.id}" in whole.error
    await lab.restart(server)

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("server", ["agent-a", "agent-b", "coordinator"])
async def test_a_server_killed_while_the_connection_is_lost_finishes_the_move(server, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "tunnel")
    await lab.kill("tunnel-a")
    await move.wait_source_phase("Broken")

    await lab.kill(server)
    await lab.restart(server)
    await lab.restart("tunnel-a")

    await assert_moved(lab, guest, move)


@cases(("pair", "way"), (PAIRS, ("plain", "psk")), {(("7.2", "7.2"), "psk"), (("10.0", "10.0"), "plain"), (("7.2", "10.0"), "psk")})
async def test_a_cut_connection_is_made_anew(pair, way, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(pair))
    move = await start_slow(lab, guest, way)

    cut_migration(await lab.qemu_pid("host-a"))

    await move.wait_source_phase("Broken")
    await assert_moved(lab, guest, move)


@cases(("pair", "way"), (PAIRS[:2], ("psk", "tunnel")), {(("7.2", "7.2"), "tunnel"), (("10.0", "10.0"), "psk")})
async def test_both_connections_of_preempt_are_made_anew_as_often_as_they_are_cut(pair, way, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(pair))
    move = await start_slow(lab, guest, way, preempt=True)

    for _ in range(2):
        if way == "tunnel":
            await lab.kill("tunnel-b")
            await move.wait_source_phase("Broken")
            await lab.restart("tunnel-b")
        else:
            cut_migration(await lab.qemu_pid("host-a"))
            await move.wait_source_phase("Broken")
        await move.wait_source_phase("Following")

    await assert_moved(lab, guest, move)


@pytest.mark.parametrize("pair", [("7.2", "7.2"), ("10.0", "10.0")], ids="-".join)
async def test_a_destination_that_stands_still_when_post_copy_begins_is_waited_for(pair, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(pair))
    allowed = post_copy(post_copy_pb.PostCopy.WHEN_ALLOWED)
    move = await lab.start_move(options=WAYS["plain"](bandwidth_mib_s=4, post_copy=allowed))
    await move.wait_transferring()

    with frozen(await lab.qemu_pid("host-b")):
        await move.start_postcopy()
        await guest.wait_silent(2.5)
        half = await move.at_source()

    if half.phase == "Following":
        await assert_moved(lab, guest, move)
    else:
        outcome = await move.outcome()
        assert outcome.guest_location == Where.GUEST_LOCATION_SOURCE, outcome.error
        await guest.console.wait_sweeps(1)
        guest.assert_whole()


@pytest.mark.parametrize("victim", ["host-a", "host-b"])
async def test_a_qemu_that_dies_in_post_copy_takes_the_guest_along_and_that_is_said(victim, lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "psk")

    os.kill(await lab.qemu_pid(victim), signal.SIGKILL)
    outcome = await move.outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.guest_location == Where.GUEST_LOCATION_NOWHERE
    assert "lost" in outcome.error
    await until(lambda: not lab.qemus(), "no QEMU")
    assert await lab.vms("host-a") == {guest.name: "CRASHED" if victim == "host-a" else "STOPPED"}


async def test_a_lost_connection_is_made_anew_by_hand_without_waiting_longer(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))
    move = await start_slow(lab, guest, "tunnel")
    with refused("NOT_BROKEN", "nothing to recover"):
        await move.recover()
    await lab.kill("tunnel-a")
    await move.wait_source_phase("Broken")
    await guest.wait_silent(6.0)  # the waits between two attempts have grown
    shown = await asyncio.to_thread(lab.fleet.ferry, "migration", "show", move.id)
    assert "waits for the rest of its memory" in shown.stderr
    assert "fence" not in shown.stdout + shown.stderr

    await lab.restart("tunnel-a")
    done = await asyncio.to_thread(lab.fleet.ferry, "migration", "recover", move.id)

    assert done.returncode == 0, done.stderr
    await move.wait_source_phase("Following", "HandedOver", "Retiring", "Retired", timeout_s=3.0)
    await assert_moved(lab, guest, move)


def cut_migration(pid: int) -> None:
    """End a source QEMU's connections over TCP."""
    for one in cut.connections(pid):
        cut.cut(pid, one)


async def test_the_command_shows_post_copy_and_its_trace_has_a_span_of_it(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))

    wished = ("--bandwidth", "16MiB/s", "--postcopy", "after-first-pass", "--postcopy-bandwidth", "12MiB/s")
    done = await asyncio.to_thread(lab.fleet.ferry, "migrate", guest.name, "--to", "host-b", *wished, "-o", "json")
    told = json.loads(done.stdout)
    trace = await asyncio.to_thread(lab.fleet.ferry, "migration", "show", told["id"], "--trace")

    assert done.returncode == 0, done.stderr
    assert "host-a -> host-b  post-copy" in done.stderr
    assert "pages waited for" in done.stderr
    assert 0 < told["downtime"]["total_s"] < 1.0
    assert [leg["name"] for leg in told["downtime"]["legs"]] == ["stop", "device", "resume"]
    assert "migration.postcopy" in trace.stdout
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_move_whose_time_is_over_ends_by_post_copy_where_that_was_wished(lab: Lab):
    guest = await lab.start_guest(plan=plan_of(("7.2", "10.0")))

    wished = ("--bandwidth", "12MiB/s", "--max-duration", "6s", "--on-timeout", "postcopy")
    done = await asyncio.to_thread(lab.fleet.ferry, "migrate", guest.name, "--to", "host-b", *wished, "-o", "json")
    told = json.loads(done.stdout)

    assert done.returncode == 0, done.stderr
    assert told["progress"]["decisions"][-1]["choice"] == "POST_COPY"
    assert "Following" in [leg["name"] for leg in told["phases"]]
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
