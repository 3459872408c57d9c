"""Giving each PCI device a place, in the order and by the rules of libvirt.

So a definition without addresses becomes the same machine under both. On the older board all devices sit on bus 0, slot
by slot. With PCI Express each device gets a root port of its own, conventional devices share a bridge, root ports share
slots by function, and one port stays free for plugging.

Source: https://libvirt.org/pci-hotplug.html, libvirt's own command lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm.domain.plan import Board, Device, PciAddress, PciController, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_SLOTS: Final = 32
_FUNCTIONS: Final = 8
# Slots of bus 0 that the boards fill themselves. Source: hw/i386/pc_piix.c, hw/i386/pc_q35.c.
_TAKEN: Final[dict[Board, dict[int, Iterable[int]]]] = {
    Board.I440FX: {0: range(8), 1: (0, 1, 3)},  # host bridge; ISA, IDE and power management beside a USB controller
    Board.Q35: {0: range(8), 31: range(8)},
}
_OWN_USB: Final = PciAddress(0, 1, 2)
_PRIMARY_VIDEO_SLOT: Final = {Board.I440FX: 2, Board.Q35: 1}
# The order in which kinds of devices get their places.
_ORDER: Final = (
    ("filesystem",),
    ("interface",),
    ("sound",),
    ("controller",),
    ("disk",),
    ("hostdev",),
    ("memballoon",),
    ("rng",),
    ("watchdog",),
    ("video",),
    ("shmem",),
    ("input",),
    ("serial",),
    ("panic",),
    ("memory",),
    ("vsock",),
    ("iommu",),
)
_EXPRESS_BUSES: Final = frozenset({"pcie-root-port", "pcie-switch-downstream-port"})
_UPSTREAM_BUSES: Final = frozenset({"pcie-switch-upstream-port"})
_PCI_BUSES: Final = frozenset({"pci-root", "pci-bridge", "pcie-to-pci-bridge", "dmi-to-pci-bridge", "pci-expander-bus"})


def bus_name(plan: Plan, index: int) -> str:
    """Name the bus that a controller makes."""
    if index == 0:
        return plan.board.value
    controller = plan.pci[index].device
    return f"pci.{index}" if controller is None else controller.id


def assign(plan: Plan, root: Element) -> None:
    """Give every PCI device its bus and address, adding bridges and ports where they are needed."""
    _Assigning(plan, root).run()


class _Assigning:
    def __init__(self, plan: Plan, root: Element) -> None:
        self._plan = plan
        self._root = root
        self._is_express = plan.board is Board.Q35
        self._taken: dict[tuple[int, int], dict[int, str]] = {}
        self._added_ports = 0

    def run(self) -> None:
        plan = self._plan
        pci_devices = [device for device in plan.devices if device.pci is not None]
        named = [one.device for one in plan.pci.values() if one.device is not None]
        self._fill_gaps([*named, *pci_devices])
        controllers = [one.device for _, one in sorted(plan.pci.items()) if one.device is not None]
        for slot, functions in _TAKEN[plan.board].items():
            self._taken[0, slot] = dict.fromkeys(functions, "the board")
        for device in (*controllers, *pci_devices):
            if device.address is not None:
                self._take(device, device.address)
        self._place_video(pci_devices)
        self._place_usb()
        for controller in controllers:
            if controller.address is None:
                self._place(controller)
        for kinds in _ORDER:
            for device in pci_devices:
                if device.kind in kinds and device.address is None:
                    self._place(device)
        if self._is_express and self._added_ports:
            self._add_spare_port()
        self._write([*(one.device for one in plan.pci.values() if one.device is not None), *pci_devices])

    def _place_video(self, devices: list[Device]) -> None:
        """The first card has a slot that firmware and guests know."""
        first = next((device for device in devices if device.kind == "video"), None)
        if first is None or first.address is not None:
            return
        slot = _PRIMARY_VIDEO_SLOT[self._plan.board]
        if (0, slot) not in self._taken:
            first.address = PciAddress(0, slot, 0)
            self._take(first, first.address)

    def _place_usb(self) -> None:
        """The first controller of the older board is a function of its south bridge."""
        usb = self._plan.controllers.get(("usb", 0))
        if usb is not None and usb.address is None and usb.properties["driver"] == "piix3-usb-uhci":
            usb.address = _OWN_USB
            self._take(usb, _OWN_USB)

    def _place(self, device: Device) -> None:
        address = self._find(device)
        device.address = address
        self._take(device, address)

    def _find(self, device: Device) -> PciAddress:
        if not self._is_express:
            return self._find_on_pci(device)
        match device.pci:
            case Slot.ROOT if device.properties.get("driver") == "xio3130-downstream":
                return self._find_on_switch(device)
            case Slot.ROOT:
                return self._find_on_root(device)
            case Slot.EXPRESS:
                return PciAddress(self._free_port(), 0, 0)
            case _:
                return self._find_on_pci(device)

    def _find_on_pci(self, device: Device) -> PciAddress:
        first = 0 if not self._is_express else 1
        for index in self._buses(_PCI_BUSES):
            for slot in range(first if index == 0 else 1, _SLOTS):
                if (index, slot) not in self._taken:
                    return PciAddress(index, slot, 0)
        return PciAddress(self._add_bridge(device), 1, 0)

    def _find_on_root(self, device: Device) -> PciAddress:
        """Root ports share a slot as functions of one device; others have one for themselves."""
        shares = device.properties.get("driver") == "pcie-root-port"
        for slot in range(1, _SLOTS):
            there = self._taken.get((0, slot))
            if there is None:
                return PciAddress(0, slot, 0, shares or None)
            if shares and all(owner == "pcie-root-port" for owner in there.values()):
                free = [function for function in range(_FUNCTIONS) if function not in there]
                if free and self._is_multifunction(slot):
                    return PciAddress(0, slot, free[0])
        raise self._root.invalid("more devices than slots on PCI bus 0")

    def _find_on_switch(self, device: Device) -> PciAddress:
        """A downstream port of a switch sits on its upstream port and nowhere else."""
        for index in self._buses(_UPSTREAM_BUSES):
            for slot in range(_SLOTS):
                if (index, slot) not in self._taken:
                    return PciAddress(index, slot, 0)
        raise device.element.invalid("no pcie-switch-upstream-port with a free slot; add a controller of that model")

    def _is_multifunction(self, slot: int) -> bool:
        return any(
            controller.device is not None
            and controller.device.address is not None
            and (controller.device.address.bus, controller.device.address.slot, controller.device.address.function) == (0, slot, 0)
            and controller.device.address.is_multifunction
            for controller in self._plan.pci.values()
        )

    def _free_port(self) -> int:
        for index in self._buses(_EXPRESS_BUSES):
            if (index, 0) not in self._taken:
                return index
        return self._add_port()

    def _add_port(self) -> int:
        index = self._next_index()
        self._place(self._make_port(index))
        return index

    def _make_port(self, index: int) -> Device:
        properties: dict[str, object] = {"driver": "pcie-root-port", "chassis": index, "id": f"pci.{index}"}
        device = Device(self._root, "pci", properties, Slot.ROOT)
        self._plan.pci[index] = PciController(index, "pcie-root-port", device)
        self._added_ports += 1
        return device

    def _add_bridge(self, device: Device) -> int:
        if self._is_express:
            port = self._free_port()
            index = self._next_index()
            bridge = Device(self._root, "pci", {"driver": "pcie-pci-bridge", "id": f"pci.{index}"}, Slot.EXPRESS)
            bridge.address = PciAddress(port, 0, 0)
            self._plan.pci[index] = PciController(index, "pcie-to-pci-bridge", bridge)
            self._take(bridge, bridge.address)
            return index
        raise device.element.invalid("more devices than slots on PCI bus 0; add a controller of model pci-bridge")

    def _add_spare_port(self) -> None:
        if all((index, 0) in self._taken for index in self._buses(_EXPRESS_BUSES)):
            self._add_port()

    def _next_index(self) -> int:
        return max(self._plan.pci, default=0) + 1

    def _buses(self, models: frozenset[str]) -> Iterator[int]:
        for index, controller in sorted(self._plan.pci.items()):
            if controller.model in models:
                yield index

    def _take(self, device: Device, address: PciAddress) -> None:
        functions = self._taken.setdefault((address.bus, address.slot), {})
        driver = str(device.properties.get("driver", device.kind))
        if address.function in functions:
            raise device.element.invalid(f"PCI address {address} is taken already")
        functions[address.function] = driver

    def _fill_gaps(self, devices: list[Device]) -> None:
        """Add the buses that a device or a higher number implies: bridges on the older board, ports on the other."""
        last = max([*self._plan.pci, *(device.address.bus for device in devices if device.address is not None)])
        for index in range(1, last + 1):
            if index in self._plan.pci:
                continue
            if self._is_express:
                self._make_port(index)
                continue
            bridge = Device(self._root, "pci", {"driver": "pci-bridge", "chassis_nr": index, "id": f"pci.{index}"}, Slot.PCI)
            self._plan.pci[index] = PciController(index, "pci-bridge", bridge)

    def _write(self, devices: list[Device]) -> None:
        shared = {
            (device.address.bus, device.address.slot)
            for device in devices
            if device.address is not None and device.address.function > 0
        }
        for device in devices:
            address = device.address
            if address is None:
                raise device.element.invalid("no place on PCI was found")
            if any(one.device is device and one.model in _EXPRESS_BUSES for one in self._plan.pci.values()):
                device.properties.setdefault("port", address.slot * _FUNCTIONS + address.function)
            device.properties["bus"] = bus_name(self._plan, address.bus)
            is_first = address.function == 0 and (address.bus, address.slot) in shared
            multifunction = address.is_multifunction if device.kind != "pci" or address.is_multifunction is False else is_first
            if multifunction or (is_first and address.is_multifunction is not False):
                device.properties["multifunction"] = True
            function = f".{address.function:#x}" if address.function else ""
            device.properties["addr"] = f"{address.slot:#x}{function}"
