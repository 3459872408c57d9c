"""`<disk>`: hard disks, CD-ROMs and floppies on virtio, SCSI, IDE, SATA, USB and the floppy controller."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.definition import Disk
from agent.vm.domain.addresses import read_alias, read_boot_order, read_numbers, read_pci_address
from agent.vm.domain.controllers import need, read_usb
from agent.vm.domain.images import Image, chain, read_image, read_storage
from agent.vm.domain.plan import Board, Device
from agent.vm.domain.virtio import models, read_switches, slot_of
from agent.vm.options import Option, keyval, of_json

if TYPE_CHECKING:
    from agent.vm.domain.plan import Plan
    from agent.vm.domain.reader import Element

_BUSES: Final = ("ide", "fdc", "scsi", "virtio", "usb", "sata")
_PREFIXES: Final = {"hd": "ide", "sd": "scsi", "vd": "virtio", "fd": "fdc"}
_TARGET: Final = re.compile(r"(hd|sd|vd|fd)([a-z]{1,3})")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_SERIAL: Final = re.compile(r"[A-Za-z0-9_ .+-]{1,250}")
_DRIVE: Final = ("controller", "bus", "target", "unit")
_POLICIES: Final = {"stop": "stop", "report": "report", "ignore": "ignore", "enospace": "enospc"}
_WIDE_SCSI_UNITS: Final = 15
_INITIATOR: Final = 7
_BLOCK_SIZES: Final = ("logical_block_size", "physical_block_size", "discard_granularity")
_NARROW: Final = frozenset({"lsi"})
# What a drive's address has not on each bus. Source: qemuBuildDiskDeviceProps of libvirt.
_ZEROS: Final[dict[str, tuple[str, ...]]] = {"ide": ("target",), "fdc": ("bus", "target"), "sata": ("bus", "target")}
_LIMITS: Final = {
    f"{what}_{unit}_sec{suffix}": f"{prefix}-{what}{end}"
    for what in ("total", "read", "write")
    for unit, prefix in (("bytes", "bps"), ("iops", "iops"))
    for suffix, end in (("", ""), ("_max", "-max"), ("_max_length", "-max-length"))
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a drive sits on its controller."""

    controller: int
    bus: int
    target: int
    unit: int


def read_disks(devices: Element, plan: Plan) -> None:
    """Read every disk, in libvirt's order: buses as they first appear, and the targets of each sorted.

    Source: virDomainDiskInsert of libvirt.
    """
    read = [_DiskReader(element, plan) for element in devices.children("disk")]
    seen: set[str] = set()
    for disk in read:
        if disk.name in seen:
            raise disk.element.invalid(f"disk target {disk.name} is given twice")
        seen.add(disk.name)
    buses = [*dict.fromkeys(disk.bus for disk in read)]
    for disk in sorted(read, key=lambda one: (buses.index(one.bus), one.index)):
        disk.read()


