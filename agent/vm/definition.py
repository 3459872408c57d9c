"""What a guest is to see and what stands behind it on the host.

A definition is a QEMU command line as data: the parts that every VM has by name, the rest as options in their order. It
is made by one of two front ends, libvirt domain XML and a running QEMU's own command line, travels to other hosts and
rests in records, always with the same rules. Once `pin` has fixed the machine type, every host builds a QEMU of it that the
guest cannot tell from the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from agent.vm import rules
from agent.vm.options import Option, Properties, check_machine_files, check_properties
from common.codec import BadRecord, decode, encode_fields
from common.errors import InvalidRequest

RECORD_VERSION = 2
MAX_MEMORY_KIB = 1 << 40
MAX_VCPU_COUNT = 4096
MIN_SHARES, MAX_SHARES = 1, 262144


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


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPU that the guest sees: `model` in mode CUSTOM and in no other, and QEMU's properties of it."""

    mode: CpuMode
    model: str | None
    properties: dict[str, object]

    def __post_init__(self) -> None:
        """Refuse a mode with the wrong parts."""
        if (self.model is not None) is not (self.mode is CpuMode.CUSTOM):
            raise InvalidRequest(f"CPU mode {self.mode.value} with model {self.model}", reason="VALUE_INVALID")
        if self.model is not None:
            rules.check_word(self.model, "CPU model")
        check_properties(self.properties, "-cpu")

    @property
    def name(self) -> str:
        """Name it in a sentence."""
        return self.model or self.mode.value


# The default of the pc and q35 machines. Source: hw/i386/x86.c, x86_machine_class_init.
DEFAULT_CPU = Cpu(mode=CpuMode.CUSTOM, model="qemu64", properties={})


@dataclass(frozen=True, slots=True)
class MemorySlots:
    """Room for memory that is plugged in later."""

    count: int
    max_kib: int

    def __post_init__(self) -> None:
        """Refuse what QEMU refuses."""
        rules.check_range(self.count, 1, 256, "memory slots")
        rules.check_range(self.max_kib, 1024, MAX_MEMORY_KIB, "maximum memory in KiB")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk by the name that people use: its top node, and the device in front of it.

    `target` is libvirt's target (`vda`), or the device's id when the VM was adopted.
    """

    target: str
    node: str
    device: str
    is_shareable: bool

    def __post_init__(self) -> None:
        """Refuse names that are no names."""
        rules.check_name(self.target)


@dataclass(frozen=True, slots=True)
class Tap:
    """The tap device behind the netdev `netdev`: opened by the agent and handed over as descriptors.

    `device` is None where the kernel may choose the name; a `bridge` gets the tap as a port. `queue_count` above 1 is
    a multiqueue device; with `has_vhost` each queue gets a /dev/vhost-net.
    """

    netdev: str
    device: str | None
    bridge: str | None
    queue_count: int
    has_vhost: bool

    def __post_init__(self) -> None:
        """Refuse what the kernel would refuse."""
        for name in (self.device, self.bridge):
            if name is not None:
                rules.check_device_name(name)
        rules.check_range(self.queue_count, 1, 256, "network queues")


@dataclass(frozen=True, slots=True)
class Definition:
    """One VM.

    `prefers_kvm` is the wish; `accelerator` is what a running guest was started with, so that its destination uses
    the same, and is None in the definition of a stopped VM. `emulator` is None for the host's own QEMU. `memory_kib` is what
    the guest boots with, plugged memory apart. `vcpu_count` are the CPUs that are there at boot, `smp` the words of QEMU's
    option for all of them. `blockers` say why the VM cannot migrate, each in a sentence.
    """

    name: str
    uuid: UUID
    emulator: str | None
    prefers_kvm: bool
    accelerator: Accelerator | None
    machine: str
    machine_properties: dict[str, object]
    cpu: Cpu
    memory_kib: int
    current_memory_kib: int
    memory_slots: MemorySlots | None
    vcpu_count: int
    smp: dict[str, object]
    cpu_shares: int | None
    options: tuple[Option, ...]
    disks: tuple[Disk, ...]
    taps: tuple[Tap, ...]
    blockers: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse numbers out of range and devices that collide."""
        rules.check_name(self.name)
        rules.check_word(self.machine, "machine type")
        if self.emulator is not None:
            rules.check_path(self.emulator)
        rules.check_range(self.memory_kib, 1024, MAX_MEMORY_KIB, "memory in KiB")
        rules.check_range(self.current_memory_kib, 1024, self.memory_kib, "current memory in KiB")
        rules.check_range(self.vcpu_count, 1, MAX_VCPU_COUNT, "vCPU count")
        if self.cpu_shares is not None:
            rules.check_range(self.cpu_shares, MIN_SHARES, MAX_SHARES, "CPU shares")
        check_properties(self.machine_properties, "-machine")
        check_machine_files(self.machine_properties)
        check_properties(self.smp, "-smp")
        self._refuse_doubles()

    def _refuse_doubles(self) -> None:
        devices = list(self.find("device"))
        _refuse_double("device", [device.get("id") for device in devices])
        _refuse_double("block node", [node.get("node-name") for node in self.find("blockdev")])
        _refuse_double("boot order", [device.get("bootindex") for device in devices])
        _refuse_double("MAC address", [device.get("mac").lower() for device in devices])
        _refuse_double("address", [f"{device.get('bus')} {device.get('addr')}" for device in devices if device.get("addr")])
        _refuse_double("disk target", [disk.target for disk in self.disks])

    def find(self, name: str) -> Iterator[Option]:
        """List the options of one name."""
        return (option for option in self.options if option.name == name)

    @property
    def has_acpi(self) -> bool:
        """Whether the guest can hear a power button."""
        return self.machine_properties.get("acpi") not in (False, "off")

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


def plain_properties(properties: Properties) -> Properties:
    """Leave out what has no value."""
    return {key: value for key, value in properties.items() if value is not None}


def _refuse_double(what: str, values: list[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value and value in seen:
            raise InvalidRequest(f"{what} {value} is given twice", reason="VALUE_INVALID")
        seen.add(value)
