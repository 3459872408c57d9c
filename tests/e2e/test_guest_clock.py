"""A guest's clock after a move, by the real agent inside a Linux guest."""

from __future__ import annotations

import asyncio
import json
import time
from uuid import uuid4

import pytest

from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.guest import Guest
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.guests import linux
from tests.guests.console import Console

BOOT_TIMEOUT_S = 60.0
SLOW_MIB_S = 16.0
STOOD_STILL_S = 1.0
CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
Clock = modes_pb.ClockSync
_NS = 1_000_000_000


def domain(lab: Lab, uuid: object, devices: str, *, words: str = "") -> bytes:
    """Write the domain XML of a Linux guest with a guest agent."""
    line = linux.command_line(dirty_mib=16, rate_mib_s=1.0, period_ms=20.0)
    return f"""
        <domain type="qemu">
          <name>linux</name>
          <uuid>{uuid}</uuid>
          <memory unit="KiB">{linux.MEMORY_KIB}</memory>
          <vcpu>1</vcpu>
          <os>
            <type arch="x86_64" machine="pc-q35-7.2">hvm</type>
            <kernel>{linux.KERNEL}</kernel>
            <initrd>{linux.build(with_agent=True)}</initrd>
            <cmdline>{line} {words}</cmdline>
          </os>
          <features><acpi/></features>
          <devices>
            <serial type="file"><source path="{lab.directory}/serial.log" append="on"/><target port="0"/></serial>
            {devices}
          </devices>
        </domain>""".encode()


async def start(lab: Lab, devices: str) -> Guest:
    if not linux.GUEST_AGENT.exists():
        pytest.fail(f"no guest agent at {linux.GUEST_AGENT}; `make setup` puts it there", pytrace=False)
    uuid = uuid4()
    await lab.define("host-a", domain(lab, uuid, devices))
    await lab.start_vm("host-a", "linux")
    return await lab.listen(Guest("linux", uuid, Console(lab.directory / "serial.log"), lab.directory), boot_s=BOOT_TIMEOUT_S)


async def behind_s(lab: Lab, host: str) -> float:
    """Ask the guest's agent how far the guest's clock is behind ours."""
    socket = (await lab.vm(host, "linux")).files["channel0"]
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(b'{"execute": "guest-get-time"}\n')
        async with asyncio.timeout(BOOT_TIMEOUT_S):
            return time.time() - int(json.loads(await reader.readline())["return"]) / _NS
    finally:
        writer.close()


async def move(lab: Lab, to: str, *, pause: bool = False, leave_clock: bool = False) -> modes_pb.Arrival:
    """Move the guest, with `pause` so that its clock stays behind."""
    options = wishes(
        modes=modes_pb.Modes(leave_clock=leave_clock), plain=True, pause=pause, bandwidth_mib_s=SLOW_MIB_S if pause else 0
    )
    outcome = await (await lab.start_move("linux", to, options)).outcome(timeout_s=BOOT_TIMEOUT_S)
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    return outcome.progress.arrival


@pytest.mark.linux
@pytest.mark.timeout(150)
async def test_a_clock_that_stayed_behind_is_set_and_a_right_one_is_left_alone(lab: Lab):
    guest = await start(lab, CHANNEL)
    await behind_s(lab, "host-a")  # the agent is up

    left = await move(lab, "host-b", pause=True, leave_clock=True)
    was_behind_s = await behind_s(lab, "host-b")
    there = await move(lab, "host-a")
    is_behind_s = await behind_s(lab, "host-a")
    back = await move(lab, "host-b")

    assert left.clock.outcome == Clock.OUTCOME_UNSPECIFIED
    assert was_behind_s > STOOD_STILL_S
    assert there.clock.outcome == Clock.OUTCOME_SET, there
    assert there.clock.behind.ToTimedelta().total_seconds() == pytest.approx(was_behind_s, abs=0.5)
    assert abs(is_behind_s) < 0.2
    assert back.clock.outcome == Clock.OUTCOME_RIGHT, back
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.linux
@pytest.mark.timeout(150)
async def test_a_guest_whose_agent_does_not_listen_is_moved_all_the_same(lab: Lab):
    other = "<channel type='unix'><target type='virtio' name='org.example.first'/></channel>"  # the agent listens on the first line
    guest = await start(lab, other + CHANNEL)

    arrival = await move(lab, "host-b")

    assert arrival.clock.outcome == Clock.OUTCOME_NO_AGENT
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
