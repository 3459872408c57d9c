"""A job of QEMU on a disk: what it may become, what may be asked of it, and what its events come to. Pure.

    created -> running <-> paused          aborting -> concluded -> null
                  |
                  v                        from every status before `concluded` a job may abort
               ready <-> standby
                  |
                  v
               waiting -> pending -> concluded -> null

Source: job.c, JobSTT and JobVerbTable, of QEMU 7.2 and 10.0; the contract suite tries the tables on both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

from agent.qemu.block_status import JobStatus as S

# What a status may change to.
TRANSITIONS: Final[dict[S, frozenset[S]]] = {
    S.UNDEFINED: frozenset({S.CREATED, S.NULL}),
    S.CREATED: frozenset({S.RUNNING, S.PAUSED, S.ABORTING, S.NULL}),
    S.RUNNING: frozenset({S.PAUSED, S.READY, S.WAITING, S.ABORTING}),
    S.PAUSED: frozenset({S.RUNNING}),
    S.READY: frozenset({S.STANDBY, S.WAITING, S.ABORTING}),
    S.STANDBY: frozenset({S.READY}),
    S.WAITING: frozenset({S.PENDING, S.ABORTING}),
    S.PENDING: frozenset({S.ABORTING, S.CONCLUDED}),
    S.ABORTING: frozenset({S.ABORTING, S.CONCLUDED}),
    S.CONCLUDED: frozenset({S.NULL}),
    S.NULL: frozenset(),
}


class Verb(Enum):
    """What may be asked of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    FINALIZE = "finalize"
    DISMISS = "dismiss"


_GOES_ON: Final = frozenset({S.CREATED, S.RUNNING, S.PAUSED, S.READY, S.STANDBY})
# In which statuses QEMU takes a verb.
VERBS: Final[dict[Verb, frozenset[S]]] = {
    Verb.CANCEL: _GOES_ON | {S.WAITING, S.PENDING},
    Verb.PAUSE: _GOES_ON,
    Verb.RESUME: _GOES_ON,
    Verb.SET_SPEED: _GOES_ON,
    Verb.COMPLETE: frozenset({S.READY, S.STANDBY}),
    Verb.FINALIZE: frozenset({S.PENDING}),
    Verb.DISMISS: frozenset({S.CONCLUDED}),
}


class Outcome(Enum):
    """What an event means to whoever waits for a job."""

    READY = "ready"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Changed:
    """JOB_STATUS_CHANGE."""

    status: S


@dataclass(frozen=True, slots=True)
class BecameReady:
    """BLOCK_JOB_READY."""


@dataclass(frozen=True, slots=True)
class Completed:
    """BLOCK_JOB_COMPLETED; with an error it failed."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """BLOCK_JOB_CANCELLED."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The job as a query shows it: the truth where events were missed."""

    status: S
    error: str = ""


JobEvent: TypeAlias = Changed | BecameReady | Completed | Cancelled | Seen


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    Attributes:
        status: QEMU's.
        is_ready: whether it has been ready; only mirrors and active commits ever are.
        outcome: how it ended; None while it has not.
        error: QEMU's text; empty without one.
        cancel_asked: whether we asked QEMU to abort it.
    """

    id: str
    status: S = S.UNDEFINED
    is_ready: bool = False
    outcome: Outcome | None = None
    error: str = ""
    cancel_asked: bool = False

    @property
    def is_over(self) -> bool:
        """Whether QEMU does nothing for it any more."""
        return self.status in (S.CONCLUDED, S.NULL)

    def may(self, verb: Verb) -> bool:
        """Say whether QEMU would take a verb now."""
        return self.status in VERBS[verb]


def fold(job: Job, event: JobEvent) -> Job:
    """Let a job take an event in. Order and repetition do no harm: what has ended stays ended."""
    match event:
        case Changed(status):
            return _at(job, status)
        case BecameReady():
            return replace(job, is_ready=True)
        case Completed(error):
            return _ended(job, Outcome.FAILED if error else Outcome.COMPLETED, error)
        case Cancelled():
            return _ended(job, Outcome.CANCELLED, "")
        case Seen(status, error):
            seen = _at(job, status)
            return _ended(seen, _outcome_of(job, error), error) if status is S.CONCLUDED else seen


def _outcome_of(job: Job, error: str) -> Outcome:
    if not error:
        return Outcome.COMPLETED
    return Outcome.CANCELLED if job.cancel_asked else Outcome.FAILED


def _at(job: Job, status: S) -> Job:
    if job.is_over and status is not S.NULL:
        return job
    return replace(job, status=status, is_ready=job.is_ready or status in (S.READY, S.STANDBY))


def _ended(job: Job, outcome: Outcome, error: str) -> Job:
    return replace(job, outcome=job.outcome or outcome, error=job.error or error)
