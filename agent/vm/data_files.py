"""What of an image is not in its first file, and is written to with it: a qcow2's external data file, a VMDK's extents.

A definition may give a data file by a node of its own, which takes the place of what the header names.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.vm.disk_images import node_options
from agent.vm.host_files import FILE_DRIVERS
from agent.vm.image_header import Role, references

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.vm.definition import Definition
    from agent.vm.disk_images import DiskImage
    from agent.vm.options import Option

_KEY: Final = "data-file"
_PREFIX: Final = f"{_KEY}."


def find_data_file(definition: Definition, disk: str) -> str | None:
    """Return the path of the data file that a definition itself gives a disk.

    None where it gives none; empty where it gives one by nodes that are not a file alone.
    """
    owner = _owner(definition, disk)
    if owner is None:
        return None
    node = _node(definition, owner)
    return str(node.get("filename", "")) if node.get("driver", "file") in FILE_DRIVERS else ""


def with_data_file(definition: Definition, disk: str, path: str, *, is_block_device: bool) -> Definition:
    """Return the definition with the data file that it gives a disk at another path; unchanged where it gives none."""
    owner = _owner(definition, disk)
    if owner is None:
        return definition
    place = {"filename": path, "driver": "host_device" if is_block_device else "file"}
    given = owner.properties.get(_KEY)
    if isinstance(given, str):
        named = next(option for option in definition.find("blockdev") if option.get("node-name") == given)
        return _changed(definition, named, {**named.properties, **place})
    if isinstance(given, dict):
        return _changed(definition, owner, {**owner.properties, _KEY: {**given, **place}})
    return _changed(definition, owner, {**owner.properties, **{f"{_PREFIX}{key}": value for key, value in place.items()}})


def files_beside(definition: Definition, image: DiskImage) -> tuple[str, ...]:
    """List the files that are written to with an image, by absolute paths. Blocks for a moment.

    What a header names without a directory is left out where QEMU takes that from its working directory.

    Raises:
        WrongState: the image's header cannot be read.
    """
    given = find_data_file(definition, image.disk)
    paths = [given] if given else []
    for reference in references(image.path, image.format):
        if reference.role is Role.EXTENT:
            paths.append(os.path.join(os.path.dirname(image.path), reference.name))  # noqa: PTH118, PTH120 -- as QEMU does
        elif reference.role is Role.DATA and given is None:
            paths.append(reference.name)
    return tuple(path for path in paths if path.startswith("/"))


def _owner(definition: Definition, disk: str) -> Option | None:
    """Find the option that gives a disk its data file."""
    drives = [drive for drive in definition.find("drive") if drive.get("id") == disk]
    for option in (*node_options(definition, disk), *drives):
        if _KEY in option.properties or any(key.startswith(_PREFIX) for key in option.properties):
            return option
    return None


def _node(definition: Definition, owner: Option) -> Mapping[str, object]:
    given = owner.properties.get(_KEY)
    if isinstance(given, dict):
        return given
    if isinstance(given, str):
        return next((one.properties for one in definition.find("blockdev") if one.get("node-name") == given), {"driver": ""})
    return {key.removeprefix(_PREFIX): value for key, value in owner.properties.items() if key.startswith(_PREFIX)}


def _changed(definition: Definition, option: Option, properties: Mapping[str, object]) -> Definition:
    changed = replace(option, properties=dict(properties))
    return replace(definition, options=tuple(changed if one is option else one for one in definition.options))
