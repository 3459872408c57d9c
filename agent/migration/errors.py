"""Refusals that the other half of a migration has to tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from agent.qemu.endings import GUEST_ENDS
from common.errors import WrongState

if TYPE_CHECKING:
    from agent.migration.machine import Cause


class GuestNeverRan(WrongState):
    """The destination's half was undone: the guest never ran there and its QEMU is gone."""

    default_reason = "GUEST_NEVER_RAN"


class GuestWhole(WrongState):
    """All of the guest's memory is at the destination already."""

    default_reason = "GUEST_WHOLE"


class GuestLost(WrongState):
    """The guest's QEMU ended at the destination after it had taken the guest over."""

    default_reason = "GUEST_LOST"

    @classmethod
    def because(cls, cause: Cause, *, is_kept: bool) -> Self:
        """Make it with what `cause` and `is_kept` find again."""
        end = "has ended" if cause.reason in GUEST_ENDS else "is lost"
        return cls(f"the guest was taken over and {end}: {cause.text}", cause=cause.reason, kept="yes" if is_kept else "no")

    @property
    def cause(self) -> str:
        """The reason of the end."""
        return self.facts.get("cause", self.reason)

    @property
    def is_kept(self) -> bool:
        """Whether the destination stored the VM."""
        return self.facts.get("kept") == "yes"
