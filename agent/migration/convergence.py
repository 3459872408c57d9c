"""The convergence engine: what to do so that a transfer ends, inside what the user allows. Pure.

It is fed with samples of QEMU's numbers, and decides at the beginning of a pass, when the time is over, and when the network's
throughput breaks down. QEMU switches over by itself as soon as the rest would fit into its `downtime-limit`, so the engine steers
by that limit: it begins low, so that the guest stands still as shortly as possible, and is raised towards the user's bound once
passes shrink no further, which is a local minimum of what is left. docs/convergence.md has the policies as tables.

Source: migration/migration.c of QEMU, migration_iteration_run; qapi/migration.json, MigrationParameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from statistics import median
from typing import Final

from agent.migration.budget import Budget, Policy, TimeoutAction

# The first limit, as a part of the user's bound, and what it is at least.
FIRST_PART: Final = 1 / 8
FIRST_LEAST_S: Final = 0.02
# What QEMU may use of the user's bound: it reckons with what is left alone, and the hand-over takes time too.
USABLE_PART: Final = 0.9
HANDOVER_S: Final = 0.01
# A pass that is not at least a fifth shorter than the one before does not shrink.
SHRINKS_BELOW: Final = 0.8
# Near enough to the smallest rest of late to be called a minimum.
MINIMUM_WITHIN: Final = 1.1
# Room above what is needed now, as the guest writes on until it is stopped.
HEADROOM: Final = 1.3
WINDOW: Final = 8
RATES_WINDOW: Final = 24
# Less than this part of the usual throughput is a dip, more than that part of it is the end of one.
DIP_BELOW: Final = 0.5
DIP_ENDS_ABOVE: Final = 0.7
# QEMU's throughput is that of a tenth of a second, which may be low for any reason: a dip is what lasts longer.
DIP_AFTER_S: Final = 0.4
# What lasts so long is the usual throughput from then on.
DIP_LASTS_S: Final = 6.0
# Passes without progress after which the guest is throttled, goes on by post-copy, or the transfer counts as endless.
THROTTLE_AFTER: Final = 2
POST_COPY_AFTER: Final = 4
ENDLESS_AFTER: Final = 20
ENDLESS_S: Final = 60.0
# A rest that is smaller by this part is progress.
PROGRESS_BELOW: Final = 0.9
MAX_DECISIONS: Final = 60
# However often the network dips, as many are left for what ends a transfer.
RESERVED_DECISIONS: Final = 20
# Throughputs that tell the usual one. With fewer, time is only held to be short once this part of it is over.
TELLING_RATES: Final = 4
EARLY_PART: Final = 1 / 4
# From one sample to the next, and for the hand-over: what has to end in time is begun that much earlier.
REACTION_S: Final = 0.7
# A guest that rewrites the same pages changes most of them early in a pass, while QEMU's rate is the mean over a pass.
EARLY_FACTOR: Final = 2
# Reasons of transfers that the engine gave up.
GIVEN_UP: Final = frozenset({"TIMED_OUT", "NOT_CONVERGING"})
# The shortest limit that QEMU knows.
HELD_LIMIT_S: Final = 0.001


class Choice(Enum):
    """What the engine may decide."""

    RAISE_DOWNTIME = "raise-downtime"
    HOLD = "hold"
    RELEASE = "release"
    THROTTLE = "throttle"
    POST_COPY = "post-copy"
    PAUSE = "pause"
    ABORT = "abort"
    BOUNDS = "bounds"


_LAST: Final = frozenset({Choice.POST_COPY, Choice.PAUSE, Choice.ABORT})
_ON_TIMEOUT: Final = {
    TimeoutAction.ABORT: Choice.ABORT,
    TimeoutAction.PAUSE: Choice.PAUSE,
    TimeoutAction.POST_COPY: Choice.POST_COPY,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """QEMU's numbers at one moment.

    Attributes:
        at_s: since the transfer began.
        pass_count: number of the pass, from 1.
        remaining_bytes: of this pass, not yet sent.
        bytes_per_second: throughput of late.
        dirty_bytes_per_second: what the guest dirties, as far as it is known.
    """

    at_s: float
    pass_count: int
    remaining_bytes: int
    bytes_per_second: int
    dirty_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is allowed now; it may change while the transfer runs.

    Attributes:
        max_downtime_s: the user's bound of the standstill.
        can_post_copy: whether both sides are prepared for it.
    """

    budget: Budget
    max_downtime_s: float
    can_post_copy: bool = False

    @property
    def most_s(self) -> float:
        """The longest standstill that QEMU may choose."""
        least_s = max(self.max_downtime_s / 2, min(self.max_downtime_s, HELD_LIMIT_S))
        return max(self.max_downtime_s * USABLE_PART - HANDOVER_S, least_s)


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision with the numbers it was made by.

    Attributes:
        needed_s: how long the rest would take with the guest standing still.
        limit_s: the longest standstill that QEMU may choose from now on.
        is_timeout: because the time is over, or passes have not shrunk for long.
    """

    choice: Choice
    at_s: float
    pass_count: int
    remaining_bytes: int
    bytes_per_second: int
    needed_s: float
    limit_s: float
    is_timeout: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the engine remembers of a transfer.

    Attributes:
        limit_s: the longest standstill that QEMU may choose, unless `is_holding`.
        rests: what was left at the beginning of the last passes.
        rates: the last throughputs while there was enough to send; those of a dip are in `slow_rates`.
        slow_since_s: since when the network has carried much less than usual; None while it does not.
        best_bytes, best_pass, best_at_s: the smallest rest, and when it was reached.
        pass_began_at_s: when the pass was first seen.
        is_ending: a decision was made after which there is none.
    """

    limit_s: float
    pass_count: int = 1
    pass_began_at_s: float = 0.0
    rests: tuple[int, ...] = ()
    rates: tuple[int, ...] = ()
    slow_rates: tuple[int, ...] = ()
    slow_since_s: float | None = None
    best_bytes: int | None = None
    best_pass: int = 1
    best_at_s: float = 0.0
    is_holding: bool = False
    is_throttling: bool = False
    is_ending: bool = False
    decision_count: int = 0

    @property
    def usual_rate(self) -> float:
        """The throughput to reckon with, in bytes per second; 0 when it is not known yet."""
        return median(self.rates) if self.rates else 0.0

    @property
    def qemu_limit_s(self) -> float:
        """The `downtime-limit` that QEMU should have."""
        return min(HELD_LIMIT_S, self.limit_s) if self.is_holding else self.limit_s

    def idle_passes(self) -> int:
        """Count the passes since the rest last became smaller."""
        return self.pass_count - self.best_pass


