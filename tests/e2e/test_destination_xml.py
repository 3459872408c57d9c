"""Domain XML of the user's own for the destination."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict

from ferry.agent.v1 import vm_pb2
from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused


async def test_a_guest_goes_on_with_the_paths_of_the_xml(lab: Lab):
    guest = await lab.start_guest()
    there = lab.directory / "there"
    there.symlink_to(lab.directory, target_is_directory=True)
    xml = domain(Plan(), lab.directory, uuid=guest.uuid).replace(str(lab.directory).encode(), str(there).encode())

    move = await lab.start_move(options=wishes(destination_xml=xml))
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert not outcome.options.destination_domain_xml
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
    shown = (await lab.agents["host-b"].GetVm(vm_pb2.GetVmRequest(vm=guest.name))).vm
    assert str(there) in str(MessageToDict(shown))


async def test_xml_that_changes_the_guest_is_refused(lab: Lab):
    guest = await lab.start_guest()
    xml = domain(Plan(memory_kib=65536, cpu="<cpu mode='custom'><model>Nehalem</model></cpu>"), lab.directory, uuid=guest.uuid)

    await assert_refused(lab, guest, "GUEST_ABI_DIFFERS", "memory (KiB)", "Nehalem in the XML", options=wishes(destination_xml=xml))
    await assert_refused(lab, guest, "XML_BROKEN", "--xml", options=wishes(destination_xml=b"<domain>"))