class _DiskReader:
    def __init__(self, element: Element, plan: Plan) -> None:
        self.element = element
        self._plan = plan
        self._kind = element.choice("type", {name: name for name in ("file", "block", "network", "vhostuser")}) or "file"
        self._device = element.choice("device", {name: name for name in ("disk", "cdrom", "floppy", "lun")}) or "disk"
        target = element.get_child("target")
        self.name = target.get_attribute("dev")
        match = _TARGET.fullmatch(self.name)
        if match is None:
            raise target.invalid(f"disk target {self.name[:40]!r}: `vda`, `sda`, `hda` or `fda` and so on is wanted")
        self.index = _index_of(match[2])
        default = "fdc" if self._device == "floppy" else _PREFIXES[match[1]]
        self.bus = target.choice("bus", {name: name for name in _BUSES}) or default
        self._is_removable = target.switch("removable")
        self._tray = target.choice("tray", {"closed": False, "open": True})
        self._rotation_rate = target.number_attribute("rotation_rate")
        target.finish()
        element.accept("snapshot")  # what snapshots by libvirt do with it
        if self._device == "lun":
            self._check_lun()
        if (self.bus == "fdc") is not (self._device == "floppy"):
            raise element.invalid(f"a {self._device} on bus {self.bus}")

    def _check_lun(self) -> None:
        """A disk whose SCSI commands go to the host's device as they are; QEMU's virtio disks of today pass none on."""
        if self._kind not in ("block", "network") or self.bus != "scsi":
            raise self.element.attribute_not_carried("device", f"lun, of type {self._kind} on bus {self.bus}")
        self.element.choice("rawio", {"yes": None, "no": None})  # a privilege that the agent's units decide about
        self.element.choice("sgio", {"filtered": None})

    def read(self) -> None:
        if self._kind == "vhostuser":
            self._read_vhost_user()
        else:
            self._read_image()

    def _read_vhost_user(self) -> None:
        """Read a disk that another process of the host serves: QEMU has a socket and no image of it."""
        element, plan = self.element, self._plan
        if self.bus != "virtio" or self._device != "disk":
            raise element.invalid(f"type vhostuser: a disk on bus virtio is wanted, not a {self._device} on {self.bus}")
        ending = element.choice("model", models("virtio")) or ""
        driver = element.child("driver")
        if driver is not None:
            driver.accept("name", "qemu")
            driver.accept("type", "raw")
        properties = self._read_driver(driver)
        source = element.get_child("source")
        source.choice("type", {"unix": None})
        socket: dict[str, object] = {"backend": "socket", "id": f"chr-vu-{self.name}", "path": source.get_attribute("path")}
        with source.located():
            rules.check_path(str(socket["path"]))
        reconnect = source.child("reconnect")
        if reconnect is not None:
            if reconnect.choice("enabled", {"yes": True, "no": False}):
                socket["reconnect"] = reconnect.number_attribute("timeout") or 0
            reconnect.finish()
        source.finish()
        address = read_pci_address(element)
        name = read_alias(element, f"virtio-disk{self.index}")
        front = {"driver": f"vhost-user-blk-pci{ending}", **properties, "chardev": socket["id"], "id": name}
        device = Device(element, "disk", front, slot_of(plan, ending), address, before=[keyval("chardev", socket)])
        device.boot_index, device.boots_as = read_boot_order(element), "hd"
        element.finish()
        plan.blockers.append(f"disk {self.name} of a vhost-user process of the host")
        plan.add(device)

    def _read_image(self) -> None:
        element, plan = self.element, self._plan
        endings = models("virtio")
        ending = element.choice("model", endings) or ""
        driver = element.child("driver")
        image = read_image(driver)
        properties = self._read_driver(driver)
        is_cdrom = self._device == "cdrom"
        is_read_only = element.has("readonly") or is_cdrom
        is_shareable = element.has("shareable")
        if is_shareable and not is_read_only and image.cache is None:
            image = replace(image, cache="none")  # as libvirt does: another host must see what was written
        source = element.child("source")
        auth, encryption = element.child("auth"), element.child("encryption")
        storage = (
            None
            if source is None
            else read_storage(source, self._kind, self.name, is_cdrom=is_cdrom, auth=auth, encryption=encryption)
        )
        if storage is None and self._device == "disk":
            raise element.invalid("a disk needs a source")
        nodes = [] if storage is None else chain(element, self.name, storage, image, is_read_only=is_read_only)
        if storage is None:
            element.ignore("backingStore")
        top = self.name
        if storage is not None:
            top, filters = self._filters(image)
            nodes += filters
            properties["drive"] = top
        if is_shareable:
            properties["share-rw"] = True
        if image.write_cache is not None:
            properties["write-cache"] = image.write_cache
        self._read_identity(properties)
        order = read_boot_order(element)
        device = self._front(ending, properties)
        if self.bus == "virtio":
            device.pci = slot_of(plan, ending)
        device.before = nodes
        device.boot_index = order
        device.boots_as = {"disk": "hd", "lun": "hd", "cdrom": "cdrom", "floppy": "fd"}[self._device]
        element.finish()
        plan.add(device)
        if storage is not None:
            plan.disks.append(Disk(self.name, top, device.id, is_shareable))

    def _filters(self, image: Image) -> tuple[str, list[Option]]:
        top, nodes = self.name, []
        if image.copies_on_read:
            copier = {"driver": "copy-on-read", "node-name": f"{self.name}-cor", "file": top, "discard": "unmap"}
            nodes.append(of_json("blockdev", copier))
            top = f"{self.name}-cor"
        limits, group = self._read_limits()
        if limits:
            name = f"throttle-{group or self.name}"
            if group is None or not any(option.get("id") == name for device in self._plan.devices for option in device.before):
                nodes.append(of_json("object", {"qom-type": "throttle-group", "id": name, "limits": limits}))
            throttle = {"driver": "throttle", "node-name": f"{self.name}-throttle", "throttle-group": name, "file": top}
            nodes.append(of_json("blockdev", throttle))
            top = f"{self.name}-throttle"
        return top, nodes

    def _read_limits(self) -> tuple[dict[str, object], str | None]:
        element = self.element.child("iotune")
        if element is None:
            return {}, None
        limits: dict[str, object] = {}
        for tag, key in _LIMITS.items():
            limit = element.child_text(tag)
            if limit is not None and element.number(limit):
                limits[key] = element.number(limit)
        size = element.child_text("size_iops_sec")
        if size is not None and element.number(size):
            limits["iops-size"] = element.number(size)
        group = element.child_text("group_name")
        element.finish()
        if group is not None and not _ID.fullmatch(group):  # an id of QEMU has no other characters
            group = hashlib.sha256(group.encode()).hexdigest()[:16]
        return limits, group

    def _read_driver(self, driver: Element | None) -> dict[str, object]:
        if driver is None:
            return {}
        properties = dict(read_switches(driver))
        for name, key in (("queues", "num-queues"), ("queue_size", "queue-size")):
            number = driver.number_attribute(name)
            if number is not None:
                properties[key] = number
        on_write, on_read = driver.choice("error_policy", _POLICIES), driver.choice("rerror_policy", _POLICIES)
        if on_read is None and on_write != "enospc":  # which means something for writes alone
            on_read = on_write
        chosen: dict[str, object] = {
            "werror": on_write,
            "rerror": on_read,
            "ioeventfd": driver.switch("ioeventfd"),
            "event_idx": driver.switch("event_idx"),
        }
        properties |= {key: value for key, value in chosen.items() if value is not None}
        thread = driver.number_attribute("iothread")
        if thread is not None:
            if thread not in self._plan.iothreads:
                raise driver.invalid(f"iothread {thread} is not defined")
            properties["iothread"] = f"iothread{thread}"
        driver.finish()
        if self.bus != "virtio" and properties.keys() - {"werror", "rerror"}:
            raise driver.invalid(f"{', '.join(sorted(properties))}: only for disks on virtio")
        return properties

    def _read_identity(self, properties: dict[str, object]) -> None:
        element = self.element
        serial, wwn = element.child_text("serial"), element.child_text("wwn")
        vendor, product = element.child_text("vendor"), element.child_text("product")
        for word in (serial, vendor, product):
            if word is not None and not _SERIAL.fullmatch(word):
                raise element.invalid(f"{word[:40]!r}: letters, digits, blanks and `_.+-` are wanted")
        if self.bus == "scsi":
            properties["device_id"] = serial or ""
        if wwn is not None:
            properties["wwn"] = element.number(f"0x{wwn.removeprefix('0x')}")
        words: dict[str, object] = {"vendor": vendor, "product": product, "serial": serial, "rotation_rate": self._rotation_rate}
        properties |= {key: value for key, value in words.items() if value is not None}
        self._read_geometry(properties)
        sizes = element.child("blockio")
        if sizes is not None:
            numbers = {name: sizes.number_attribute(name) for name in _BLOCK_SIZES}
            properties |= {key: value for key, value in numbers.items() if value is not None}
            sizes.finish()

    def _read_geometry(self, properties: dict[str, object]) -> None:
        geometry = self.element.child("geometry")
        if geometry is None:
            return
        for name in ("cyls", "heads", "secs"):
            properties[name] = geometry.number(geometry.get_attribute(name))
        translation = geometry.choice("trans", {name: name for name in ("none", "auto", "lba")})
        geometry.finish()
        if translation is not None:
            properties["bios-chs-trans"] = translation

    def _front(self, ending: str, properties: dict[str, object]) -> Device:
        match self.bus:
            case "virtio":
                return self._virtio(ending, properties)
            case "usb":
                return self._usb(properties)
            case "fdc":
                return self._floppy(properties)
            case "scsi":
                return self._scsi(properties)
            case _:
                return self._ide(properties)

    def _virtio(self, ending: str, properties: dict[str, object]) -> Device:
        if self._device != "disk":
            raise self.element.invalid(f"a {self._device} on bus virtio")
        address = read_pci_address(self.element)
        name = read_alias(self.element, f"virtio-disk{self.index}")
        return Device(self.element, "disk", {"driver": f"virtio-blk-pci{ending}", **properties, "id": name}, address=address)

    def _usb(self, properties: dict[str, object]) -> Device:
        if "drive" not in properties:
            raise self.element.invalid("an empty drive on bus usb; use bus sata or scsi")
        port = read_usb(self.element)
        name = read_alias(self.element, f"usb-disk{self.index}")
        is_removable = self._is_removable or False
        front = {"driver": "usb-storage", **port, **properties, "id": name, "removable": is_removable}
        return Device(self.element, "usb", front)

    def _place(self) -> Place:
        given = read_numbers(self.element, "drive", _DRIVE, zeros=_ZEROS.get(self.bus, ()))
        if given is not None:
            return Place(*(given[name] for name in _DRIVE))
        index = self.index
        match self.bus:
            case "ide":
                return Place(index // 4, index // 2 % 2, 0, index % 2)
            case "fdc":
                return Place(index // 2, 0, 0, index % 2)
            case "sata":
                return Place(index // 6, 0, 0, index % 6)
            case _:
                unit = index % _WIDE_SCSI_UNITS
                return Place(index // _WIDE_SCSI_UNITS, 0, 0, unit + (unit >= _INITIATOR))

    def _floppy(self, properties: dict[str, object]) -> Device:
        place = self._place()
        name = read_alias(self.element, f"fdc{place.controller}-{place.bus}-{place.unit}")
        device = Device(self.element, "disk", {"driver": "floppy", "unit": place.unit, **properties, "id": name})
        device.boot_key = f"bootindex{'AB'[place.unit % 2]}"
        return device

    def _ide(self, properties: dict[str, object]) -> Device:
        place = self._place()
        driver = "ide-cd" if self._device == "cdrom" else "ide-hd"
        name = read_alias(self.element, f"{self.bus}{place.controller}-{place.bus}-{place.unit}")
        if self.bus == "ide":
            if self._plan.board is not Board.I440FX:
                raise self.element.invalid("machine type q35 has no IDE; use bus sata")
            if place.bus > 1 or place.unit > 1 or place.controller:
                raise self.element.invalid(
                    f"controller {place.controller}, bus {place.bus}, unit {place.unit}: IDE has two buses of two"
                )
            where: dict[str, object] = {"bus": f"ide.{place.bus}", "unit": place.unit}
        else:
            where = {"bus": f"{need(self._plan, 'sata', place.controller, self.element)}.{place.unit}"}
        return Device(self.element, "disk", {"driver": driver, **where, **properties, "id": name})

    def _scsi(self, properties: dict[str, object]) -> Device:
        place = self._place()
        driver = {"cdrom": "scsi-cd", "lun": "scsi-block"}.get(self._device, "scsi-hd")
        controller = need(self._plan, "scsi", place.controller, self.element)
        is_narrow = self._plan.controllers["scsi", place.controller].properties["driver"] in _NARROW
        where: dict[str, object]
        if is_narrow and place.target:
            raise self.element.invalid(f"target {place.target}: this controller has only 0")
        if is_narrow:
            where, tail = {"scsi-id": place.unit}, f"{place.bus}-{place.unit}"
        else:
            where, tail = (
                {"channel": place.bus, "scsi-id": place.target, "lun": place.unit},
                f"{place.bus}-{place.target}-{place.unit}",
            )
        default = f"scsi{place.controller}-{tail}"
        name = read_alias(self.element, default)
        properties["device_id"] = properties.get("device_id") or f"drive-{name}"
        if self._device == "lun":  # the host's device says itself what it is
            properties = {key: value for key, value in properties.items() if key not in ("device_id", "write-cache")}
        return Device(self.element, "disk", {"driver": driver, "bus": f"{controller}.0", **where, **properties, "id": name})


def _index_of(letters: str) -> int:
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1