def begin(bounds: Bounds) -> Outlook:
    """Return the outlook before the first pass."""
    return Outlook(limit_s=first_limit_s(bounds))


def first_limit_s(bounds: Bounds) -> float:
    """Return the longest standstill that QEMU may choose at first; never more than the user's bound."""
    most_s = bounds.most_s
    return most_s if bounds.budget.policy is Policy.FAST else min(most_s, max(bounds.max_downtime_s * FIRST_PART, FIRST_LEAST_S))


def change_bounds(outlook: Outlook, sample: Sample, limit_s: float) -> tuple[Outlook, Decision]:
    """Follow a client that changed the bounds; `limit_s` is what QEMU may choose from now on."""
    after = replace(outlook, limit_s=limit_s, is_holding=False, is_ending=False, rates=(), slow_rates=(), slow_since_s=None)
    return _decide(after, sample, Choice.BOUNDS)


def observe(outlook: Outlook, sample: Sample, bounds: Bounds) -> tuple[Outlook, Decision | None]:
    """Take a sample in, and decide if there is something to decide."""
    is_new_pass = sample.pass_count > outlook.pass_count
    outlook = _see(outlook, sample, is_new_pass=is_new_pass)
    if outlook.is_ending:
        return outlook, None
    if _is_time_over(outlook, sample, bounds):
        return _decide(outlook, sample, _last_choice(bounds), is_timeout=True)
    if outlook.is_holding or outlook.slow_since_s is not None:
        return _in_dip(outlook, sample)
    if is_new_pass and outlook.decision_count < MAX_DECISIONS:
        return _at_pass(outlook, sample, bounds)
    return outlook, None


def _in_dip(outlook: Outlook, sample: Sample) -> tuple[Outlook, Decision | None]:
    """Hold the switch-over back once the network has been slow for long enough, and release it afterwards."""
    if outlook.is_holding:
        return _decide(_released(outlook, sample), sample, Choice.RELEASE) if _is_dip_over(outlook, sample) else (outlook, None)
    is_dip = outlook.slow_since_s is not None and sample.at_s - outlook.slow_since_s >= DIP_AFTER_S
    if is_dip and outlook.decision_count < MAX_DECISIONS - RESERVED_DECISIONS:
        return _decide(replace(outlook, is_holding=True), sample, Choice.HOLD)
    return outlook, None


def _see(outlook: Outlook, sample: Sample, *, is_new_pass: bool) -> Outlook:
    if is_new_pass:
        rest = sample.remaining_bytes
        is_progress = outlook.best_bytes is None or rest < outlook.best_bytes * PROGRESS_BELOW
        outlook = replace(
            outlook,
            pass_count=sample.pass_count,
            pass_began_at_s=sample.at_s,
            rests=(*outlook.rests, rest)[-WINDOW:],
            best_bytes=rest if is_progress else outlook.best_bytes,
            best_pass=sample.pass_count if is_progress else outlook.best_pass,
            best_at_s=sample.at_s if is_progress else outlook.best_at_s,
        )
    if not sample.bytes_per_second or (outlook.rates and not _is_busy(outlook, sample)):
        return outlook if outlook.is_holding else replace(outlook, slow_since_s=None)
    if outlook.is_holding:
        return replace(outlook, slow_rates=(*outlook.slow_rates, sample.bytes_per_second))
    slow_since_s = outlook.slow_since_s
    if not _is_slow(outlook, sample, DIP_BELOW):
        slow_since_s = None
    elif slow_since_s is None:
        slow_since_s = sample.at_s
    return replace(outlook, rates=(*outlook.rates, sample.bytes_per_second)[-RATES_WINDOW:], slow_since_s=slow_since_s)


