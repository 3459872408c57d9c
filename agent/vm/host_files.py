"""Which files of the host a definition uses, and how: read from its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.vm.inner_nodes import inner_file
from agent.vm.options import MACHINE_FILES, RUN_DIR, strings_of

if TYPE_CHECKING:
    from pathlib import Path

    from agent.vm.definition import Definition
    from agent.vm.options import Option

# What a guest may get random bytes from without being in the operator's directories.
RANDOM_SOURCES: Final = frozenset({"/dev/random", "/dev/urandom", "/dev/hwrng"})
_TEXTS: Final = frozenset({"kernel", "initrd", "bios", "dtb", "mem-path"})
# Keys whose value may begin with a slash and is a word for the guest, no path.
_WORDS: Final = frozenset({"mount_tag", "name", "serial", "tag", "vendor", "product", "export", "string"})
# What has a slash and is no path: of the VM's own directory, a network, the address of a server.
_HARMLESS: Final = re.compile(r"(unix:)?\{run\}/[^/]+|[0-9A-Fa-f.:]+/[0-9]+|(nbd|https?|ftps?|iscsi|sftp|ssh)://[^/].*")
FILE_DRIVERS: Final = frozenset({"file", "host_device", "host_cdrom"})
# Drivers of images on a server whose key `path` is the server's.
_PATHS_OF_SERVERS: Final = frozenset({"gluster", "nfs", "ssh"})


class Use(Enum):
    """What a file has to be: there and readable, there and writable, a place in a directory, or there at last."""

    READ = "read"
    WRITE = "write"
    MAKE = "make"
    CONNECT = "connect"


@dataclass(frozen=True, slots=True)
class HostFile:
    """One file.

    Attributes:
        what: names its use in errors, such as `disk vda`.
        is_shareable: of an image: it may be open elsewhere.
        is_never_flushed: of an image: QEMU leaves it to the kernel when to write (libvirt's cache mode `unsafe`).
    """

    what: str
    path: str
    use: Use
    is_shareable: bool = False
    is_never_flushed: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it holds a disk."""
        return self.what.startswith("disk ")


def host_files(definition: Definition) -> tuple[HostFile, ...]:
    """List every file that the definition names."""
    of_machine = (pair for pair in strings_of(definition.machine_properties) if pair[0] in MACHINE_FILES and "/" in pair[1])
    return (*(HostFile(f"machine ({key})", path, Use.READ) for key, path in of_machine), *_files(definition))


def written_images(definition: Definition) -> tuple[HostFile, ...]:
    """List the images that the guest writes to."""
    return tuple(file for file in host_files(definition) if file.is_image and file.use is Use.WRITE)


def hidden_paths(definition: Definition) -> tuple[str, ...]:
    """List the strings that could make QEMU open a file and are none of `host_files`, such as `fat:/srv`."""
    known = {file.path for file in host_files(definition)} | RANDOM_SOURCES
    return tuple(
        f"-{option.name} {key}={value}" if key else f"-{option.name} {value}"
        for option in definition.options
        if option.name not in ("append", "uuid")
        for key, value in option.strings()
        if "/" in value
        and not _is_word(option, key)
        and not _is_of_server(option, value)
        and value.removeprefix("unix:") not in known
        and not _HARMLESS.fullmatch(value)
    )


def lines(definition: Definition, run_dir: Path) -> dict[str, str]:
    """Name the files behind serial lines, consoles and channels, by the id of their chardev without `char`."""
    found = {}
    for option in definition.find("chardev"):
        path = option.get("path")
        if path:
            found[option.get("id").removeprefix("char")] = path.replace(RUN_DIR, str(run_dir))
    return found


def _files(definition: Definition) -> Iterator[HostFile]:  # noqa: C901 - one line an option
    disks = _nodes_of_disks(definition)
    for option in definition.options:
        match option.name:
            case name if name in _TEXTS and option.text is not None:
                yield HostFile(name, option.text, Use.READ)
            case "append" | "uuid":
                pass
            case "vnc" | "spice":
                yield from _of_display(option)
            case "audiodev" if option.get("path").startswith("/"):
                yield HostFile(option.get("id"), option.get("path"), Use.MAKE)
            case "blockdev" if option.get("driver") in FILE_DRIVERS:
                target, is_shareable = disks.get(option.get("node-name"), ("", False))
                what = f"disk {target}" if target else f"block node {option.get('node-name')}"
                use = Use.READ if option.properties.get("read-only") in (True, "on") else Use.WRITE
                yield HostFile(what, option.get("filename"), use, is_shareable, _is_never_flushed(option))
            case "blockdev" if inner_file(option).get("driver") in FILE_DRIVERS:
                yield from _of_inner_file(option, *disks.get(option.get("node-name"), ("", False)))
            case "drive":
                use = Use.READ if option.get("readonly") == "on" or option.get("media") == "cdrom" else Use.WRITE
                if option.get("file").startswith("/"):
                    what = f"disk {option.get('id') or option.get('file')}"
                    yield HostFile(what, option.get("file"), use, is_never_flushed=_is_never_flushed(option))
                yield from (file for file in _of_others(option, "drive") if file.path != option.get("file"))
            case "chardev":
                yield from _of_chardev(option)
            case name:
                yield from _of_others(option, name)


def _of_inner_file(option: Option, target: str, is_shareable: bool) -> Iterator[HostFile]:  # noqa: FBT001 - as it is kept
    inner = inner_file(option)
    path = str(inner.get("filename", ""))
    is_read_only = any(one.get("read-only") in (True, "on") for one in (inner, option.properties))
    what = f"disk {target}" if target else f"block node {option.get('node-name')}"
    yield HostFile(what, path, Use.READ if is_read_only else Use.WRITE, is_shareable, _is_never_flushed(option))
    yield from (file for file in _of_others(option, "blockdev") if file.path != path)


def _is_never_flushed(option: Option) -> bool:
    """Say so of a -blockdev or a -drive. Source: qapi/block-core.json, BlockdevCacheOptions."""
    cache = option.properties.get("cache")
    nested = cache.get("no-flush") if isinstance(cache, dict) else option.properties.get("cache.no-flush")
    return cache == "unsafe" or nested in (True, "on")


def _of_chardev(option: Option) -> Iterator[HostFile]:
    if option.get("logfile"):
        yield HostFile(option.get("id").removeprefix("char"), option.get("logfile"), Use.MAKE)
    path = option.get("path")
    if not path.startswith("/"):
        return
    is_socket = option.get("backend") == "socket"
    use = Use.CONNECT if is_socket and option.properties.get("server") not in (True, "on") else Use.MAKE
    if option.get("backend") in ("serial", "parallel", "pipe"):
        use = Use.READ
    yield HostFile(option.get("id").removeprefix("char"), path, use)


def _is_word(option: Option, key: str) -> bool:
    """Say whether the value under a key is only shown to the guest. SMBIOS tables are all words but where they are read from."""
    return key in _WORDS or (option.name == "smbios" and key not in ("file", "path"))


def _is_of_server(option: Option, value: str) -> bool:
    return option.name == "blockdev" and option.get("driver") in _PATHS_OF_SERVERS and option.get("path") == value


def _of_display(option: Option) -> Iterator[HostFile]:
    for key, value in option.strings():
        if value.startswith("unix:/"):
            yield HostFile(option.name, value.removeprefix("unix:"), Use.MAKE)
        elif key == "addr" and value.startswith("/"):
            yield HostFile(option.name, value, Use.MAKE)


def _of_others(option: Option, name: str) -> Iterator[HostFile]:
    for key, value in option.strings():
        if not value.startswith("/") or _is_word(option, key) or _is_of_server(option, value):
            continue
        if name == "object" and option.get("qom-type") == "rng-random" and value in RANDOM_SOURCES:
            continue
        yield HostFile(f"{name} {option.get('id') or option.get('node-name')} ({key})", value, Use.READ)


def _nodes_of_disks(definition: Definition) -> dict[str, tuple[str, bool]]:
    """Find the disk that each block node belongs to, through filters and backing chains."""
    nodes = {option.get("node-name"): option for option in definition.find("blockdev")}
    owners: dict[str, tuple[str, bool]] = {}
    for disk in definition.disks:
        waiting = [disk.node]
        while waiting:
            node = waiting.pop()
            if node in owners or node not in nodes:
                continue
            owners[node] = (disk.target, disk.is_shareable)
            waiting += [
                value for key, value in nodes[node].properties.items() if key in ("file", "backing") and isinstance(value, str)
            ]
    return owners
