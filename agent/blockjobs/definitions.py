"""A definition whose disk has gone over to other images: its block nodes written anew, the rest untouched.

An image that has a `-blockdev` of its own keeps it. The uppermost gets one, opened like the uppermost was before. What has none is
left to QEMU, which finds it by what the image above names, as it did before. Pure; paths are compared by a function that is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.qemu.block_graph import FILTERS
from agent.vm.options import Option, Properties, Syntax, of_json
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent.blockjobs.chain import Layer
    from agent.vm.definition import Definition, Disk

    Same = Callable[[str, str], bool]

STORAGE: Final = frozenset({"file", "host_device", "host_cdrom", "nbd"})
_ON_FILES: Final = frozenset({"file", "host_device"})
# How an image is opened, which the one in its place inherits.
_OF_BOTH: Final = ("read-only", "auto-read-only", "discard", "cache", "force-share")
_OF_FORMAT: Final = (*_OF_BOTH, "detect-zeroes")
_OF_STORAGE: Final = (*_OF_BOTH, "aio", "locking")
_WORDS: Final = {"on": True, "off": False}
_SWITCHES: Final = frozenset({"read-only", "auto-read-only", "force-share", "direct", "no-flush"})


@dataclass(frozen=True, slots=True)
class Known:
    """An image of a disk in a definition: the option of its format, and that of its storage where it has one of its own."""

    option: Option
    storage: Option | None

    @property
    def node(self) -> str:
        """The name of its node."""
        return self.option.get("node-name")

    @property
    def path(self) -> str:
        """The file or block device; empty where it is neither."""
        return _path(self.option.properties if self.storage is None else self.storage.properties)


def find_disk(definition: Definition, target: str) -> Disk | None:
    """Find a disk by the name that people use."""
    return next((disk for disk in definition.disks if disk.target == target), None)


def open_like(  # noqa: PLR0913 -- what an image is, and what opens it
    known: Known, node: str, file_node: str, layer_format: str, path: str, *, is_device: bool
) -> tuple[Option, Option]:
    """Make the nodes, storage first, of an image that takes the place of another or stands on it."""
    lower, upper = _split(known)
    storage: Properties = {"driver": "host_device" if is_device else "file", "node-name": file_node, "filename": path}
    kept = _OF_STORAGE if lower.get("driver") in _ON_FILES else _OF_BOTH
    storage |= {key: lower[key] for key in kept if key in lower}
    data: Properties = {"driver": layer_format, "node-name": node, "file": file_node}
    data |= {key: upper[key] for key in _OF_FORMAT if key in upper}
    return of_json("blockdev", storage), of_json("blockdev", data)


def known_images(definition: Definition, disk: Disk) -> tuple[tuple[str, ...], tuple[Known, ...]]:
    """Return the filters of a disk, and the images that have options of their own, both from the top.

    Raises:
        WrongState: the disk is made of options in a way that is not carried.
    """
    nodes = {option.get("node-name"): option for option in definition.find("blockdev")}
    filters: list[str] = []
    name = disk.node
    while name in nodes and nodes[name].get("driver") in FILTERS - {"blkdebug"}:
        filters.append(name)
        name = nodes[name].get("file")
    images: list[Known] = []
    while name in nodes:
        option = nodes[name]
        images.append(Known(option, nodes.get(option.get("file")) if option.get("driver") not in STORAGE else None))
        below = option.properties.get("backing")
        name = below if isinstance(below, str) else ""
    if not images:
        raise WrongState(
            f"disk {disk.target} of VM {definition.name} was not given as a -blockdev of its own: its images cannot be changed",
            reason="DISK_NOT_CARRIED",
            disk=disk.target,
        )
    return tuple(filters), tuple(images)


def follow(  # noqa: PLR0913 -- what was, what is, and how to tell
    definition: Definition,
    target: str,
    before: Sequence[str],
    now: Sequence[Layer],
    *,
    new_name: str,
    same: Same,
    is_device: Callable[[str], bool],
) -> Definition:
    """Write a definition that starts on the images that a disk has now.

    Args:
        definition: has the disk on the images `before`.
        target: the disk.
        before: paths of all its images, the uppermost first.
        now: the images.
        new_name: for nodes that the definition has no name for.
        same: whether two paths are one file.
        is_device: whether a path is a block device.

    Raises:
        WrongState: the definition has no such disk, or it is made of options in a way that is not carried.
    """
    disk = find_disk(definition, target)
    if disk is None:
        raise WrongState(f"VM {definition.name} has no disk {target} in this definition", reason="DISK_UNKNOWN", disk=target)
    filters, known = known_images(definition, disk)
    return _Writer(definition, disk, filters, known, before, new_name, same, is_device).write(now)


class _Writer:
    def __init__(  # noqa: PLR0913, PLR0917 -- as `follow`
        self,
        definition: Definition,
        disk: Disk,
        filters: tuple[str, ...],
        known: tuple[Known, ...],
        before: Sequence[str],
        new_name: str,
        same: Same,
        is_device: Callable[[str], bool],
    ) -> None:
        self._definition = definition
        self._disk = disk
        self._filters = filters
        self._known = known
        self._before = before
        self._new_name = new_name
        self._same = same
        self._is_device = is_device

    def write(self, now: Sequence[Layer]) -> Definition:
        options = self._images(now)
        top = options[-1].get("node-name")
        made = {option.get("node-name") for option in options}
        old = {option.get("node-name") for one in self._known for option in (one.option, one.storage) if option is not None}
        rest = [option for option in self._definition.options if option.name != "blockdev" or option.get("node-name") not in old]
        kept = self._still_used(old - made, rest)
        options += [option for option in self._definition.find("blockdev") if option.get("node-name") in kept]
        written = [self._repointed(option, top) for option in rest]
        place = next(index for index, option in enumerate(self._definition.options) if option.get("node-name") in old)
        written[place:place] = _lowest_first(options)
        disk = self._disk if self._filters else replace(self._disk, node=top)
        disks = tuple(disk if one.target == disk.target else one for one in self._definition.disks)
        return replace(self._definition, options=tuple(written), disks=disks)

    def _images(self, now: Sequence[Layer]) -> list[Option]:
        """Make the options of the images, the lowest first, each with its storage before it."""
        named = [self._find(layer) for layer in now]
        explicit = 1
        while explicit < len(now) and named[explicit] is not None:
            explicit += 1
        options: list[Option] = []
        node_below = ""
        for place in reversed(range(explicit)):
            pair = self._pair(now, place, named[place], node_below)
            options += pair
            node_below = pair[-1].get("node-name")
        return options

    def _pair(self, now: Sequence[Layer], place: int, known: Known | None, node_below: str) -> list[Option]:
        layer, old_top = now[place], self._known[0]
        if known is None:
            name = layer.node if layer.node and not layer.node.startswith("#") else self._new_name
            made = open_like(old_top, name, f"{name}-f", _format(layer), layer.path, is_device=self._is_device(layer.path))
            return [made[0], _backed(made[1], node_below)]
        option, storage = known.option, known.storage
        if place == 0 and known is not old_top:
            option, storage = _written_like(option, old_top.option, _OF_FORMAT), _storage_like(known, old_top)
        elif place > 0 and known is old_top:
            option, storage = _read_only(option), None if storage is None else _read_only(storage)
        if self._stands_otherwise(now, place):
            option = _backed(option, node_below)
        return [option] if storage is None else [storage, option]

    def _find(self, layer: Layer) -> Known | None:
        for known in self._known:
            if self._same(known.path, layer.path) if known.path else known.node == layer.node:
                return known
        return None

    def _stands_otherwise(self, now: Sequence[Layer], place: int) -> bool:
        was = next((index for index, path in enumerate(self._before) if self._same(path, now[place].path)), None)
        if was is None:
            return True
        stood_on = self._before[was + 1] if was + 1 < len(self._before) else ""
        stands_on = now[place + 1].path if place + 1 < len(now) else ""
        return stood_on != stands_on and not self._same(stood_on, stands_on)

    def _still_used(self, names: set[str], rest: Iterable[Option]) -> set[str]:
        """List those that other disks use too, with all below them."""
        nodes = {option.get("node-name"): option for option in self._definition.find("blockdev")}
        own = {*self._filters}
        used = {value for option in rest if option.get("node-name") not in own for value in _references(option)}
        used -= {self._disk.node}
        waiting, kept = [name for name in names if name in used], set[str]()
        while waiting:
            name = waiting.pop()
            if name in names and name not in kept:
                kept.add(name)
                waiting += _references(nodes[name])
        return kept

    def _repointed(self, option: Option, top: str) -> Option:
        old_top = self._known[0].node
        if self._filters and option.name == "blockdev" and option.get("node-name") == self._filters[-1]:
            return replace(option, properties={**option.properties, "file": top})
        if not self._filters and option.name == "device" and option.get("drive") == old_top:
            return replace(option, properties={**option.properties, "drive": top})
        return option


def plain_options(option: Option) -> Properties:
    """Write the properties of a `-blockdev` as QMP takes them."""
    return _plain(option.properties)


def _format(layer: Layer) -> str:
    return "raw" if layer.format in STORAGE else layer.format


def _split(known: Known) -> tuple[Properties, Properties]:
    """Return the plain properties of storage and format."""
    upper = _plain(known.option.properties)
    if known.storage is not None:
        return _plain(known.storage.properties), upper
    inner = upper.get("file")
    if not isinstance(inner, dict):
        return upper, upper
    return {**{key: upper[key] for key in _OF_BOTH if key in upper}, **inner}, upper  # what is inside inherits these


def _plain(properties: Properties) -> Properties:
    """Take dotted keys and words apart. Source: qapi/block-core.json, BlockdevOptionsBase."""
    plain: Properties = {}
    for key, value in properties.items():
        place = plain
        *outer, last = key.split(".")
        for name in outer:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                break
            place = inner
        else:
            place[last] = _WORDS.get(value, value) if isinstance(value, str) and last in _SWITCHES else value
    return plain


def _path(properties: Properties) -> str:
    options: object = _plain(properties)
    while isinstance(options, dict):
        if isinstance(options.get("filename"), str):
            return str(options["filename"])
        options = options.get("file") or options.get("image")
    return ""


def _backed(option: Option, node: str) -> Option:
    """Let an image stand on a node; without one on what it names itself."""
    kept = {key: value for key, value in option.properties.items() if key.split(".")[0] != "backing"}
    return replace(option, properties=kept | ({"backing": node} if node else {}))


def _written_like(option: Option, other: Option, keys: Sequence[str]) -> Option:
    if option.syntax is Syntax.JSON:
        source = _plain(other.properties)
        kept = {key: value for key, value in option.properties.items() if key not in keys}
        return replace(option, properties=kept | {key: source[key] for key in keys if key in source})
    kept = {key: value for key, value in option.properties.items() if key not in ("read-only", "auto-read-only")}
    return replace(option, properties=kept | {key: value for key, value in other.properties.items() if key == "read-only"})


def _storage_like(known: Known, old_top: Known) -> Option | None:
    if known.storage is None or old_top.storage is None:
        return None if known.storage is None else _written_like(known.storage, old_top.option, ("read-only",))
    return _written_like(known.storage, old_top.storage, _OF_BOTH)


def _read_only(option: Option) -> Option:
    is_json = option.syntax is Syntax.JSON
    return replace(option, properties={**option.properties, "read-only": True if is_json else "on"})


def _lowest_first(options: Sequence[Option]) -> list[Option]:
    """Put each node behind those that it stands on."""
    waiting, ordered = list(options), list[Option]()
    while waiting:
        left = {option.get("node-name") for option in waiting}
        ready = [option for option in waiting if not left.intersection(_references(option))]
        ordered += ready or waiting
        waiting = [option for option in waiting if option not in ordered]
    return ordered


def _references(option: Option) -> list[str]:
    return [value for key, value in option.strings() if key.rpartition(".")[2] in ("file", "backing", "image", "drive")]
