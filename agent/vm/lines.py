"""Which of a QEMU's character devices is a line that somebody can use as a terminal.

Pure: the answer to `query-chardev` in, a place to open out.

Source: qapi/char.json; chardev/char-pty.c, char-socket.c for `filename`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.qemu.decoding import as_list, as_mapping, get_str
from common.errors import NotFound, WrongState

_PTY: Final = re.compile(r"pty:(?P<path>/.*)")
_SOCKET: Final = re.compile(r"(?P<free>disconnected:)?unix:(?P<path>/.*?),server=on")
_PREFIX: Final = "char"


@dataclass(frozen=True, slots=True)
class Place:
    """A line on the host.

    Attributes:
        device: the name that people use, as `serial0`.
        is_taken: whether somebody is connected who is none of ours.
    """

    device: str
    path: Path
    is_socket: bool
    is_taken: bool


def find_line(reply: object, device: str, vm_name: str) -> Place:
    """Find the line of this name, or the first serial line or console if the name is empty.

    Raises:
        NotFound: there is no line of this name; the text lists those that there are.
        WrongState: it is there and nobody can attach to it, as to a file.
    """
    places: dict[str, Place] = {}
    others: dict[str, str] = {}
    for entry in as_list(reply, "query-chardev"):
        mapping = as_mapping(entry, "chardev")
        name, filename = get_str(mapping, "label").removeprefix(_PREFIX), get_str(mapping, "filename")
        if not name.startswith(("serial", "console")):
            continue  # a monitor, the other end of a network card
        place = _place(name, filename)
        if place is None:
            others[name] = filename
        else:
            places[name] = place
    known = ", ".join(sorted({*places, *others})) or "none"
    chosen = device or min(places, key=lambda name: (name.startswith("console"), name), default="")
    if chosen in places:
        return places[chosen]
    if chosen in others or (not chosen and others):
        name = chosen or min(others)
        raise WrongState(
            f"VM {vm_name}: {name} goes to {others[name]}; only a line of type pty or unix can be attached",
            reason="LINE_NOT_ATTACHABLE",
            vm=vm_name,
            device=name,
        )
    raise NotFound(f"VM {vm_name} has no line {chosen or 'at all'}; its lines: {known}", reason="LINE_NOT_FOUND", vm=vm_name)


def _place(name: str, filename: str) -> Place | None:
    if match := _PTY.fullmatch(filename):
        return Place(name, Path(match["path"]), is_socket=False, is_taken=False)
    if match := _SOCKET.match(filename):
        return Place(name, Path(match["path"]), is_socket=True, is_taken=match["free"] is None)
    return None
