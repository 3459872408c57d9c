"""The devices of a definition as arguments of QEMU.

Each device with a name of its own, which later commands use: block nodes are called by the disk's target name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent.vm.devices import CacheMode, ChardevKind, InterfaceKind
from common.errors import Bug

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.vm.addresses import Board
    from agent.vm.definition import Definition
    from agent.vm.devices import Chardev, Disk, Interface, PciAddress, Rng

_ON_OFF = {True: "on", False: "off"}
# direct, no-flush and the device's write-cache. Source: QEMU's man page, -drive cache=.
_CACHES = {
    CacheMode.NONE: (True, False, "on"),
    CacheMode.WRITEBACK: (False, False, "on"),
    CacheMode.WRITETHROUGH: (False, False, "off"),
    CacheMode.DIRECTSYNC: (True, False, "off"),
    CacheMode.UNSAFE: (False, True, "on"),
}


def device_options(definition: Definition, board: Board, tap_fds: Mapping[str, int]) -> Iterator[str]:
    """Write all devices; every PCI address has to be there."""
    bus = board.bus_name
    for index, interface in enumerate(definition.interfaces):
        yield from _interface(interface, index, bus, tap_fds)
    if definition.consoles:
        address = _at(bus, definition.virtio_serial_address)
        yield from _device({"driver": "virtio-serial-pci", "id": "virtio-serial0", **address})
    for index, console in enumerate(definition.consoles):
        yield from ("-chardev", _chardev(console.chardev, f"char-console{index}"))
        yield from _device(
            {
                "driver": "virtconsole",
                "id": f"console{index}",
                "bus": "virtio-serial0.0",
                "nr": index,
                "chardev": f"char-console{index}",
            }
        )
    for disk in definition.disks:
        yield from _disk(disk, bus)
    for serial in definition.serials:
        name = f"serial{serial.port}"
        yield from ("-chardev", _chardev(serial.chardev, f"char-{name}"))
        yield from _device({"driver": "isa-serial", "id": name, "index": serial.port, "chardev": f"char-{name}"})
    yield from _balloon(definition, bus)
    for index, rng in enumerate(definition.rngs):
        yield from _rng(rng, index, bus)


def _interface(interface: Interface, index: int, bus: str, tap_fds: Mapping[str, int]) -> Iterator[str]:
    backend: dict[str, object] = {"type": "user", "id": f"host-net{index}"}
    if interface.kind is not InterfaceKind.USER:
        backend |= {"type": "tap", "fd": str(tap_fds[interface.mac])}
    yield from ("-netdev", to_json(backend))
    yield from _device(
        {
            "driver": "virtio-net-pci",
            "id": f"net{index}",
            "netdev": f"host-net{index}",
            "mac": interface.mac,
            **_boot_index(interface.boot_index),
            **_at(bus, interface.address),
        }
    )


def _disk(disk: Disk, bus: str) -> Iterator[str]:
    cache: dict[str, object] = {}
    write_cache: dict[str, object] = {}
    if disk.cache is not None:
        direct, no_flush, device_cache = _CACHES[disk.cache]
        cache = {"cache": {"direct": direct, "no-flush": no_flush}}
        write_cache = {"write-cache": device_cache}
    shared: dict[str, object] = {"read-only": disk.is_read_only, **cache}
    if disk.passes_discards is not None:
        shared["discard"] = "unmap" if disk.passes_discards else "ignore"
    aio = {} if disk.aio is None else {"aio": disk.aio.value}
    file_node = f"{disk.target}-file"
    yield from (
        "-blockdev",
        to_json({"driver": "file", "node-name": file_node, "filename": disk.path, **aio, **shared}),
    )
    yield from (
        "-blockdev",
        to_json({"driver": disk.format.value, "node-name": disk.target, "file": file_node, **shared}),
    )
    yield from _device(
        {
            "driver": "virtio-blk-pci",
            "id": f"disk-{disk.target}",
            "drive": disk.target,
            **({} if disk.serial is None else {"serial": disk.serial}),
            **write_cache,
            **_boot_index(disk.boot_index),
            **_at(bus, disk.address),
        }
    )


def _balloon(definition: Definition, bus: str) -> Iterator[str]:
    balloon = definition.balloon
    if balloon is None:
        return
    switches: dict[str, object] = {}
    if balloon.deflates_on_oom is not None:
        switches["deflate-on-oom"] = balloon.deflates_on_oom
    if balloon.reports_free_pages is not None:
        switches["free-page-reporting"] = balloon.reports_free_pages
    yield from _device({"driver": "virtio-balloon-pci", "id": "balloon0", **switches, **_at(bus, balloon.address)})


def _rng(rng: Rng, index: int, bus: str) -> Iterator[str]:
    source = f"random{index}"
    backend: dict[str, object] = {"qom-type": "rng-builtin", "id": source}
    if rng.source is not None:
        backend |= {"qom-type": "rng-random", "filename": rng.source}
    rate = {} if rng.rate_bytes is None else {"max-bytes": rng.rate_bytes, "period": rng.rate_period_ms}
    yield from ("-object", to_json(backend))
    yield from _device({"driver": "virtio-rng-pci", "id": f"rng{index}", "rng": source, **rate, **_at(bus, rng.address)})


def _chardev(chardev: Chardev, name: str) -> str:
    """Write a chardev; `-chardev` takes no JSON on 7.2."""
    path = double_commas(chardev.path or "")
    match chardev.kind:
        case ChardevKind.PTY:
            return f"pty,id={name}"
        case ChardevKind.NULL:
            return f"null,id={name}"
        case ChardevKind.FILE:
            return f"file,id={name},path={path},append={_ON_OFF[chardev.appends]}"
        case ChardevKind.UNIX_LISTEN:
            return f"socket,id={name},path={path},server=on,wait=off"
        case ChardevKind.UNIX_CONNECT:
            return f"socket,id={name},path={path},server=off"


def _at(bus: str, address: PciAddress | None) -> dict[str, object]:
    """Say where a device sits: options in JSON are created last, so without `addr` it would move."""
    if address is None:
        raise Bug("a definition was not pinned")
    return {"bus": bus, "addr": f"{address.slot:#x}.{address.function:#x}"}


def _boot_index(boot_index: int | None) -> dict[str, object]:
    return {} if boot_index is None else {"bootindex": boot_index}


def _device(properties: Mapping[str, object]) -> tuple[str, str]:
    return ("-device", to_json(properties))


def double_commas(text: str) -> str:
    """Write a value of a `key=value,...` argument. Source: util/qemu-option.c, get_opt_value."""
    return text.replace(",", ",,")


def to_json(value: Mapping[str, object]) -> str:
    """Write a JSON argument in one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
