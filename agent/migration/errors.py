"""Refusals that the other half of a migration has to tell apart."""

from __future__ import annotations

from common.errors import WrongState


class GuestNeverRan(WrongState):
    """The destination's half was undone: the guest never ran there and its QEMU is gone."""

    default_reason = "GUEST_NEVER_RAN"


class GuestWhole(WrongState):
    """All of the guest's memory is at the destination already."""

    default_reason = "GUEST_WHOLE"


class GuestLost(WrongState):
    """The guest's QEMU ended at the destination after it had taken the guest over."""

    default_reason = "GUEST_LOST"
