"""What a transfer is going to be: the convergence engine plays it against a model of guest, link and QEMU. Pure.

QEMU's rule of switching over is modelled on migration/migration.c, migration_iteration_run; the guest rewrites a working set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from agent.migration.budget import Budget, Policy
from agent.migration.convergence import Bounds, Choice, Decision, Outlook, Sample, begin, observe
from agent.migration.order import Options
from agent.migration.post_copy import When
from agent.migration.qemu_setup import bounds as bounds_of

STEPS_A_PASS: Final = 100
SHORTEST_STEP_S: Final = 0.002
LONGEST_STEP_S: Final = 0.5
# The engine gets a sample as often, and QEMU knows its throughput after that long.
SAMPLE_S: Final = 0.5
RATE_S: Final = 0.1
# Less than this QEMU sends with the guest stopped before it knows its throughput, too.
AT_ONCE_S: Final = 0.001
THROTTLED: Final = 0.1
# From the guest's stop to its start at the destination, beside what is still to be sent; in post-copy the destination's QEMU
# has to read the devices before it can be told to run.
HANDOVER_S: Final = 0.015
HANDOVER_IN_POST_COPY_S: Final = 0.035
# Both QEMUs go through pages of zeroes without sending them, at about this rate.
ZEROES_BYTES_S: Final = 1.5e9
# What no measurement beforehand can know of a duration.
UNKNOWN: Final = 0.1
# What goes over the link instead of a page of zeroes, as a part of it; and how well it is known what else is to be sent.
INSTEAD_OF_ZEROES: Final = 9 / 4096
SENT_UNKNOWN: Final = 0.05
# In post-copy nobody looks for changed pages, so the way carries up to as many times more; much more where `bandwidth` is what
# bounds it before.
FOLLOWS_FASTER: Final = 2.0
FREED: Final = (2.0, 20.0)
# Who does not converge in as many times the first pass, and in as long, does not.
MOST_PASSES: Final = 20
LONGEST_S: Final = 120.0


class Ending(Enum):
    """How a transfer ends in the model."""

    SWITCHED = "switched"
    ABORTED = "aborted"
    POST_COPY = "post-copy"
    ENDLESS = "endless"


@dataclass(frozen=True, slots=True)
class Model:
    """What is played.

    Attributes:
        working_set_bytes: the guest dirties these again and again; more does not get dirty.
        dirties: bytes per second, by seconds.
        carries: bytes per second, by seconds.
        is_paused: the guest stands still from the start.
        when: whether post-copy begins without a decision.
        follows: bytes per second at which the rest follows in post-copy; what the link carries when None.
    """

    ram_bytes: float
    working_set_bytes: float
    dirties: Callable[[float], float]
    carries: Callable[[float], float]
    is_paused: bool = False
    when: When = When.NEVER
    follows: float | None = None


@dataclass(slots=True)
class Played:
    """How it went.

    Attributes:
        at_s: when the guest ran at the destination with all of its memory, or when it was given up.
        sent_bytes: all that went over the link.
    """

    ending: Ending
    at_s: float
    downtime_s: float
    sent_bytes: float
    pass_count: int
    decisions: list[Decision] = field(default_factory=list)

    @property
    def stood_still(self) -> bool:
        """Whether the guest was paused for the rest."""
        return any(decision.choice is Choice.PAUSE for decision in self.decisions)


class _Game:
    """One play."""

    def __init__(self, model: Model, bounds: Bounds) -> None:
        self.model = model
        self.bounds = bounds
        self.step_s = 0.0
        self.outlook: Outlook = begin(bounds)
        self.rest, self.dirty, self.pass_count = model.ram_bytes, 0.0, 1
        self.is_new_pass = False
        self.throttled = 1.0
        self.is_paused = model.is_paused
        self.stopped_at_s = 0.0
        self.sent = 0.0
        self.decisions: list[Decision] = []

    @property
    def goes_first(self) -> bool:
        """Whether the guest goes on at the destination now, as wished from the start."""
        when = self.model.when
        return when is When.IMMEDIATELY or (when is When.AFTER_FIRST_PASS and self.pass_count > 1)

    def look(self, at_s: float, rate: float) -> Choice | None:
        """Let the engine look and decide."""
        dirties = 0 if self.is_paused else self.model.dirties(at_s) * self.throttled
        sample = Sample(at_s, self.pass_count, int(self.rest), int(rate), int(dirties))
        self.outlook, decision = observe(self.outlook, sample, self.bounds)
        if decision is None:
            return None
        self.decisions.append(decision)
        if decision.choice is Choice.THROTTLE:
            self.throttled = THROTTLED
        if decision.choice is Choice.PAUSE and not self.is_paused:
            self.is_paused, self.stopped_at_s = True, at_s
        return decision.choice

    def send(self, at_s: float, rate: float) -> float:
        """Let a step go by, a part of this pass; return its length in seconds."""
        if self.is_new_pass or not self.step_s:
            self.step_s = min(max(self.rest / rate / STEPS_A_PASS, SHORTEST_STEP_S), LONGEST_STEP_S)
        self.sent += min(rate * self.step_s, self.rest)
        self.rest -= rate * self.step_s
        if not self.is_paused:
            more = self.model.dirties(at_s) * self.throttled * self.step_s
            self.dirty = min(self.dirty + more, self.model.working_set_bytes)
        self.is_new_pass = self.rest <= 0
        if self.is_new_pass:
            self.rest, self.dirty, self.pass_count = self.dirty, 0.0, self.pass_count + 1
        return self.step_s

    def end(self, ending: Ending, at_s: float, rate: float) -> Played:
        """End with what is left."""
        left = max(self.rest, 0.0) + self.dirty
        if ending is Ending.POST_COPY and self.model.follows is not None:
            rate = self.model.follows
        took_s = left / rate if rate and ending in {Ending.SWITCHED, Ending.POST_COPY} else 0.0
        downtime_s = {
            Ending.SWITCHED: at_s - self.stopped_at_s + took_s if self.is_paused else took_s,
            Ending.POST_COPY: 0.0,
        }.get(ending, 0.0)
        passes = self.pass_count + self._last_passes(ending)
        return Played(ending, at_s + took_s, downtime_s, self.sent + took_s * rate, passes, self.decisions)

    def _last_passes(self, ending: Ending) -> int:
        """Count as QEMU does: once when it looks in the middle of a pass whether the rest fits, and once with the guest stopped."""
        if ending is Ending.SWITCHED:
            return 1 if self.is_new_pass else 2
        return int(ending is Ending.POST_COPY)


def play(model: Model, bounds: Bounds, *, give_up_s: float) -> Played:
    """Play a transfer with the engine at the wheel."""
    game = _Game(model, bounds)
    at_s, looked_at_s = 0.0, 0.0
    while at_s < give_up_s:
        rate = model.carries(at_s)
        if game.goes_first:
            return game.end(Ending.POST_COPY, at_s, rate)
        left = game.rest + game.dirty
        if left <= rate * (game.outlook.qemu_limit_s if at_s >= RATE_S else AT_ONCE_S):
            return game.end(Ending.SWITCHED, at_s, rate)
        if game.is_paused and left <= 0:
            return game.end(Ending.SWITCHED, at_s, rate)
        if at_s and (game.is_new_pass or at_s - looked_at_s >= SAMPLE_S):
            looked_at_s = at_s
            ending = _ENDINGS.get(game.look(at_s, rate))
            if ending is not None:
                return game.end(ending, at_s, rate)
        at_s += game.send(at_s, rate)
    return game.end(Ending.ENDLESS, give_up_s, model.carries(give_up_s))


_ENDINGS: Final[dict[Choice | None, Ending]] = {Choice.ABORT: Ending.ABORTED, Choice.POST_COPY: Ending.POST_COPY}


@dataclass(frozen=True, slots=True)
class Span:
    """A figure with its uncertainty; `low` to `high` holds about nine of ten."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured before a transfer.

    Attributes:
        memory_bytes: all of the guest's memory; `used_bytes` what of it is not zero.
        bytes_per_second: of the way, through the same transport.
        setup_s: what a transfer takes beside its bytes.
        dirty_bytes_per_second: what the guest writes.
        working_set_bytes: what it writes again and again.
        sent_part: what goes over the way, as a part of the memory that is not zero; less than one where it is compressed.
    """

    memory_bytes: int
    used_bytes: int
    bytes_per_second: Span
    setup_s: float
    dirty_bytes_per_second: Span
    working_set_bytes: int
    sent_part: float = 1.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a transfer is going to be.

    Attributes:
        strategy: a sentence on how it is going to end.
        ends: whether it ends with the guest at the destination, in the likely case.
        disk_s: how long disks are copied beforehand; None when none is.
    """

    duration_s: Span
    downtime_s: Span
    sent_bytes: Span
    pass_count: Span
    strategy: str
    ends: bool
    measured: Measured
    disk_s: Span | None = None
    disk_bytes: int = 0


