"""Options that one QEMU spells otherwise than another: a definition is written as the QEMU at hand reads it.

A definition is stored, sent and saved in the words in which it came, of a QEMU or a front end. It is spelled anew each
time that a QEMU is started with it, so that a guest goes to a newer QEMU and back.

Source: qapi/char.json, qapi/net.json of each version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.qemu.machine import QemuVersion
    from agent.vm.definition import Definition
    from agent.vm.options import Option, Properties

_MS_PER_S: Final = 1000
_Number: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Renamed:
    """A key of some options, a number, that another one took the place of.

    Attributes:
        options: those that have it, by name.
        old: known before version `until`.
        new: known from version `since` on, from which on it is what is written.
        to_new, to_old: what a value is in the other words.
    """

    options: frozenset[str]
    old: str
    new: str
    since: _Number
    until: _Number
    to_new: Callable[[int], int]
    to_old: Callable[[int], int]


RENAMED: Final = (
    Renamed(
        options=frozenset({"chardev", "netdev", "parallel", "serial"}),
        old="reconnect",
        new="reconnect-ms",
        since=(9, 2),
        until=(11, 1),
        to_new=lambda seconds: seconds * _MS_PER_S,
        to_old=lambda milliseconds: -(-milliseconds // _MS_PER_S),  # 0 would turn it off
    ),
)


def spell(definition: Definition, version: QemuVersion) -> Definition:
    """Return the definition in the words of a QEMU of this version."""
    return replace(definition, options=tuple(_spell(option, (version.major, version.minor)) for option in definition.options))


def _spell(option: Option, version: _Number) -> Option:
    for renamed in RENAMED:
        if option.name in renamed.options:
            is_new = version >= renamed.since
            wanted, other = (renamed.new, renamed.old) if is_new else (renamed.old, renamed.new)
            convert = renamed.to_new if is_new else renamed.to_old
            properties = dict(_renamed(option.properties, other, wanted, convert))
            option = replace(option, text=_renamed_in(option.text, other, wanted, convert), properties=properties)
    return option


def _renamed(properties: Properties, other: str, wanted: str, convert: Callable[[int], int]) -> Iterator[tuple[str, object]]:
    for key, value in properties.items():
        yield (wanted, convert(int(str(value)))) if key == other else (key, value)


def _renamed_in(text: str | None, other: str, wanted: str, convert: Callable[[int], int]) -> str | None:
    """Rename in words such as `tcp:192.0.2.1:4000,reconnect=5`."""
    if text is None:
        return None
    return re.sub(rf"(?<=,){other}=(\d+)(?=,|$)", lambda found: f"{wanted}={convert(int(found[1]))}", text)
