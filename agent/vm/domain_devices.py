"""The devices in libvirt domain XML: `<devices>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.vm.devices import (
    AioMode,
    Balloon,
    CacheMode,
    Console,
    Disk,
    ImageFormat,
    Interface,
    InterfaceKind,
    PciAddress,
    Rng,
    Serial,
)
from agent.vm.domain_chardevs import read_chardev, read_consoles

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.vm.xml_reader import Element

_CACHES = {"default": None, **{mode.value: mode for mode in CacheMode}}
_AIOS = {mode.value: mode for mode in AioMode}
_FORMATS = {image_format.value: image_format for image_format in ImageFormat}
_INTERFACES = {"user": InterfaceKind.USER, "ethernet": InterfaceKind.TAP, "bridge": InterfaceKind.BRIDGE}
# Controllers that every pc or q35 board has; `usb` is carried only as "there is none".
_BUILT_IN_CONTROLLERS = {"ide": (None,), "sata": (None,), "fdc": (None,), "usb": ("none",)}
_PCI_ROOTS = ("pci-root", "pcie-root")


@dataclass(frozen=True, slots=True)
class Devices:
    """What `<devices>` holds."""

    emulator: str | None
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    serials: tuple[Serial, ...]
    consoles: tuple[Console, ...]
    virtio_serial_address: PciAddress | None
    rngs: tuple[Rng, ...]
    balloon: Balloon | None


_DEFAULT_BALLOON = Balloon(deflates_on_oom=None, reports_free_pages=None, address=None)


def read_devices(element: Element | None, *, new_mac: Callable[[int], str]) -> Devices:
    """Read `<devices>`; `new_mac` gives the n-th card its address when the XML does not.

    As with libvirt there is a balloon unless the XML says `model='none'`.
    """
    if element is None:
        return Devices(None, (), (), (), (), None, (), _DEFAULT_BALLOON)
    serials, consoles = read_consoles(element, _read_serials(element))
    devices = Devices(
        emulator=element.child_text("emulator"),
        disks=tuple(_read_disk(disk) for disk in element.children("disk")),
        interfaces=tuple(
            _read_interface(interface, new_mac(index)) for index, interface in enumerate(element.children("interface"))
        ),
        serials=serials,
        consoles=consoles,
        virtio_serial_address=_read_controllers(element, has_consoles=bool(consoles)),
        rngs=tuple(_read_rng(rng) for rng in element.children("rng")),
        balloon=_read_balloon(element.child("memballoon")),
    )
    _accept_built_in(element)
    element.finish()
    return devices


def read_address(device: Element) -> PciAddress | None:
    """Read where a device sits; also takes `<alias>`, which the guest cannot see."""
    device.ignore("alias")
    element = device.child("address")
    if element is None:
        return None
    element.choice("type", {"pci": None})
    element.accept("domain", "0x0000", "0x0", "0")
    bus = element.number_attribute("bus") or 0
    if bus != 0:
        raise element.attribute_not_carried("bus", str(bus))
    slot = element.number_attribute("slot") or 0
    element.accept("function", "0x0", "0x00", "0")
    element.accept("multifunction", "off")
    element.finish()
    with element.located():
        return PciAddress(bus=0, slot=slot, function=0)


def _read_boot_index(device: Element) -> int | None:
    element = device.child("boot")
    if element is None:
        return None
    order = element.number(element.get_attribute("order"))
    element.finish()
    return order


def _read_disk(element: Element) -> Disk:
    element.choice("type", {"file": None})
    element.accept("device", "disk")
    source = element.get_child("source")
    target = element.get_child("target")
    driver = element.child("driver")
    image_format, cache, aio, passes_discards = _read_driver(driver)
    path = source.get_attribute("file")
    source.accept("index")  # libvirt's own number
    source.finish()
    target.accept("bus", "virtio")
    target_name = target.get_attribute("dev")
    target.finish()
    with element.located():
        disk = Disk(
            target=target_name,
            path=path,
            format=image_format,
            cache=cache,
            aio=aio,
            passes_discards=passes_discards,
            is_read_only=element.has("readonly"),
            serial=element.child_text("serial"),
            boot_index=_read_boot_index(element),
            address=read_address(element),
        )
    element.finish()
    return disk


def _read_driver(driver: Element | None) -> tuple[ImageFormat, CacheMode | None, AioMode | None, bool | None]:
    if driver is None:
        return ImageFormat.RAW, None, None, None
    driver.accept("name", "qemu")
    read = (
        driver.choice("type", _FORMATS) or ImageFormat.RAW,
        driver.choice("cache", _CACHES),
        driver.choice("io", _AIOS),
        driver.choice("discard", {"unmap": True, "ignore": False}),
    )
    driver.finish()
    return read


def _read_interface(element: Element, new_mac: str) -> Interface:
    kind = element.choice("type", _INTERFACES)
    if kind is None:
        raise element.invalid("attribute type is missing")
    model = element.get_child("model")
    model.choice("type", {"virtio": None})
    model.finish()
    driver = element.child("driver")
    if driver is not None:
        driver.choice("name", {"qemu": None})
        driver.finish()
    bridge, tap = None, None
    if kind is InterfaceKind.BRIDGE:
        source = element.get_child("source")
        bridge = source.get_attribute("bridge")
        source.finish()
    target = element.child("target")
    if target is not None and kind is not InterfaceKind.USER:
        tap = target.get_attribute("dev")
        target.accept("managed", "no", "yes")  # an existing device is used, a missing one is made
        target.finish()
    elif target is not None:
        raise target.not_carried()
    mac = element.child("mac")
    with element.located():
        interface = Interface(
            kind=kind,
            mac=new_mac if mac is None else mac.get_attribute("address").lower(),
            tap=tap,
            bridge=bridge,
            boot_index=_read_boot_index(element),
            address=read_address(element),
        )
    if mac is not None:
        mac.finish()
    element.finish()
    return interface


def _read_serials(devices: Element) -> tuple[Serial, ...]:
    serials: list[Serial] = []
    for element in devices.children("serial"):
        chardev = read_chardev(element)
        port = len(serials)
        target = element.child("target")
        if target is not None:
            target.accept("type", "isa-serial")
            given = target.number_attribute("port")
            port = port if given is None else given
            model = target.child("model")
            if model is not None:
                model.choice("name", {"isa-serial": None})
                model.finish()
            target.finish()
        element.ignore("alias")
        element.finish()
        with element.located():
            serials.append(Serial(port=port, chardev=chardev))
    return tuple(serials)


def _read_rng(element: Element) -> Rng:
    element.choice("model", {"virtio": None})
    backend = element.get_child("backend")
    model = backend.choice("model", {"random": "random", "builtin": "builtin"})
    source = (backend.text() or "/dev/random") if model != "builtin" else None
    backend.finish()
    rate = element.child("rate")
    rate_bytes, rate_period_ms = None, None
    if rate is not None:
        rate_bytes = rate.number(rate.get_attribute("bytes"))
        period_ms = rate.number_attribute("period")
        rate_period_ms = 1000 if period_ms is None else period_ms
        rate.finish()
    with element.located():
        rng = Rng(source=source, rate_bytes=rate_bytes, rate_period_ms=rate_period_ms, address=read_address(element))
    element.finish()
    return rng


def _read_balloon(element: Element | None) -> Balloon | None:
    if element is None:
        return _DEFAULT_BALLOON
    exists = element.choice("model", {"virtio": True, "none": False})
    balloon = Balloon(
        deflates_on_oom=element.switch("autodeflate"),
        reports_free_pages=element.switch("freePageReporting"),
        address=read_address(element),
    )
    element.finish()
    return balloon if exists is not False else None


def _read_controllers(devices: Element, *, has_consoles: bool) -> PciAddress | None:
    """Take the controllers that are there anyway, and read where the one of the virtio consoles sits."""
    virtio_serial: PciAddress | None = None
    for element in devices.children("controller"):
        kind = element.get_attribute("type")
        element.accept("index", "0")
        if kind == "pci":
            element.accept("model", *_PCI_ROOTS)
        elif kind == "virtio-serial" and has_consoles:
            virtio_serial = read_address(element)
        elif kind in _BUILT_IN_CONTROLLERS:
            model = element.attribute("model")
            if model not in _BUILT_IN_CONTROLLERS[kind]:
                raise element.attribute_not_carried("type", f"{kind}, model {model or 'default'}")
            element.ignore("address")
        else:
            raise element.attribute_not_carried("type", kind)
        element.ignore("alias")
        element.finish()
    return virtio_serial


def _accept_built_in(devices: Element) -> None:
    """Take what every board has by itself: PS/2 keyboard and mouse; and sound that goes nowhere."""
    for element in devices.children("input"):
        element.choice("type", {"mouse": None, "keyboard": None})
        element.choice("bus", {"ps2": None})
        element.ignore("alias")
        element.finish()
    for element in devices.children("audio"):
        element.accept("id")
        element.choice("type", {"none": None})
        element.finish()
