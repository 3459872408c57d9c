"""What is wished of a migration beside the transfer itself: how the guest ends up, and what each host keeps of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.errors import InvalidRequest

# Source: migration/options.c, migrate_params_check() of QEMU 7.2 and 10.0.
MAX_ANNOUNCE_ROUNDS: Final = 1000


class Persistence(Enum):
    """Whether the destination keeps a definition of the VM once it stops."""

    AS_ON_SOURCE = "as-on-source"
    TRANSIENT = "transient"
    PERSISTENT = "persistent"


class SourceDefinition(Enum):
    """What becomes of the stored definition on the source after the move."""

    FOLLOWS = "follows"
    KEEP = "keep"
    UNDEFINE = "undefine"


@dataclass(frozen=True, slots=True)
class Modes:
    """What the user wishes beside the transfer itself.

    Attributes:
        announce_round_count: how often the destination tells the network where the guest is; None leaves it to QEMU.
        suspend: the guest stays paused on the destination.
        source_definition: FOLLOWS removes it, unless the destination keeps none.
        offline: move the definition of a stopped VM.
        leave_clock: do not let the guest's agent set its clock.
    """

    announce_round_count: int | None = None
    suspend: bool = False
    persistence: Persistence = Persistence.AS_ON_SOURCE
    source_definition: SourceDefinition = SourceDefinition.FOLLOWS
    offline: bool = False
    leave_clock: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range, and wishes that exclude each other."""
        rounds = self.announce_round_count
        if rounds is not None and not 0 <= rounds <= MAX_ANNOUNCE_ROUNDS:
            raise InvalidRequest(
                f"announce-rounds: {rounds}; 0 (none) to {MAX_ANNOUNCE_ROUNDS} are possible", reason="ANNOUNCE_ROUNDS_OUT_OF_RANGE"
            )
        if self.offline and (unwanted := self._of_running_guests()):
            raise InvalidRequest(
                f"{unwanted} and offline exclude each other: offline moves the definition of a stopped VM",
                reason="OPTIONS_CONFLICT",
            )

    def _of_running_guests(self) -> str:
        """Name a wish that has a sense for a running guest only; empty without one."""
        if self.suspend:
            return "suspend"
        if self.announce_round_count is not None:
            return "announce-rounds"
        return "transient" if self.persistence is Persistence.TRANSIENT else ""

    @property
    def keeps_source_definition(self) -> bool:
        """Whether the source keeps the stored definition: a definition is not lost because nobody said what becomes of it."""
        follows = self.source_definition is SourceDefinition.FOLLOWS
        return self.source_definition is SourceDefinition.KEEP or (follows and self.persistence is Persistence.TRANSIENT)

    def is_persistent(self, *, on_source: bool) -> bool:
        """Say whether the destination keeps a definition."""
        match self.persistence:
            case Persistence.AS_ON_SOURCE:
                return on_source
            case Persistence.TRANSIENT:
                return False
            case Persistence.PERSISTENT:
                return True
