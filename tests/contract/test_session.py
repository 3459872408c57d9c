"""What the agent relies on in a QMP session, on fakes and on real QEMUs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuGone, QemuInUse, QemuRefused, QemuSilent
from agent.qemu.monitor import Monitor
from agent.qemu.status import MigrationStatus, RunState
from agent.qemu.subscription import Event, Gone, Reconnected

if TYPE_CHECKING:
    from tests.contract.lab import Lab

SHORT_S = 0.3


async def test_the_facts_of_a_qemu_are_understood(lab: Lab):
    async with lab.qemu() as qemu:
        version = await qemu.query_version()
        machines = await qemu.query_machines()
        models = await qemu.query_cpu_definitions()
        capabilities = await qemu.query_capabilities()
        words = await qemu.feature_words()
        memory = await qemu.query_memory_size()

        assert f"{version.major}.{version.minor}" == lab.version
        assert await qemu.machine_type() == "pc-q35-7.2"
        assert "pc-q35-7.2" in {machine.name for machine in machines}
        assert {"qemu64", "max"} <= {model.name for model in models}
        assert {"events", "return-path", "pause-before-switchover"} <= set(capabilities)
        assert words[1, 0, "EDX"] & 1  # an FPU
        assert (0x80000001, 0, "EDX") in words
        assert await qemu.unavailable_features() == ()
        assert memory.base_bytes % 1024 == 0
        assert await qemu.query_name() is None
        assert await qemu.query_uuid() == "00000000-0000-0000-0000-000000000000"
        assert "max-bandwidth" in await qemu.query_parameters()
        assert (await qemu.query_migrate()).status is MigrationStatus.NONE


async def test_an_unknown_command_is_refused_with_its_class(lab: Lab):
    async with lab.qemu() as qemu:
        with pytest.raises(QemuRefused) as caught:
            await qemu.monitor.execute("x-no-such-command")

        assert caught.value.error_class == "CommandNotFound"
        assert await qemu.query_status() is RunState.RUNNING


async def test_stop_and_cont_are_told_by_events_before_their_replies(lab: Lab):
    async with lab.qemu() as qemu:
        with qemu.monitor.subscribe() as notices:
            await qemu.stop()
            await qemu.cont()

            names = [notice.name for notice in (await anext(notices), await anext(notices)) if isinstance(notice, Event)]
        assert names == ["STOP", "RESUME"]


async def test_an_event_reaches_its_reader_before_the_next_reply_is_asked_for(lab: Lab):
    async with lab.qemu() as qemu:
        with qemu.monitor.subscribe() as notices:
            await qemu.stop()
            event = await anext(notices)

        assert isinstance(event, Event)
        assert time.monotonic() - event.received_s < SHORT_S


async def test_commands_in_flight_together_are_answered_each(lab: Lab):
    async with lab.qemu() as qemu, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(qemu.query_status()) for _ in range(100)]

    assert {answer.result() for answer in answers} == {RunState.RUNNING}


async def test_a_second_client_is_told_that_the_socket_is_in_use(lab: Lab):
    async with lab.qemu() as qemu:
        monitor = qemu.monitor
        with pytest.raises(QemuInUse, match="is in use by another client"):
            async with Monitor(monitor.path, monitor.process, vm="second", connect_timeout_s=SHORT_S):
                pass

        assert await qemu.query_status() is RunState.RUNNING


async def test_a_lost_connection_comes_back_and_says_so(lab: Lab):
    async with lab.qemu() as qemu:
        with qemu.monitor.subscribe() as notices:
            connection = qemu.monitor._connection
            assert connection is not None
            connection.shut_down()

            assert isinstance(await anext(notices), Reconnected)
            assert await qemu.query_status() is RunState.RUNNING


async def test_a_command_given_while_the_connection_is_lost_waits_for_it(lab: Lab):
    async with lab.qemu() as qemu:
        connection = qemu.monitor._connection
        assert connection is not None
        connection.shut_down()
        await connection.wait_lost()

        assert await qemu.query_status() is RunState.RUNNING


async def test_the_next_client_is_served_once_the_first_has_left(lab: Lab):
    async with lab.qemu() as qemu:
        monitor = qemu.monitor
        async with asyncio.TaskGroup() as tasks:
            second = tasks.create_task(_ask_alone(Monitor(monitor.path, monitor.process, vm="second")))
            await monitor.probe()
            connection = monitor._connection
            assert connection is not None
            connection.shut_down()

        assert second.result() is RunState.RUNNING


async def _ask_alone(monitor: Monitor) -> RunState:
    async with monitor:
        return await Qemu(monitor).query_status()


async def test_a_killed_qemu_is_gone_for_readers_and_callers(lab: Lab):
    async with lab.qemu() as qemu:
        with qemu.monitor.subscribe() as notices:
            lab.kill(qemu)

            assert [notice async for notice in notices] == [Gone()]
            with pytest.raises(QemuGone):
                await qemu.query_status()


async def test_quit_is_told_before_the_end(lab: Lab):
    async with lab.qemu() as qemu:
        with qemu.monitor.subscribe() as notices:
            await qemu.quit()

            told = [notice async for notice in notices]

    names = [notice.name for notice in told if isinstance(notice, Event)]
    assert names == ["SHUTDOWN"]
    assert told[-1] == Gone()


async def test_a_blocked_qemu_is_silent_and_answers_again_when_freed(lab: Lab):
    async with lab.qemu() as qemu:
        async with lab.blocked(qemu):
            with pytest.raises(QemuSilent, match=r"query-status: no answer in 0\.3 s"):
                await qemu.monitor.execute("query-status", timeout_s=SHORT_S)

        assert await qemu.query_status() is RunState.RUNNING


async def test_a_blocked_qemu_is_noticed_by_the_mute_watch(lab: Lab):
    async with lab.qemu() as qemu, lab.blocked(qemu):
        async with asyncio.timeout(5 * SHORT_S):
            await qemu.monitor.watch_mute(SHORT_S)


async def test_a_healthy_qemu_is_not_taken_for_mute(lab: Lab):
    async with lab.qemu() as qemu:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * SHORT_S):
                await qemu.monitor.watch_mute(SHORT_S)


async def test_the_mute_watch_ends_when_qemu_does(lab: Lab):
    async with lab.qemu() as qemu:
        lab.kill(qemu)

        with pytest.raises(QemuGone):
            await qemu.monitor.watch_mute(SHORT_S)


async def test_out_of_band_commands_work_after_any_number_of_unanswered_ones(lab: Lab):
    async with lab.qemu() as qemu, lab.blocked(qemu):
        for _ in range(12):
            with pytest.raises(QemuSilent):
                await qemu.monitor.execute("query-status", timeout_s=0.02)

        assert isinstance(await qemu.monitor.execute_oob("query-yank"), list)
