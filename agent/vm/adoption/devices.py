"""Devices: each option found again in QEMU and given the place that it has there; plugged ones added, unplugged ones left out."""

from __future__ import annotations

from typing import Final

from agent.vm.adoption.draft import Draft
from agent.vm.adoption.facts import PLACES, Device
from agent.vm.adoption.words import last
from agent.vm.definition import Disk
from agent.vm.options import Option, Properties, Syntax

# Source: softmmu/qdev-monitor.c, qdev_alias_table.
_ALIASES: Final = {
    "ahci": "ich9-ahci",
    "e1000-82540em": "e1000",
    "lsi": "lsi53c895a",
    "ac97": "AC97",
    "es1370": "ES1370",
    "virtio-input-host": "virtio-input-host-pci",
}
_OF_THE_HOST: Final = ("vfio-", "usb-host", "virtio-input-host", "ivshmem", "vhost-user", "vhost-vsock", "ccid-card-pass")
_SOUND: Final = frozenset(
    {"hda-duplex", "hda-output", "hda-micro", "AC97", "ES1370", "sb16", "adlib", "gus", "cs4231a", "usb-audio", "virtio-sound-pci"}
)
_MEMORY: Final = ("pc-dimm", "nvdimm")
_OBJECTS: Final = "/objects/"


def place_devices(draft: Draft) -> None:
    """Give every device option the address that its device has; leave out options whose device is gone."""
    draft.pending = list(draft.facts.devices)
    indices = [index for index, option in enumerate(draft.options) if option.name == "device"]
    # QEMU makes those in JSON after all others.
    indices.sort(key=lambda index: draft.options[index].syntax is Syntax.JSON)
    gone = set()
    for index in indices:
        option = draft.options[index]
        device = _find(draft, option)
        if device is None:
            gone.add(index)
            named = f"-device {option.get('driver')} {option.get('id')}".rstrip()
            draft.dropped.append(f"{named}: it was unplugged since the start")
        else:
            draft.pending.remove(device)
            draft.options[index] = _placed(draft, option, device)
    draft.options = [option for index, option in enumerate(draft.options) if index not in gone]


def add_plugged(draft: Draft, renamed: dict[str, str]) -> None:
    """Add the devices that were plugged since the start, those that others sit on first."""
    plugged = [device for device in draft.pending if device.is_hotplugged]
    while plugged:
        ready = [device for device in plugged if not any(f"{device.owner}/".startswith(f"{other.path}/") for other in plugged)]
        for device in ready:
            plugged.remove(device)
            properties = {"driver": device.driver, **({"id": device.id} if device.id else {}), **_place(device)}
            properties |= {key: _plain(value) for key, value in device.properties.items() if key not in PLACES and value != -1}
            drive = str(properties.get("drive", ""))
            if drive in renamed:
                properties["drive"] = renamed[drive]
            _refuse_host(draft, device.driver, device.id)
            draft.add("device", properties, is_json=True)
            draft.changed.append(f"-device {device.driver} {device.id}: added, as it was plugged since the start")
    for device in draft.pending:
        if not device.is_hotplugged:
            name = device.path.rpartition("/")[2]
            draft.blockers.append(f"device {device.driver} ({name}): no option of the command line accounts for it")


def add_sound(draft: Draft) -> None:
    """Give sound cards without a backend a silent one: QEMU 10.0 wants one by name."""
    for index, option in enumerate(draft.options):
        if option.name == "device" and option.get("driver") in _SOUND and not option.get("audiodev"):
            if not any(other.name == "audiodev" and "adopted-audio" in other.write()[1] for other in draft.options):
                draft.add("audiodev", {"driver": "none", "id": "adopted-audio"})
            draft.options[index] = Option("device", option.syntax, None, {**option.properties, "audiodev": "adopted-audio"})


def used_nodes(draft: Draft) -> set[str]:
    """List the block nodes and drives that devices use now."""
    return {str(device.properties["drive"]) for device in draft.facts.devices if device.properties.get("drive")}


def rename_drives(draft: Draft, renamed: dict[str, str]) -> None:
    """Let devices name nodes as they are called elsewhere."""
    for index, option in enumerate(draft.options):
        if option.name == "device" and option.get("drive") in renamed:
            draft.options[index] = Option(
                "device", option.syntax, None, {**option.properties, "drive": renamed[option.get("drive")]}
            )


def _find(draft: Draft, option: Option) -> Device | None:
    identifier = option.get("id")
    for device in draft.pending:
        if device.is_hotplugged:
            continue
        if identifier:
            if device.id == identifier:
                return device
        elif not device.id and _is_driver(option.get("driver"), device.driver):
            return device
    return None


def _is_driver(given: str, real: str) -> bool:
    return real in (given, f"{given}-pci", _ALIASES.get(given))


def _placed(draft: Draft, option: Option, device: Device) -> Option:
    properties = dict(option.properties)
    place = {key: value for key, value in _place(device).items() if key not in properties}
    drive = device.properties.get("drive")
    if last(properties.get("drive")) and drive is None:
        properties.pop("drive")
        draft.changed.append(f"-device {device.driver} {device.id}: its drive is empty by now")
    elif drive is not None and drive != properties.get("drive"):
        properties["drive"] = drive
        draft.changed.append(f"-device {device.driver} {device.id}: its image is node {drive} by now")
    if "bus" in place and ("addr" in place or "scsi-id" in place or "port" in place):
        at = ", ".join(f"{key}={value}" for key, value in place.items())
        draft.changed.append(f"-device {device.driver} {device.id or '(no id)'}: {at}")
    _refuse_host(draft, device.driver, device.id)
    is_json = option.syntax is Syntax.JSON
    placed = place if is_json else {key: str(value) for key, value in place.items()}
    return Option("device", option.syntax, None, properties | placed)


def _place(device: Device) -> Properties:
    place: Properties = {"bus": device.bus} if device.bus else {}
    found = {key: value for key, value in device.properties.items() if key in PLACES}
    if "port" in device.properties and device.bus.partition(".")[0] and device.driver.startswith("usb-"):
        place["port"] = device.properties["port"]
    for key, value in found.items():
        if key == "addr" and isinstance(value, int):
            is_memory = device.driver in _MEMORY
            place["addr"] = value if is_memory else f"{value >> 3:02x}.{value & 7:x}"
        elif value != -1 and (key not in ("slot", "node") or device.driver in _MEMORY):
            place[key] = value
    return place


def add_disks(draft: Draft, renamed: dict[str, str]) -> None:
    """Name the disks whose images are block nodes; those of `-drive` are named by that."""
    for device in draft.facts.devices:
        given = str(device.properties.get("drive", ""))
        if given in draft.given_nodes:
            node = renamed.get(given, given)
            is_shareable = device.properties.get("share-rw") is True
            draft.disks.append(Disk(device.id or node, node, device.id, is_shareable=is_shareable))


def _refuse_host(draft: Draft, driver: str, identifier: str) -> None:
    if driver.startswith(_OF_THE_HOST):
        draft.blockers.append(f"-device {driver} {identifier}: a device of this host cannot go to another".replace(" :", ":"))


def _plain(value: object) -> object:
    return value.removeprefix(_OBJECTS) if isinstance(value, str) else value
