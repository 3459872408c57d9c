"""The one driver of a migration's machine.

For each event: step, save, run the effects, announce. The phase is saved before the effects run, except for phases that QEMU itself
remembers: those are written a moment later, off the way of the guest. The decisions that a guest waits for are on disk before they
are made, beside the record that they are going to replace. Nothing else changes a session.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace

from agent.migration.attention import Attention
from agent.migration.clocks import wall_s
from agent.migration.machine import Cause, InvalidTransition, Step
from agent.migration.record import Facts, Record
from agent.store import Store
from agent.vm.jobs import JobLock
from common.errors import FerryError, WrongState
from common.records import StagedRecord
from common.storage import StorageFailed, find_failure

P = TypeVar("P")
V = TypeVar("V")
F = TypeVar("F")

SAVE_DELAY_S: Final = 0.02
SYNC_DELAY_S: Final = 0.01
AFTER_DECISION_S: Final = 0.1  # for what can wait until the guest runs again
TELL_DELAY_S: Final = 0.025
TELL_LATEST_S: Final = 0.25
ANNOUNCE_DELAY_S: Final = 0.005
RETRY_S: Final = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class Machine(Generic[P, V, F]):
    """A machine as its driver needs it.

    Attributes:
        step: answers events.
        effects_after_restart: what has to be done again in a phase.
        final: phases in which nothing changes any more.
        remembered_by_qemu: phases that a query to QEMU finds again, so that losing them does no harm.
        standing: phases in which the guest stands still and we are in its way; none of them takes long unless something fails.
        decision_after: the phase that is likely to be decided on while the guest stands still, by the type of the phase before.
        written_first: phases that are not entered before they are on record, since nobody could know of them after our end.
        instead: what is answered where such a phase cannot be written; without an answer whoever asked for it is refused.
    """

    step: Callable[[P, V], Step[P, F]]
    effects_after_restart: Callable[[P], tuple[F, ...]]
    final: tuple[type, ...]
    remembered_by_qemu: tuple[type, ...]
    standing: tuple[type, ...]
    decision_after: Mapping[type, P]
    written_first: tuple[type, ...]
    instead: Mapping[type, Callable[[Cause], V]]


class Session(ABC, Generic[P, V, F]):
    """One half of a migration, from its acceptance to a final phase."""

    def __init__(
        self,
        record: Record[P],
        machine: Machine[P, V, F],
        *,
        store: Store,
        lock: JobLock | None,
        parent: otel_context.Context,
    ) -> None:
        self.record = record
        self._machine = machine
        self._store = store
        self._lock = lock
        self.parent = self._began_in = parent
        self.attention = Attention()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._effects: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: tuple[F, ...] = ()
        self._phase_since_s = time.monotonic()
        self.phase_times: list[tuple[str, float]] = []
        self._unsaved: asyncio.TimerHandle | None = None
        self._decision: tuple[P, StagedRecord] | None = None

    @property
    def facts(self) -> Facts:
        """What is remembered beside the phase."""
        return self.record.facts

    @property
    def phase(self) -> P:
        """Where the machine is."""
        return self.record.phase

    @property
    def lock(self) -> JobLock | None:
        """The job lock of the VM, while it is held."""
        return self._lock

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return isinstance(self.phase, self._machine.final)

    @property
    def is_over(self) -> bool:
        """Whether it is final and everything of it is tidied up."""
        return self._ended.is_set()

    def mark_over(self) -> None:
        """Say that a half read from its record had ended before."""
        self._ended.set()

    def apply(self, event: V, **changes: object) -> None:
        """Let the machine answer an event.

        Args:
            event: what happened.
            changes: facts that came with it.

        Raises:
            InvalidTransition: the event has no meaning now; nothing was changed.
            StorageFailed: what it leads to has to be on record first, and the file system refuses; nothing was changed.
        """
        after = self._machine.step(self.phase, event)
        known, before, phase = self.record, self.phase, after.phase
        if phase == before:
            self._start(after.effects)
            if changes:
                self.update(**changes)
            return
        self.record = Record(_changed(self.facts, changes), phase)
        try:
            self._write()
        except StorageFailed as failure:
            if isinstance(phase, self._machine.written_first):
                self.record = known
                self._do_instead(type(phase), failure)
                return
            self._save_later(failure)  # what was decided is done: nobody waits for a file system
        self._start(after.effects)
        self._announce(before, event)
        self._wake()

    def _write(self) -> None:
        """Put a new phase on record: now, or a moment later where QEMU remembers it too."""
        if isinstance(self.phase, self._machine.remembered_by_qemu):
            self._save_soon()
        elif not self._commit_decision():
            self.save()
            if type(self.phase) in self._machine.decision_after:
                self._save_soon()

    def _do_instead(self, wanted: type, failure: StorageFailed) -> None:
        """Answer that a phase cannot be entered, because it cannot be put on record first."""
        _log.error("phase not entered", migration=self.facts.migration_id, wanted=wanted.__name__, error=failure.text)
        instead = self._machine.instead.get(wanted)
        if instead is None:
            raise failure
        self.apply(instead(Cause(failure.text, failure.reason)))

    def _start(self, effects: tuple[F, ...]) -> None:
        if self._effects is None:  # `run` has not begun, and starts them when it does
            self._waiting += effects
            return
        for effect in effects:
            task = self._effects.create_task(self._perform(effect), name=type(effect).__name__)
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def observe(self, event: V, **changes: object) -> None:
        """Let the machine answer what was seen, and keep the facts that came with it; what has no meaning now is kept in the log.

        What the machine wants done begins before the watchers learn of either.
        """
        try:
            self.apply(event, **changes)
        except InvalidTransition as error:
            _log.debug("event without meaning", migration=self.facts.migration_id, error=str(error))
            if changes:
                self.update(**changes)

    def request(self, event: V, refusal: str, reason: str) -> None:
        """Let the machine answer a wish.

        Raises:
            WrongState: it cannot be fulfilled in this phase; `refusal` says why. StorageFailed: it has to be on record first.
        """
        try:
            self.apply(event)
        except InvalidTransition as error:
            raise WrongState(
                f"migration {self.facts.migration_id}: {refusal} (phase {type(self.phase).__name__})",
                reason=reason,
                migration=self.facts.migration_id,
                phase=type(self.phase).__name__,
            ) from error

    def update(self, **changes: object) -> None:
        """Change facts and wake the watchers; written with the next phase or `save`."""
        self.record = Record(_changed(self.facts, changes), self.phase)
        self._wake()

    def save(self) -> None:
        """Write the record; it is durable on return.

        Raises:
            StorageFailed: the file system refused; the earlier record stays.
        """
        if self._unsaved is not None:
            self._unsaved.cancel()
            self._unsaved = None
        self._store.save_session(self.facts.migration_id, self.record.to_json())

    def keep(self) -> None:
        """Write the record; where the file system refuses, as soon as there is room: nothing waits for that."""
        try:
            self.save()
        except StorageFailed as failure:
            self._save_later(failure)

    def _on_unwritten(self, failure: StorageFailed) -> None:
        """Hear that the decision that is likely to come could not be written down."""

    def _save_later(self, failure: StorageFailed) -> None:
        _log.warning("record not written", migration=self.facts.migration_id, error=failure.text)
        self._save_soon(RETRY_S)

    def _save_soon(self, delay_s: float = SAVE_DELAY_S) -> None:
        if self._unsaved is None:
            self._unsaved = asyncio.get_running_loop().call_later(delay_s, self._save_and_prepare)

    def _save_and_prepare(self) -> None:
        """Save, and write down the decision that is likely to come."""
        self._unsaved = None
        try:
            self.save()
            decision = self._machine.decision_after.get(type(self.phase))
            if decision is not None and (self._decision is None or self._decision[0] != decision):
                self._drop_decision()
                record = Record(self.facts, decision)
                self._decision = (decision, self._store.stage_session(self.facts.migration_id, record.to_json()))
        except StorageFailed as failure:
            self._save_later(failure)
            self._on_unwritten(failure)

    def _commit_decision(self) -> bool:
        """Put the decision that was written down into its place, if it is the one; facts that have changed since follow.

        From then on it survives our end, and a moment later a power cut.
        """
        if self._decision is None or self._decision[0] != self.phase:
            return False
        written = self._decision[1]
        self._decision = None
        written.commit()
        loop = asyncio.get_running_loop()
        loop.call_later(SYNC_DELAY_S, loop.run_in_executor, None, self._sync, written)  # the disk may take its time
        self._save_soon(AFTER_DECISION_S)
        return True

    def _sync(self, written: StagedRecord) -> None:
        try:
            written.sync()
        except StorageFailed as failure:
            _log.warning("record not synced", migration=self.facts.migration_id, error=failure.text)

    def _drop_decision(self) -> None:
        if self._decision is not None:
            self._decision[1].discard()
            self._decision = None

    async def run(self, *, after_restart: bool = False) -> None:
        """Drive until the machine is final and what it made is removed."""
        token = otel_context.attach(self.parent)
        try:
            async with asyncio.TaskGroup() as group:
                self._effects = group
                watcher = group.create_task(self._keep_watching(after_restart=after_restart))
                self._start(self._machine.effects_after_restart(self.phase) if after_restart else self._waiting)
                while not self.is_final:
                    await self.wait_change()
                for task in (watcher, *self._running):
                    task.cancel()
            self._effects = None
            self._drop_decision()
            try:
                await self._tidy()
            except OSError as error:
                _log.warning("not all removed", migration=self.facts.migration_id, error=str(error))
            self.update(ended_at_s=wall_s(), token="")  # it has served, and whoever has it could let a guest run
            self.keep()
            if self._lock is not None:
                self._lock.release()
            self._ended.set()
            self._wake()
        finally:
            otel_context.detach(token)

    async def wait_change(self) -> None:
        """Return after the next change of phase or facts; has no deadline of its own."""
        await self._changed.wait()

    async def follow(self) -> AsyncIterator[None]:
        """Come round now, a moment after every change, and a last time when it is over.

        What changes together is told together, and a hand-over when it is over, so that telling of it does not delay it.
        """
        while True:
            seen, is_over = self._changed, self.is_over
            yield
            if is_over:
                return
            await seen.wait()
            latest_s = time.monotonic() + TELL_LATEST_S
            while not self.is_over:
                await asyncio.sleep(TELL_DELAY_S)
                if not isinstance(self.phase, self._machine.standing) or time.monotonic() > latest_s:
                    break

    async def wait_phase(self, *wanted: type) -> None:
        """Return when the phase is one of `wanted` or final; the caller sets the deadline."""
        while not isinstance(self.phase, wanted) and not self.is_final:
            await self.wait_change()

    @abstractmethod
    async def _watch(self, *, after_restart: bool) -> None:
        """Follow everything that may happen to this half, until cancelled; must not raise."""

    @abstractmethod
    async def _run_effect(self, effect: F) -> None:
        """Do what the machine wants; safe to do twice."""

    @abstractmethod
    def _on_failure(self, cause: Cause) -> None:
        """Tell the machine that an effect failed, by a mistake of ours or because the file system refused."""

    @abstractmethod
    async def _tidy(self) -> None:
        """Remove what this half made for the transfer."""

    async def _keep_watching(self, *, after_restart: bool) -> None:
        try:
            await self._watch(after_restart=after_restart)
        except Exception as error:  # noqa: BLE001 - the driver turns a bug into an event
            self._fail("watch", error)

    async def _perform(self, effect: F) -> None:
        if otel_context.get_current() is self._began_in:  # an event's effect, not a request's
            otel_context.attach(self.parent)
        try:
            await self._run_effect(effect)
        except FerryError as error:
            _log.warning("effect failed", migration=self.facts.migration_id, effect=type(effect).__name__, error=error.text)
        except Exception as error:  # noqa: BLE001 - the driver turns a bug into an event
            self._fail(type(effect).__name__, error)

    def _fail(self, doing: str, error: Exception) -> None:
        failure = find_failure(error)
        if failure is None:
            _log.error("bug", migration=self.facts.migration_id, doing=doing, exc_info=error)
            cause = Cause(f"a mistake of Ferry's own ({type(error).__name__}); the agent's log has more", "BUG")
        else:
            _log.error("storage failed", migration=self.facts.migration_id, doing=doing, error=failure.text)
            cause = Cause(failure.text, failure.reason)
        self._on_failure(cause)

    def _announce(self, before: P, event: V) -> None:
        """Log a change of phase and tell the span, a moment later: what the guest waits for goes first."""
        now_s, at_ns = time.monotonic(), time.time_ns()
        self.phase_times.append((type(before).__name__, now_s - self._phase_since_s))
        self._phase_since_s = now_s
        names = {"from": type(before).__name__, "to": type(self.phase).__name__, "on": type(event).__name__}
        asyncio.get_running_loop().call_later(ANNOUNCE_DELAY_S, self._log_change, names, at_ns)

    def _log_change(self, names: Mapping[str, str], at_ns: int) -> None:
        facts = self.facts
        _log.info("phase changed", migration=facts.migration_id, vm=facts.vm_name, role=facts.role.value, **names)
        span = trace.get_current_span()
        if span.is_recording():  # the request that began this half may have been answered long ago
            span.add_event("phase changed", names, timestamp=at_ns)

    def _wake(self) -> None:
        seen, self._changed = self._changed, asyncio.Event()
        seen.set()


def _changed(facts: Facts, changes: Mapping[str, object]) -> Facts:
    return replace(facts, **changes)  # type: ignore[arg-type]  # replace() checks the names
