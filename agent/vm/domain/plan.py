"""A machine while it is being read: what the parts of the XML ask for before addresses and boot order are settled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent.vm.options import Option, of_json

if TYPE_CHECKING:
    from agent.vm.definition import Disk, Tap
    from agent.vm.domain.reader import Element


class Board(Enum):
    """The two families of PCs that QEMU builds; the name of PCI bus 0."""

    I440FX = "pci.0"
    Q35 = "pcie.0"


class Slot(Enum):
    """Where a device may sit on a board with PCI Express; on the older board all sit on PCI."""

    PCI = "conventional PCI"
    EXPRESS = "PCI Express"
    ROOT = "root complex"


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """A place on PCI: the index of the controller that makes the bus, slot and function."""

    bus: int
    slot: int
    function: int
    is_multifunction: bool | None = None

    def __str__(self) -> str:
        """Write as lspci does."""
        return f"{self.bus:02x}:{self.slot:02x}.{self.function:x}"


@dataclass(eq=False)
class Device:
    """One device: what `-device` will get, what has to stand before it, and where it wants to sit.

    `kind` is the tag of its element, `pci` None for a device of another bus. `boots_as` is libvirt's name of it in
    `<os><boot dev=...>`, `boot_key` the property that takes the boot order.
    """

    element: Element
    kind: str
    properties: dict[str, object]
    pci: Slot | None = None
    address: PciAddress | None = None
    before: list[Option] = field(default_factory=list)
    after: list[Option] = field(default_factory=list)
    boots_as: str | None = None
    boot_index: int | None = None
    boot_key: str = "bootindex"

    @property
    def id(self) -> str:
        """QEMU's id of the device."""
        return str(self.properties.get("id", ""))

    def options(self) -> list[Option]:
        """Write it with all that belongs to it."""
        return [*self.before, of_json("device", self.properties), *self.after]


@dataclass(eq=False)
class PciController:
    """A controller of PCI buses, a Device of its own unless it is the root."""

    index: int
    model: str
    device: Device | None


@dataclass(eq=False)
class Plan:
    """All that the readers have found so far.

    `devices` are in the order of the command line. `head` are the options before them. `pci` are the buses by index,
    `controllers` all others by type and index.
    """

    board: Board
    name: str
    machine_properties: dict[str, object] = field(default_factory=dict)
    cpu_properties: dict[str, object] = field(default_factory=dict)
    head: list[Option] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    tail: list[Option] = field(default_factory=list)
    pci: dict[int, PciController] = field(default_factory=dict)
    controllers: dict[tuple[str, int], Device] = field(default_factory=dict)
    disks: list[Disk] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    iothreads: set[int] = field(default_factory=set)
    restarts_on_crash: Element | None = None

    def of_kind(self, *kinds: str) -> list[Device]:
        """List the devices of some kinds, in order."""
        return [device for device in self.devices if device.kind in kinds]

    def add(self, device: Device) -> Device:
        """Put a device at the end."""
        self.devices.append(device)
        return device
