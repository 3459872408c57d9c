"""What a guardian does about the guest while its agent is away. Pure.

It is QEMU's only client then, and QEMU says what may be done: nothing but these is ever safe without the agent.

- In `pre-switchover` nobody has told QEMU to go on, and nobody can: a decision that an agent wrote but did not carry out is void
  once QEMU says `cancelled`, which is what its next agent goes by.
- After `completed`, in post-copy from `postcopy-active` on, the guest can only go on at the destination, which may be told so again
  and again. It is what the next agent would do first.
- At the destination, a guest that is loaded and stands still may go on once the source's agent has given its token away.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from agent.guardian.charge import Charge

_AWAITS_A_WORD: Final = "pre-switchover"
_SENT: Final = "completed"
# A guest that came here by a migration says `completed` too.
_RUN_STATES_OF_SENT: Final = frozenset({"postmigrate", "finish-migrate"})
_IN_POST_COPY: Final = "postcopy-active"
_ENDED: Final = frozenset({"none", "failed", "cancelled", "completed"})


class Duty(Enum):
    """What has to be done now."""

    WAIT = "wait"
    CANCEL = "cancel"
    RESUME = "resume"
    CLAIM = "claim"
    NOTHING = "nothing"


def duty_of(charge: Charge, status: str, run_state: str, stood_s: float) -> Duty:
    """Say what to do.

    Args:
        charge: what is guarded.
        status: QEMU's, of `query-migrate`.
        run_state: QEMU's, of `query-status`.
        stood_s: for how long the guest may have stood still because of the switch-over.
    """
    if not charge.is_under_way:
        return Duty.NOTHING
    if charge.is_incoming:
        return _duty_at_destination(status, run_state)
    if status == _AWAITS_A_WORD:
        return Duty.CANCEL if stood_s >= charge.max_downtime_s and not charge.may_stand_still else Duty.WAIT
    if status == _IN_POST_COPY or (status == _SENT and run_state in _RUN_STATES_OF_SENT):
        return Duty.RESUME
    return Duty.NOTHING if status in _ENDED else Duty.WAIT


def _duty_at_destination(status: str, run_state: str) -> Duty:
    if status == _SENT:
        return Duty.CLAIM if run_state == "paused" else Duty.NOTHING
    return Duty.NOTHING if status == "failed" else Duty.WAIT