def forecast(measured: Measured, options: Options) -> Forecast:
    """Play the likely case and those at the edges of what was measured."""
    rate, dirty, follows = measured.bytes_per_second, measured.dirty_bytes_per_second, _follows(measured, options)
    likely = _play(measured, options, rate.likely, follows.likely, dirty.likely)
    edges = ((rate.low, follows.low), (rate.high, follows.high))
    plays = [likely, *(_play(measured, options, *edge, d) for edge in edges for d in (dirty.low, dirty.high))]
    zero_bytes = max(measured.memory_bytes - measured.used_bytes, 0)
    duration_s = _shift(_span([one.at_s for one in plays]), measured.setup_s + zero_bytes / ZEROES_BYTES_S + HANDOVER_S)
    sent_bytes = _span([one.sent_bytes * measured.sent_part + zero_bytes * INSTEAD_OF_ZEROES for one in plays])
    return Forecast(
        duration_s=_widen(duration_s, UNKNOWN),
        downtime_s=_downtime(plays, options),
        sent_bytes=_widen(sent_bytes, SENT_UNKNOWN),
        pass_count=_passes(plays),
        strategy=_strategy(likely, plays, options) + _what_is_late(duration_s, likely, options.budget),
        ends=_moves(likely),
        measured=measured,
    )


