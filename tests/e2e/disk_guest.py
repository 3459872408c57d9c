"""A disk guest for the end-to-end tests: its domain XML, its images, and the write check over them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from tests.e2e.guest import MACHINE, Guest
from tests.e2e.lab import STOPPED, Lab
from tests.e2e.letters import POWER_OFF, tell
from tests.e2e.waiting import until_equal
from tests.guests.disk import LEFT_ALONE, Area, DiskGuest, build, create_image
from tests.guests.disk_check import acknowledged, assert_image, flushed
from tests.guests.disk_console import DiskConsole

QUIET, GO_ON = "q", "g"
_MIB = 1 << 20
_COM2 = '<serial type="unix"><target port="1"/></serial>'
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk that the guest writes to.

    Attributes:
        size_mib: what the guest sees.
        kind: `qcow2` or `raw`.
        area: where it writes and how much.
        options: of the format, for qemu-img.
        path: an image, or device, that exists; a new one in the test's directory when None.
        driver: attributes of `<driver>`.
        inside: more elements of `<disk>`.
    """

    size_mib: int = 64
    kind: str = "qcow2"
    area: Area = Area()  # noqa: RUF009 - frozen
    options: str = ""
    path: Path | None = None
    driver: str = ""
    inside: str = ""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What a disk guest is made of.

    Attributes:
        emulator: path of its QEMU; empty for each host's own.
        disks: those that it writes to.
        boots_apart: from a small raw disk `vda` before them; else from the first of them.
        memory_mib: memory that carries a pattern.
        dirty_mib_s: MiB of it rewritten each second.
        period_ms: time between two lines.
        may_fail: errors that the guest gets from its disks are no complaint.
        inside: more devices.
        beside: more elements beside the devices.
    """

    name: str = "web"
    emulator: str = ""
    machine: str = MACHINE
    disks: tuple[Disk, ...] = (Disk(),)
    boots_apart: bool = True
    memory_mib: int = 4
    dirty_mib_s: float = 2.0
    period_ms: float = 20.0
    may_fail: bool = False
    inside: str = ""
    beside: str = ""

    @property
    def guest(self) -> DiskGuest:
        """What runs in it."""
        areas = tuple(disk.area for disk in self.disks)
        return DiskGuest(
            areas=(LEFT_ALONE, *areas) if self.boots_apart else areas,
            period_ms=self.period_ms,
            memory_mib=self.memory_mib,
            dirty_mib_s=self.dirty_mib_s,
        )

    def index(self, target: str) -> int:
        """Return the guest's index of a disk by its name in the definition, such as `vdb`."""
        return _LETTERS.index(target[-1])


@dataclass(frozen=True, slots=True)
class WritingGuest(Guest):
    """A disk guest that was started for a test."""

    console: DiskConsole
    plan: DiskPlan
    images: dict[str, Path]
    """By target: the image that each disk it writes to began with."""

    def renamed(self, name: str) -> WritingGuest:
        """Return the same guest under the name that it has on its new host."""
        return replace(self, name=name)

    def assert_disk(self, target: str, path: Path | str | None = None, *, kind: str = "", is_final: bool = False) -> None:
        """Fail unless an image, its first one if not said, holds every write that was acknowledged to the guest.

        Nothing may be writing it: QEMU is gone, or the guest is quiet, which `is_final` says.
        """
        index, disk = self._disk(target)
        wanted = acknowledged(self.console.last(index), disk.area, is_final=is_final)
        assert_image(path or self.images[target], wanted, kind=kind or disk.kind, in_use=is_final)

    def assert_flushed(self, target: str, path: Path | str | None = None, *, kind: str = "") -> None:
        """Fail unless an image holds every write that was flushed: all that must outlive a QEMU that was killed."""
        index, disk = self._disk(target)
        assert_image(path or self.images[target], flushed(self.console.last(index), disk.area), kind=kind or disk.kind)

    def _disk(self, target: str) -> tuple[int, Disk]:
        index = self.plan.index(target)
        return index, self.plan.disks[index - self.plan.boots_apart]


def disk_domain(plan: DiskPlan, directory: Path, *, uuid: UUID | None = None) -> tuple[bytes, dict[str, Path]]:
    """Write the domain XML of a disk guest, and its images; they lie in `directory`, as its serial line does.

    Returns:
        The XML, and by target the image of each disk that it writes to.
    """
    images: dict[str, Path] = {}
    disks = [_disk("vda", build(plan.guest, directory), Disk(kind="raw"))] if plan.boots_apart else []
    for disk in plan.disks:
        target = f"vd{_LETTERS[len(disks)]}"
        boots = None if disks else plan.guest
        path = disk.path or create_image(
            directory / f"{target}.{disk.kind}", disk.size_mib * _MIB, kind=disk.kind, boots=boots, options=disk.options
        )
        images[target] = path
        disks.append(_disk(target, path, disk))
    emulator = f"<emulator>{plan.emulator}</emulator>" if plan.emulator else ""
    xml = f"""
        <domain type="qemu">
          <name>{plan.name}</name>
          <uuid>{uuid or uuid4()}</uuid>
          <memory unit="KiB">{plan.guest.memory_kib}</memory>
          <vcpu>1</vcpu>
          <os><type arch="x86_64" machine="{plan.machine}">hvm</type></os>
          <features><acpi/></features>
          {plan.beside}
          <devices>
            {emulator}
            {"".join(disks)}
            <serial type="file"><source path="{directory}/serial.log" append="on"/><target port="0"/></serial>
            {_COM2}
            {plan.inside}
          </devices>
        </domain>"""
    return xml.encode(), images


async def start_disk_guest(lab: Lab, plan: DiskPlan | None = None, *, host: str = "host-a") -> WritingGuest:
    """Define and start a disk guest, and wait until a write to each of its disks was acknowledged."""
    plan = plan or DiskPlan()
    uuid = uuid4()
    xml, images = disk_domain(plan, lab.directory, uuid=uuid)
    await lab.define(host, xml)
    await lab.start_vm(host, plan.name)
    console = DiskConsole(lab.directory / "serial.log", may_fail=plan.may_fail)
    guest = WritingGuest(plan.name, uuid, console, lab.directory, plan, images)
    await lab.listen(guest)
    for target in images:
        await console.wait_written(disk=plan.index(target))
    return guest


async def make_quiet(lab: Lab, guest: WritingGuest, host: str) -> None:
    """Let the guest finish its writes, flush, and begin no more."""
    count = guest.console.disks.quiet_count + 1
    await tell(lab, host, QUIET, guest.name)
    await guest.console.wait_quiet(count=count)


async def leave(lab: Lab, guest: WritingGuest, host: str) -> None:
    """Let the guest finish its writes, flush, and power off; its images are then free."""
    count = guest.console.disks.quiet_count + 1
    await tell(lab, host, POWER_OFF, guest.name)
    await guest.console.wait_quiet(count=count)
    await until_equal(lambda: _state(lab, host, guest.name), STOPPED)


async def _state(lab: Lab, host: str, name: str) -> str:
    return (await lab.vms(host))[name]


def _disk(target: str, path: Path, disk: Disk) -> str:
    kind, source = ("block", "dev") if path.is_block_device() else ("file", "file")
    return f"""
            <disk type="{kind}" device="disk">
              <driver name="qemu" type="{disk.kind}" {disk.driver}/>
              <source {source}="{path}"/>
              <target dev="{target}" bus="virtio"/>
              {disk.inside}
            </disk>"""
