"""`<controller>`: PCI bridges and ports, and the controllers of drives, serial ports and USB."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.plan import Board, Device, PciAddress, PciController, Slot
from agent.vm.domain.virtio import models, read_switches, slot_of
from agent.vm.options import text

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_PORT: Final = re.compile(r"[1-9][0-9]?(\.[1-9][0-9]?){0,4}")
_SCSI: Final = {
    "auto": "lsi",
    "lsilogic": "lsi",
    "lsisas1068": "mptsas1068",
    "lsisas1078": "megasas",
    "vmpvscsi": "pvscsi",
    "dc390": "dc390",
    "am53c974": "am53c974",
}
_USB: Final = {
    "piix3-uhci": ("piix3-usb-uhci", Slot.PCI),
    "piix4-uhci": ("piix4-usb-uhci", Slot.PCI),
    "ehci": ("usb-ehci", Slot.PCI),
    "ich9-ehci1": ("ich9-usb-ehci1", Slot.PCI),
    "ich9-uhci1": ("ich9-usb-uhci1", Slot.PCI),
    "ich9-uhci2": ("ich9-usb-uhci2", Slot.PCI),
    "ich9-uhci3": ("ich9-usb-uhci3", Slot.PCI),
    "vt82c686b-uhci": ("vt82c686b-usb-uhci", Slot.PCI),
    "pci-ohci": ("pci-ohci", Slot.PCI),
    "nec-xhci": ("nec-usb-xhci", Slot.EXPRESS),
    "qemu-xhci": ("qemu-xhci", Slot.EXPRESS),
}
_USB_PORTS: Final = {
    "piix3-usb-uhci": 2,
    "piix4-usb-uhci": 2,
    "ich9-usb-ehci1": 6,
    "usb-ehci": 6,
    "vt82c686b-usb-uhci": 2,
    "pci-ohci": 3,
}
_XHCI_PORTS: Final = 4
_COMPANIONS: Final = "ich9-uhci"
_MAX_INDEX: Final = 255
# Source: hw/isa/piix3.c, hw/i386/pc_q35.c.
_OWN_IDE: Final = PciAddress(0, 1, 1)
_OWN_SATA: Final = PciAddress(0, 31, 2)
_PCI: Final = {
    "pci-bridge": ("pci-bridge", Slot.PCI),
    "dmi-to-pci-bridge": ("i82801b11-bridge", Slot.ROOT),
    "pcie-to-pci-bridge": ("pcie-pci-bridge", Slot.EXPRESS),
    "pcie-root-port": ("pcie-root-port", Slot.ROOT),
    "pcie-switch-upstream-port": ("x3130-upstream", Slot.EXPRESS),
    "pcie-switch-downstream-port": ("xio3130-downstream", Slot.ROOT),
}
_ROOTS: Final = {Board.I440FX: "pci-root", Board.Q35: "pcie-root"}


def read_controllers(devices: Element, plan: Plan) -> None:
    """Read every `<controller>`, and add what libvirt would: the PCI root, a USB controller, SATA where the board has it."""
    root = _ROOTS[plan.board]
    plan.pci[0] = PciController(0, root, None)
    next_index: dict[str, int] = {}
    has_usb = False
    for element in devices.children("controller"):
        kind = element.get_attribute("type")
        given = element.number_attribute("index")
        index = next_index.get(kind, 0) if given is None else given
        if given is None and index and kind == "usb" and (element.peek("model") or "").startswith(_COMPANIONS):
            index -= 1  # it belongs to the one before
        if index > _MAX_INDEX:
            raise element.invalid(f"index {index}: {_MAX_INDEX} is the most")
        next_index[kind] = max(next_index.get(kind, 0), index + 1)
        has_usb = has_usb or kind == "usb"
        _read_controller(element, kind, index, plan)
    _join_companions(plan)
    if plan.board is Board.Q35:
        plan.controllers.setdefault(("sata", 0), Device(devices, "builtin", {"driver": "ahci", "id": "ide"}))
    if not has_usb:
        _add_usb(plan, devices)
    for number, element in enumerate(devices.children("hub")):
        _read_hub(element, number, plan)


def _read_controller(element: Element, kind: str, index: int, plan: Plan) -> None:
    if kind == "pci":
        _read_pci(element, index, plan)
    elif kind == "usb":
        _read_usb_controller(element, index, plan)
    elif kind == "scsi":
        _read_scsi(element, index, plan)
    elif kind == "virtio-serial":
        _read_virtio_serial(element, index, plan)
    elif kind == "sata":
        _read_sata(element, index, plan)
    elif kind in ("ide", "fdc") and index == 0:
        element.accept("model", "piix3", "piix4")
        if kind == "ide" and plan.board is not Board.I440FX:
            raise element.attribute_not_carried("type", "ide, which machine type q35 has not")
        _accept_own(element, _OWN_IDE if kind == "ide" else None)
    elif kind == "ccid":
        name = read_alias(element, f"ccid{index}")
        _add(plan, element, (kind, index), {"driver": "usb-ccid", **read_usb(element), "id": name}, None)
    else:
        raise element.attribute_not_carried("type", f"{kind}, index {index}")
    element.finish()


def _accept_own(element: Element, place: PciAddress | None) -> None:
    """Take a controller that the board itself has, at the one place where it is."""
    read_alias(element, "")
    given = read_pci_address(element)
    if given is not None and (place is None or str(given) != str(place)):
        raise element.invalid(f"PCI address {given}: the board has this controller at {place or 'none'}")


def _read_pci(element: Element, index: int, plan: Plan) -> None:
    root = _ROOTS[plan.board]
    model = element.attribute("model") or (root if index == 0 else None)
    if index == 0 or model in _ROOTS.values():
        if model != root or index != 0:
            raise element.attribute_not_carried("model", f"{model}, index {index}")
        read_alias(element, "")
        _read_root_target(element.child("target"), plan)
        return
    if model is None:
        model = "pci-bridge" if plan.board is Board.I440FX else "pcie-root-port"
    if model not in _PCI or (plan.board is Board.I440FX and model != "pci-bridge"):
        raise element.attribute_not_carried("model", model)
    if index in plan.pci:
        raise element.invalid(f"PCI controller {index} is given twice")
    driver, slot = _PCI[model]
    named = element.child("model")
    if named is not None:
        driver = named.choice("name", {name: name for name in (driver, "ioh3420")}) or driver
        named.finish()
    properties: dict[str, object] = {"driver": driver}
    properties |= _read_pci_target(element.child("target"), model, index)
    properties["id"] = read_alias(element, f"pci.{index}")
    address = read_pci_address(element)
    device = Device(element, "pci", properties, slot, address)
    plan.pci[index] = PciController(index, model, device)


def _read_root_target(target: Element | None, plan: Plan) -> None:
    if target is None:
        return
    hotplug = target.switch("hotplug")
    target.finish()
    if hotplug is not None and plan.board is Board.I440FX:
        plan.head.append(text("global", f"PIIX4_PM.acpi-root-pci-hotplug={'on' if hotplug else 'off'}"))


def _read_pci_target(target: Element | None, model: str, index: int) -> dict[str, object]:
    chassis, chassis_nr, port, hotplug = None, None, None, None
    if target is not None:
        chassis, chassis_nr = target.number_attribute("chassis"), target.number_attribute("chassisNr")
        port, hotplug = target.number_attribute("port"), target.switch("hotplug")
        target.finish()
    if model == "pci-bridge":
        return {"chassis_nr": index if chassis_nr is None else chassis_nr}
    if model in ("pcie-root-port", "pcie-switch-downstream-port"):
        found: dict[str, object] = {} if port is None else {"port": port}
        found["chassis"] = index if chassis is None else chassis
        return found if hotplug is None else {**found, "hotplug": hotplug}
    return {}


def _read_usb_controller(element: Element, index: int, plan: Plan) -> None:
    default = "piix3-uhci" if plan.board is Board.I440FX else "qemu-xhci"
    model = element.choice("model", {"none": "none", **{name: name for name in _USB}}) or default
    if model == "none":
        read_alias(element, "")
        read_pci_address(element)
        return
    driver, slot = _USB[model]
    properties: dict[str, object] = {"driver": driver}
    ports = element.number_attribute("ports")
    if ports is not None:
        if "xhci" not in driver:
            raise element.attribute_not_carried("ports", str(ports))
        properties |= {"p2": ports, "p3": ports}
    master = element.child("master")
    owner = plan.controllers.get(("usb", index))
    name = read_alias(element, "usb" if index == 0 else f"usb{index}")
    if master is not None:
        first = master.number_attribute("startport")
        master.finish()
        companion = Device(
            element,
            "controller",
            {**properties, "masterbus": str(index), "firstport": first or 0},
            slot,
            read_pci_address(element),
        )
        plan.add(companion)
        return
    if owner is not None:
        raise element.invalid(f"USB controller {index} is given twice")
    _add(plan, element, ("usb", index), {**properties, "id": name}, slot)


def _join_companions(plan: Plan) -> None:
    """Name the controller that each companion belongs to: the one of its index, wherever it stands."""
    for device in plan.devices:
        if "masterbus" not in device.properties:
            continue
        index = int(str(device.properties["masterbus"]))
        master = plan.controllers.get(("usb", index))
        if master is None:
            raise device.element.invalid(f"USB controller {index}, which it belongs to, is not defined")
        device.properties["masterbus"] = f"{master.id}.0"


def _add_usb(plan: Plan, devices: Element) -> None:
    driver, slot = _USB["piix3-uhci" if plan.board is Board.I440FX else "qemu-xhci"]
    device = Device(devices, "controller", {"driver": driver, "id": "usb"}, slot)
    plan.controllers["usb", 0] = plan.add(device)


def _read_hub(element: Element, number: int, plan: Plan) -> None:
    element.choice("type", {"usb": None})
    name = read_alias(element, f"hub{number}")
    plan.add(Device(element, "hub", {"driver": "usb-hub", **read_usb(element), "id": name}))
    element.finish()


def _read_scsi(element: Element, index: int, plan: Plan) -> None:
    virtio = models("virtio-scsi") | models("virtio")
    model = element.choice("model", {name: name for name in (*_SCSI, *virtio)}) or "auto"
    driver = element.child("driver")
    switches = read_switches(driver)
    if driver is not None:
        thread = driver.number_attribute("iothread")
        for name, key in (("queues", "num_queues"), ("cmd_per_lun", "cmd_per_lun"), ("max_sectors", "max_sectors")):
            number = driver.number_attribute(name)
            if number is not None:
                switches[key] = number
        if thread is not None:
            if thread not in plan.iothreads:
                raise driver.invalid(f"iothread {thread} is not defined")
            switches["iothread"] = f"iothread{thread}"
        driver.finish()
    name = read_alias(element, f"scsi{index}")
    if model in virtio:
        properties: dict[str, object] = {"driver": f"virtio-scsi-pci{virtio[model]}", **switches, "id": name}
        _add(plan, element, ("scsi", index), properties, slot_of(plan, virtio[model]))
        return
    if switches:
        raise element.invalid(f"{', '.join(switches)}: only for model virtio-scsi")
    slot = Slot.EXPRESS if model in ("lsisas1068", "lsisas1078", "vmpvscsi") else Slot.PCI
    _add(plan, element, ("scsi", index), {"driver": _SCSI[model], "id": name}, slot)


def _read_virtio_serial(element: Element, index: int, plan: Plan) -> None:
    endings = models("virtio")
    ending = element.choice("model", endings) or ""
    ports, vectors = element.number_attribute("ports"), element.number_attribute("vectors")
    driver = element.child("driver")
    properties: dict[str, object] = {"driver": f"virtio-serial-pci{ending}", **read_switches(driver)}
    if driver is not None:
        driver.finish()
    properties["id"] = read_alias(element, f"virtio-serial{index}")
    if ports is not None:
        properties["max_ports"] = ports
    if vectors is not None:
        properties["vectors"] = vectors
    _add(plan, element, ("virtio-serial", index), properties, slot_of(plan, ending))


def _read_sata(element: Element, index: int, plan: Plan) -> None:
    if index == 0 and plan.board is Board.Q35:
        _accept_own(element, _OWN_SATA)
        plan.controllers["sata", 0] = Device(element, "builtin", {"driver": "ahci", "id": "ide"})
        return
    _add(plan, element, ("sata", index), {"driver": "ahci", "id": read_alias(element, f"sata{index}")}, Slot.PCI)


def _add(plan: Plan, element: Element, key: tuple[str, int], properties: dict[str, object], slot: Slot | None) -> None:
    kind, index = key
    if key in plan.controllers:
        raise element.invalid(f"{kind} controller {index} is given twice")
    address = None if slot is None else read_pci_address(element)
    plan.controllers[key] = plan.add(Device(element, "controller", properties, slot, address))


def need(plan: Plan, kind: str, index: int, element: Element) -> str:
    """Name a controller that a device sits on, and add it, and those before it, where the XML has none."""
    if index > _MAX_INDEX:
        raise element.invalid(f"controller {index}: {_MAX_INDEX} is the most")
    for number in range(index + 1):
        if (kind, number) in plan.controllers:
            continue
        drivers = {"scsi": "lsi", "sata": "ahci", "virtio-serial": "virtio-serial-pci"}
        if kind not in drivers:
            raise element.invalid(f"{kind} controller {number} is not defined")
        slot = slot_of(plan, "") if kind == "virtio-serial" else Slot.PCI
        device = Device(element, "controller", {"driver": drivers[kind], "id": f"{kind}{number}"}, slot)
        plan.controllers[kind, number] = plan.add(device)
    return plan.controllers[kind, index].id


def read_usb(element: Element) -> dict[str, object]:
    """Read where a USB device is plugged: the controller's index for `bus` until `plug_usb` names it."""
    address = element.child("address")
    if address is None:
        return {"bus": "0"}
    address.choice("type", {"usb": None})
    bus = address.number_attribute("bus") or 0
    port = address.attribute("port")
    address.finish()
    if port is not None and not _PORT.fullmatch(port):
        raise address.invalid(f"port {port[:40]!r}: numbers with dots are wanted")
    return {"bus": str(bus)} if port is None else {"bus": str(bus), "port": port}


def plug_usb(plan: Plan) -> None:
    """Name the bus of each USB device, and give it the first free port where it has none."""
    plugged = [device for device in plan.devices if str(device.properties.get("bus", "")).isdecimal() and device.pci is None]
    taken = {(str(device.properties["bus"]), str(device.properties["port"])) for device in plugged if "port" in device.properties}
    for device in plugged:
        bus = str(device.properties["bus"])
        controller = plan.controllers.get(("usb", int(bus)))
        if controller is None:
            raise device.element.invalid(f"USB controller {bus} is not defined")
        driver = str(controller.properties["driver"])
        most = int(str(controller.properties.get("p2", _USB_PORTS.get(driver, _XHCI_PORTS))))
        if "port" not in device.properties:
            port = next((str(number) for number in range(1, most + 1) if (bus, str(number)) not in taken), None)
            if port is None:
                raise device.element.invalid(
                    f"USB controller {bus} has no free port of {most}; add a controller of model qemu-xhci"
                )
            taken.add((bus, port))
            device.properties = _after_bus(device.properties, port)
        device.properties["bus"] = f"{controller.id}.0"


def _after_bus(properties: dict[str, object], port: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in properties.items():
        found[key] = value
        if key == "bus":
            found["port"] = port
    return found
