"""Carries out what the convergence engine decides while memory is on its way; nothing of it is on the way of a hand-over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry import trace

from agent.migration import outgoing as out
from agent.migration.clocks import now_s
from agent.migration.convergence import HELD_LIMIT_S, Choice, Decision, Sample, begin, change_bounds, observe
from agent.migration.machine import Cause
from agent.migration.qemu_setup import bandwidth, bounds, downtime_ms, throttle
from agent.migration.transfer_spans import untraced
from common.errors import FerryError

if TYPE_CHECKING:
    from agent.migration.source import SourceSession

# QEMU's numbers are those of the new pass a moment after its event; and a hand-over, which may follow at once, is let by.
PASS_DELAY_S: Final = 0.03
# What is sent while the switch-over is held back.
HELD_BYTES_PER_SECOND: Final = 4096
_MIB: Final = 1 << 20
_log = structlog.get_logger()


class Steering:
    """The driver of one source's convergence engine."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        # An agent before this one may have held it; the first answer of the destination's agent ends that.
        self._is_held = session.facts.timeline.started_at_s is not None
        decided = session.facts.decisions
        self._outlook = begin(bounds(session.facts.options))
        if decided:  # by an agent before this one
            self._outlook, _ = change_bounds(self._outlook, self._sample(), decided[-1].limit_s)

    @property
    def limit_s(self) -> float:
        """The `downtime-limit` that QEMU should have."""
        limit_s = self._outlook.qemu_limit_s
        return min(limit_s, HELD_LIMIT_S) if self._is_held else limit_s

    async def hold(self, *, is_held: bool) -> None:
        """Keep QEMU from switching over, as far as limits can, while nobody is there to take the guest; or no longer.

        A pass that hardly sends does not end, and only the end of one leads to a switch-over.
        """
        before, self._is_held = self._is_held, is_held
        if before is is_held:
            return
        try:
            await self._set_limit()
        except FerryError:
            self._is_held = before
            raise

    @property
    def limits(self) -> dict[str, object]:
        """The parameters of QEMU that bound it now."""
        most = HELD_BYTES_PER_SECOND if self._is_held else bandwidth(self._session.facts.options.bandwidth_bytes_per_second)
        return {"max-bandwidth": most, "downtime-limit": downtime_ms(self.limit_s)}

    async def _set_limit(self) -> None:
        await self._session.qemu.set_parameters(self.limits)

    async def run(self) -> None:
        """Steer until memory is no longer on its way."""
        session = self._session
        await session.wait_phase(out.Transferring)
        passes, seen = 0, session.facts.progress
        while self._is_on_the_way():
            await session.wait_change()
            if passes != len(session.facts.timeline.pass_at_s):
                await asyncio.sleep(PASS_DELAY_S)
                if not self._is_on_the_way():
                    return
                passes = len(session.facts.timeline.pass_at_s)
                with untraced():
                    await session.ask_qemu()
            if session.facts.progress is not seen and self._is_on_the_way():
                seen = session.facts.progress
                await self._consider()

    def _is_on_the_way(self) -> bool:
        return isinstance(self._session.phase, out.Transferring)

    def change(self, *, is_allowed_at_once: bool) -> None:
        """Follow a client that changed the bounds; QEMU keeps its limit as far as it is still allowed, or may use all at once."""
        most_s = bounds(self._session.facts.options).most_s
        allowed_s = most_s if is_allowed_at_once else min(self._outlook.limit_s, most_s)
        self._outlook, decision = change_bounds(self._outlook, self._sample(), allowed_s)
        self._keep(decision)

    def _sample(self) -> Sample:
        facts = self._session.facts
        progress, began_at_s = facts.progress, facts.timeline.started_at_s
        at_s = 0.0 if began_at_s is None else max(now_s() - began_at_s, 0.0)
        if progress is None:
            return Sample(at_s, 1, 0, 0)
        rate = 0 if self._is_held else progress.bytes_per_second  # it tells nothing of the network then
        return Sample(at_s, progress.pass_count, progress.ram_remaining_bytes, rate, progress.dirty_bytes_per_second)

    async def _consider(self) -> None:
        self._outlook, decision = observe(self._outlook, self._sample(), bounds(self._session.facts.options))
        if decision is None:
            return
        self._keep(decision)
        try:
            await self._carry_out(decision)
        except FerryError as error:
            _log.warning("decision not carried out", migration=self._session.facts.migration_id, error=error.text)

    def _keep(self, decision: Decision) -> None:
        session = self._session
        session.update(decisions=(*session.facts.decisions, decision))
        session.keep()
        _log.info("decision", migration=session.facts.migration_id, **numbers_of(decision))
        span = trace.get_current_span(session.parent)  # that of Perform, which lasts as long as the transfer
        if span.is_recording():
            span.add_event("convergence decision", numbers_of(decision))

    async def _carry_out(self, decision: Decision) -> None:
        session = self._session
        match decision.choice:
            case Choice.RAISE_DOWNTIME | Choice.HOLD | Choice.RELEASE:
                await self._set_limit()
            case Choice.THROTTLE:
                await session.qemu.set_parameters(throttle(session.facts.options))
            case Choice.PAUSE:
                session.pause()
            case Choice.ABORT:
                session.observe(out.CancelRequested(self._why_given_up(decision)))
            case Choice.POST_COPY:
                session.start_postcopy(f"decided by the policy {session.facts.options.budget.policy.value}")
            case Choice.BOUNDS:
                pass

    def _why_given_up(self, decision: Decision) -> Cause:
        options = self._session.facts.options
        left = f"{decision.remaining_bytes / _MIB:.1f} MiB were left"
        if decision.needed_s:
            left += f", a standstill of {decision.needed_s:.2f} s where {options.max_downtime_s:g} s are allowed"
        if options.budget.max_duration_s:
            return Cause(
                f"not done in the {options.budget.max_duration_s:g} s of max-duration: {left}. Allow more downtime or time, or "
                "throttling by the policy fast, or on-timeout pause",
                "TIMED_OUT",
            )
        return Cause(
            f"no progress any more: the guest changes its memory as fast as it is sent, {left}. Allow more downtime, throttling by "
            "the policy fast, or a pause by max-duration and on-timeout pause",
            "NOT_CONVERGING",
        )


def numbers_of(decision: Decision) -> dict[str, str | int | float | bool]:
    """Give a decision as attributes of a span event."""
    return {
        "choice": decision.choice.value,
        "pass": decision.pass_count,
        "remaining_bytes": decision.remaining_bytes,
        "bytes_per_second": decision.bytes_per_second,
        "needed_ms": decision.needed_s * 1000,
        "downtime_limit_ms": decision.limit_s * 1000,
        "is_timeout": decision.is_timeout,
    }