def _moves(played: Played) -> bool:
    return played.ending in {Ending.SWITCHED, Ending.POST_COPY}


def _follows(measured: Measured, options: Options) -> Span:
    """Say how fast the rest follows in post-copy, which `bandwidth` does not bound."""
    way, bound = measured.bytes_per_second, options.post_copy.bandwidth_bytes_per_second
    likely, most = FREED if options.bandwidth_bytes_per_second else (1.0, FOLLOWS_FASTER)
    found = Span(way.low, way.likely * likely, way.high * most)
    return Span(*(min(one, bound) for one in (found.low, found.likely, found.high))) if bound else found


def _passes(plays: list[Played]) -> Span:
    """Count passes; which of two is the last depends on the moment."""
    span = _span([float(one.pass_count) for one in plays])
    return Span(max(span.low - 1, 1.0), span.likely, span.high + 1)


def _downtime(plays: list[Played], options: Options) -> Span:
    """Tell the standstill: QEMU looks only now and then whether the rest fits into what is allowed, so it may well be shorter."""
    span = _span([one.downtime_s for one in plays])
    if plays[0].ending is Ending.ABORTED or options.pause or any(one.stood_still for one in plays):
        return _shift(span, HANDOVER_S)
    handover_s = HANDOVER_IN_POST_COPY_S if plays[0].ending is Ending.POST_COPY else HANDOVER_S
    return Span(HANDOVER_S / 2, span.likely / 2 + handover_s, span.high + 2 * HANDOVER_IN_POST_COPY_S)


def _play(measured: Measured, options: Options, rate: float, follows: float, dirty: float) -> Played:
    if options.bandwidth_bytes_per_second:
        rate = min(rate, options.bandwidth_bytes_per_second / measured.sent_part)
    model = Model(
        float(measured.used_bytes),
        float(measured.working_set_bytes),
        lambda _: dirty,
        lambda _: rate,
        is_paused=options.pause,
        when=options.post_copy.when,
        follows=follows,
    )
    longest_s = options.budget.max_duration_s or max(MOST_PASSES * measured.used_bytes / rate, LONGEST_S)
    return play(model, bounds_of(options), give_up_s=longest_s + 1)


def _span(values: list[float]) -> Span:
    return Span(min(values), values[0], max(values))


def _shift(span: Span, by: float) -> Span:
    return Span(span.low + by, span.likely + by, span.high + by)


def _widen(span: Span, unknown: float) -> Span:
    return Span(span.low * (1 - unknown), span.likely, span.high * (1 + unknown))


def _strategy(likely: Played, plays: list[Played], options: Options) -> str:
    text = _SENTENCES.get(likely.ending, "")
    if likely.ending is Ending.SWITCHED:
        text = _how_it_switches(likely, options)
    elif likely.ending is Ending.ABORTED:
        text = _why_it_aborts(options.budget)
    elif likely.ending is Ending.POST_COPY and options.post_copy.when is When.ALLOWED:
        text = "it does not converge by itself: the policy lets the guest go on at the destination by post-copy"
    others = {one.ending for one in plays} - {likely.ending}
    if others and likely.ending is Ending.SWITCHED:
        text += "; if the guest writes more, or the way carries less, than was measured, it may not"
    return text


def _what_is_late(duration_s: Span, likely: Played, budget: Budget) -> str:
    """Say that a duration is too short, also where the transfer ends well otherwise."""
    most_s = budget.max_duration_s
    if not most_s or not _moves(likely) or duration_s.high <= most_s:
        return ""
    if duration_s.likely > most_s:
        return f"; not in the {most_s:g} s of --max-duration: that is too short for what has to be sent"
    return f"; in the {most_s:g} s of --max-duration only if the way carries what was measured"


_SENTENCES: Final = {
    Ending.POST_COPY: "the guest goes first and the rest of its memory after it (post-copy)",
    Ending.ENDLESS: (
        "it would not converge: the guest writes faster than the way carries. Allow more downtime, throttling by --policy fast, "
        "post-copy, or a pause by --max-duration and --on-timeout pause"
    ),
}


def _how_it_switches(played: Played, options: Options) -> str:
    chosen = [decision.choice for decision in played.decisions]
    if options.pause:
        return "the guest stands still for the whole transfer, as wished"
    if Choice.PAUSE in chosen:
        return "the guest stands still for the rest when the time is nearly over (--on-timeout pause)"
    if Choice.THROTTLE in chosen:
        return "the guest is throttled until what it writes can be sent"
    if Choice.RAISE_DOWNTIME in chosen:
        limit_s = max(decision.limit_s for decision in played.decisions)
        return f"it converges with a standstill raised to at most {limit_s * 1000:.0f} ms"
    return "it converges by itself"


def _why_it_aborts(budget: Budget) -> str:
    if budget.max_duration_s:
        return f"it would not be done in the {budget.max_duration_s:g} s of --max-duration, and be given up"
    way = "" if budget.policy is not Policy.SAFE else "; throttling by --policy fast, post-copy or more downtime may help"
    return f"it would not converge and be given up{way}"
