"""The guests of the end-to-end tests: domain XML for a tick guest, and a running one with its console."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from agent.qemu.threads import find_threads
from tests.e2e.waiting import until
from tests.guests import tick
from tests.guests.console import Console

MACHINE = "pc-q35-7.2"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a guest is made of.

    Attributes:
        emulator: path of its QEMU; empty for each host's own.
        megabytes: MiB that carry its pattern.
        dirty_mib_s: MiB that it rewrites each second.
        sweeps_per_s: how often it checks all of its pattern each second.
        period_ms: time between two ticks, at which it writes.
        memory_kib: its memory; what the pattern needs when None.
        bus: what its disk is on.
        inside: more devices.
        beside: more elements beside the devices.
    """

    name: str = "web"
    emulator: str = ""
    machine: str = MACHINE
    megabytes: int = 4
    dirty_mib_s: float = 2.0
    sweeps_per_s: float = 4.0
    period_ms: float = 10.0
    memory_kib: int | None = None
    cpu: str = ""
    inside: str = ""
    beside: str = ""
    bus: str = "virtio"


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that was started for a test."""

    name: str
    uuid: UUID
    console: Console
    directory: Path

    async def wait_silent(self, for_s: float) -> None:
        """Wait until the guest has stood still for this long."""
        await until(lambda: time.monotonic() - self.console.ticks[-1].arrived_at_s > for_s, "a guest that stands still")

    async def wait_stopped(self, qemu_pid: int, for_s: float) -> None:
        """Wait until the guest has stood still for this long because QEMU has stopped it, not because the host gives it no CPU."""
        calm_since_s = time.monotonic()

        def is_stopped() -> bool:
            nonlocal calm_since_s
            if any(thread.state != "S" for thread in find_threads(qemu_pid)):
                calm_since_s = time.monotonic()
            return time.monotonic() - max(calm_since_s, self.console.ticks[-1].arrived_at_s) > for_s

        await until(is_stopped, "a guest that is stopped")

    def assert_whole(self) -> None:
        """Fail unless there was only ever one running copy, whose memory and counter are whole."""
        self.console.assert_continuous()

    def assert_no_gap(self, longest_s: float, since_s: float) -> None:
        """Fail if the guest stood still for longer, from `since_s` of `time.monotonic()` until now."""
        gap_s = self.console.max_gap_s(since_s, time.monotonic())
        assert gap_s <= longest_s, f"the guest stood still for {gap_s:.2f} s"


def domain(plan: Plan, directory: Path, *, uuid: UUID | None = None) -> bytes:
    """Write the domain XML of a tick guest, and its disk image; both serial line and image lie in `directory`."""
    image = tick.build(
        plan.megabytes, plan.dirty_mib_s, plan.period_ms, verify_mib_s=plan.sweeps_per_s * plan.megabytes, directory=directory
    )
    emulator = f"<emulator>{plan.emulator}</emulator>" if plan.emulator else ""
    memory_kib = plan.memory_kib or tick.memory_kib(plan.megabytes)
    return f"""
        <domain type="qemu">
          <name>{plan.name}</name>
          <uuid>{uuid or uuid4()}</uuid>
          <memory unit="KiB">{memory_kib}</memory>
          <vcpu>1</vcpu>
          {plan.cpu}
          <os><type arch="x86_64" machine="{plan.machine}">hvm</type></os>
          <features><acpi/></features>
          {plan.beside}
          <devices>
            {emulator}
            <disk type="file" device="disk">
              <driver name="qemu" type="raw"/>
              <source file="{image}"/>
              <target dev="{"vda" if plan.bus == "virtio" else "hda"}" bus="{plan.bus}"/>
            </disk>
            <serial type="file"><source path="{directory}/serial.log" append="on"/><target port="0"/></serial>
            {plan.inside}
          </devices>
        </domain>""".encode()
