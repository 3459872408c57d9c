"""The phases of both machines as clients know them: what is being done, and where the guest is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.advice import Advice, Command, Side
from agent.migration.record import find_cause
from ferry.agent.v1 import migration_pb2

_COMMANDS: Final = {
    Command.FENCE: migration_pb2.Advice.COMMAND_FENCE,
    Command.RELEASE: migration_pb2.Advice.COMMAND_RELEASE,
    Command.RECOVER: migration_pb2.Advice.COMMAND_RECOVER,
}
_State = migration_pb2.Migration.State
_Where = migration_pb2.Migration.GuestLocation

STATES: Final[dict[type, tuple[_State.ValueType, _Where.ValueType]]] = {
    out.Begun: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    out.Mirroring: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Connecting: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Transferring: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Settling: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SOURCE),
    out.Switching: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Leaving: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Crossing: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Following: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Broken: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Refused: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Losing: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Sent: (_State.STATE_HANDING_OVER, _Where.GUEST_LOCATION_SWITCHING),
    out.HandedOver: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    out.Retiring: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    out.Retired: (_State.STATE_SUCCEEDED, _Where.GUEST_LOCATION_DESTINATION),
    out.Cancelling: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    out.Keeping: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    out.Kept: (_State.STATE_FAILED, _Where.GUEST_LOCATION_SOURCE),
    out.Lost: (_State.STATE_FAILED, _Where.GUEST_LOCATION_NOWHERE),
    inc.Reserved: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    inc.Listening: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    inc.Loading: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    inc.Loaded: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    inc.Arrived: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SWITCHING),
    inc.Entering: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    inc.Filling: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    inc.Ending: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_NOWHERE),
    inc.Resuming: (_State.STATE_HANDING_OVER, _Where.GUEST_LOCATION_DESTINATION),
    inc.Running: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    inc.KeepingDefinition: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_NOWHERE),
    inc.Finished: (_State.STATE_SUCCEEDED, _Where.GUEST_LOCATION_DESTINATION),
    inc.Undoing: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    inc.Abandoned: (_State.STATE_FAILED, _Where.GUEST_LOCATION_SOURCE),
    inc.Lost: (_State.STATE_FAILED, _Where.GUEST_LOCATION_NOWHERE),
}
# From here on QEMU can never run the guest again at the source.
MAY_TELL_TOKEN: Final = (out.Following, out.Broken, out.Sent, out.HandedOver, out.Retiring, out.Retired)


def state_and_place(phase: out.Phase | inc.Phase) -> tuple[_State.ValueType, _Where.ValueType]:
    """Encode a phase; what ended because somebody wished it is cancelled, not failed."""
    state, where = STATES[type(phase)]
    cause = find_cause(phase)
    if isinstance(phase, out.Kept | inc.Abandoned) and cause is not None and cause.by_wish:
        state = _State.STATE_CANCELLED
    return state, where


def advice_messages(side: Side, advised: Iterable[Advice]) -> list[migration_pb2.Advice]:
    """Encode what an operator may do about a half."""
    return [
        migration_pb2.Advice(command=_COMMANDS[one.command], is_forced=one.is_forced, condition=side.condition(one))
        for one in advised
    ]
