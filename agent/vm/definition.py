"""What a guest is to see and which files of the host stand behind it.

A definition is made by the XML front end, travels to other hosts and rests in records, always with the same rules:
each type refuses in `__post_init__` what cannot be. `pin` in `addresses` completes it (versioned machine type, PCI
addresses); from a pinned definition every host builds a QEMU that the guest cannot tell from the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from agent.vm import rules
from agent.vm.devices import Balloon, Chardev, Console, Disk, Interface, PciAddress, Rng, Serial
from common.codec import BadRecord, decode, encode_fields
from common.errors import InvalidRequest

RECORD_VERSION = 1
MAX_MEMORY_KIB = 1 << 40
MAX_VCPU_COUNT = 1024


class Accelerator(Enum):
    """How QEMU runs the guest's code."""

    KVM = "kvm"
    TCG = "tcg"


class CpuMode(Enum):
    """Where the guest's CPU comes from, in libvirt's words."""

    CUSTOM = "custom"
    HOST_MODEL = "host-model"
    HOST_PASSTHROUGH = "host-passthrough"
    MAXIMUM = "maximum"


class ClockBase(Enum):
    """What the guest's hardware clock shows when it starts."""

    UTC = "utc"
    LOCALTIME = "localtime"


@dataclass(frozen=True, slots=True)
class CpuFeature:
    """One CPU feature, by QEMU's name, switched on or off against the model."""

    name: str
    is_on: bool

    def __post_init__(self) -> None:
        """Refuse what is not a word."""
        rules.check_word(self.name, "CPU feature")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPU that the guest sees.

    `model` is set in mode CUSTOM and in no other. With `is_enforced` QEMU does not start when the host lacks a
    feature of the model. `is_migratable` is QEMU's switch of that name, None for its default.
    """

    mode: CpuMode
    model: str | None
    features: tuple[CpuFeature, ...]
    is_enforced: bool
    is_migratable: bool | None

    def __post_init__(self) -> None:
        """Refuse a mode with the wrong parts."""
        if (self.model is not None) is not (self.mode is CpuMode.CUSTOM):
            raise InvalidRequest(f"CPU mode {self.mode.value} with model {self.model}", reason="VALUE_INVALID")
        if self.model is not None:
            rules.check_word(self.model, "CPU model")
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise InvalidRequest("a CPU feature is given twice", reason="VALUE_INVALID")


# The default of the pc and q35 machines. Source: hw/i386/x86.c, x86_machine_class_init.
DEFAULT_CPU = Cpu(mode=CpuMode.CUSTOM, model="qemu64", features=(), is_enforced=False, is_migratable=None)


@dataclass(frozen=True, slots=True)
class Topology:
    """How the vCPUs are arranged; the product is their number."""

    socket_count: int
    die_count: int
    core_count: int
    thread_count: int

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be."""
        for count in (self.socket_count, self.die_count, self.core_count, self.thread_count):
            rules.check_range(count, 1, MAX_VCPU_COUNT, "CPU topology")

    @property
    def vcpu_count(self) -> int:
        """Multiply the levels."""
        return self.socket_count * self.die_count * self.core_count * self.thread_count


@dataclass(frozen=True, slots=True)
class Features:
    """Switches of the board; None leaves QEMU's default for the machine type."""

    acpi: bool
    hpet: bool | None
    pmu: bool | None
    smm: bool | None
    vmport: bool | None
    suspend_to_memory: bool | None
    suspend_to_disk: bool | None


@dataclass(frozen=True, slots=True)
class Clock:
    """The guest's clocks.

    `rtc_catches_up` and `pit_delays_ticks` say what happens to missed ticks; None is QEMU's default.
    """

    base: ClockBase
    rtc_catches_up: bool | None
    pit_delays_ticks: bool | None


@dataclass(frozen=True, slots=True)
class Boot:
    """What the guest starts from; paths are of the host.

    `firmware` is a ROM image instead of QEMU's BIOS. `ends_at_reboot` makes a guest's reboot end its QEMU.
    """

    kernel: str | None
    initrd: str | None
    cmdline: str | None
    firmware: str | None
    ends_at_reboot: bool

    def __post_init__(self) -> None:
        """Refuse bad paths, and parts of a kernel without the kernel."""
        for path in (self.kernel, self.initrd, self.firmware):
            if path is not None:
                rules.check_path(path)
        if self.cmdline is not None:
            rules.check_command_line(self.cmdline)
        if self.kernel is None and (self.initrd is not None or self.cmdline is not None):
            raise InvalidRequest("an initrd or a command line needs a kernel", reason="VALUE_INVALID")
        if self.initrd is not None and "," in self.initrd:
            # A multiboot kernel's `-initrd` is a list with commas: the rest of the path would be another file.
            raise InvalidRequest(f"initrd {self.initrd!r}: commas are refused", reason="VALUE_INVALID")


