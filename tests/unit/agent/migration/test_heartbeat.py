"""The questions to the destination's agent: what a switch-over without an answer leads to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from agent.migration import heartbeat, outgoing_steps
from agent.migration import outgoing as out
from agent.migration.heartbeat import Heartbeat
from agent.migration.machine import InvalidTransition
from agent.migration.order import Options, Role, Transport
from agent.migration.record import Facts
from common.errors import Expired, FerryError, Unreachable, WrongState

GONE = Unreachable("connection refused", reason="PEER_UNREACHABLE")
SILENT = Expired("no answer", reason="PEER_SILENT")
FACTS = Facts(
    "m-1", Role.SOURCE, "0f1e", "web", replace(Options(transport=Transport.DIRECT), max_downtime_s=0.3), 1, 0.0, peer="host-b"
)


@dataclass
class FakeSource:
    """A session that sends memory; `failure` is what the destination's agent answers with, `held` what steering was told."""

    failure: FerryError | None = None
    facts: Facts = FACTS
    phase: out.Phase = field(default_factory=out.Transferring)
    standstill_s: float | None = None
    held: list[bool] = field(default_factory=list)
    observed: list[out.Event] = field(default_factory=list)
    ping_count: int = 0
    agent_address: str = "192.0.2.1:7701"

    @property
    def destination(self) -> FakeSource:
        return self

    @property
    def steering(self) -> FakeSource:
        return self

    async def ping(self, migration_id: str, source_address: str, *, timeout_s: float) -> None:
        self.ping_count += 1
        if self.failure is not None:
            raise self.failure

    async def hold(self, *, is_held: bool) -> None:
        self.held.append(is_held)

    def observe(self, event: out.Event) -> None:
        self.observed.append(event)
        with suppress(InvalidTransition):
            self.phase = outgoing_steps.step(self.phase, event).phase

    async def wait_change(self) -> None:
        await asyncio.Event().wait()

    async def until(self, count: int) -> None:
        """Return after so many more questions were asked and answered, or when none is asked any more."""
        wanted = self.ping_count + count
        async with asyncio.timeout(5.0):
            while self.ping_count < wanted and isinstance(self.phase, out.Transferring | out.Settling):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.0)
    monkeypatch.setattr(heartbeat, "RETRY_S", 0.0)


@asynccontextmanager
async def asking(session: FakeSource) -> AsyncIterator[Heartbeat]:
    one = Heartbeat(cast("Any", session))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.run())
        await session.until(2)
        yield one
        task.cancel()


async def test_a_destination_that_answers_is_given_the_guest_at_once():
    session = FakeSource()

    async with asking(session) as one:
        one.tell(out.QemuAtSwitchover())

    assert session.phase == out.Switching()
    assert session.observed == [out.QemuAtSwitchover()]


async def test_a_destination_that_was_never_asked_is_given_nothing_before_it_answers():
    session = FakeSource()
    one = Heartbeat(cast("Any", session))

    one.tell(out.QemuAtSwitchover())

    assert session.phase == out.Transferring()


async def test_a_guest_that_waits_goes_once_the_destination_answers():
    session = FakeSource(SILENT, standstill_s=0.1)

    async with asking(session) as one:
        one.tell(out.QemuAtSwitchover())
        await session.until(2)
        waiting, words = session.phase, one.silence
        session.failure = None
        await session.until(2)

    assert (waiting, session.phase) == (out.Transferring(), out.Switching())
    assert "host-b" in words
    assert one.silence == ""


async def test_a_guest_is_taken_back_from_a_host_whose_agent_is_gone_when_it_has_stood_still_for_as_long_as_is_allowed():
    session = FakeSource(GONE, standstill_s=0.29)

    async with asking(session) as one:
        one.tell(out.QemuAtSwitchover())
        await session.until(2)
        before = session.phase
        session.standstill_s = 0.3
        await session.until(1)

    assert before == out.Transferring()
    assert isinstance(session.phase, out.Cancelling)
    assert session.phase.cause.reason == "PEER_UNREACHABLE"
    assert "host-b" in session.phase.cause.text


async def test_an_agent_of_the_version_before_is_there_although_it_does_not_know_the_question():
    session = FakeSource(WrongState("it is of another version", reason="PEER_TOO_OLD"))

    async with asking(session) as one:
        one.tell(out.QemuAtSwitchover())

    assert session.phase == out.Switching()


async def test_settled_disks_wait_for_an_answer_as_well():
    session = FakeSource(SILENT, phase=out.Settling())

    async with asking(session) as one:
        one.tell(out.MirrorsSettled())
        waiting = session.phase
        session.failure = None
        await session.until(2)

    assert (waiting, session.phase) == (out.Settling(), out.Switching())


async def test_a_broken_connection_makes_earlier_answers_worthless():
    session = FakeSource()

    async with asking(session) as one:
        session.failure = GONE
        one.suspect()
        one.tell(out.QemuAtSwitchover())

    assert session.phase == out.Transferring()


async def test_the_switch_over_is_held_back_while_nobody_answers():
    session = FakeSource(SILENT)

    async with asking(session):
        session.failure = None
        await session.until(2)

    assert session.held[0] is True
    assert session.held[-1] is False
