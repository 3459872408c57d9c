"""libvirt domain XML to a definition.

Each part of the XML has a reader beside this file. What is carried is read there; what is irrelevant to the guest is
named there and here; everything else is refused by path and line. Where libvirt has a default that the guest can see
(controllers, addresses, balloon, boot order, no ACPI without `<acpi/>`) the definition gets the same.

Source: https://libvirt.org/formatdomain.html, and libvirt's own command lines for it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4, uuid5

from agent.vm import rules
from agent.vm.definition import MAX_SHARES, MIN_SHARES, Definition
from agent.vm.domain.backing import read_backing
from agent.vm.domain.boot import check_crash, ends_at_reboot, give_boot_order, read_machine, read_os
from agent.vm.domain.chardevs import number_ports, read_lines
from agent.vm.domain.controllers import plug_usb, read_controllers
from agent.vm.domain.cpu import read_cpu, read_topology, read_vcpus
from agent.vm.domain.disks import read_disks
from agent.vm.domain.displays import read_displays
from agent.vm.domain.features import read_clock, read_features, read_power
from agent.vm.domain.interfaces import read_interfaces
from agent.vm.domain.memory import read_memory
from agent.vm.domain.modules import read_modules
from agent.vm.domain.others import read_others
from agent.vm.domain.pci import assign
from agent.vm.domain.plan import Plan
from agent.vm.domain.reader import parse_xml
from agent.vm.domain.spice import check_spice_lines
from agent.vm.domain.sysinfo import read_sysinfo
from agent.vm.domain.virtio import check_iommu
from agent.vm.options import Option, flag, of_json, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.vm.domain.backing import Backing
    from agent.vm.domain.reader import Element

# Names and places in management tools; the guest sees none of them.
IRRELEVANT: Final = ("metadata", "title", "description", "seclabel", "resource", "idmap", "on_lockfailure")
_MAX_THREADS: Final = 1024
# The order of kinds on the command line: what others sit on comes first.
_RANKS: Final = {"pci": 0, "iommu": 1, "controller": 2, "hub": 3, "memory": 3, "disk": 4, "usb": 4}


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
    name = _read_name(domain)
    given = _read_uuid(domain)
    uuid = given or new_uuid()
    os = domain.get_child("os")
    machine, board = read_machine(os)
    plan = Plan(board, name)
    plan.head += [text("uuid", str(uuid)), flag("nodefaults")]
    _read_genid(domain, plan, uuid)
    ends_at_reboot(domain, plan)
    cpu_element = domain.child("cpu")
    vcpus = read_vcpus(domain, read_topology(cpu_element))
    backing = read_backing(domain)
    memory = read_memory(domain, cpu_element, plan, backing)
    _read_iothreads(domain, plan)
    read_clock(domain, plan)
    read_power(domain, plan)
    read_sysinfo(domain, os, plan, str(uuid))
    order = read_os(os, plan)
    read_features(domain, plan, prefers_kvm=prefers_kvm)
    shares = _read_shares(domain)
    devices = domain.child("devices")
    emulator = None
    if devices is not None:
        emulator = devices.child_text("emulator")
        _read_devices(devices, plan, uuid, backing)
        devices.finish()
    else:
        read_controllers(domain, plan)
        read_displays(domain, plan)
    check_iommu(plan)
    check_crash(plan)
    check_spice_lines(plan)
    give_boot_order(plan, os, order)
    plug_usb(plan)
    number_ports(plan)
    assign(plan, devices or domain)
    cpu = read_cpu(cpu_element, plan.cpu_properties, prefers_kvm=prefers_kvm)
    has_balloon = bool(plan.of_kind("memballoon"))
    return Definition(
        name=name,
        uuid=uuid,
        emulator=emulator,
        prefers_kvm=prefers_kvm,
        accelerator=None,
        machine=machine,
        machine_properties={"usb": False, "dump-guest-core": False, **plan.machine_properties},
        cpu=cpu,
        memory_kib=memory.boot_kib,
        current_memory_kib=memory.current_kib if has_balloon else memory.boot_kib,
        memory_slots=memory.slots,
        vcpu_count=vcpus.count,
        smp=vcpus.smp,
        cpu_shares=shares,
        options=tuple(_options(plan)),
        disks=tuple(plan.disks),
        taps=tuple(plan.taps),
        blockers=tuple(plan.blockers),
    )


def _read_devices(devices: Element, plan: Plan, uuid: UUID, backing: Backing) -> None:
    read_controllers(devices, plan)
    read_modules(devices, plan, backing)
    read_disks(devices, plan)
    read_interfaces(devices, plan, lambda index: _mac_of(uuid, index))
    read_lines(devices, plan)
    read_displays(devices, plan)
    read_others(devices, plan, uuid)


def _options(plan: Plan) -> list[Option]:
    ports = [controller.device for _, controller in sorted(plan.pci.items()) if controller.device is not None]
    devices = sorted([*ports, *plan.devices], key=lambda device: _RANKS.get(device.kind, 5))
    return [*plan.head, *(option for device in devices for option in device.options()), *plan.tail]


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
    words = element.text()
    element.finish()
    try:
        return UUID(words)
    except ValueError as error:
        raise element.invalid(f"{words[:80]!r} is not a UUID") from error


def _read_genid(domain: Element, plan: Plan, uuid: UUID) -> None:
    """A generation ID has to change when a guest is copied, and Ferry only moves guests: it is chosen once and kept."""
    element = domain.child("genid")
    if element is None:
        return
    words = element.text()
    element.finish()
    try:
        guid = UUID(words) if words else uuid5(uuid, "genid")
    except ValueError as error:
        raise element.invalid(f"{words[:80]!r} is not a UUID") from error
    plan.tail.append(of_json("device", {"driver": "vmgenid", "guid": str(guid), "id": "vmgenid0"}))


def _read_iothreads(domain: Element, plan: Plan) -> None:
    count = domain.child("iothreads")
    listed = domain.child("iothreadids")
    found: dict[int, dict[str, object]] = {}
    if listed is not None:
        for element in listed.children("iothread"):
            number = element.number(element.get_attribute("id"))
            ends = {f"thread-pool-{end}": element.number_attribute(f"thread_pool_{end}") for end in ("min", "max")}
            element.finish()
            if number in found:
                raise element.invalid(f"iothread {number} is given twice")
            found[number] = {key: value for key, value in ends.items() if value is not None}
        listed.finish()
    if count is not None:
        wanted = count.number(count.text())
        count.finish()
        if wanted > _MAX_THREADS:
            raise count.invalid(f"{wanted} iothreads: {_MAX_THREADS} is the most")
        number = 1
        while len(found) < wanted:
            found.setdefault(number, {})
            number += 1
    for number, limits in found.items():
        plan.head.append(of_json("object", {"qom-type": "iothread", "id": f"iothread{number}", **limits}))
    plan.iothreads = set(found)
    main = domain.child("defaultiothread")
    if main is not None:
        pool = {f"thread-pool-{end}": main.number_attribute(f"thread_pool_{end}") for end in ("min", "max")}
        main.finish()
        words = {key: value for key, value in pool.items() if value is not None}
        plan.head.append(of_json("object", {"qom-type": "main-loop", "id": "main-loop", **words}))


def _read_shares(domain: Element) -> int | None:
    element = domain.child("cputune")
    if element is None:
        return None
    shares = element.child("shares")
    number = None
    if shares is not None:
        number = shares.number(shares.text())
        shares.finish()
        with shares.located():
            rules.check_range(number, MIN_SHARES, MAX_SHARES, "CPU shares")
    element.finish()
    return number