@dataclass(frozen=True, slots=True)
class Definition:
    """One VM.

    `prefers_kvm` is the wish; `accelerator` is what a running guest was started with, so that its destination uses
    the same, and is None in the definition of a stopped VM. `emulator` is None for the host's own QEMU.
    """

    name: str
    uuid: UUID
    memory_kib: int
    current_memory_kib: int
    vcpu_count: int
    topology: Topology | None
    cpu: Cpu
    machine: str
    prefers_kvm: bool
    accelerator: Accelerator | None
    emulator: str | None
    boot: Boot
    features: Features
    clock: Clock
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    serials: tuple[Serial, ...]
    consoles: tuple[Console, ...]
    virtio_serial_address: PciAddress | None
    rngs: tuple[Rng, ...]
    balloon: Balloon | None

    def __post_init__(self) -> None:
        """Refuse numbers out of range and devices that collide."""
        rules.check_name(self.name)
        rules.check_word(self.machine, "machine type")
        if self.emulator is not None:
            rules.check_path(self.emulator)
        rules.check_range(self.memory_kib, 1024, MAX_MEMORY_KIB, "memory in KiB")
        rules.check_range(self.current_memory_kib, 1024, self.memory_kib, "current memory in KiB")
        rules.check_range(self.vcpu_count, 1, MAX_VCPU_COUNT, "vCPU count")
        if self.topology is not None and self.topology.vcpu_count != self.vcpu_count:
            raise InvalidRequest(
                f"the CPU topology has {self.topology.vcpu_count} CPUs, the VM {self.vcpu_count}",
                reason="VALUE_INVALID",
            )
        if self.balloon is None and self.current_memory_kib != self.memory_kib:
            raise InvalidRequest("current memory below memory needs a balloon", reason="VALUE_INVALID")
        self._refuse_doubles()

    def _refuse_doubles(self) -> None:
        boot_indexes = [*(disk.boot_index for disk in self.disks), *(card.boot_index for card in self.interfaces)]
        _refuse_double("disk target", [disk.target for disk in self.disks])
        _refuse_double("MAC address", [interface.mac for interface in self.interfaces])
        _refuse_double("serial port", [str(serial.port) for serial in self.serials])
        _refuse_double("boot order", [str(index) for index in boot_indexes if index is not None])
        _refuse_double("PCI address", [str(address) for address in self.pci_addresses() if address is not None])

    def pci_addresses(self) -> list[PciAddress | None]:
        """List the address of each PCI device; None where it has none yet."""
        return [
            *(interface.address for interface in self.interfaces),
            *([self.virtio_serial_address] if self.consoles else []),
            *(disk.address for disk in self.disks),
            *([self.balloon.address] if self.balloon is not None else []),
            *(rng.address for rng in self.rngs),
        ]

    def chardevs(self) -> dict[str, Chardev]:
        """Name the host's ends of serial lines and consoles."""
        serials = {f"serial{serial.port}": serial.chardev for serial in self.serials}
        return serials | {f"console{index}": console.chardev for index, console in enumerate(self.consoles)}

    def files(self) -> tuple[tuple[str, str, bool], ...]:
        """List the files that must be there before a start: what for, path, whether it is written."""
        boot = (("kernel", self.boot.kernel), ("initrd", self.boot.initrd), ("firmware", self.boot.firmware))
        return (
            *((what, path, False) for what, path in boot if path is not None),
            *((f"disk {disk.target}", disk.path, not disk.is_read_only) for disk in self.disks),
        )

    def to_record(self) -> dict[str, object]:
        """Turn into a JSON object that `from_record` takes."""
        return {"version": RECORD_VERSION, **encode_fields(self)}

    @classmethod
    def from_record(cls, record: object) -> Definition:
        """Build from what `to_record` gave, here or on another host.

        Raises:
            InvalidRequest: it is not such a record, or of a version unknown here.
        """
        if not isinstance(record, dict) or "version" not in record:
            raise BadRecord("a definition has to be a versioned object")
        fields = dict(record)
        if (version := fields.pop("version")) != RECORD_VERSION:
            raise BadRecord(f"definition of version {version!r}: this agent knows {RECORD_VERSION}")
        return decode(cls, fields, where="definition")


def _refuse_double(what: str, values: list[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidRequest(f"{what} {value} is given twice", reason="VALUE_INVALID")
