"""The definition of a stopped VM moves to another host."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from ferry.agent.v1 import control_pb2, vm_pb2
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import STOPPED, Lab, refused
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.steps import Steps
from tests.e2e.tables import cases, one_each
from tests.e2e.test_plan import ferry
from tests.guests.console import Console

OFFLINE = wishes(modes=modes_pb.Modes(offline=True))
SERVERS = ("agent-a", "agent-b", "coordinator")
PAUSES_S = (0.0, 0.03, 0.06, 0.1)
KEEP = modes_pb.SOURCE_DEFINITION_KEEP


async def define(lab: Lab, host: str = "host-a") -> Guest:
    uuid = uuid4()
    await lab.define(host, domain(Plan(), lab.directory, uuid=uuid))
    return Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory)


@pytest.mark.parametrize("name", ["", "shop"])
async def test_a_stopped_vm_moves_and_starts_there(name: str, lab: Lab):
    guest = await define(lab)
    await lab.agents["host-a"].SetVm(control_pb2.SetVmRequest(vm="web", autostart=True))

    options = wishes(modes=modes_pb.Modes(offline=True), destination_name=name)
    outcome = await (await lab.start_move(options=options)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert not outcome.HasField("downtime")
    there = await lab.vm("host-b", name or "web")
    assert (there.uuid, there.is_persistent, there.autostart, there.pid) == (str(guest.uuid), True, True, 0)
    await lab.wait_empty("host-a")
    await lab.start_vm("host-b", there.name)
    await lab.listen(guest)


async def test_a_definition_may_stay_on_the_source_and_is_taken_back(lab: Lab):
    guest = await define(lab)
    options = wishes(modes=modes_pb.Modes(offline=True, source_definition=KEEP))

    await (await lab.start_move(options=options)).outcome()
    kept = await lab.vm("host-a", "web")
    with refused("VM_MOVED_AWAY", "host-b"):
        await lab.start_vm("host-a", "web")
    back = await (await lab.start_move(to="host-a", options=OFFLINE)).outcome()

    assert kept.moved_to == "host-b"
    assert back.state == State.STATE_SUCCEEDED, back.error
    await lab.assert_only_on("host-a", guest, STOPPED)
    await lab.start_vm("host-a", "web")


async def test_a_running_vm_is_refused(lab: Lab):
    guest = await lab.start_guest()

    await assert_refused(lab, guest, "VM_RUNNING", "web", "--offline", options=OFFLINE)


async def test_a_saved_guest_is_not_left_behind(lab: Lab):
    guest = await define(lab)
    saved = lab.fleet.directory / "host-a" / "vms" / str(guest.uuid) / "guest.save"
    saved.write_bytes(b"x")

    try:
        await assert_refused(lab, guest, "SAVED_GUEST_KEPT", "web", "discard-saved", options=OFFLINE, state=STOPPED)
    finally:
        saved.unlink()


async def test_a_name_that_is_taken_there_is_refused(lab: Lab):
    guest = await define(lab)
    await lab.define("host-b", domain(Plan(), lab.directory))

    await assert_refused(lab, guest, "VM_EXISTS", "web", options=OFFLINE, state=STOPPED, others=("web",))


async def test_an_image_that_is_not_there_is_refused(lab: Lab):
    here = lab.directory / "here"
    here.mkdir()
    uuid = uuid4()
    xml = domain(Plan(), here, uuid=uuid)
    await lab.define("host-a", xml)
    guest = Guest("web", uuid, Console(here / "serial.log"), here)
    for image in here.glob("*"):
        image.unlink()

    await assert_refused(lab, guest, "FILE_MISSING", "does not exist", options=OFFLINE, state=STOPPED)


@cases(("server", "pause_s"), (SERVERS, PAUSES_S), [*one_each(SERVERS, PAUSES_S[::2]), *one_each(SERVERS, PAUSES_S[::-2])])
async def test_a_server_that_is_killed_on_the_way_loses_no_definition(server: str, pause_s: float, lab: Lab):
    guest = await define(lab)

    move = await lab.start_move(options=OFFLINE)
    await asyncio.sleep(pause_s)
    await lab.kill(server)
    await lab.restart(server)
    await lab.wait_reachable()
    outcome = await move.outcome()

    there = "host-b" if outcome.state == State.STATE_SUCCEEDED else "host-a"
    await lab.assert_only_on(there, guest, STOPPED)


async def test_a_destination_that_is_killed_with_the_definition_in_hand_takes_it_all_the_same(lab: Lab):
    guest = await define(lab)
    steps = Steps(lab, OFFLINE)
    await steps.begin_and_prepare()
    await lab.kill("agent-b")
    await lab.restart("agent-b")

    half = await steps.perform()
    await lab.kill("agent-b")
    await lab.restart("agent-b")
    await steps.finish_and_confirm()

    assert half.phase == "HandedOver"
    await lab.assert_only_on("host-b", guest, STOPPED)


async def test_a_cancel_before_it_is_given_away_leaves_it_at_the_source(lab: Lab):
    guest = await define(lab)
    steps = Steps(lab, OFFLINE)
    await steps.begin_and_prepare()
    with refused("VM_BUSY", "web"):
        await lab.start_vm("host-a", "web")
    with refused("VM_BUSY", "web"):
        await lab.agents["host-a"].UndefineVm(vm_pb2.UndefineVmRequest(vm="web"))

    await steps.give_up()

    await lab.assert_only_on("host-a", guest, STOPPED)
    await lab.start_vm("host-a", "web")


async def test_a_plan_says_what_stands_in_the_way_and_changes_nothing(lab: Lab):
    guest = await define(lab)

    free, _, nothing = await ferry(lab, "plan", "web", "--to", "host-b", "--offline")
    await lab.define("host-b", domain(Plan(), lab.directory))
    taken, said, told = await ferry(lab, "migrate", "web", "--from", "host-a", "--to", "host-b", "--offline", "--dry-run")

    assert (free, taken) == (0, 1), told
    assert "nothing stands in the way" in nothing
    assert "VM_EXISTS" in said, told
    await lab.assert_only_on("host-a", guest, STOPPED, others=("web",))
