"""What the guest can tell of its definition: the part that has to be the same on every host that it runs on.

What is left out stands behind the guest, on the host: paths, taps, sockets, displays, threads and policies. All else counts,
so an option that nobody thought of makes a difference, never a broken guest.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from agent.vm.host_files import written_images

if TYPE_CHECKING:
    from agent.vm.definition import Definition, Disk
    from agent.vm.options import Option

View = dict[str, object]

# Backends and policies as a whole. Disks and network cards add what the guest sees of theirs.
_HOST_OPTIONS: Final = frozenset(
    {
        "action",
        "audiodev",
        "bios",
        "blockdev",
        "chardev",
        "display",
        "dtb",
        "initrd",
        "kernel",
        "mem-path",
        "mem-prealloc",
        "netdev",
        "no-reboot",
        "no-shutdown",
        "overcommit",
        "spice",
        "tpmdev",
        "vnc",
        "watchdog-action",
    }
)
_HOST_MACHINE_KEYS: Final = frozenset({"dump-guest-core", "mem-merge", "memory-backend"})
_HOST_DEVICE_KEYS: Final = frozenset(
    {
        "audiodev",
        "chardev",
        "drive",
        "iothread",
        "iothread-vq-mapping",
        "netdev",
        "rerror",
        "romfile",
        "share-rw",
        "tpmdev",
        "tx",
        "werror",
    }
)
_HOST_OBJECTS: Final = ("cryptodev-", "filter-", "input-", "iothread", "rng-", "secret", "throttle-group", "tls-")
_MEMORY_OBJECT: Final = "memory-backend-"
_MACHINE_PARTS: Final = ("machine", "CPU", "vCPUs", "memory")
_VERSION: Final = re.compile(r"-\d+(\.\d+)+$")


def differences(ours: Definition, theirs: Definition) -> tuple[str, ...]:
    """Name what a guest of `ours` would find changed in `theirs`, each as `what: here, there`."""
    left, right = guest_view(ours), guest_view(theirs)
    changes = {name: tuple(_changes(name, left[name], right[name])) for name in filter(right.__contains__, left)}
    found = [change for name in _MACHINE_PARTS for change in changes.pop(name)]
    found += [f"{name}: not in the XML" for name in left if name not in right]
    found += [f"{name}: not in the guest" for name in right if name not in left]
    found += itertools.chain.from_iterable(changes.values())
    if not found and _devices(ours) != _devices(theirs):
        found.append("the order of the devices")
    return tuple(found)


def _changes(name: str, left: View, right: View) -> Iterator[str]:
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key) != right.get(key):
            what = f"{name} ({key})" if key else name
            yield f"{what}: {_word(left.get(key))} in the guest, {_word(right.get(key))} in the XML"


def _devices(definition: Definition) -> list[str]:
    return [_name(device) for device in definition.find("device")]


def board(machine: str) -> str:
    """Return a machine type without its version: `pc-q35-7.2` is a `pc-q35`."""
    return _VERSION.sub("", machine)


def guest_view(definition: Definition) -> dict[str, View]:
    """List what the guest can tell, part by part, by names for people; the key of a part that is one value is empty."""
    slots = definition.memory_slots
    view: dict[str, View] = {
        "UUID": {"": str(definition.uuid)},
        "machine": {"": definition.machine, **_flat(definition.machine_properties, _HOST_MACHINE_KEYS)},
        "CPU": {"": f"{definition.cpu.mode.value} {definition.cpu.model or ''}".strip(), **_flat(definition.cpu.properties)},
        "vCPUs": {"": definition.vcpu_count, **_flat(definition.smp)},
        "memory": {
            "KiB": definition.memory_kib,
            "slots": None if slots is None else slots.count,
            "maximum in KiB": None if slots is None else slots.max_kib,
        },
    }
    main_memory = definition.machine_properties.get("memory-backend")
    numbers = Counter[str]()
    for option in definition.options:
        if option.name not in _HOST_OPTIONS and not _is_host_object(option, main_memory):
            name = _name(option)
            numbers[name] += 1
            view[name if numbers[name] == 1 else f"{name} #{numbers[name]}"] = _option(option)
    view |= {f"disk {disk.target}": _disk(definition, disk) for disk in definition.disks}
    return view | {f"netdev {option.get('id')}": {"type": option.get("type")} for option in definition.find("netdev")}


def _is_host_object(option: Option, main_memory: object) -> bool:
    if option.name != "object":
        return False
    kind = option.get("qom-type")
    return kind.startswith(_HOST_OBJECTS) or (kind.startswith(_MEMORY_OBJECT) and option.get("id") == main_memory)


def _option(option: Option) -> View:
    if option.name == "object" and option.get("qom-type").startswith(_MEMORY_OBJECT):
        return {"size": option.properties.get("size")}
    if option.text is not None or not option.properties:
        return {"": option.text or "given"}
    return _flat(option.properties, _HOST_DEVICE_KEYS if option.name == "device" else frozenset())


def _disk(definition: Definition, disk: Disk) -> View:
    """Of a disk's nodes the guest sees whether it may write; the format and the file are its content."""
    nodes = {option.get("node-name"): option for option in definition.find("blockdev")}
    names = [PurePosixPath(image.path).name for image in written_images(definition) if image.what == f"disk {disk.target}"]
    view: View = {"device": disk.device, "file name": ", ".join(names)}
    node = nodes.get(disk.node)
    while node is not None:
        view["read-only"] = node.properties.get("read-only") in (True, "on")
        below = node.get("file")
        if below:
            view["format"] = node.get("driver")
        node = nodes.get(below)
    return view


def _name(option: Option) -> str:
    return " ".join(part for part in (option.name, option.get("id") or option.get("driver") or option.get("qom-type")) if part)


def _flat(properties: Mapping[str, object], left_out: frozenset[str] = frozenset()) -> View:
    return {key: value for key, value in _leaves(properties) if key.split(".")[0] not in left_out}


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _word(value: object) -> str:
    return "not there" if value is None else str(value)