def _is_busy(outlook: Outlook, sample: Sample) -> bool:
    """Say whether there is enough to send for the throughput to tell something of the network."""
    return sample.remaining_bytes > outlook.usual_rate * FIRST_LEAST_S


def _is_slow(outlook: Outlook, sample: Sample, part: float) -> bool:
    """Say whether the network carries less than this part of what it usually does."""
    return len(outlook.rates) >= TELLING_RATES and sample.bytes_per_second < outlook.usual_rate * part


def _is_dip_over(outlook: Outlook, sample: Sample) -> bool:
    if outlook.slow_since_s is None or sample.at_s - outlook.slow_since_s >= DIP_LASTS_S:
        return True
    return not _is_busy(outlook, sample) or not _is_slow(outlook, sample, DIP_ENDS_ABOVE)


def _released(outlook: Outlook, sample: Sample) -> Outlook:
    """End a dip; a network that has stayed slow is taken as it is from now on."""
    stays_slow = outlook.slow_rates and _is_slow(outlook, sample, DIP_ENDS_ABOVE)
    rates = outlook.slow_rates[-RATES_WINDOW:] if stays_slow else outlook.rates
    return replace(outlook, is_holding=False, rates=rates, slow_rates=(), slow_since_s=None)


def _is_time_over(outlook: Outlook, sample: Sample, bounds: Bounds) -> bool:
    budget = bounds.budget
    if not budget.max_duration_s:
        return outlook.idle_passes() >= ENDLESS_AFTER and sample.at_s - outlook.best_at_s >= ENDLESS_S
    needed_s = 0.0
    is_told = len(outlook.rates) >= TELLING_RATES or sample.at_s >= budget.max_duration_s * EARLY_PART
    if _last_choice(bounds) is not Choice.ABORT and outlook.usual_rate and is_told:
        needed_s = REACTION_S + (sample.remaining_bytes + _dirtied_bytes(outlook, sample)) / outlook.usual_rate
    return sample.at_s + needed_s >= budget.max_duration_s


def _dirtied_bytes(outlook: Outlook, sample: Sample) -> float:
    """Reckon what the guest has changed in this pass at most; in the first pass nothing is known of it."""
    even = sample.dirty_bytes_per_second * max(sample.at_s - outlook.pass_began_at_s, 0.0)
    return min(even * EARLY_FACTOR, max(outlook.rests, default=even))


def _last_choice(bounds: Bounds) -> Choice:
    choice = _ON_TIMEOUT[bounds.budget.on_timeout]
    return Choice.ABORT if choice is Choice.POST_COPY and not bounds.can_post_copy else choice


def _at_pass(outlook: Outlook, sample: Sample, bounds: Bounds) -> tuple[Outlook, Decision | None]:
    needed_s = _needed_s(outlook, sample)
    if not outlook.rates or needed_s <= outlook.limit_s or _shrinks(outlook):
        return outlook, None
    if needed_s <= bounds.most_s and outlook.limit_s < bounds.most_s:
        if sample.remaining_bytes > min(outlook.rests) * MINIMUM_WITHIN:
            return outlook, None
        limit_s = min(max(needed_s * HEADROOM, 2 * outlook.limit_s), bounds.most_s)
        return _decide(replace(outlook, limit_s=limit_s), sample, Choice.RAISE_DOWNTIME)
    idle_passes = outlook.idle_passes()
    if bounds.budget.may_throttle and not outlook.is_throttling and idle_passes >= THROTTLE_AFTER:
        return _decide(replace(outlook, is_throttling=True), sample, Choice.THROTTLE)
    if bounds.budget.policy is not Policy.SAFE and bounds.can_post_copy and idle_passes >= POST_COPY_AFTER:
        return _decide(outlook, sample, Choice.POST_COPY)
    return outlook, None


def _shrinks(outlook: Outlook) -> bool:
    """Say whether the last pass left a good deal less than the one before; the first one is measured by nothing."""
    rests = outlook.rests
    return len(rests) < 2 or rests[-1] < rests[-2] * SHRINKS_BELOW  # noqa: PLR2004 -- two can be compared


def _needed_s(outlook: Outlook, sample: Sample) -> float:
    return sample.remaining_bytes / outlook.usual_rate if outlook.usual_rate else 0.0


def _decide(outlook: Outlook, sample: Sample, choice: Choice, *, is_timeout: bool = False) -> tuple[Outlook, Decision]:
    after = replace(outlook, is_ending=choice in _LAST, decision_count=outlook.decision_count + 1)
    decision = Decision(
        choice=choice,
        at_s=sample.at_s,
        pass_count=sample.pass_count,
        remaining_bytes=sample.remaining_bytes,
        bytes_per_second=round(outlook.usual_rate),
        needed_s=_needed_s(outlook, sample),
        limit_s=after.qemu_limit_s,
        is_timeout=is_timeout,
    )
    return after, decision
