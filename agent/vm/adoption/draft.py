"""A definition while it is read from a running QEMU, with what is to be told about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.vm.options import Option, Properties, Syntax
from agent.vm.options import text as text_option

if TYPE_CHECKING:
    from agent.vm.adoption.facts import Device, Facts
    from agent.vm.adoption.found import Found
    from agent.vm.definition import Disk, Tap


@dataclass(slots=True)
class Draft:
    """What became of the command line so far.

    Attributes:
        options: in the order of the command line.
        machine, cpu: words of `-machine` and `-cpu`.
        pending: devices of QEMU that no option has been found for yet.
        given_nodes: names of block nodes that options make.
        dropped, changed, blockers: each a sentence that names the option.
    """

    found: Found
    facts: Facts
    options: list[Option] = field(default_factory=list)
    machine: Properties = field(default_factory=dict)
    cpu: str | None = None
    pending: list[Device] = field(default_factory=list)
    given_nodes: set[str] = field(default_factory=set)
    disks: list[Disk] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)

    def add(self, name: str, properties: Properties, *, is_json: bool = False) -> None:
        """Add an option of properties."""
        self.options.append(Option(name, Syntax.JSON if is_json else Syntax.KEYVAL, None, properties))

    def add_text(self, name: str, value: str | None) -> None:
        """Add an option whose argument is taken as it is."""
        self.options.append(Option(name, Syntax.TEXT, None, {}) if value is None else text_option(name, value))

    def has(self, *names: str) -> bool:
        """Say whether there is an option of one of these names yet."""
        return any(option.name in names for option in self.options)

    def absolute(self, path: str, where: str) -> str:
        """Make a path absolute, and tell it."""
        made = self.found.absolute(path)
        if made != path:
            self.changed.append(f"{where}: path {path} is {made}")
        return made

    def absolute_in(self, properties: Properties, keys: frozenset[str], where: str) -> Properties:
        """Make the paths under these keys absolute, at any depth; the last part of a dotted key counts."""
        made: Properties = {}
        for key, value in properties.items():
            if isinstance(value, dict):
                made[key] = self.absolute_in(value, keys, where)
            elif isinstance(value, str) and value and key.rpartition(".")[2] in keys:
                made[key] = self.absolute(value, where)
            else:
                made[key] = value
        return made
