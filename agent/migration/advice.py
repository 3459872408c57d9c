"""What an operator may do about one half of a migration: the one place where commands are advised, by the half's phase. Pure.

Refusals, texts of what is waited for, the coordinator and `ferry doctor` tell what is computed here. The tests take every advice in
every world in which its condition holds: it is accepted, ends the half, and leaves at most one copy of the guest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from common.advice import migration_command

if TYPE_CHECKING:
    from collections.abc import Iterable


class Command(Enum):
    """A command of `ferry migration`; the values are its names."""

    FENCE = "fence"
    RELEASE = "release"
    RECOVER = "recover"


class When(Enum):
    """When an advice is right; the values are told, with the names of this host and its peer."""

    GIVING_UP = "to give the migration up, with the guest on {source}"
    NEVER_RAN_THERE = "if {peer} is dead for good (powered off, not merely silent) and the guest has not run there"
    HAS_RUN_THERE = "if the guest is on {peer}, or has run there: ends the older copy that {host} holds"
    PEER_DEAD = "if {peer} is dead for good (powered off, not merely silent)"
    PEER_IS_OVER = "if {peer} is dead for good (powered off, not merely silent), or the migration has ended there"
    NO_COORDINATOR = "if no coordinator ends it: the guest stays on {destination}"
    STAYS_STOPPED = "to end the migration with the guest on {host} as it is, not running"
    GIVEN_UP = "where it does not come back by itself, to lose it: ends its QEMU on {host}, after which the VM can be started anew"
    COPY_IS_ENDED = "if {source} has the guest, or it may be lost: ends the copy that {host} holds"
    NOW = "to try at once"


@dataclass(frozen=True, slots=True)
class Advice:
    """A command that works on this half now, and when it is right."""

    command: Command
    when: When
    is_forced: bool = False


_GIVE_UP = (Advice(Command.RELEASE, When.GIVING_UP),)
_SOURCE_IS_OVER = (Advice(Command.RELEASE, When.PEER_IS_OVER, is_forced=True),)


def for_source(phase: out.Phase) -> tuple[Advice, ...]:  # noqa: PLR0911 - one line a phase
    """Return what works on the source's half; nothing where it ends by itself, or has ended."""
    match phase:
        case out.Begun() | out.Mirroring() | out.Connecting() | out.Transferring():
            return _GIVE_UP
        case out.Leaving() | out.Settling() | out.Switching():
            return _GIVE_UP
        case out.Keeping():
            return (Advice(Command.RELEASE, When.STAYS_STOPPED),)
        case out.Sent():
            return Advice(Command.FENCE, When.NEVER_RAN_THERE), Advice(Command.RELEASE, When.HAS_RUN_THERE, is_forced=True)
        case out.HandedOver():
            return (Advice(Command.RELEASE, When.NO_COORDINATOR),)
        case out.Crossing() | out.Following(is_resumed=False):
            return (Advice(Command.FENCE, When.NEVER_RAN_THERE),)
        case out.Broken(is_resumed=False):
            return (
                Advice(Command.RECOVER, When.NOW),
                Advice(Command.FENCE, When.NEVER_RAN_THERE),
                Advice(Command.RELEASE, When.HAS_RUN_THERE, is_forced=True),
            )
        case out.Broken():
            return Advice(Command.RECOVER, When.NOW), Advice(Command.RELEASE, When.PEER_DEAD, is_forced=True)
        case out.Refused():
            return (Advice(Command.RELEASE, When.GIVEN_UP, is_forced=True),)
        case _:
            return ()


def for_destination(phase: inc.Phase, *, may_come_halved: bool) -> tuple[Advice, ...]:  # noqa: PLR0911 - one line a phase
    """Return what works on the destination's half; nothing where it ends by itself, or has ended.

    Args:
        phase: of the half.
        may_come_halved: whether post-copy is allowed.
    """
    match phase:
        case inc.Listening() | inc.Loading() if may_come_halved:
            return _SOURCE_IS_OVER
        case inc.Reserved() | inc.Listening() | inc.Loading():
            return _GIVE_UP
        case inc.Loaded():
            return Advice(Command.FENCE, When.PEER_DEAD), Advice(Command.RELEASE, When.COPY_IS_ENDED, is_forced=True)
        case inc.Arrived() | inc.Entering() | inc.Filling():
            return _SOURCE_IS_OVER
        case inc.Resuming():
            return (Advice(Command.RELEASE, When.COPY_IS_ENDED, is_forced=True),)
        case inc.Running():
            return (Advice(Command.RELEASE, When.NO_COORDINATOR),)
        case _:
            return ()


@dataclass(frozen=True, slots=True)
class Side:
    """Which half an advice is for.

    Attributes:
        host, peer: names of this host and the other one.
        is_source: whether the guest comes from here.
    """

    migration_id: str
    host: str
    peer: str
    is_source: bool

    def condition(self, advice: Advice) -> str:
        """Say when an advice is right."""
        peer = self.peer or "the other host"
        source, destination = (self.host, peer) if self.is_source else (peer, self.host)
        return advice.when.value.format(host=self.host, peer=peer, source=source, destination=destination)

    def text(self, advices: Iterable[Advice]) -> str:
        """Tell advices in one line: each with the command."""
        return "; ".join(
            f"{self.condition(one)}: "
            f"{migration_command(one.command.value, self.migration_id, host=self.host, is_forced=one.is_forced)}"
            for one in advices
        )
