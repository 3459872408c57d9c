"""Displays that listen on the host go along, each on a port that is free there."""

from __future__ import annotations

import re

from ferry.agent.v1 import vm_pb2
from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import State

SPICE = """
<graphics type='spice' autoport='yes'/><video><model type='qxl'/></video><sound model='ich9'/>
<channel type='spicevmc'><target type='virtio'/></channel>
<controller type='usb' model='qemu-xhci'/><redirdev bus='usb' type='spicevmc'/>
"""


async def test_a_guest_with_a_display_of_type_spice_moves_whole(lab: Lab):
    guest = await lab.start_guest(plan=Plan(emulator=require("7.2"), inside=SPICE))
    before = await _port(lab, "host-a", guest.name)

    move = await lab.start_move()
    outcome = await move.outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
    assert await _port(lab, "host-b", guest.name) > before >= 5900


async def _port(lab: Lab, host: str, name: str) -> int:
    shown = (await lab.agents[host].GetVm(vm_pb2.GetVmRequest(vm=name))).vm
    found = re.search(r"port=(\d+),addr=127\.0\.0\.1", " ".join(shown.argv))
    assert found is not None, shown.argv
    return int(found[1])
