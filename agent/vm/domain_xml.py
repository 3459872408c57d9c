"""libvirt domain XML to a definition.

What is carried is read here and in `domain_cpu` and `domain_devices`; what is irrelevant to the guest is named here;
everything else is refused by path and line. Where libvirt has a default that the guest can see (PCI machine, CPU
model, balloon, boot order, no ACPI without `<acpi/>`) the definition gets the same.

Source: https://libvirt.org/formatdomain.html, and libvirt's own command lines for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from agent.vm import rules
from agent.vm.definition import Boot, Clock, ClockBase, Definition, Features
from agent.vm.domain_cpu import read_cpu, read_vcpu_count
from agent.vm.domain_devices import read_devices
from agent.vm.xml_reader import parse_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.vm.devices import Disk, Interface
    from agent.vm.domain_devices import Devices
    from agent.vm.xml_reader import Element

DEFAULT_MACHINE = "pc"
# Names and places in management tools; the guest sees none of them.
IRRELEVANT = ("metadata", "title", "description")
_KIB = 1024
_UNITS_BYTES = {
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": _KIB,
    "KiB": _KIB,
    "MB": 1000**2,
    "M": _KIB**2,
    "MiB": _KIB**2,
    "GB": 1000**3,
    "G": _KIB**3,
    "GiB": _KIB**3,
    "TB": 1000**4,
    "T": _KIB**4,
    "TiB": _KIB**4,
}
_YES_NO = {"yes": True, "no": False}


def parse_domain(xml: bytes, origin: str, *, new_uuid: Callable[[], UUID] = uuid4) -> Definition:
    """Read one `<domain>`.

    `origin` names the document in errors. Without `<uuid>` the VM gets a new one; network cards without `<mac>` get
    addresses that follow from the UUID.

    Raises:
        NotCarried: an element, attribute or value is not carried; the text names it with path and line.
        InvalidRequest: it is broken, too big, or contradicts itself.
    """
    domain = parse_xml(xml, origin)
    if domain.tag != "domain":
        raise domain.not_carried()
    with domain.located():
        definition = _read_domain(domain, new_uuid)
    domain.finish()
    return definition


def _read_domain(domain: Element, new_uuid: Callable[[], UUID]) -> Definition:
    domain.accept("id")
    prefers_kvm = domain.choice("type", {"kvm": True, "qemu": False})
    if prefers_kvm is None:
        raise domain.invalid("attribute type is missing")
    for irrelevant in IRRELEVANT:
        domain.ignore(irrelevant)
    _accept_actions(domain)
    uuid = _read_uuid(domain) or new_uuid()
    memory_kib = _read_memory_kib(domain.get_child("memory"))
    current_memory = domain.child("currentMemory")
    vcpu_count = read_vcpu_count(domain)
    cpu, topology = read_cpu(domain, prefers_kvm=prefers_kvm)
    machine, boot, boot_devices = _read_os(domain)
    clock, hpet = _read_clock(domain)
    features = replace(_read_features(domain), hpet=hpet)
    devices = read_devices(domain.child("devices"), new_mac=lambda index: _mac_of(uuid, index))
    disks, interfaces = _with_boot_order(domain, devices, boot_devices)
    current_memory_kib = memory_kib if current_memory is None else _read_memory_kib(current_memory)
    return Definition(
        name=_read_name(domain),
        uuid=uuid,
        memory_kib=memory_kib,
        current_memory_kib=min(current_memory_kib, memory_kib) if devices.balloon else memory_kib,
        vcpu_count=vcpu_count,
        topology=topology,
        cpu=cpu,
        machine=machine,
        prefers_kvm=prefers_kvm,
        accelerator=None,
        emulator=devices.emulator,
        boot=boot,
        features=features,
        clock=clock,
        disks=disks,
        interfaces=interfaces,
        serials=devices.serials,
        consoles=devices.consoles,
        virtio_serial_address=devices.virtio_serial_address,
        rngs=devices.rngs,
        balloon=devices.balloon,
    )


def _read_name(domain: Element) -> str:
    element = domain.get_child("name")
    name = element.text()
    element.finish()
    with element.located():
        rules.check_name(name)
    return name


def _mac_of(uuid: UUID, index: int) -> str:
    """Choose an address from QEMU's range that no other card of the fleet is likely to have."""
    digest = hashlib.sha256(uuid.bytes + index.to_bytes(4, "big")).digest()
    return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def _read_uuid(domain: Element) -> UUID | None:
    element = domain.child("uuid")
    if element is None:
        return None
    text = element.text()
    element.finish()
    try:
        return UUID(text)
    except ValueError as error:
        raise element.invalid(f"{text[:80]!r} is not a UUID") from error


