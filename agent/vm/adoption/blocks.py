"""Drives and block nodes: those of the command line as they are now, and those that came later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from agent.vm.adoption.draft import Draft
from agent.vm.adoption.facts import Block
from agent.vm.adoption.words import last, parse_argument, parse_words
from agent.vm.options import Properties, strings_of

_PATHS: Final = frozenset({"filename"})
_FORMATS: Final = frozenset({"raw", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"})
_FILES: Final = frozenset({"file", "host_device"})
_NO_FILE: Final = "json:"  # QEMU's name for what has no name, such as a directory shown as a disk
_BOOLEAN: Final = ("direct", "no-flush")
# Options that are short for a drive. Source: softmmu/vl.c, drive_add().
_SHORT: Final[Mapping[str, str]] = {
    "hda": "index=0,media=disk",
    "hdb": "index=1,media=disk",
    "hdc": "index=2,media=disk",
    "hdd": "index=3,media=disk",
    "cdrom": "index=2,media=cdrom",
    "fda": "if=floppy,index=0",
    "fdb": "if=floppy,index=1",
    "pflash": "if=pflash",
    "sd": "if=sd",
}
DRIVES: Final = frozenset({"drive", *_SHORT})


class Drives:
    """The `-drive` options, matched with QEMU's block backends by their names, else by their order."""

    def __init__(self, draft: Draft, given: list[Properties], *, all_are_snapshots: bool) -> None:
        self._draft = draft
        self._all_are_snapshots = all_are_snapshots
        self._blocks = {block.name: block for block in draft.facts.blocks}
        named = {last(drive.get("id")) for drive in given} - {""}
        self._nameless = [block for block in draft.facts.blocks if block.name not in named]

    def add(self, drive: Properties) -> None:
        """Add one drive as it is now."""
        draft = self._draft
        name = last(drive.get("id"))
        where = f"-drive {name or last(drive.get('file')) or last(drive.get('if'))}"
        if last(drive.get("snapshot")) == "on":
            draft.blockers.append(f"{where}: with snapshot=on the guest writes to a file that only this QEMU has")
        block = self._blocks.get(name) if name else self._next_nameless()
        if block is None:
            draft.dropped.append(f"{where}: it was removed since the start")
            return
        drive = self._current(drive, block, where)
        if node := last(drive.get("node-name")):
            draft.given_nodes.add(node)
        if drive.get("if") == "virtio":
            self._add_virtio(drive, block.name)
        else:
            draft.add("drive", drive)

    def left(self) -> list[Block]:
        """List the backends that no option made: QEMU's default drives."""
        return self._nameless

    def _next_nameless(self) -> Block | None:
        return self._nameless.pop(0) if self._nameless else None

    def _check_reopening(self, drive: Properties, given: str, where: str) -> None:
        if drive.get("readonly") != "on" and drive.get("media") != "cdrom":
            refuse_lost_directory(self._draft, given, where)

    def _current(self, drive: Properties, block: Block, where: str) -> Properties:
        drive = {"file" if key == "file.filename" else key: value for key, value in drive.items() if key != "file.driver"}
        drive = {"readonly" if key == "read-only" else key: value for key, value in drive.items()}
        below = {key: last(value) for key, value in drive.items() if key.endswith(".filename")}  # of a data file, or a backing one
        drive |= {key: self._draft.absolute(path, where) for key, path in below.items() if not _is_protocol(path)}
        given = last(drive.get("file"))
        if block.file is None:
            drive.pop("file", None)
            drive.pop("format", None)
            if given:
                self._draft.changed.append(f"{where}: the medium {given} was taken out, the drive is empty")
            return drive
        is_snapshot = self._all_are_snapshots or last(drive.get("snapshot")) == "on"  # then QEMU has a file of its own in front
        if block.file.startswith(_NO_FILE) and not is_snapshot:
            self._draft.blockers.append(f"{where}: what stands behind it is no file that another QEMU could open")
        if given and (is_snapshot or block.file in (given, self._draft.found.absolute(given))):
            if not _is_protocol(given):
                self._check_reopening(drive, given, where)
                drive["file"] = self._draft.absolute(given, where)
        else:
            drive["file"] = self._draft.found.absolute(block.file)
            drive.pop("format", None)
            self._draft.changed.append(f"{where}: its image is {drive['file']} by now, not {given or 'none'}")
        if not is_snapshot and "format" not in drive and "driver" not in drive and block.driver in _FORMATS:
            drive["format"] = block.driver
            self._draft.changed.append(f"{where}: format {block.driver} as QEMU guessed it")
        return drive

    def _add_virtio(self, drive: Properties, name: str) -> None:
        kept = {key: value for key, value in drive.items() if key not in ("if", "index", "bus", "unit", "addr", "id")}
        self._draft.add("drive", {"if": "none", "id": name, **kept})
        self._draft.add("device", {"driver": "virtio-blk-pci", "drive": name})
        self._draft.changed.append(f"-drive if=virtio ({name}): written as a drive and its device, to fix the address")


