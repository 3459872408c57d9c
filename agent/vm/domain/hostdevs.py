"""`<hostdev>` and `<redirdev>`: devices of the host; a VM with one of the first cannot migrate."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from uuid import UUID

from agent.vm.domain.addresses import read_acpi_index, read_alias, read_boot_order, read_pci_address, read_rom
from agent.vm.domain.chardevs import read_chardev
from agent.vm.domain.controllers import read_usb
from agent.vm.domain.plan import Board, Device, Slot
from agent.vm.domain.virtio import models, slot_of

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_WWPN: Final = re.compile(r"naa\.[0-9a-fA-F]{16}")
_GUEST_RESETS: Final[dict[str, dict[str, object]]] = {
    "off": {"guest-reset": False},
    "uninitialized": {"guest-reset": True, "guest-resets-all": False},
    "on": {"guest-reset": True, "guest-resets-all": True},
}


def read_hostdevs(devices: Element, plan: Plan) -> None:
    """Read both."""
    readers = {"pci": _read_pci, "usb": _read_usb_device, "mdev": _read_mdev, "scsi_host": _read_scsi_host}
    for index, element in enumerate(devices.children("redirdev")):
        _read_redirection(element, index, plan)
    for index, element in enumerate(devices.children("hostdev")):
        element.choice("mode", {"subsystem": None})
        read = element.choice("type", readers)
        if read is None:
            raise element.invalid("attribute type is missing")
        element.accept("managed", "yes", "no")
        device = read(element, element.get_child("source"), read_alias(element, f"hostdev{index}"), plan)
        device.boot_index = read_boot_order(element)
        element.finish()
        plan.add(device)


def _slot(plan: Plan) -> Slot:
    return Slot.EXPRESS if plan.board is Board.Q35 else Slot.PCI


def _read_pci(element: Element, source: Element, name: str, plan: Plan) -> Device:
    properties: dict[str, object] = {"driver": "vfio-pci", "host": _read_host_address(source), "id": name}
    properties |= read_rom(element) | read_acpi_index(element)
    source.accept("writeFiltering", "yes")
    source.finish()
    driver = element.child("driver")
    if driver is not None:
        driver.choice("name", {"vfio": None})
        driver.finish()
    plan.blockers.append(f"PCI device {properties['host']} of the host")
    return Device(element, "hostdev", properties, _slot(plan), read_pci_address(element))


def _read_mdev(element: Element, source: Element, name: str, plan: Plan) -> Device:
    element.choice("model", {"vfio-pci": None})
    display = element.choice("display", {"on": "on", "off": "off"})
    element.accept("ramfb", "off")
    address = source.get_child("address")
    words = address.get_attribute("uuid")
    address.finish()
    source.finish()
    try:
        path = f"/sys/bus/mdev/devices/{UUID(words)}"
    except ValueError as error:
        raise address.invalid(f"{words[:80]!r} is not a UUID") from error
    properties: dict[str, object] = {"driver": "vfio-pci", "id": name, "sysfsdev": path}
    if display is not None:
        properties["display"] = display
    plan.blockers.append(f"mediated device {words} of the host")
    return Device(element, "hostdev", properties, _slot(plan), read_pci_address(element))


def _read_scsi_host(element: Element, source: Element, name: str, plan: Plan) -> Device:
    endings = models("virtio")
    ending = endings[element.choice("model", {model: model for model in endings}) or "virtio"]
    source.choice("protocol", {"vhost": None})
    wwpn = source.get_attribute("wwpn")
    source.finish()
    if not _WWPN.fullmatch(wwpn):
        raise source.invalid(f"wwpn {wwpn[:40]!r}: `naa.` and 16 hexadecimal digits are wanted")
    plan.blockers.append(f"SCSI target {wwpn} of the host")
    properties: dict[str, object] = {"driver": f"vhost-scsi-pci{ending}", "wwpn": wwpn, "id": name}
    return Device(element, "hostdev", properties, slot_of(plan, ending), read_pci_address(element))


def _read_usb_device(element: Element, source: Element, name: str, plan: Plan) -> Device:
    found = _read_usb_source(source)
    found |= source.choice("guestReset", _GUEST_RESETS) or {}
    source.accept("startupPolicy", "mandatory")
    source.finish()
    plan.blockers.append("a USB device of the host")
    return Device(element, "usb-hostdev", {"driver": "usb-host", **found, "id": name, **read_usb(element)})


def _read_redirection(element: Element, index: int, plan: Plan) -> None:
    element.choice("bus", {"usb": None})
    name = read_alias(element, f"redir{index}")
    protocol = element.child("protocol")
    if protocol is not None:
        protocol.choice("type", {"raw": None})
        protocol.finish()
    chardev = read_chardev(element, name)
    order = read_boot_order(element)
    properties = {"driver": "usb-redir", "chardev": f"char{name}", "id": name, **read_usb(element)}
    device = Device(element, "redirdev", properties, before=[chardev])
    device.boot_index = order
    element.finish()
    plan.add(device)


def _read_host_address(source: Element) -> str:
    address = source.get_child("address")
    numbers = [address.number_attribute(name) or 0 for name in ("domain", "bus", "slot", "function")]
    address.finish()
    if any(number > most for number, most in zip(numbers, (0xFFFF, 0xFF, 0x1F, 7), strict=True)):
        raise address.invalid("there is no such PCI address")
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _read_usb_source(source: Element) -> dict[str, object]:
    address = source.child("address")
    if address is not None:
        bus, device = (address.number(address.get_attribute(name)) for name in ("bus", "device"))
        address.finish()
        return {"hostdevice": f"/dev/bus/usb/{bus:03}/{device:03}"}
    found: dict[str, object] = {}
    for tag in ("vendor", "product"):
        part = source.get_child(tag)
        found[f"{tag}id"] = part.number(part.get_attribute("id"))
        part.finish()
    return found
