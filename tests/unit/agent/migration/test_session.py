"""The driver while the file system refuses: a decision that cannot be written is not made, one that was made is carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from opentelemetry import context as otel_context

from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import source
from agent.migration.machine import Cause
from agent.migration.order import Options, Role
from agent.migration.record import Facts, Record
from agent.migration.session import Session
from agent.store import Store
from common.records import StagedRecord
from common.storage import NO_SPACE, StorageFailed

CAUSE = Cause("why", "WHY")
FACTS = Facts("m-1", Role.SOURCE, "uuid", "web", Options(), 1, 0.0)


class SmallStore(Store):
    """A store whose file system may be full."""

    is_full = False

    def save_session(self, session_id: str, body: Mapping[str, object]) -> None:
        """Write it, if there is room."""
        self._check(session_id)
        super().save_session(session_id, body)

    def stage_session(self, session_id: str, body: Mapping[str, object]) -> StagedRecord:
        """Write it beside its place, if there is room."""
        self._check(session_id)
        return super().stage_session(session_id, body)

    def _check(self, session_id: str) -> None:
        if self.is_full:
            raise StorageFailed(f"{session_id}: no space left", reason=NO_SPACE)


class Half(Session[out.Phase, out.Event, do.Effect]):
    """A source's half whose effects are only counted."""

    def __init__(self, phase: out.Phase, store: SmallStore) -> None:
        super().__init__(Record(FACTS, phase), source._MACHINE, store=store, lock=None, parent=otel_context.Context())
        self.done: list[str] = []
        self.failures: list[Cause] = []

    async def _watch(self, *, after_restart: bool) -> None:
        await asyncio.Event().wait()

    async def _run_effect(self, effect: do.Effect) -> None:
        self.done.append(type(effect).__name__)

    def _on_failure(self, cause: Cause) -> None:
        self.failures.append(cause)

    async def _tidy(self) -> None:
        return


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    return SmallStore(tmp_path_factory.mktemp("s"))


def phase_on_record(store: SmallStore) -> object:
    body = store.find_session("m-1") or {}
    phase = body.get("phase")
    return phase.get("name") if isinstance(phase, dict) else None


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (out.Transferring(), out.QemuAtSwitchover()),
        (out.Settling(), out.MirrorsSettled()),
        (out.Leaving(), out.QemuAtSwitchover()),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_a_decision_that_cannot_be_written_gives_the_guest_back(phase: out.Phase, event: out.Event, store: SmallStore):
    half = Half(phase, store)
    store.is_full = True

    half.observe(event)

    assert isinstance(half.phase, out.Cancelling)
    assert half.phase.cause.reason == NO_SPACE
    assert half._waiting == (do.FreeGuest(),)


async def test_a_decision_that_was_written_beforehand_needs_no_room(store: SmallStore):
    half = Half(out.Transferring(), store)
    half._save_and_prepare()
    store.is_full = True

    half.observe(out.QemuAtSwitchover())

    assert half.phase == out.Switching()
    assert phase_on_record(store) == "Switching"


async def test_nothing_is_told_qemu_that_the_next_agent_could_not_know(store: SmallStore):
    half = Half(out.Begun(), store)
    store.is_full = True

    half.observe(out.PerformRequested())

    assert isinstance(half.phase, out.Keeping)
    assert do.StartTransfer() not in half._waiting


async def test_the_last_step_is_refused_while_it_cannot_be_written_and_done_when_it_can(store: SmallStore):
    half = Half(out.HandedOver(), store)
    store.is_full = True

    with pytest.raises(StorageFailed):
        half.request(out.ConfirmRequested(), "refused", "WHY")
    assert (half.phase, half._waiting) == (out.HandedOver(), ())

    store.is_full = False
    half.request(out.ConfirmRequested(), "refused", "WHY")
    assert half._waiting == (do.EnsureHuskEnded(),)


async def test_what_follows_from_a_decision_goes_on_and_is_written_when_there_is_room(
    store: SmallStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agent.migration.session.RETRY_S", 0.01)
    half = Half(out.Cancelling(CAUSE), store)
    store.is_full = True

    half.observe(out.QemuGaveUp(CAUSE))
    half.observe(out.GuestRestored())
    await half.run()
    assert (half.is_over, phase_on_record(store)) == (True, None)

    store.is_full = False
    await asyncio.sleep(0.1)
    assert phase_on_record(store) == "Kept"
    assert half.failures == []
