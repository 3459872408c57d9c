"""What `ferry migrate` may wish beside the transfer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from coordinator.cli.options import Misused, Switch, one_value, whole_number
from ferry.common.v1 import modes_pb2 as pb

MODES = Group("Modes", sort_key=40)
MAX_ANNOUNCE_ROUNDS = 1000
_PERSISTENCES = {None: pb.PERSISTENCE_UNSPECIFIED, False: pb.PERSISTENCE_TRANSIENT, True: pb.PERSISTENCE_PERSISTENT}
_SOURCE_DEFINITIONS = {
    None: pb.SOURCE_DEFINITION_UNSPECIFIED,
    False: pb.SOURCE_DEFINITION_KEEP,
    True: pb.SOURCE_DEFINITION_UNDEFINE,
}


@Parameter(name="*", group=MODES)
@dataclass(frozen=True, slots=True)
class ModesWishes:
    """How the guest ends up, and what each host keeps of it."""

    suspend: Annotated[Switch, Parameter(help="Leave the guest paused on the destination; ferry vm resume lets it go on.")] = False
    persistent: Annotated[
        bool | None,
        Parameter(
            negative="--transient",
            show_default=False,
            help="Store the VM on the destination, or let it be gone there when it stops; without either: as on the source.",
        ),
    ] = None
    undefine_source: Annotated[
        bool | None,
        Parameter(
            negative="--keep-source",
            show_default=False,
            help="Remove the stored VM from the source, or keep it there, not to be started while its guest is away; without "
            "either: removed, but kept with --transient.",
        ),
    ] = None
    offline: Annotated[Switch, Parameter(help="Move the definition of a stopped VM.")] = False
    announce_rounds: Annotated[
        int | None,
        one_value(
            "N",
            whole_number,
            "How often the destination tells the network where the guest is, 0 to 1000; without it 5 times.",
            show_default=False,
        ),
    ] = None
    leave_clock: Annotated[Switch, Parameter(help="Do not let the guest's agent set a clock that stayed behind.")] = False

    def message(self) -> pb.Modes:
        """Turn the wishes into a message.

        Raises:
            Misused: a value is out of range.
        """
        rounds = self.announce_rounds
        if rounds is not None and rounds > MAX_ANNOUNCE_ROUNDS:
            raise Misused(f"--announce-rounds {rounds} is out of range: 0 to {MAX_ANNOUNCE_ROUNDS}")
        return pb.Modes(
            announce_round_count=rounds,
            suspend=self.suspend,
            persistence=_PERSISTENCES[self.persistent],
            source_definition=_SOURCE_DEFINITIONS[self.undefine_source],
            offline=self.offline,
            leave_clock=self.leave_clock,
        )


NO_MODES = ModesWishes()
