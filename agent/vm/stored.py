"""What a host keeps of a VM while it does not run, as it goes along with a guest to another host."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.vm.definition import Definition
from agent.vm.view import differs
from common.codec import BadRecord
from common.foreign_json import parse_json

if TYPE_CHECKING:
    from agent.vm.vm import Vm


@dataclass(frozen=True, slots=True)
class Stored:
    """What a host keeps of a VM while it does not run.

    Attributes:
        definition: None where it is what runs.
        autostart: whether it starts with its host.
        cpu_shares: what it starts with, where that was set; a guest that has come keeps its own.
    """

    definition: Definition | None = None
    autostart: bool = False
    cpu_shares: int | None = None

    def renamed(self, name: str) -> Stored:
        """Return the same under another name; an empty one changes nothing."""
        if not name or self.definition is None:
            return self
        return replace(self, definition=replace(self.definition, name=name))

    def to_bytes(self) -> bytes:
        """Turn into what `from_bytes` takes."""
        definition = None if self.definition is None else self.definition.to_record()
        return json.dumps({"definition": definition, "autostart": self.autostart, "cpu_shares": self.cpu_shares}).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Stored | None:
        """Build from what `to_bytes` gave, here or on another host; empty is None.

        Raises:
            InvalidRequest: it is not such a record.
        """
        if not content:
            return None
        try:
            record = parse_json(content)
        except ValueError as error:
            raise BadRecord(f"stored definition: not JSON: {error}") from error
        match record:
            case {"definition": definition, "autostart": bool(autostart), "cpu_shares": int() | None as shares}:
                return cls(None if definition is None else Definition.from_record(definition), autostart, shares)
        raise BadRecord("stored definition: an object with definition, autostart and cpu_shares is wanted")


def find_stored(vm: Vm) -> Stored | None:
    """Return what this host keeps of a VM; None of a transient one.

    One that was adopted counts as kept: nobody chose that it should be gone when it stops. So does one whose definition cannot
    be read.
    """
    if vm.persistent is None:
        is_kept = vm.has_unread_definition or (vm.running is not None and vm.running.qmp_path is not None)
        return Stored() if is_kept else None
    is_another = vm.running is None or differs(vm)
    return Stored(vm.persistent if is_another else None, vm.wishes.autostart, vm.wishes.tunables.cpu_shares)
