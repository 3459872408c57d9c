"""A guest, a link and QEMU's rule of switching over, as far as the convergence engine can tell them from real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.migration.convergence import Bounds, Choice, Decision, Sample, begin, observe

STEP_S = 0.05
SAMPLE_EVERY = 10
RATE_EVERY = 2
THROTTLED = 0.1


@dataclass(frozen=True, slots=True)
class Model:
    """What is simulated.

    Attributes:
        working_set_bytes: the guest dirties these again and again; more does not get dirty.
        dirties: bytes per second, by seconds.
        carries: bytes per second, by seconds.
    """

    ram_bytes: float
    working_set_bytes: float
    dirties: Callable[[float], float]
    carries: Callable[[float], float]


@dataclass(slots=True)
class Outcome:
    """How it ended: `switched`, `aborted`, or `endless`."""

    how: str
    at_s: float
    downtime_s: float
    decisions: list[Decision] = field(default_factory=list)


def run(model: Model, bounds: Bounds, *, give_up_s: float) -> Outcome:
    """Play a transfer with the engine at the wheel."""
    outlook, decisions = begin(bounds), list[Decision]()
    rest, dirty, passes, is_new_pass = model.ram_bytes, 0.0, 1, False
    throttled, is_paused, steps = 1.0, False, 0
    while (at_s := steps * STEP_S) < give_up_s:
        rate = model.carries(at_s)
        if steps and steps % RATE_EVERY == 0 and rest + dirty <= rate * outlook.qemu_limit_s:
            return Outcome("switched", at_s, 0.0 if is_paused else (rest + dirty) / rate, decisions)
        if is_paused and rest + dirty <= 0:
            return Outcome("switched", at_s, 0.0, decisions)
        if steps and (is_new_pass or steps % SAMPLE_EVERY == 0):
            sample = Sample(at_s, passes, int(rest), int(rate), int(0 if is_paused else model.dirties(at_s) * throttled))
            outlook, decision = observe(outlook, sample, bounds)
            if decision is not None:
                decisions.append(decision)
                if decision.choice is Choice.ABORT:
                    return Outcome("aborted", at_s, 0.0, decisions)
                throttled = THROTTLED if decision.choice is Choice.THROTTLE else throttled
                is_paused = is_paused or decision.choice is Choice.PAUSE
        rest -= rate * STEP_S
        dirty = dirty if is_paused else min(dirty + model.dirties(at_s) * throttled * STEP_S, model.working_set_bytes)
        is_new_pass = rest <= 0
        if is_new_pass:
            rest, dirty, passes = dirty, 0.0, passes + 1
        steps += 1
    return Outcome("endless", give_up_s, 0.0, decisions)
