"""Options of QEMU's command line as data.

An option is a plain text (`-append`), properties in QEMU's own `key=value` words (`-chardev`), or properties in JSON
(`-device`). A definition made of them comes from people and other hosts, so the gate is here: only options that describe
the guest or its backends, no control characters, keys that are words, and commas doubled when written. Whatever passed
can be no other option than the one it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.vm import rules
from common.errors import InvalidRequest

Properties = dict[str, object]

MAX_DEPTH: Final = 40  # a backing chain in one JSON nests
# What may stand in a definition; monitors, incoming, daemonize, run-as, plugins, logs and traces may not.
ALLOWED: Final = frozenset(
    {
        "action",
        "append",
        "audiodev",
        "bios",
        "blockdev",
        "boot",
        "chardev",
        "compat",
        "device",
        "display",
        "drive",
        "dtb",
        "fsdev",
        "fw_cfg",
        "global",
        "initrd",
        "kernel",
        "mem-path",
        "mem-prealloc",
        "net",
        "netdev",
        "nic",
        "no-fd-bootchk",
        "no-reboot",
        "no-shutdown",
        "nodefaults",
        "numa",
        "object",
        "overcommit",
        "parallel",
        "rtc",
        "serial",
        "smbios",
        "spice",
        "tpmdev",
        "usb",
        "usbdevice",
        "uuid",
        "vga",
        "vnc",
        "watchdog",
        "watchdog-action",
    }
)
# Stands in a definition for the directory of the VM on whatever host it runs.
RUN_DIR: Final = "{run}"
# The key that the first word of a `key=value` option stands for. Source: the QemuOptsList of each option.
_IMPLIED: Final = {
    "audiodev": "driver",
    "chardev": "backend",
    "display": "type",
    "device": "driver",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "machine": "type",
    "netdev": "type",
    "numa": "type",
    "object": "qom-type",
    "smp": "cpus",
    "tpmdev": "type",
    "vnc": "vnc",
}
RUN_DIR_OPTIONS: Final = ("chardev", "object", "spice", "vnc")
# Stands in `-spice` for a port that the host chooses at each start; QEMU finds a free one for VNC alone.
FREE_PORT: Final = "{port}"
_IN_RUN_DIR: Final = re.compile(r"(unix:)?\{run\}/[A-Za-z0-9][A-Za-z0-9._-]*")
_FORBIDDEN: Final = frozenset({"script", "downscript", "helper", "fd", "fds", "vhostfd", "vhostfds", "sockfd"})
# Properties of a machine that QEMU reads a file by, and those that are words. Source: hw/core/machine.c, hw/i386/x86.c.
MACHINE_FILES: Final = frozenset({"kernel", "initrd", "dtb", "firmware", "splash"})
_MACHINE_WORDS: Final = frozenset({"append", "x-oem-id", "x-oem-table-id"})
# Texts that are one value, commas included; other texts are `key=value` words.
_WHOLE: Final = frozenset({"append", "bios", "dtb", "initrd", "kernel", "mem-path", "uuid"})
MONITOR_OBJECTS: Final = frozenset({"monitor-hmp", "monitor-qmp"})
"""Objects that are monitors, since QEMU 11.1, which makes one for each `-mon` too."""
_MONITOR: Final = "mon:"  # `-serial mon:stdio` is a line and a monitor
_NO_BACKING: Final = "-blockdev,backing"  # the only value that may be null: whatever the image names, nothing is below it
_SINGLE_COMMA: Final = re.compile(r"(?:[^,]|,,)+")
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Syntax(Enum):
    """How an option is written."""

    TEXT = "text"
    KEYVAL = "keyval"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Option:
    """One option, without its dash.

    `text` is the whole argument in syntax TEXT, None for an option that has none. `properties` are of the other two:
    strings, whole numbers, truth values, lists (in KEYVAL a repeated key), and in JSON objects.
    """

    name: str
    syntax: Syntax
    text: str | None
    properties: Properties

    def __post_init__(self) -> None:
        """Refuse what could be more than this option."""
        if self.name not in ALLOWED:
            raise _invalid(f"option -{self.name[:40]} may not be part of a definition")
        if self.text is not None:
            rules.check_text(self.text, f"-{self.name}")
        if self.syntax is Syntax.TEXT and self.properties:
            raise _invalid(f"-{self.name}: a text has no properties")
        if self.name == "initrd" and "," in (self.text or ""):
            # A multiboot kernel's `-initrd` is a list with commas: the rest of the path would be another file.
            raise _invalid(f"initrd {self.text!r}: commas are refused")
        check_properties(self.properties, f"-{self.name}", may_be_null=self.name == "blockdev" and self.syntax is Syntax.JSON)
        self._refuse_programs()

    def _refuse_programs(self) -> None:
        """Refuse what makes QEMU run a program or listen to commands, or use a descriptor that it was not given for this."""
        kind = str(self.properties.get("qom-type")) if self.text is None else self.text  # any word of a text may name it
        if self.name == "object" and any(monitor in kind for monitor in MONITOR_OBJECTS):
            raise _invalid("-object: a monitor may not be part of a definition")
        for key, value in self.strings():
            name = key.rpartition(".")[2]
            if name in _FORBIDDEN or (name in ("guestfwd", "str") and "cmd:" in value):
                raise _invalid(f"-{self.name},{key}: may not be part of a definition")
            if value.startswith(_MONITOR) and self.name in ("serial", "parallel"):
                raise _invalid(f"-{self.name} {value[:80]!r}: a monitor may not be part of a definition")
            if value.startswith("json:") and self.name == "drive":
                raise _invalid(f"-drive {key}={value[:80]!r}: give what is in the JSON as properties")
            if self.name in RUN_DIR_OPTIONS and RUN_DIR in value and not _IN_RUN_DIR.fullmatch(value):
                raise _invalid(f"-{self.name},{key}: {value[:80]!r} is no place in the VM's own directory")

    def strings(self) -> Iterator[tuple[str, str]]:
        """List every string with its key, at any depth; a text is taken apart as QEMU does, and a word without key has none."""
        if self.text is None:
            yield from strings_of(self.properties)
        elif self.name in _WHOLE:
            yield "", self.text
        else:
            for word in _SINGLE_COMMA.findall(self.text):
                key, has_value, value = word.replace(",,", ",").partition("=")
                yield (key, value) if has_value else ("", key)

    def write(self) -> tuple[str, ...]:
        """Write the arguments of the command line."""
        option = f"-{self.name}"
        match self.syntax:
            case Syntax.TEXT:
                return (option,) if self.text is None else (option, self.text)
            case Syntax.KEYVAL:
                return (option, write_keyval(self.properties, _IMPLIED.get(self.name)))
            case Syntax.JSON:
                return (option, to_json(self.properties))

    def get(self, key: str) -> str:
        """Read a property as text; empty when it is not there."""
        value = self.properties.get(key)
        return "" if value is None else _word(value)


def flag(name: str) -> Option:
    """Make an option that stands alone."""
    return Option(name, Syntax.TEXT, None, {})


def text(name: str, value: str) -> Option:
    """Make an option whose argument is one text."""
    return Option(name, Syntax.TEXT, value, {})


def keyval(name: str, properties: Mapping[str, object]) -> Option:
    """Make an option of `key=value` words."""
    return Option(name, Syntax.KEYVAL, None, dict(properties))


def of_json(name: str, properties: Mapping[str, object]) -> Option:
    """Make an option of JSON properties: -device, -object, -netdev, -blockdev, -audiodev."""
    return Option(name, Syntax.JSON, None, dict(properties))


def device(driver: str, **properties: object) -> Option:
    """Make a device; an underscore in a Python name stands for a dash."""
    return of_json("device", {"driver": driver, **{key.replace("_", "-"): value for key, value in properties.items()}})


def write_keyval(properties: Mapping[str, object], implied: str | None = None) -> str:
    """Write `key=value,...`; the first word may leave out its key. Source: util/qemu-option.c, util/keyval.c."""
    words = []
    for index, (key, value) in enumerate(_pairs(properties)):
        is_bare = index == 0 and key == implied and "=" not in value
        words.append(double_commas(value) if is_bare else f"{key}={double_commas(value)}")
    return ",".join(words)


def double_commas(value: str) -> str:
    """Write a value of a `key=value,...` argument. Source: util/qemu-option.c, get_opt_value."""
    return value.replace(",", ",,")


def to_json(value: Mapping[str, object]) -> str:
    """Write a JSON argument in one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def check_machine_files(properties: Mapping[str, object]) -> None:
    """Refuse properties of a machine that make QEMU write a file, or name one under a key that is not known to name one.

    Raises:
        InvalidRequest: there is one; the text names it.
    """
    for key, value in strings_of(properties):
        if key == "dumpdtb":  # QEMU writes there and ends. Source: hw/core/machine.c, qmp_dumpdtb() and its like
            raise _invalid("-machine,dumpdtb: may not be part of a definition")
        if "/" in value and key not in MACHINE_FILES | _MACHINE_WORDS:
            known = ", ".join(sorted(MACHINE_FILES))
            raise _invalid(f"-machine,{key[:40]}: {value[:80]!r} may be the name of a file; files are named by {known}")
        if key == "initrd" and "," in value:
            raise _invalid(f"-machine,initrd: {value[:80]!r}: commas are refused")


