"""How the source's half answers an operator who ends it without a coordinator. Pure.

Without force only what makes no second copy and ends no only one: what was not sent is kept, what has gone over is let go.
"""

from __future__ import annotations

from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration.machine import InvalidTransition


def release(phase: out.Phase, event: out.ReleaseRequested) -> out.Step:  # noqa: PLR0911 - one line a phase
    """Answer the wish.

    Raises:
        InvalidTransition: it may end the only copy of the guest and is not forced, or only QEMU can say where the guest is.
    """
    match phase:
        case out.Begun() | out.Mirroring():
            return out.Step(out.Keeping(event.cause), (do.EnsureGuestRestored(),))
        case out.Connecting() | out.Transferring() | out.Leaving() | out.Settling():
            return out.Step(out.Cancelling(event.cause), (do.FreeGuest(),))
        case out.Switching():
            return out.Step(out.Cancelling(event.cause, was_switching=True), (do.FreeGuest(),))
        case out.Keeping(cause):  # it cannot be made to run: its user decides what becomes of it
            return out.Step(out.Kept(cause))
        case out.HandedOver():
            return out.Step(out.Retiring(keeps_definition=True), (do.EnsureHuskEnded(),))
        case out.Sent() if event.is_forced:
            return out.Step(out.Retiring(keeps_definition=True), (do.EnsureHuskEnded(),))
        case out.Broken() if event.is_forced:
            return out.Step(out.Losing(event.cause, newest_is_there=True), (do.EnsureLostEnded(),))
        case out.Refused() if event.is_forced:  # QEMU does not give it back
            return out.Step(out.Losing(event.cause, newest_is_there=phase.newest_is_there), (do.EnsureLostEnded(),))
        case out.Cancelling() | out.Retiring() | out.Losing():
            return out.Step(phase)
        case _:
            raise InvalidTransition(phase, event)
