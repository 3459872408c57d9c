"""A session with QEMU survives what can happen to its connection."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent.qemu import monitor as module
from agent.qemu.connection import IN_BAND_LIMIT
from agent.qemu.errors import QemuGone, QemuInUse, QemuRefused, QemuSilent
from agent.qemu.monitor import Monitor
from agent.qemu.subscription import Event, Gone, Reconnected
from common.clock import boot_s
from tests.fakes.qemu import FakeProcess, FakeQemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SHORT_S = 0.05


@asynccontextmanager
async def session(directory: Path) -> AsyncIterator[tuple[FakeQemu, Monitor]]:
    async with FakeQemu(directory / "qmp") as fake, Monitor(fake.path, fake.process, vm="web") as monitor:
        yield fake, monitor


async def test_leaving_closes_the_connection_and_leaves_qemu_alone(tmp_path):
    async with FakeQemu(tmp_path / "qmp") as fake:
        for _ in range(2):
            async with Monitor(fake.path, fake.process, vm="web") as monitor:
                await monitor.execute("query-status")

        assert fake.process.is_alive()
    assert [name for name, _ in fake.commands] == ["query-status"] * 2


async def test_leaving_while_qemu_is_mute_does_not_wait_for_it(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        fake.mute()
        with pytest.raises(QemuSilent):
            await monitor.execute("query-status", timeout_s=0.01)


async def test_leaving_while_dialling_ends_at_once(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        fake.path.unlink()
        fake.drop_connection()
        with pytest.raises(QemuSilent, match="not connected"):
            await monitor.execute("query-status", timeout_s=SHORT_S)

        assert not monitor.is_connected


async def test_an_error_inside_comes_out_as_it_is(tmp_path):
    with pytest.raises(KeyError):
        async with session(tmp_path):
            raise KeyError


async def test_a_cancelled_owner_stays_cancelled(tmp_path):
    entered = asyncio.Event()

    async def own() -> None:
        async with session(tmp_path):
            entered.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        owner = tasks.create_task(own())
        await entered.wait()
        owner.cancel()
    assert owner.cancelled()


async def test_nobody_listening_is_told_as_such(tmp_path):
    with pytest.raises(QemuSilent, match="No such file or directory"):
        async with Monitor(tmp_path / "none", FakeProcess(), vm="web", connect_timeout_s=SHORT_S):
            pass


async def test_a_process_that_ends_before_it_listens_is_gone(tmp_path):
    process = FakeProcess()
    process.exited.set()

    with pytest.raises(QemuGone):
        async with Monitor(tmp_path / "none", process, vm="web"):
            pass


async def test_a_socket_of_another_process_is_not_talked_to(tmp_path):
    other = FakeProcess()
    other.pid += 1
    async with FakeQemu(tmp_path / "qmp") as fake:
        with pytest.raises(QemuSilent, match=f"not to QEMU {other.pid}"):
            async with Monitor(fake.path, other, vm="web", connect_timeout_s=SHORT_S):
                pass


async def test_a_second_client_is_told_who_is_in_the_way_and_a_stopped_qemu_too(tmp_path):
    async with session(tmp_path) as (fake, _):
        with pytest.raises(QemuInUse, match="is in use by another client"):
            async with Monitor(fake.path, fake.process, vm="second", connect_timeout_s=SHORT_S):
                pass
        fake.process.is_held = True
        with pytest.raises(QemuSilent, match="is stopped by a signal"):
            async with Monitor(fake.path, fake.process, vm="second", connect_timeout_s=SHORT_S):
                pass


async def test_a_blocked_qemu_that_greets_is_not_taken_for_one_in_use(tmp_path):
    async with FakeQemu(tmp_path / "qmp") as fake:
        fake.mute()
        with pytest.raises(QemuSilent, match="QEMU is blocked"):
            async with Monitor(fake.path, fake.process, vm="web", connect_timeout_s=SHORT_S):
                pass


@pytest.mark.parametrize(
    "stale",
    [{"return": {}, "id": "__qmp#00001"}, {"error": {"class": "GenericError", "desc": "late"}, "id": "__qmp#00001"}],
    ids=["return", "error"],
)
async def test_the_reply_to_a_client_that_left_does_not_confuse_the_next(tmp_path, stale):
    async with FakeQemu(tmp_path / "qmp") as fake:
        fake.stale_replies.append(stale)
        async with Monitor(fake.path, fake.process, vm="web") as monitor:
            reply = await monitor.execute("query-status")

    assert reply == {"status": "running", "running": True}


async def test_what_was_sent_when_the_connection_broke_is_silent_and_may_have_run(tmp_path):
    async with session(tmp_path) as (fake, monitor), asyncio.TaskGroup() as tasks:
        fake.mute()
        waiting = tasks.create_task(raises(QemuSilent, monitor.execute("stop")))
        await asyncio.sleep(0.01)
        fake.drop_connection()
        fake.unmute()

        assert "connection lost before the answer" in await waiting


async def test_a_query_is_asked_again_when_the_connection_broke(tmp_path):
    async with session(tmp_path) as (fake, monitor), asyncio.TaskGroup() as tasks:
        fake.mute()
        waiting = tasks.create_task(monitor.execute("query-status"))
        await asyncio.sleep(0.01)
        fake.drop_connection()
        fake.unmute()

        assert await waiting == {"status": "running", "running": True}


async def test_what_waits_for_an_answer_when_qemu_dies_is_gone(tmp_path):
    async with session(tmp_path) as (fake, monitor), asyncio.TaskGroup() as tasks:
        fake.mute()
        waiting = [tasks.create_task(raises(QemuGone, monitor.execute("stop"))) for _ in range(IN_BAND_LIMIT + 3)]
        await asyncio.sleep(0.01)
        fake.die()

        for one in waiting:
            assert "has ended" in await one
        assert monitor.is_gone


async def raises(kind, awaitable) -> str:
    with pytest.raises(kind) as caught:
        await awaitable
    return str(caught.value)


async def test_readers_learn_of_each_lost_connection_and_of_the_end(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        with monitor.subscribe() as notices:
            for _ in range(2):
                fake.drop_connection()
                assert isinstance(await anext(notices), Reconnected)
            fake.emit("STOP")
            fake.die()

            told = [notice async for notice in notices]
    assert [type(notice) for notice in told] == [Event, Gone]


async def test_what_qemu_said_last_is_read_though_a_command_comes_too_late(tmp_path):
    async with session(tmp_path) as (fake, monitor), asyncio.TaskGroup() as tasks:
        with monitor.subscribe() as notices:
            asking = tasks.create_task(raises(QemuGone, monitor.execute("query-migrate")))
            await asyncio.sleep(0)  # it is given, and not sent yet
            fake.emit("SHUTDOWN")
            fake.die()

            told = [notice async for notice in notices]
            assert "has ended" in await asking
    assert [type(notice) for notice in told] == [Event, Gone]


async def test_a_died_qemu_is_noticed_while_the_connection_is_lost(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        with monitor.subscribe() as notices:
            fake.path.unlink()
            fake.drop_connection()
            await asyncio.sleep(0.01)
            fake.process.exited.set()

            assert await anext(notices) == Gone()
        with pytest.raises(QemuGone):
            await monitor.wait_connected()


async def test_an_event_carries_qemus_stamp_and_data(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        with monitor.subscribe() as notices:
            fake.stamps_age_s = 5.0
            fake.emit("MIGRATION_PASS", {"pass": 3})
            event = await anext(notices)

    assert isinstance(event, Event)
    assert (event.name, event.data) == ("MIGRATION_PASS", {"pass": 3})
    assert event.at_s == pytest.approx(boot_s() - 5.0, abs=1.0)


async def test_at_most_seven_in_band_commands_are_unanswered_so_that_oob_gets_through(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        fake.mute()
        for _ in range(3 * IN_BAND_LIMIT):
            with pytest.raises(QemuSilent):
                await monitor.execute("query-status", timeout_s=0.002)

        assert await monitor.execute_oob("query-yank") == []
        assert len(fake._pending) == IN_BAND_LIMIT
        fake.unmute()
        assert await monitor.execute("query-status") == {"status": "running", "running": True}


async def test_a_mute_qemu_is_noticed_after_the_limit_with_one_probe_out(tmp_path):
    async with session(tmp_path) as (fake, monitor):
        fake.mute()
        async with asyncio.timeout(2):
            await monitor.watch_mute(SHORT_S)

        assert len(fake._pending) == 1


async def test_the_time_of_the_last_answer_moves_on(tmp_path):
    async with session(tmp_path) as (_, monitor):
        before_s = monitor.last_answer_s
        latency_s = await monitor.probe()

        assert monitor.last_answer_s > before_s
        assert latency_s < 1


async def test_each_command_is_a_span_that_names_the_vm_and_no_arguments(tmp_path, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(module, "_tracer", provider.get_tracer("test"))
    async with session(tmp_path) as (_, monitor):
        await monitor.execute("query-status")
        with pytest.raises(QemuRefused):
            await monitor.execute("object-del", {"id": "secret"})
        await monitor.probe()

    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["qmp query-status", "qmp object-del"]
    assert [dict(span.attributes or {}) for span in spans] == [{"vm": "web"}] * 2
    assert spans[1].status.status_code is trace.StatusCode.ERROR