def strings_of(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """List every string in a value, with the key that it stands under."""
    match value:
        case str():
            yield key, value
        case dict():
            for inner_key, inner in value.items():
                yield from strings_of(inner, str(inner_key))
        case list():
            for inner in value:
                yield from strings_of(inner, key)


def check_properties(properties: Mapping[str, object], where: str, *, may_be_null: bool = False) -> None:
    """Refuse keys that are not words and values that are not plain.

    Raises:
        InvalidRequest: there is one; the text names it.
    """
    for key, value in properties.items():
        if value is not None or not may_be_null:  # in JSON: a backing image that there is none of
            _check_value({key: value}, where, 0)


def _check_value(value: object, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _invalid(f"{where}: nested too deeply")
    match value:
        case bool() | int():
            pass
        case None if where.endswith(_NO_BACKING):
            pass
        case str():
            rules.check_text(value, where)
        case list():
            for item in value:
                _check_value(item, where, depth + 1)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or not _KEY.fullmatch(key):
                    raise _invalid(f"{where}: {str(key)[:40]!r} is not a key")
                _check_value(item, f"{where},{key}", depth + 1)
        case _:
            raise _invalid(f"{where}: {type(value).__name__} is not a value of an option")


def _pairs(properties: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for key, value in properties.items():
        for item in value if isinstance(value, list) else [value]:
            yield key, _word(item)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="VALUE_INVALID")
