"""The image of each disk of a definition: where it is, and the same definition with it elsewhere. Pure.

A disk is known by the name that people use, its target, or by the id of a `-drive` in an adopted VM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.vm.inner_nodes import inner_file, with_inner_file
from agent.vm.options import Option
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from agent.vm.definition import Definition

_OF_FILES: Final = frozenset({"file", "host_device", "host_cdrom"})
# Nodes that pass everything through to the one below. Source: block/throttle.c, block/copy-on-read.c.
FILTERS: Final = frozenset({"throttle", "copy-on-read"})
_TRUE: Final = (True, "on")


@dataclass(frozen=True, slots=True)
class DiskImage:
    """The image that a disk of a definition stands on.

    Attributes:
        device: id of the device in front; empty where it has none.
        node: top node by its name in the definition, a filter perhaps; empty for a `-drive`.
        format_node: the node of the image's format; empty for a `-drive`.
        path: empty where it is no file of the host.
        format: of the image; empty where QEMU guesses it.
    """

    disk: str
    device: str
    node: str
    format_node: str
    path: str
    format: str
    is_read_only: bool
    is_shareable: bool


def disk_images(definition: Definition) -> tuple[DiskImage, ...]:
    """List the disks of a definition that have an image."""
    return (*_of_nodes(definition), *_of_drives(definition))


def placed(definition: Definition, disk: str, path: str, *, is_block_device: bool | None = None) -> Definition:
    """Return the definition with a disk's image at another path.

    Args:
        definition: what is changed.
        disk: its name.
        path: absolute.
        is_block_device: what is there; None keeps what the definition says.

    Raises:
        InvalidRequest: the definition has no such disk, or no file for it.
    """
    nodes = _nodes(definition)
    for one in definition.disks:
        if one.target == disk:
            leaf = nodes[_down(nodes, one.node)[-1]]
            inner = inner_file(leaf)
            was = str((inner or leaf.properties).get("driver", ""))
            if was not in _OF_FILES:
                raise _no_file(disk)
            driver = was if is_block_device is None else "host_device" if is_block_device else "file"
            if inner:
                return _with(definition, leaf, with_inner_file(leaf, filename=path, driver=driver).properties)
            return _with(definition, leaf, {**leaf.properties, "filename": path, "driver": driver})
    for drive in definition.find("drive"):
        if drive.get("id") == disk:
            if not drive.get("file").startswith("/"):
                raise _no_file(disk)
            return _with(definition, drive, {**drive.properties, "file": path})
    raise _unknown(definition, disk)


def standing_alone(definition: Definition, disk: str) -> Definition:
    """Return the definition with an image that stands on no other."""
    nodes = _nodes(definition)
    for one in definition.disks:
        if one.target == disk:
            top = nodes[_format_node(nodes, one.node)]
            if "backing" not in top.properties:
                return definition
            changed = _with(definition, top, {**top.properties, "backing": None})
            below = set(_below(nodes, top.properties["backing"]))
            return replace(
                changed,
                options=tuple(
                    option for option in changed.options if option.name != "blockdev" or option.get("node-name") not in below
                ),
            )
    return definition


def node_options(definition: Definition, disk: str) -> tuple[Option, ...]:
    """List the options of a disk's nodes from its top to where its bytes are; empty for a `-drive`."""
    nodes = _nodes(definition)
    return next((tuple(nodes[name] for name in _down(nodes, one.node)) for one in definition.disks if one.target == disk), ())


def check_known(definition: Definition, disk: str) -> None:
    """Require a disk.

    Raises:
        InvalidRequest: there is none; the text names those that there are.
    """
    if disk not in {one.disk for one in disk_images(definition)}:
        raise _unknown(definition, disk)


def _no_file(disk: str) -> InvalidRequest:
    return InvalidRequest(f"disk {disk} is no file of the host, so it has no path", reason="DISK_NOT_A_FILE", disk=disk)


def _unknown(definition: Definition, disk: str) -> InvalidRequest:
    known = ", ".join(one.disk for one in disk_images(definition)) or "none"
    return InvalidRequest(f"VM {definition.name} has no disk {disk[:80]}; it has: {known}", reason="DISK_UNKNOWN", disk=disk[:80])


def _of_nodes(definition: Definition) -> Iterator[DiskImage]:
    nodes = _nodes(definition)
    for disk in definition.disks:
        if disk.node not in nodes:
            continue
        leaf = nodes[_down(nodes, disk.node)[-1]]
        storage = inner_file(leaf) or leaf.properties
        format_node = _format_node(nodes, disk.node)
        top = nodes[format_node]
        yield DiskImage(
            disk.target,
            disk.device,
            disk.node,
            format_node,
            str(storage.get("filename", "")) if storage.get("driver") in _OF_FILES else "",
            top.get("driver"),
            any(properties.get("read-only") in _TRUE for properties in (top.properties, leaf.properties, storage)),
            disk.is_shareable,
        )


def _of_drives(definition: Definition) -> Iterator[DiskImage]:
    for drive in definition.find("drive"):
        name, path = drive.get("id"), drive.get("file")
        if not name or not path or drive.get("if") == "pflash":
            continue
        is_read_only = drive.get("readonly") == "on" or drive.get("media") == "cdrom"
        yield DiskImage(
            name, "", "", "", path if path.startswith("/") else "", drive.get("format"), is_read_only, is_shareable=False
        )


def _nodes(definition: Definition) -> dict[str, Option]:
    return {option.get("node-name"): option for option in definition.find("blockdev")}


def _down(nodes: dict[str, Option], node: str) -> list[str]:
    """List the nodes from one down to where its bytes are."""
    found = [node]
    while isinstance(below := nodes[found[-1]].properties.get("file"), str) and below in nodes and below not in found:
        found.append(below)
    return found


def _format_node(nodes: dict[str, Option], node: str) -> str:
    return next(name for name in _down(nodes, node) if nodes[name].get("driver") not in FILTERS)


def _below(nodes: dict[str, Option], backing: object) -> Iterator[str]:
    """List the nodes of a backing chain that the definition names."""
    if isinstance(backing, str) and backing in nodes:
        for name in _down(nodes, backing):
            yield name
            yield from _below(nodes, nodes[name].properties.get("backing"))


def _with(definition: Definition, option: Option, properties: Mapping[str, object]) -> Definition:
    changed = replace(option, properties=dict(properties))
    return replace(definition, options=tuple(changed if one is option else one for one in definition.options))
