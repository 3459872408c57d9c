"""What each host keeps of a VM after its guest has moved."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ferry.agent.v1 import control_pb2, vm_pb2
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import RUNNING, STOPPED, Lab, refused
from tests.e2e.move import State, wishes
from tests.guests.console import Console

SLOW_MIB_S = 2.0
KEEP, UNDEFINE = modes_pb.SOURCE_DEFINITION_KEEP, modes_pb.SOURCE_DEFINITION_UNDEFINE
TRANSIENT, PERSISTENT = modes_pb.PERSISTENCE_TRANSIENT, modes_pb.PERSISTENCE_PERSISTENT


async def move(lab: Lab, to: str = "host-b", *, name: str = "", **modes: object) -> list[str]:
    """Move the guest; return the warnings."""
    options = wishes(modes=modes_pb.Modes(**modes), destination_name=name)  # type: ignore[arg-type]
    outcome = await (await lab.start_move(to=to, options=options)).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    return list(outcome.warnings)


async def start_transient(lab: Lab) -> Guest:
    uuid = uuid4()
    request = control_pb2.CreateVmRequest(domain_xml=domain(Plan(), lab.directory, uuid=uuid))
    await lab.agents["host-a"].CreateVm(request)
    return await lab.listen(Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory))


async def set_autostart(lab: Lab, host: str) -> None:
    await lab.agents[host].SetVm(control_pb2.SetVmRequest(vm="web", autostart=True))


async def test_a_transient_vm_stays_transient(lab: Lab):
    guest = await start_transient(lab)

    await move(lab)

    await lab.assert_only_on("host-b", guest, is_persistent=False)
    guest.assert_whole()


async def test_a_transient_vm_is_stored_where_that_is_wished(lab: Lab):
    guest = await start_transient(lab)

    await move(lab, persistence=PERSISTENT)

    await lab.assert_only_on("host-b", guest)


async def test_with_transient_the_definition_stays_on_the_source_and_does_not_start_there(lab: Lab):
    guest = await lab.start_guest()
    await set_autostart(lab, "host-a")

    await move(lab, persistence=TRANSIENT)

    kept = await lab.vm("host-a", "web")
    assert (kept.moved_to, kept.autostart, kept.pid) == ("host-b", False, 0)
    with refused("VM_MOVED_AWAY", "web", "host-b", "--force"):
        await lab.start_vm("host-a", "web")
    await lab.kill("agent-a")
    await lab.restart("agent-a")
    await lab.wait_reachable()
    with refused("VM_MOVED_AWAY", "web", "host-b"):
        await lab.start_vm("host-a", "web")
    assert not (await lab.vm("host-b", "web")).is_persistent
    await guest.console.wait_sweeps(1)
    guest.assert_whole()


async def test_a_guest_comes_back_to_the_definition_that_had_stayed(lab: Lab):
    guest = await lab.start_guest()
    await move(lab, source_definition=KEEP)
    assert (await lab.vms("host-a"), await lab.vms("host-b")) == ({"web": STOPPED}, {"web": RUNNING})

    slow = await lab.start_move(to="host-a", options=wishes(bandwidth_mib_s=SLOW_MIB_S))
    await slow.wait_transferring()
    await slow.cancel()
    assert (await slow.outcome()).state == State.STATE_CANCELLED
    await lab.assert_only_on("host-b", guest, others=("web",))
    assert (await lab.vm("host-a", "web")).moved_to == "host-b"

    await move(lab, "host-a")

    await lab.assert_only_on("host-a", guest)
    assert not (await lab.vm("host-a", "web")).moved_to
    guest.assert_whole()


async def test_a_definition_that_had_stayed_starts_once_it_is_defined_anew(lab: Lab):
    guest = await lab.start_guest()
    await move(lab, persistence=TRANSIENT)
    await lab.agents["host-b"].StopVm(vm_pb2.StopVmRequest(vm="web", force=True))
    await lab.wait_empty("host-b")

    await lab.define("host-a", domain(Plan(), lab.directory, uuid=guest.uuid))

    assert (await lab.start_vm("host-a", "web")).pid


async def test_a_definition_that_had_stayed_starts_on_the_word_that_its_guest_is_gone(lab: Lab):
    guest = await lab.start_guest()
    await move(lab, persistence=TRANSIENT)
    await lab.agents["host-b"].StopVm(vm_pb2.StopVmRequest(vm="web", force=True))

    with refused("VM_NOT_RUNNING", "web", "host-a"):
        await lab.start_move(to="host-b")
    await lab.agents["host-a"].StartVm(vm_pb2.StartVmRequest(vm="web", force=True))

    await lab.assert_only_on("host-a", guest)
    assert not (await lab.vm("host-a", "web")).moved_to


async def test_with_undefine_and_transient_nothing_is_stored_and_that_is_told(lab: Lab):
    guest = await lab.start_guest()

    warnings = await move(lab, persistence=TRANSIENT, source_definition=UNDEFINE)

    assert any("no host keeps the definition" in warning for warning in warnings)
    await lab.assert_only_on("host-b", guest, is_persistent=False)


@pytest.mark.parametrize("name", ["", "shop"])
async def test_a_stored_definition_that_differs_from_what_runs_goes_along(name: str, lab: Lab):
    guest = await lab.start_guest()
    await lab.define("host-a", domain(Plan(memory_kib=65536), lab.directory, uuid=guest.uuid))
    await set_autostart(lab, "host-a")

    await move(lab, name=name)

    there = await lab.vm("host-b", name or "web")
    assert (there.is_persistent, there.definition_differs, there.autostart) == (True, True, True)
    assert there.memory_bytes != 64 << 20
    await lab.agents["host-b"].StopVm(vm_pb2.StopVmRequest(vm=there.name, force=True))
    assert (await lab.start_vm("host-b", there.name)).memory_bytes == 64 << 20
    await lab.wait_empty("host-a")
