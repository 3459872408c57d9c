"""The smaller devices: rng, watchdog, panic, TPM, vsock, balloon, IOMMU, file systems and devices of the host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.domain.addresses import read_alias, read_pci_address
from agent.vm.domain.hostdevs import read_hostdevs
from agent.vm.domain.plan import Board, Device, Slot
from agent.vm.domain.virtio import models, read_driver, read_switches, slot_of
from agent.vm.host_files import RANDOM_SOURCES
from agent.vm.options import RUN_DIR, keyval, of_json, text

if TYPE_CHECKING:
    from uuid import UUID

    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_YES_NO: Final = {"yes": True, "no": False}
_WATCHDOG_ACTIONS: Final = {name: name for name in ("reset", "shutdown", "poweroff", "pause", "none", "inject-nmi")}
_TAG: Final = re.compile(r"[A-Za-z0-9_./-]{1,31}")
_FIRST_CID: Final = 3
_MAX_CID: Final = 0xFFFF_FFFE


def read_others(devices: Element, plan: Plan, uuid: UUID) -> None:
    """Read every kind; the order is that of libvirt's command line."""
    for index, element in enumerate(devices.children("filesystem")):
        _read_filesystem(element, index, plan)
    _read_tpm(devices, plan)
    _read_watchdogs(devices, plan)
    read_hostdevs(devices, plan)
    _read_balloon(devices, plan)
    for index, element in enumerate(devices.children("rng")):
        _read_rng(element, index, plan)
    for element in devices.children("panic"):
        _read_panic(element, plan)
    _read_vsock(devices.child("vsock"), plan, uuid)
    _read_iommu(devices.child("iommu"), plan)


def _read_filesystem(element: Element, index: int, plan: Plan) -> None:
    element.choice("type", {"mount": None})
    security = element.choice("accessmode", {"passthrough": "passthrough", "mapped": "mapped", "squash": "none"}) or "passthrough"
    endings = models("virtio")
    ending = element.choice("model", endings) or ""
    driver = element.child("driver")
    writeout = None
    if driver is not None:
        driver.choice("type", {"path": None})
        writeout = driver.choice("wrpolicy", {"immediate": "immediate"})
    properties = _switches_of(driver)
    source, target = element.get_child("source"), element.get_child("target")
    path, tag = source.get_attribute("dir"), target.get_attribute("dir")
    source.finish()
    target.finish()
    with source.located():
        rules.check_path(path)
    if not _TAG.fullmatch(tag):
        raise target.invalid(f"mount tag {tag[:60]!r}: 1 to 31 letters, digits and `_./-` are wanted")
    name = read_alias(element, f"fs{index}")
    backend: dict[str, object] = {"fsdriver": "local", "security_model": security}
    if writeout is not None:
        backend["writeout"] = writeout
    backend |= {"id": f"fsdev-{name}", "path": path}
    if element.has("readonly"):
        backend["readonly"] = True
    address = read_pci_address(element)
    element.finish()
    plan.blockers.append(f"file system {path} of the host")
    properties = {"driver": f"virtio-9p-pci{ending}", **properties, "id": name, "fsdev": f"fsdev-{name}", "mount_tag": tag}
    plan.add(Device(element, "filesystem", properties, slot_of(plan, ending), address, before=[keyval("fsdev", backend)]))


def _switches_of(driver: Element | None) -> dict[str, object]:
    found = read_switches(driver)
    if driver is not None:
        driver.finish()
    return found


def _read_tpm(devices: Element, plan: Plan) -> None:
    element = devices.child("tpm")
    if element is None:
        return
    model = element.choice("model", {"tpm-tis": "tpm-tis", "tpm-crb": "tpm-crb"}) or "tpm-tis"
    backend = element.get_child("backend")
    backend.choice("type", {"emulator": None})
    backend.choice("version", {"2.0": None})
    backend.accept("persistent_state", "no", "yes")
    backend.finish()
    name = read_alias(element, "tpm0")
    element.finish()
    before = [
        keyval("chardev", {"backend": "socket", "id": "chrtpm", "path": f"{RUN_DIR}/swtpm.sock"}),
        keyval("tpmdev", {"type": "emulator", "id": f"tpm-{name}", "chardev": "chrtpm"}),
    ]
    plan.add(Device(element, "tpm", {"driver": model, "tpmdev": f"tpm-{name}", "id": name}, before=before))


def _read_watchdogs(devices: Element, plan: Plan) -> None:
    actions = set()
    for index, element in enumerate(devices.children("watchdog")):
        model = element.choice("model", {name: name for name in ("i6300esb", "ib700", "itco")})
        if model is None:
            raise element.invalid("attribute model is missing")
        actions.add(element.choice("action", _WATCHDOG_ACTIONS) or "reset")
        name = read_alias(element, f"watchdog{index}")
        if model == "itco":  # the board's own
            if plan.board is not Board.Q35:
                raise element.attribute_not_carried("model", "itco")
            element.finish()
            plan.head.append(text("global", "ICH9-LPC.noreboot=off"))
            continue
        slot = Slot.PCI if model == "i6300esb" else None
        address = read_pci_address(element) if slot else None
        element.finish()
        plan.add(Device(element, "watchdog", {"driver": model, "id": name}, slot, address))
    if len(actions) > 1:
        raise devices.invalid("watchdogs with different actions: QEMU has one for all")
    for action in actions:
        plan.tail.append(text("watchdog-action", action))


