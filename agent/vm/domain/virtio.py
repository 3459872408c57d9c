"""What all virtio devices have in common: transitional models and the switches of `<driver>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent.vm.domain.plan import Board, Slot

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_SUFFIXES: Final = {"": "", "-transitional": "-transitional", "-non-transitional": "-non-transitional"}
_MODERN_ONLY: Final = ("virtio-keyboard", "virtio-mouse", "virtio-tablet", "virtio-input", "virtio-gpu", "virtio-vga")
_SWITCHES: Final = {"iommu": "iommu_platform", "ats": "ats", "packed": "packed", "page_per_vq": "page-per-vq"}


def models(name: str) -> dict[str, str]:
    """Give libvirt's models of a virtio device with the endings of QEMU's drivers."""
    return {name + suffix: ending for suffix, ending in _SUFFIXES.items()}


def slot_of(plan: Plan, ending: str) -> Slot:
    """Choose where a virtio device sits: a transitional one works only on conventional PCI."""
    return Slot.PCI if ending == "-transitional" or plan.board is Board.I440FX else Slot.EXPRESS


def read_switches(driver: Element | None) -> dict[str, object]:
    """Read what any virtio device's `<driver>` may switch; leaves the element open."""
    if driver is None:
        return {}
    found = {key: driver.switch(name) for name, key in _SWITCHES.items()}
    return {key: value for key, value in found.items() if value is not None}


def read_driver(element: Element) -> dict[str, object]:
    """Read a `<driver>` that has nothing but these switches."""
    driver = element.child("driver")
    switches = read_switches(driver)
    if driver is not None:
        driver.finish()
    return switches


def check_iommu(plan: Plan) -> None:
    """Refuse `iommu='on'` where the device would be transitional: QEMU does not start with it.

    Raises:
        InvalidRequest: there is such a device.
    """
    for device in plan.devices:
        is_modern = device.pci is not Slot.PCI or str(device.properties["driver"]).endswith("-non-transitional")
        has_modern_only = str(device.properties["driver"]).startswith(_MODERN_ONLY)
        if device.properties.get("iommu_platform") and not is_modern and not has_modern_only:
            raise device.element.invalid("iommu needs a model that ends in -non-transitional, or machine type q35")
