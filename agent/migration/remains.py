"""What can still be read of a session record that cannot be read as a whole. Pure.

Records are written so that their head comes first, then the phase, then the facts: of one that was cut off its beginning is left,
of one that this version does not understand all that it does understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from uuid import UUID

from agent.migration import incoming, outgoing
from agent.migration.modes import Modes
from agent.migration.order import Options, Role, Transport
from agent.migration.record import Facts, Head, read_destination_phase, read_source_phase
from common.codec import decode_what_can_be
from common.errors import InvalidRequest
from common.records import parts_of

_PARTS: Final = ("head", "phase", "facts")


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a record.

    Attributes:
        phase: as it was written, if that can be read.
        facts: those that can be read, by name.
        phase_name, is_over, stays_paused, transport, plain: of the head; as of a migration without wishes where there is none.
    """

    phase: object = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    phase_name: str = ""
    is_over: bool = False
    stays_paused: bool = False
    transport: Transport = Transport.DIRECT
    plain: bool = False

    @property
    def role(self) -> Role | None:
        """Which half it is of, if that is known."""
        return self.facts.get("role")

    @property
    def vm_uuid(self) -> UUID | None:
        """The VM, if it is known."""
        try:
            return UUID(self.facts["vm_uuid"])
        except (KeyError, ValueError):
            return None

    @property
    def is_final(self) -> bool:
        """Whether the phase is known and a final one."""
        phase = self.source_phase() if self.role is Role.SOURCE else self.destination_phase()
        return isinstance(phase, (*outgoing.FINAL, *incoming.FINAL))

    def source_phase(self) -> outgoing.Phase | None:
        """Return the source's phase, if this version knows it."""
        try:
            return read_source_phase(self.phase)
        except InvalidRequest:
            return None

    def destination_phase(self) -> incoming.Phase | None:
        """Return the destination's phase, if this version knows it."""
        try:
            return read_destination_phase(self.phase)
        except InvalidRequest:
            return None

    def facts_of(self, migration_id: str, role: Role, vm_uuid: UUID, vm_name: str, began_at_s: float) -> Facts:
        """Return the facts as far as they are left; what is not is as it is when nothing was asked for."""
        suspend = self.stays_paused and not self.facts.get("guest_was_paused", False)
        options = Options(self.transport, self.plain, modes=Modes(suspend=suspend))
        assumed = {"vm_name": vm_name, "options": options, "epoch": 1, "began_at_s": began_at_s}
        return Facts(**{**assumed, **self.facts, "migration_id": migration_id, "role": role, "vm_uuid": str(vm_uuid)})


def remains_of(content: bytes) -> Remains:
    """Read what can be read of a record's content, whatever that is."""
    parts = parts_of(content, _PARTS)
    head, phase, facts = (parts.get(name) for name in _PARTS)
    known = decode_what_can_be(Head, head) if isinstance(head, dict) else {}
    read = decode_what_can_be(Facts, facts) if isinstance(facts, dict) else {}
    names = {one.name for one in fields(Facts)}
    name = phase.get("name") if isinstance(phase, dict) else None
    return Remains(
        phase=phase,
        facts={**{key: value for key, value in known.items() if key in names}, **read},
        phase_name=known.get("phase") or (name if isinstance(name, str) else ""),
        is_over=known.get("is_over", read.get("ended_at_s") is not None),
        stays_paused=known.get("stays_paused", False),
        transport=known.get("transport", Transport.DIRECT),
        plain=known.get("plain", False),
    )