def _read_memory_kib(element: Element) -> int:
    unit_bytes = element.choice("unit", _UNITS_BYTES) or _KIB
    number = element.number(element.text())
    element.finish()
    return -(-number * unit_bytes // _KIB)


def _accept_actions(domain: Element) -> None:
    """Take the reactions that QEMU has by itself; `on_crash` never fires, because no panic device is carried."""
    for name, accepted in (("on_poweroff", ("destroy",)), ("on_crash", ("destroy", "restart"))):
        element = domain.child(name)
        if element is not None:
            element.text_choice(dict.fromkeys(accepted))
            element.finish()


def _read_os(domain: Element) -> tuple[str, Boot, list[str]]:
    on_reboot = domain.child("on_reboot")
    ends_at_reboot = on_reboot is not None and on_reboot.text_choice({"restart": False, "destroy": True})
    if on_reboot is not None:
        on_reboot.finish()
    element = domain.get_child("os")
    kind = element.get_child("type")
    kind.text_choice({"hvm": None})
    kind.accept("arch", "x86_64")
    machine = kind.attribute("machine") or DEFAULT_MACHINE
    kind.finish()
    boot_devices = []
    for boot in element.children("boot"):
        boot_devices.append(boot.choice("dev", {"hd": "hd", "network": "network"}) or "hd")
        boot.finish()
    with element.located():
        parts = Boot(
            kernel=element.child_text("kernel"),
            initrd=element.child_text("initrd"),
            cmdline=element.child_text("cmdline"),
            firmware=_read_firmware(element),
            ends_at_reboot=ends_at_reboot,
        )
    element.finish()
    return machine, parts, boot_devices


def _read_firmware(element: Element) -> str | None:
    loader = element.child("loader")
    if loader is None:
        return None
    loader.accept("type", "rom")
    loader.accept("readonly", "yes")
    path = loader.text()
    loader.finish()
    return path


def _read_features(domain: Element) -> Features:
    element = domain.child("features")
    power = domain.child("pm")
    switches: dict[str, bool | None] = dict.fromkeys(("pmu", "smm", "vmport", "suspend-to-mem", "suspend-to-disk"))
    acpi = False
    if element is not None:
        acpi = element.has("acpi")
        element.has("apic")  # every x86 guest has one
        element.has("pae")  # every CPU of QEMU has it
        for name in ("pmu", "smm", "vmport"):
            switches[name] = _read_switch(element.child(name))
        element.finish()
    if power is not None:
        for name in ("suspend-to-mem", "suspend-to-disk"):
            state = power.child(name)
            if state is not None:
                switches[name] = state.choice("enabled", _YES_NO)
                state.finish()
        power.finish()
    return Features(
        acpi=acpi,
        hpet=None,
        pmu=switches["pmu"],
        smm=switches["smm"],
        vmport=switches["vmport"],
        suspend_to_memory=switches["suspend-to-mem"],
        suspend_to_disk=switches["suspend-to-disk"],
    )


def _read_switch(element: Element | None) -> bool | None:
    if element is None:
        return None
    state = element.switch()
    element.finish()
    return True if state is None else state


def _read_clock(domain: Element) -> tuple[Clock, bool | None]:
    element = domain.child("clock")
    if element is None:
        return Clock(base=ClockBase.UTC, rtc_catches_up=None, pit_delays_ticks=None), None
    base = element.choice("offset", {"utc": ClockBase.UTC, "localtime": ClockBase.LOCALTIME}) or ClockBase.UTC
    answers: dict[str, bool | None] = {"rtc": None, "pit": None, "hpet": None}
    for timer in element.children("timer"):
        name = timer.choice("name", {name: name for name in answers})
        if name == "rtc":
            answers["rtc"] = timer.choice("tickpolicy", {"catchup": True, "delay": False})
        elif name == "pit":
            answers["pit"] = timer.choice("tickpolicy", {"delay": True, "discard": False})
        elif name == "hpet":
            answers["hpet"] = timer.choice("present", _YES_NO)
        timer.finish()
    element.finish()
    return Clock(base=base, rtc_catches_up=answers["rtc"], pit_delays_ticks=answers["pit"]), answers["hpet"]


def _with_boot_order(domain: Element, devices: Devices, boot_devices: list[str]) -> tuple[tuple[Disk, ...], tuple[Interface, ...]]:
    """Give the first disk, or what `<os><boot>` names, its place in the boot order, as libvirt does."""
    disks, interfaces = list(devices.disks), list(devices.interfaces)
    indexes = [*(disk.boot_index for disk in disks), *(interface.boot_index for interface in interfaces)]
    if any(index is not None for index in indexes):
        if boot_devices:
            raise domain.invalid("boot order is given both in os and in devices")
        return devices.disks, devices.interfaces
    for index, kind in enumerate(dict.fromkeys(boot_devices or ["hd"]), start=1):
        if kind == "hd" and disks:
            disks[0] = replace(disks[0], boot_index=index)
        if kind == "network" and interfaces:
            interfaces[0] = replace(interfaces[0], boot_index=index)
    return tuple(disks), tuple(interfaces)
