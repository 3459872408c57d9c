"""Every file that QEMU opens for the disks of a definition: the images that it names, and what their headers name below those.

A definition may give backing and data nodes itself, which takes the place of what the header says; only what is left to headers is
read from them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from agent.vm.host_files import FILE_DRIVERS
from agent.vm.image_header import Reference, Role, references
from common.errors import WrongState
from common.foreign_json import parse_json

if TYPE_CHECKING:
    from agent.vm.definition import Definition
    from agent.vm.options import Option

MAX_FILES: Final = 300  # a chain of 200 images is more than QEMU opens in a reasonable time
# Formats that are one file and name no other. Source: block/*.c, `bdrv_open_child` and `backing_file` in none of them.
_ALONE: Final = frozenset({"raw", "vdi", "vhdx", "vpc", "parallels", "luks", "dmg", "bochs", "cloop"})
_REFERRING: Final = frozenset({"qcow", "qcow2", "qed", "vmdk"})
_FILTERS: Final = frozenset({"throttle", "copy-on-read"})
# What stands before the colon is a protocol. Source: block.c, path_has_protocol().
_PROTOCOL: Final = re.compile(r"[^:/]*:")
_JSON: Final = "json:"
_MOST_JSON_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file of an image.

    Attributes:
        path: absolute; empty where what is named is no file of the host, or cannot be told.
        format: as QEMU opens it; empty where QEMU guesses.
        name: as its header has it; the path of one that the definition names.
        named_by: the image whose header names it; empty where the definition does.
    """

    path: str
    format: str
    role: Role
    name: str
    named_by: str = ""


def disk_files(definition: Definition, disk: str) -> tuple[ImageFile, ...]:
    """List the files of a disk, by its target or the id of its `-drive`: the image first, then what is below it.

    Raises:
        WrongState: a header cannot be read or is broken, or there are too many files.
    """
    for one in definition.disks:
        if one.target == disk:
            nodes = _nodes(definition)
            return _bounded(_of_node(nodes.get(one.node, {}), nodes, Role.TOP))
    for drive in definition.find("drive"):
        if drive.get("id") == disk:
            return _bounded(_of_drive(drive))
    return ()


def named_below(definition: Definition) -> tuple[ImageFile, ...]:
    """List the files that headers name and the definition does not, of all of its block nodes and drives.

    Raises:
        WrongState: a header cannot be read or is broken, or there are too many files.
    """
    nodes = _nodes(definition)

    def everything() -> Iterator[ImageFile]:
        for node in nodes.values():
            for one in _inline(node):
                yield from _of_headers(one, nodes)
        for drive in definition.find("drive"):
            yield from (file for file in _of_drive(drive) if file.named_by)

    return _bounded(everything())


def files_of(path: str, image_format: str) -> tuple[ImageFile, ...]:
    """List the files of an image, itself first; an empty format is guessed as QEMU does.

    Raises:
        WrongState: a header cannot be read or is broken, or there are too many files.
    """
    return _bounded(_with_below(ImageFile(path, image_format, Role.TOP, path), ()))


def _bounded(files: Iterator[ImageFile]) -> tuple[ImageFile, ...]:
    found: list[ImageFile] = []
    for file in files:
        if len(found) == MAX_FILES:
            raise WrongState(f"{found[0].path}: more than {MAX_FILES} files belong to it", reason="IMAGE_CHAIN_TOO_LONG")
        found.append(file)
    return tuple(found)


# what headers name


def _with_below(file: ImageFile, above: tuple[str, ...]) -> Iterator[ImageFile]:
    yield file
    if file.path:
        yield from _below(file.path, file.format, above)


def _below(path: str, image_format: str, above: tuple[str, ...], roles: frozenset[Role] = frozenset(Role)) -> Iterator[ImageFile]:
    if os.path.realpath(path) in above:
        raise WrongState(f"{path} stands on itself", reason="IMAGE_BROKEN", path=path)
    if image_format in _ALONE:
        return
    for reference in references(path, image_format):
        if reference.role in roles:
            yield from _with_below(_find(reference, path), (*above, os.path.realpath(path)))


def _find(reference: Reference, image: str) -> ImageFile:
    """Say which file QEMU opens for a name. Source: block.c, bdrv_get_full_backing_filename_from_filename(), path_combine()."""
    name, role, image_format = reference.name, reference.role, reference.format
    if name.startswith(_JSON):
        return _of_json(reference, image)
    path = name.removeprefix("file:")
    if path == name and _PROTOCOL.match(name) and role is not Role.EXTENT:
        path = ""
    elif path and role is not Role.DATA:  # QEMU takes a data file's name from its working directory
        path = os.path.join(os.path.dirname(image), path)  # noqa: PTH118, PTH120 -- as QEMU does, links not followed
    return ImageFile(path if path.startswith("/") else "", image_format, role, name, image)