def drive_words(name: str, text: str) -> Properties:
    """Read `-drive`, or an option that is short for it; a file name there is taken whole."""
    if name == "drive":
        return parse_words(text)
    return {**parse_words(_SHORT[name]), "file": text}


def add_default_drives(draft: Draft, drives: Drives) -> None:
    """Write down the CD-ROM and floppy drives that QEMU made by itself, and drives that came later."""
    for block in drives.left():
        if "-cd" in block.name:
            drive: Properties = {"if": "ide", "index": "2", "media": "cdrom"}
        elif block.name.startswith("floppy"):
            drive = {"if": "floppy", "index": "0"}
        elif any(device.properties.get("drive") == block.name for device in draft.facts.devices):
            drive = {"if": "none", "id": block.name}
            draft.changed.append(f"-drive {block.name}: added, as it came since the start")
        else:
            continue
        if block.file is not None:
            drive |= {"file": draft.found.absolute(block.file), "format": block.driver}
        draft.add("drive", drive)


def refuse_lost_directory(draft: Draft, path: str, where: str) -> None:
    """Refuse a relative path of a daemon: QEMU opens an image anew when it gives it away, and a daemon does that from `/`.

    Source: block/file-posix.c, raw_reconfigure_getfd(); seen as `Bad address` and `Input/output error` at the switch-over.
    """
    if draft.found.is_daemon and not path.startswith("/"):
        draft.blockers.append(
            f"{where}: {path} is a relative path and QEMU was started with -daemonize: it cannot find the file again when it "
            "gives the guest away; start it with the absolute path"
        )


def add_blockdev(draft: Draft, text: str) -> None:
    """Add a `-blockdev` unless its node is gone."""
    properties, is_json = parse_argument(text, "driver")
    name = last(properties.get("node-name"))
    if name not in draft.facts.nodes:
        draft.dropped.append(f"-blockdev {name}: it was removed since the start")
        return
    draft.given_nodes.update(_node_names(properties))
    if last(properties.get("read-only")) not in ("on", "True"):
        for key, path in strings_of(properties):
            if key.rpartition(".")[2] in _PATHS:
                refuse_lost_directory(draft, path, f"-blockdev {name}")
    draft.add("blockdev", draft.absolute_in(properties, _PATHS, f"-blockdev {name}"), is_json=is_json)


def add_new_nodes(draft: Draft, wanted: set[str]) -> dict[str, str]:
    """Add the nodes that came since the start: those with a name of their own, and `wanted`, which devices use.

    Returns:
        New names of nodes that QEMU had named itself.
    """
    renamed: dict[str, str] = {}
    new = [name for name in draft.facts.nodes if not name.startswith("#") and name not in draft.given_nodes]
    for name in (*new, *sorted(name for name in wanted if name.startswith("#"))):
        _add_node(draft, name, renamed)
    return renamed


def _add_node(draft: Draft, name: str, renamed: dict[str, str]) -> None:
    if name in draft.given_nodes or name not in draft.facts.nodes:
        return
    draft.given_nodes.add(name)
    shown = name
    if name.startswith("#"):
        shown = renamed[name] = f"adopted-{name.lstrip('#')}"
    properties = _describe(draft, name, renamed)
    if properties is None:
        driver = draft.facts.nodes[name].driver
        draft.blockers.append(f"block node {shown}: it came since the start, and its driver {driver} is not carried")
        return
    draft.add("blockdev", {"node-name": shown, **properties}, is_json=True)
    draft.changed.append(f"-blockdev {shown}: added, as it came since the start")


def _describe(draft: Draft, name: str, renamed: dict[str, str]) -> Properties | None:
    node = draft.facts.nodes[name]
    properties: Properties = {"driver": node.driver, "read-only": node.is_read_only}
    cache = {key: True for key in _BOOLEAN if node.cache.get(key) is True}
    if cache:
        properties["cache"] = cache
    if node.detect_zeroes != "off":
        properties["detect-zeroes"] = node.detect_zeroes
    if node.driver in _FILES:
        return {**properties, "filename": draft.found.absolute(node.file)}
    if node.driver not in _FORMATS or "file" not in node.children:
        return None
    for role, child in node.children.items():
        if not child.startswith("#"):
            _add_node(draft, child, renamed)
            properties[role] = child
        elif role == "file":
            inner = _describe(draft, child, renamed)
            if inner is None:
                return None
            properties[role] = inner
    return properties


def _node_names(properties: Mapping[str, object]) -> Iterator[str]:
    for key, value in properties.items():
        if isinstance(value, dict):
            yield from _node_names(value)
        elif key.rpartition(".")[2] == "node-name":
            yield last(value)


def _is_protocol(file: str) -> bool:
    """Say whether a file name is one of QEMU's `protocol:...`. Source: block.c, path_has_protocol()."""
    return ":" in file.split("/", 1)[0]