def _read_balloon(devices: Element, plan: Plan) -> None:
    """As under libvirt there is a balloon unless the XML says `model='none'`."""
    element = devices.child("memballoon")
    if element is None:
        plan.add(Device(devices, "memballoon", {"driver": "virtio-balloon-pci", "id": "balloon0"}, slot_of(plan, "")))
        return
    endings = models("virtio")
    model = element.choice("model", {name: name for name in (*endings, "none")}) or "virtio"
    switches = {
        "deflate-on-oom": element.switch("autodeflate"),
        "free-page-reporting": element.switch("freePageReporting"),
    }
    driver = read_driver(element)
    stats = element.child("stats")
    if stats is not None:
        stats.accept("period")  # how often libvirt asks; the guest is not asked by itself
        stats.finish()
    name = read_alias(element, "balloon0")
    if model == "none":
        read_pci_address(element)
        element.finish()
        return
    address = read_pci_address(element)
    element.finish()
    properties = {"driver": f"virtio-balloon-pci{endings[model]}", **driver, "id": name}
    properties |= {key: value for key, value in switches.items() if value is not None}
    plan.add(Device(element, "memballoon", properties, slot_of(plan, endings[model]), address))


def _read_rng(element: Element, index: int, plan: Plan) -> None:
    endings = models("virtio")
    ending = endings[element.choice("model", {name: name for name in endings}) or "virtio"]
    backend = element.get_child("backend")
    model = backend.choice("model", {"random": "random", "builtin": "builtin"}) or "random"
    source = backend.text()
    backend.finish()
    name = read_alias(element, f"rng{index}")
    found: dict[str, object] = {"qom-type": "rng-builtin", "id": f"obj{name}"}
    if model == "random":
        source = source or "/dev/random"
        if source not in RANDOM_SOURCES:
            raise backend.invalid(f"{source[:60]!r} is no source of random bytes; {', '.join(sorted(RANDOM_SOURCES))} are")
        found = {"qom-type": "rng-random", "id": f"obj{name}", "filename": source}
    rate = element.child("rate")
    limits: dict[str, object] = {}
    if rate is not None:
        limits["max-bytes"] = rate.number(rate.get_attribute("bytes"))
        period_ms = rate.number_attribute("period")
        limits["period"] = 1000 if period_ms is None else period_ms
        rate.finish()
    properties = {"driver": f"virtio-rng-pci{ending}", **read_driver(element), "rng": f"obj{name}", "id": name, **limits}
    address = read_pci_address(element)
    element.finish()
    plan.add(Device(element, "rng", properties, slot_of(plan, ending), address, before=[of_json("object", found)]))


def _read_panic(element: Element, plan: Plan) -> None:
    model = element.choice("model", {name: name for name in ("isa", "hyperv", "pvpanic")}) or "isa"
    if model == "hyperv":
        read_alias(element, "")
        plan.cpu_properties["hv-crash"] = True
        element.finish()
        return
    read_alias(element, "")
    if model == "pvpanic":
        device = Device(element, "panic", {"driver": "pvpanic-pci"}, Slot.PCI, read_pci_address(element))
        element.finish()
        plan.add(device)
        return
    properties: dict[str, object] = {"driver": "pvpanic"}
    address = element.child("address")
    if address is not None:
        address.choice("type", {"isa": None})
        port = address.number_attribute("iobase")
        address.finish()
        if port is not None:
            properties["ioport"] = port
    element.finish()
    plan.add(Device(element, "isa-panic", properties))


def _read_vsock(element: Element | None, plan: Plan, uuid: UUID) -> None:
    if element is None:
        return
    endings = models("virtio")
    ending = endings[element.choice("model", {name: name for name in endings}) or "virtio"]
    cid = element.get_child("cid")
    is_auto = cid.choice("auto", _YES_NO)
    address = cid.number_attribute("address")
    cid.finish()
    if is_auto or address is None:
        address = _FIRST_CID + int.from_bytes(uuid.bytes[:4], "big") % (_MAX_CID - _FIRST_CID)  # hosts rarely have two alike
    if not _FIRST_CID <= address <= _MAX_CID:
        raise cid.invalid(f"address {address}: {_FIRST_CID} to {_MAX_CID} is wanted")
    properties = {
        "driver": f"vhost-vsock-pci{ending}",
        **read_driver(element),
        "id": read_alias(element, "vsock0"),
        "guest-cid": address,
    }
    place = read_pci_address(element)
    element.finish()
    plan.add(Device(element, "vsock", properties, slot_of(plan, ending), place))


def _read_iommu(element: Element | None, plan: Plan) -> None:
    if element is None:
        return
    model = element.choice("model", {"intel": "intel-iommu", "virtio": "virtio-iommu-pci"})
    if model is None:
        raise element.invalid("attribute model is missing")
    driver = element.child("driver")
    properties: dict[str, object] = {"driver": model, "id": read_alias(element, "iommu0")}
    if driver is not None:
        for name, key in (("intremap", "intremap"), ("caching_mode", "caching-mode"), ("eim", "eim"), ("iotlb", "device-iotlb")):
            state = driver.switch(name)
            if state is not None:
                properties[key] = ("on" if state else "off") if name in ("intremap", "eim") else state
        bits = driver.number_attribute("aw_bits")
        if bits is not None:
            properties["aw-bits"] = bits
        driver.finish()
    slot = None if model == "intel-iommu" else Slot.ROOT
    address = None if slot is None else read_pci_address(element)
    element.finish()
    if plan.board is not Board.Q35:
        raise element.invalid("an IOMMU needs machine type q35")
    plan.add(Device(element, "iommu", properties, slot, address))