def _of_json(reference: Reference, image: str) -> ImageFile:
    """Read a name in JSON, of the kind that QEMU itself writes: one file in one format; of others the file cannot be told."""
    unknown = ImageFile("", reference.format, reference.role, reference.name, image)
    try:
        content = parse_json(reference.name.removeprefix(_JSON)[:_MOST_JSON_BYTES])
    except ValueError:
        return unknown
    if not isinstance(content, dict):
        return unknown
    node = _nested(content)
    storage = node if node.get("driver") in FILE_DRIVERS else node.get("file")
    is_one_file = (
        isinstance(storage, dict)
        and storage.get("driver") in FILE_DRIVERS
        and str(storage.get("filename", "")).startswith("/")
        and (storage is node or node.get("driver") in _ALONE | _REFERRING)
        and not any(isinstance(value, dict) for key, value in node.items() if key not in ("file", "cache"))
        and not {"backing", "data-file"} & node.keys()
    )
    if not is_one_file:
        return unknown
    found = cast("Mapping[str, object]", storage)
    image_format = reference.format if storage is node else str(node["driver"])
    return ImageFile(str(found["filename"]), image_format, reference.role, reference.name, image)


# what definitions name


def _nodes(definition: Definition) -> dict[str, Mapping[str, object]]:
    return {option.get("node-name"): _nested(option.properties) for option in definition.find("blockdev")}


def _of_node(node: Mapping[str, object], nodes: Mapping[str, Mapping[str, object]], role: Role) -> Iterator[ImageFile]:
    """List what is behind a node: its storage, what the definition puts below it, and what is left to headers."""
    path, image_format, _ = _place(node, nodes)
    if path:
        yield ImageFile(path, image_format, role, path)
        yield from _of_headers(node, nodes)
    node = _unfiltered(node, nodes)
    for key, below in (("data-file", Role.DATA), ("backing", Role.BACKING)):
        if child := _child(node, key, nodes):
            yield from _of_node(child, nodes, below)


def _of_headers(node: Mapping[str, object], nodes: Mapping[str, Mapping[str, object]]) -> Iterator[ImageFile]:
    """List what is left to the header of a node's own image."""
    path, image_format, given = _place(node, nodes)
    if path and node.get("driver") not in _FILTERS | FILE_DRIVERS:
        yield from _below(path, image_format, (), frozenset(Role) - given)


def _place(node: Mapping[str, object], nodes: Mapping[str, Mapping[str, object]]) -> tuple[str, str, frozenset[Role]]:
    """Return where a node's image is, its format, and what of it the definition gives itself."""
    node = _unfiltered(node, nodes)
    driver = str(node.get("driver", ""))
    given = {role for key, role in (("backing", Role.BACKING), ("data-file", Role.DATA)) if key in node}
    if driver in FILE_DRIVERS:
        return str(node.get("filename", "")), "raw", frozenset(Role)
    storage: Mapping[str, object] | None = node
    for _ in range(len(nodes) + 1):
        storage = _child(storage, "file", nodes) if storage else None
        if storage and storage.get("driver") in FILE_DRIVERS:
            return str(storage.get("filename", "")), driver, frozenset(given)
    return "", driver, frozenset(given)


def _unfiltered(node: Mapping[str, object], nodes: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    for _ in range(len(nodes) + 1):
        if node.get("driver") not in _FILTERS or not (below := _child(node, "file", nodes)):
            return node
        node = below
    return node


def _child(node: Mapping[str, object], key: str, nodes: Mapping[str, Mapping[str, object]]) -> Mapping[str, object] | None:
    value = node.get(key)
    if isinstance(value, str):
        return nodes.get(value)
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else None


def _inline(node: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """List a node and those that are written inside of it."""
    yield node
    for value in node.values():
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict):
                yield from _inline(below)


def _of_drive(drive: Option) -> Iterator[ImageFile]:
    properties = _nested(drive.properties)
    path, image_format = drive.get("file"), drive.get("format") or drive.get("driver")
    inner = properties.get("file")
    if isinstance(inner, dict):
        path = str(inner.get("filename", ""))
    if path.startswith("/"):
        yield from _with_below(ImageFile(path, image_format, Role.TOP, path), ())


def _nested(properties: Mapping[str, object]) -> dict[str, object]:
    """Write `file.driver` as an object in `file`, as QEMU understands both."""
    found: dict[str, object] = {}
    for key, value in properties.items():
        *parents, last = key.split(".")
        place = found
        for parent in parents:
            below = place.setdefault(parent, {})
            if not isinstance(below, dict):
                below = place[parent] = {}
            place = below
        if isinstance(value, dict) and isinstance(place.get(last), dict):
            cast("dict[str, object]", place[last]).update(_nested(value))
        else:
            place[last] = _nested(value) if isinstance(value, dict) else value
    return found
