"""What a name, a path or a word in a definition may look like.

Definitions come from people and from other agents, and end as arguments of QEMU and names of files. These rules are
the one gate: whatever passed them has no control characters and no way to be more than the value it is.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from common.errors import InvalidRequest

MAX_NAME_LENGTH = 200
MAX_TEXT_LENGTH = 64 * 1024
# Linux: names of network devices. Source: IFNAMSIZ of linux/if.h, dev_valid_name().
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DISK_SERIAL = re.compile(r"[A-Za-z0-9_ .+-]{1,20}")
_DISK_TARGET = re.compile(r"vd[a-z]{1,2}")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a VM."""
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise _invalid(f"a name has 1 to {MAX_NAME_LENGTH} characters, not {len(name)}")
    if not name.isprintable() or name != name.strip() or "/" in name:
        raise _invalid(f"name {name!r}: printable characters without `/` or outer blanks are wanted")


def check_path(path: str) -> None:
    """Refuse what is not a plain absolute path."""
    check_text(path, "path")
    if not path.startswith("/") or path.startswith("//"):
        raise _invalid(f"path {path!r}: an absolute path is wanted")
    if ".." in PurePosixPath(path).parts:
        raise _invalid(f"path {path!r}: `..` is refused")
    if path.endswith("/"):
        raise _invalid(f"path {path!r}: a file is wanted, not a directory")


def check_command_line(text: str) -> None:
    """Refuse what cannot be a kernel command line."""
    check_text(text, "kernel command line")


def check_word(word: str, what: str) -> None:
    """Refuse what is not one word as QEMU names machines, CPU models and CPU features."""
    if not _WORD.fullmatch(word):
        raise _invalid(f"{what} {word[:80]!r}: letters, digits, dots, dashes and underscores are wanted")


def check_mac(mac: str) -> None:
    """Refuse what is not the address of one network card, in lower case."""
    if not _MAC.fullmatch(mac):
        raise _invalid(f"MAC address {mac[:80]!r}: six pairs of hexadecimal digits with colons are wanted")
    if int(mac[:2], 16) & 1:
        raise _invalid(f"MAC address {mac}: a multicast address belongs to no card")


def check_device_name(name: str) -> None:
    """Refuse what cannot be the name of a network device of the host."""
    if not _DEVICE_NAME.fullmatch(name):
        raise _invalid(f"network device {name[:80]!r}: 1 to 15 letters, digits, dots, dashes and underscores are wanted")


def check_disk_serial(serial: str) -> None:
    """Refuse what a virtio disk cannot show as its serial number."""
    if not _DISK_SERIAL.fullmatch(serial):
        raise _invalid(f"disk serial {serial[:80]!r}: 1 to 20 letters, digits, blanks and `_.+-` are wanted")


def check_disk_target(target: str) -> None:
    """Refuse what does not name a virtio disk."""
    if not _DISK_TARGET.fullmatch(target):
        raise _invalid(f"disk target {target[:80]!r}: `vda` to `vdzz` is wanted")


def check_range(value: int, lowest: int, highest: int, what: str) -> None:
    """Refuse a number outside of its range, both ends included."""
    if not lowest <= value <= highest:
        raise _invalid(f"{what} {value}: {lowest} to {highest} is wanted")


def check_text(text: str, what: str) -> None:
    """Refuse what is too long or has control characters."""
    if len(text) > MAX_TEXT_LENGTH:
        raise _invalid(f"{what}: {len(text)} characters, {MAX_TEXT_LENGTH} is the most")
    if not text.isprintable():
        raise _invalid(f"{what} {text[:80]!r}: control characters are refused")


def _invalid(text: str) -> InvalidRequest:
    return InvalidRequest(text, reason="VALUE_INVALID")
