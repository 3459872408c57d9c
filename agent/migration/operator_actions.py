"""What may be asked of a half from outside once it is in trouble: owning the guest, letting go of it, and refusals that advise.

The machines decide; a refusal names the commands that work on the half as it is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, TypeAlias

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.advice import Advice, Side, for_destination, for_source
from agent.migration.destination import DestinationSession
from agent.migration.machine import Cause, InvalidTransition
from agent.migration.order import Role
from agent.migration.source import SourceSession
from common.errors import InvalidRequest, WrongState

OVER_TIMEOUT_S: Final = 10.0

AnySession: TypeAlias = SourceSession | DestinationSession


def may_come_halved(session: AnySession) -> bool:
    """Say whether the guest may come without all of its memory."""
    return session.facts.options.post_copy.is_allowed


def advice_of(session: AnySession) -> tuple[Advice, ...]:
    """Return what an operator may do about a half now."""
    if session.is_over:
        return ()
    if isinstance(session, SourceSession):
        return for_source(session.phase)
    return for_destination(session.phase, may_come_halved=may_come_halved(session))


def side_of(session: AnySession) -> Side:
    """Name a half, for texts."""
    facts = session.facts
    return Side(facts.migration_id, session.host_name, facts.peer, is_source=facts.role is Role.SOURCE)


def refusal(session: AnySession, text: str, reason: str) -> WrongState:
    """Make a refusal that says what works instead."""
    facts, phase = session.facts, type(session.phase).__name__
    advice = side_of(session).text(advice_of(session))
    return WrongState(
        f"migration {facts.migration_id}: {text} (phase {phase}){'; ' if advice else ''}{advice}",
        reason=reason,
        migration=facts.migration_id,
        phase=phase,
    )


def ask_source(session: SourceSession, event: out.Event, text: str, reason: str) -> None:
    """Let the source's machine answer a wish.

    Raises:
        WrongState: it cannot be fulfilled in this phase.
    """
    try:
        session.apply(event)
    except InvalidTransition as error:
        raise refusal(session, text, reason) from error


def ask_destination(session: DestinationSession, event: inc.Event, text: str, reason: str) -> None:
    """Let the destination's machine answer a wish.

    Raises:
        WrongState: it cannot be fulfilled in this phase.
    """
    try:
        session.apply(event)
    except InvalidTransition as error:
        raise refusal(session, text, reason) from error


async def wait_over(session: AnySession) -> None:
    """Return when a half has ended and is tidied up, or takes too long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(OVER_TIMEOUT_S):
            while not session.is_over:
                await session.wait_change()


async def fence(session: AnySession, *, peer_is_dead: bool) -> None:
    """Own the guest here, on an operator's word that the other host is dead.

    Raises:
        InvalidRequest: without that word.
        WrongState: the guest is not in doubt.
    """
    if not peer_is_dead:
        raise InvalidRequest(
            "fencing needs your word that the guest does not and will not run on the other host (peer_is_dead)",
            reason="WORD_MISSING",
        )
    if isinstance(session, SourceSession):
        cause = Cause(f"fenced by an operator: {session.facts.peer or 'the destination'} is dead", "FENCED", by_wish=True)
        ask_source(session, out.Fenced(cause), "cannot be fenced: the guest is not in doubt here", "NOT_IN_DOUBT")
    elif isinstance(session.phase, inc.Loaded | inc.Resuming):
        await session.own()
    else:
        raise refusal(session, "cannot be fenced: the guest is not in doubt here", "NOT_IN_DOUBT")


async def release(session: AnySession, *, is_forced: bool) -> None:
    """Let go of a half without a coordinator; waits until it is over. One that has ended is fine.

    Raises:
        WrongState: it may end the only copy of the guest and is not forced, or only QEMU can say where the guest is.
    """
    cause = Cause(f"released by an operator on {session.host_name}", "RELEASED", by_wish=True)
    why = (
        "cannot be released: the guest may be here alone"
        if not is_forced
        else "cannot be released now: QEMU decides where the guest is"
    )
    if session.is_final:
        pass
    elif isinstance(session, SourceSession):
        ask_source(session, out.ReleaseRequested(cause, is_forced), why, "GUEST_IN_DOUBT")
    else:
        if isinstance(session.phase, inc.Listening | inc.Loading):  # QEMU may have all of the guest already
            await session.ask_qemu()
        event = inc.ReleaseRequested(cause, is_forced, may_come_halved=may_come_halved(session))
        ask_destination(session, event, why, "GUEST_IN_DOUBT")
    await wait_over(session)
