"""Reading `<address>`, `<alias>` and `<boot>`, which many elements have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.plan import PciAddress

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

_USER_ALIAS: Final = re.compile(r"ua-[A-Za-z0-9_-]{1,120}")


def read_alias(element: Element, default: str) -> str:
    """Read what QEMU shall call a device: the user's own alias, or libvirt's name for it."""
    alias = element.child("alias")
    if alias is None:
        return default
    name = alias.get_attribute("name")
    alias.finish()
    return name if _USER_ALIAS.fullmatch(name) else default


def read_pci_address(element: Element) -> PciAddress | None:
    """Read where a PCI device sits; None leaves it to `pci.assign`."""
    address = element.child("address")
    if address is None:
        return None
    address.choice("type", {"pci": None})
    if address.number_attribute("domain"):
        raise address.invalid("PCI domains other than 0 are not carried")
    numbers = {name: address.number_attribute(name) for name in ("bus", "slot", "function")}
    is_multifunction = address.switch("multifunction")
    address.finish()
    if all(number is None for number in numbers.values()):
        return None
    for name, most in (("bus", 255), ("slot", 31), ("function", 7)):
        if (numbers[name] or 0) > most:
            raise address.invalid(f"{name} {numbers[name]}: {most} is the most")
    return PciAddress(numbers["bus"] or 0, numbers["slot"] or 0, numbers["function"] or 0, is_multifunction)


def read_numbers(element: Element, kind: str, names: tuple[str, ...], *, zeros: tuple[str, ...] = ()) -> dict[str, int] | None:
    """Read an address of numbers, such as those of drives and ports; what is not given is 0, what `zeros` names has to be 0."""
    address = element.child("address")
    if address is None:
        return None
    address.choice("type", {kind: None})
    numbers = {name: address.number_attribute(name) or 0 for name in names}
    address.finish()
    for name in zeros:
        if numbers[name]:
            raise address.invalid(f"{name} {numbers[name]}: there is only 0")
    return numbers


def read_boot_order(element: Element) -> int | None:
    """Read the device's own place in the boot order, from 1."""
    boot = element.child("boot")
    if boot is None:
        return None
    order = boot.number(boot.get_attribute("order"))
    boot.finish()
    if order < 1:
        raise boot.invalid("the boot order begins at 1")
    return order


def read_rom(element: Element) -> dict[str, object]:
    """Read `<rom>`: whether firmware sees the card's own program, and which it is; none when it is not enabled."""
    rom = element.child("rom")
    if rom is None:
        return {}
    bar, path = rom.switch("bar"), rom.attribute("file")
    is_enabled = rom.choice("enabled", {"yes": True, "no": False})
    rom.finish()
    if is_enabled is False:
        if bar is not None or path:
            raise rom.invalid("a program that is not enabled, with settings")
        return {"romfile": ""}
    found: dict[str, object] = {} if bar is None else {"rombar": int(bar)}
    if path:
        with rom.located():
            rules.check_path(path)
    return found if path is None else {**found, "romfile": path}


def read_acpi_index(element: Element) -> dict[str, object]:
    """Read `<acpi index=...>`, which guests name network cards by."""
    acpi = element.child("acpi")
    if acpi is None:
        return {}
    index = acpi.number(acpi.get_attribute("index"))
    acpi.finish()
    return {"acpi-index": index} if index else {}
