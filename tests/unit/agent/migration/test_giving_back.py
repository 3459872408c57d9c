"""A source in post-copy is brought to give its guest back: which way out for which state of QEMU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from agent.migration import giving_back, outgoing_steps
from agent.migration import outgoing as out
from agent.migration.giving_back import GivingBack
from agent.migration.machine import Cause
from agent.migration.order import Options, Role, Transport
from agent.migration.record import Facts
from agent.qemu.errors import QemuGone, QemuSilent
from agent.qemu.status import RunState, decode_migration
from agent.vm.image_activation import ImageLocked

CAUSE = Cause("it never ran there", "GUEST_NEVER_RAN")
FACTS = Facts("m-1", Role.SOURCE, "0f1e", "web", Options(transport=Transport.TUNNEL), 1, 0.0, peer="host-b")
HELD = ImageLocked("VM web: its guest cannot use /i/web.raw")


@dataclass
class FakeSource:
    """A session in `Refused` and its QEMU: each `status` is what `query-migrate` says next, an error what it raises."""

    statuses: list[str | Exception]
    run_state: RunState = RunState.FINISH_MIGRATE
    has_channels: bool = True
    facts: Facts = FACTS
    phase: out.Phase = field(default_factory=lambda: out.Refused(CAUSE))
    host_name: str = "host-a"
    done: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def qemu(self) -> FakeSource:
        return self

    async def query_migrate(self) -> object:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        return decode_migration({"status": status})

    async def query_status(self) -> RunState:
        return self.run_state

    async def has_migration_channels(self) -> bool:
        return self.has_channels

    async def migrate_pause(self) -> None:
        self.done.append("pause")

    async def migrate_again(self, uri: str) -> None:
        self.done.append(f"recover to {Path(uri).suffix}")
        self.observe(out.QemuGaveUp(CAUSE))

    async def set_parameters(self, parameters: Mapping[str, object]) -> None:
        self.done.append(f"set {dict(parameters)}")

    async def stop(self) -> None:
        self.done.append("stop")

    async def cut_and_yank(self) -> None:
        self.done.append("cut")

    @property
    def destination(self) -> FakeSource:
        return self

    async def abandon(self, migration_id: str, token: bytes) -> None:
        self.done.append(f"abandon {token.hex()}")

    async def ask_qemu(self) -> None:
        self.done.append("ask")
        self.observe(out.QemuGaveUp(CAUSE))

    async def wait_attached(self) -> None:
        """Nothing to wait for."""

    async def wait_phase(self, *wanted: type) -> None:
        while not isinstance(self.phase, wanted):
            await self.changed.wait()

    def update(self, **changes: object) -> None:
        self.facts = replace(self.facts, **changes)  # type: ignore[arg-type]
        self.changed.set()
        self.changed = asyncio.Event()

    def observe(self, event: out.Event) -> None:
        self.phase = outgoing_steps.step(self.phase, event).phase
        self.update()


@dataclass
class FakeAround:
    """Sockets in a directory."""

    directory: Path

    @property
    def store(self) -> FakeAround:
        return self

    @property
    def guests(self) -> FakeAround:
        return self

    def session_socket_path(self, migration_id: str, purpose: str) -> Path:
        return self.directory / f"{migration_id}.{purpose}"

    def own(self, path: Path) -> None:
        assert path.is_socket()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_back, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(giving_back, "RETRY_LAST_S", 0.001)

    async def blocks(_: object) -> Mapping[str, int]:
        return {"pc.ram": 4096}

    monkeypatch.setattr(giving_back, "ram_block_bytes", blocks)


async def give_back(source: FakeSource, directory: Path) -> None:
    async with asyncio.timeout(2):
        await GivingBack(cast("Any", source), cast("Any", FakeAround(directory))).run()


async def test_a_lost_connection_is_recovered_to_a_receiver_and_its_socket_removed(tmp_path: Path):
    source = FakeSource(["postcopy-paused"])

    await give_back(source, tmp_path)

    assert source.phase == out.Keeping(CAUSE)
    assert source.done == ["recover to .back"]
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else runs


async def test_a_receiver_is_spoken_to_without_tls(tmp_path: Path):
    source = FakeSource(["postcopy-paused"], facts=replace(FACTS, options=Options()))

    await give_back(source, tmp_path)

    assert source.done == ["set {'tls-creds': ''}", "recover to .back"]


@pytest.mark.parametrize("status", ["postcopy-active", "postcopy-device", "postcopy-recover", "postcopy-recover-setup"])
async def test_a_connection_that_qemu_still_believes_in_is_ended_first(status, tmp_path: Path):
    source = FakeSource([status, "postcopy-paused"])

    await give_back(source, tmp_path)

    assert source.done == ["pause", "cut", "recover to .back"]


async def test_a_qemu_that_answers_nothing_is_cut_free(tmp_path: Path):
    source = FakeSource([QemuSilent("no answer"), "device", "postcopy-paused"])

    await give_back(source, tmp_path)

    assert source.done == ["cut", "cut", "recover to .back"]


async def test_a_qemu_that_gave_up_meanwhile_is_asked(tmp_path: Path):
    source = FakeSource(["failed"])

    await give_back(source, tmp_path)

    assert source.done == ["ask"]
    assert source.phase == out.Keeping(CAUSE)


class Ways:
    """What the last ways out need, recorded: images that are held at first, and the debugger."""

    def __init__(self, source: FakeSource, monkeypatch: pytest.MonkeyPatch, *refusals: ImageLocked) -> None:
        self._source = source
        self._refusals = list(refusals)
        monkeypatch.setattr(giving_back, "activate_images", self._activate)
        monkeypatch.setattr(giving_back, "run_by_debugger", self._debug)

    async def _activate(self, *_: object) -> None:
        if self._refusals:
            raise self._refusals.pop()
        self._source.done.append("images")

    async def _debug(self, *_: object) -> None:
        self._source.done.append("debugger")


@pytest.mark.parametrize("was_paused", [False, True])
async def test_a_qemu_that_forgot_to_end_its_migration_is_left_by_a_debugger_once_its_images_are_free(
    was_paused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = FakeSource(["device"], has_channels=False, facts=replace(FACTS, guest_was_paused=was_paused, token="0a"))
    Ways(source, monkeypatch, HELD)

    await give_back(source, tmp_path)

    assert source.done == ["abandon 0a", "images", "debugger", *(["stop"] if was_paused else [])]
    assert source.phase == out.Keeping(CAUSE)
    assert "can be neither migrated nor saved" in source.facts.warnings[-1]
    assert "does not give the guest back yet: VM web" in source.facts.waiting_for


@pytest.mark.parametrize("status", ["postcopy-device", "postcopy-recover"])
async def test_a_qemu_that_never_ends_its_migration_is_left_by_a_debugger_at_last(
    status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(giving_back, "LAST_RESORT_S", 0.02)
    source = FakeSource([status])
    Ways(source, monkeypatch)

    await give_back(source, tmp_path)

    assert source.done[:2] == ["pause", "cut"]
    assert source.done[-2:] == ["images", "debugger"]
    assert source.phase == out.Keeping(CAUSE)


async def test_a_guest_that_the_debugger_runs_already_is_left_alone(tmp_path: Path):
    source = FakeSource(["device"], has_channels=False, run_state=RunState.RUNNING)

    await give_back(source, tmp_path)

    assert source.done == []
    assert source.phase == out.Keeping(CAUSE)


async def test_nothing_more_is_tried_once_qemu_is_gone(tmp_path: Path):
    source = FakeSource([QemuGone("web")])

    await give_back(source, tmp_path)

    assert source.phase == out.Refused(CAUSE)
