"""The source's way out of a lost connection: how often it is tried, and what ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from agent.migration import outgoing as out
from agent.migration import outgoing_steps, recovery
from agent.migration.errors import GuestLost, GuestNeverRan, GuestWhole
from agent.migration.machine import InvalidTransition
from agent.migration.order import Endpoint, Options, Role, Transport
from agent.migration.parts import PathProof
from agent.migration.record import Facts
from agent.migration.recovery import Recovery
from agent.qemu.status import MigrationStatus, decode_migration
from common.clock import boot_s
from common.errors import FerryError, Unreachable, WrongState

FACTS = Facts(
    "m-1", Role.SOURCE, "0f1e", "web", Options(transport=Transport.TUNNEL), 1, 0.0, peer="host-b", broken_since_s=boot_s() - 60.0
)
SILENT = Unreachable("no answer", reason="PEER_UNREACHABLE")


@dataclass
class FakeSource:
    """A session whose connection is lost; `answers` are the destination's to ProvePath, `takes` whether QEMU goes on."""

    answers: list[PathProof | FerryError]
    takes: bool = True
    facts: Facts = FACTS
    phase: out.Phase = field(default_factory=lambda: out.Broken(is_resumed=True))
    status_text: str = "postcopy-paused"
    host_name: str = "host-a"
    attempt_count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def destination(self) -> FakeSource:
        return self

    @property
    def transfer(self) -> FakeSource:
        return self

    @property
    def qemu(self) -> FakeSource:
        return self

    async def prove_path(self, migration_id: str) -> PathProof:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, FerryError):
            raise answer
        return answer

    async def reopen(self, migration_id: str) -> Endpoint:
        return Endpoint(tunnel_token="t", tunnel_address="host-b:7702")

    async def open_again(self, endpoint: Endpoint) -> str:
        return "unix:/out"

    async def migrate_again(self, uri: str) -> None:
        self.attempt_count += 1
        if self.takes:
            self.observe(out.QemuInPostCopy())
        else:
            self.status_text = MigrationStatus.POSTCOPY_PAUSED.value

    async def query_migrate(self) -> object:
        return decode_migration({"status": "postcopy-paused"})

    async def wait_attached(self) -> None:
        """Nothing to wait for."""

    async def wait_change(self) -> None:
        await self.changed.wait()

    def update(self, **changes: object) -> None:
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]
        self.changed.set()
        self.changed = asyncio.Event()

    def save(self) -> None:
        """Nothing is written."""

    def observe(self, event: out.Event) -> None:
        try:
            self.phase = outgoing_steps.step(self.phase, event).phase
        except InvalidTransition:
            return
        self.update()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - a recovery tells nobody what it is about to do
            await asyncio.sleep(0.001)


def made(source: FakeSource) -> Recovery:
    return Recovery(cast("Any", source))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_FIRST_S", "RETRY_LAST_S", "FRAGILE_PROOF_S", "PROOF_S", "SETTLE_S", "RESUMED_TIMEOUT_S"):
        monkeypatch.setattr(recovery, name, 0.001)


async def test_a_destination_that_does_not_answer_is_asked_until_it_does():
    source = FakeSource([SILENT, SILENT, PathProof("", is_fragile=False)])

    await made(source).run()

    assert source.phase == out.Following(is_resumed=True)
    assert source.attempt_count == 1


async def test_a_fragile_destination_gets_one_attempt_and_more_only_on_a_users_word():
    source = FakeSource([PathProof("", is_fragile=True)], takes=False)
    one = made(source)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(one.run())
        await until(lambda: "needs your word" in source.facts.waiting_for)
        await asyncio.sleep(0.02)
        attempts = source.attempt_count
        source.takes = True
        one.ask()
        await running

    assert attempts == 1
    assert source.attempt_count == 2
    assert source.phase == out.Following(is_resumed=True)


async def test_another_destination_is_tried_again_by_itself():
    source = FakeSource([PathProof("", is_fragile=False)], takes=False)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made(source).run())
        await until(lambda: source.attempt_count >= 3)
        source.takes = True
        await running

    assert source.phase == out.Following(is_resumed=True)


async def test_what_is_told_names_both_hosts_and_since_when():
    source = FakeSource([SILENT, SILENT, PathProof("", is_fragile=False)])
    one = made(source)
    since = time.strftime("%H:%M:%S UTC", time.gmtime((FACTS.broken_since_s or 0.0) + time.time() - boot_s()))

    assert one._waiting_text("no answer") == (
        f"the guest runs on host-b and waits for memory that is still on host-a, since {since}: the connection "
        "was lost: no answer; it is made anew by itself"
    )


@pytest.mark.parametrize(
    ("answer", "phase"),
    [
        (GuestLost("it ended"), out.Losing),
        (GuestNeverRan("it never ran"), out.Refused),
        (GuestWhole("all is here"), out.HandedOver),
    ],
)
async def test_a_destination_that_needs_no_connection_any_more_decides(answer, phase):
    source = FakeSource([answer], phase=out.Broken(is_resumed=not isinstance(answer, GuestNeverRan)))

    await made(source).run()

    assert isinstance(source.phase, phase)
    assert source.attempt_count == 0


async def test_nothing_is_recovered_while_nothing_is_lost():
    source = FakeSource([SILENT], phase=out.Following(is_resumed=True))

    with pytest.raises(WrongState, match="m-1: no connection is lost"):
        made(source).ask()
