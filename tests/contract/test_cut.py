"""A QEMU whose peer went silent is freed by cutting its socket, on real QEMUs only: a fake has no sockets to cut."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent.qemu.cut import TcpState, connections, cut
from agent.qemu.errors import QemuSilent
from agent.qemu.machine import Endpoint
from agent.qemu.status import MigrationStatus, RunState, migration_status_of
from agent.qemu.subscription import Event
from tests.contract.lab import PSK
from tests.contract.real import real_qemu
from tests.fakes.network import LOOPBACK, black_hole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.qemu.commands import Qemu
    from agent.qemu.cut import Connection
    from agent.qemu.subscription import Subscription

REACH_TIMEOUT_S = 5.0
MUTE_S = 0.3
FREED_S = 0.25
POLL_S = 0.002


async def connection_to(qemu: Qemu, port: int, state: TcpState) -> Connection:
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while True:
            for connection in connections(qemu.monitor.process.pid):
                if connection.remote[1] == port and connection.state is state:
                    return connection
            await asyncio.sleep(POLL_S)


async def wait_status(story: Subscription, status: MigrationStatus) -> None:
    async with asyncio.timeout(REACH_TIMEOUT_S):
        async for notice in story:
            if isinstance(notice, Event) and migration_status_of(notice) is status:
                return


@asynccontextmanager
async def a_source(binary: Path) -> AsyncIterator[tuple[Qemu, Subscription]]:
    async with real_qemu(binary) as qemu:
        await qemu.cont()
        await qemu.set_capabilities({"events": True, "return-path": True})
        with qemu.monitor.subscribe() as story:
            yield qemu, story


@asynccontextmanager
async def silent_peer() -> AsyncIterator[int]:
    """Accept one connection and say nothing."""
    done = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await done.wait()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    yield server.sockets[0].getsockname()[1]
    done.set()
    server.close()


async def use_key(qemu: Qemu, directory: Path, endpoint: Endpoint) -> None:
    (directory / "keys.psk").write_text(PSK, encoding="ascii")
    await qemu.add_psk("tls", directory, endpoint, "m")
    await qemu.set_parameters({"tls-creds": "tls"})


async def test_a_source_stuck_in_the_tls_handshake_runs_on_when_cut(binary: Path, tmp_path: Path):
    async with a_source(binary) as (qemu, story), silent_peer() as port:
        await use_key(qemu, tmp_path, Endpoint.CLIENT)
        await qemu.migrate(f"tcp:{LOOPBACK}:{port}")
        await qemu.monitor.watch_mute(MUTE_S)

        cut_s = time.monotonic()
        assert cut(qemu.monitor.process.pid, await connection_to(qemu, port, TcpState.ESTABLISHED))
        await wait_status(story, MigrationStatus.FAILED)

        assert time.monotonic() - cut_s < FREED_S
        assert await qemu.query_status() is RunState.RUNNING


async def test_a_source_whose_syn_is_dropped_gives_up_when_cut(binary: Path):
    async with a_source(binary) as (qemu, story):
        with black_hole() as (host, port):
            await qemu.migrate(f"tcp:{host}:{port}")
            connection = await connection_to(qemu, port, TcpState.SYN_SENT)

            assert cut(qemu.monitor.process.pid, connection)
            await wait_status(story, MigrationStatus.FAILED)

        assert (await qemu.query_migrate()).error_desc
        assert await qemu.query_status() is RunState.RUNNING


async def test_a_cancel_while_the_syn_is_dropped_ends_when_cut_and_a_new_try_works(binary: Path):
    async with a_source(binary) as (qemu, story):
        with black_hole() as (host, port):
            await qemu.migrate(f"tcp:{host}:{port}")
            connection = await connection_to(qemu, port, TcpState.SYN_SENT)
            await qemu.migrate_cancel()

            assert cut(qemu.monitor.process.pid, connection)
            await wait_status(story, MigrationStatus.CANCELLED)
            async with asyncio.timeout(REACH_TIMEOUT_S):
                while await qemu.has_migration_channels():  # noqa: ASYNC110  (QEMU is polled)
                    await asyncio.sleep(POLL_S)
        async with silent_peer() as other:
            await qemu.migrate(f"tcp:{LOOPBACK}:{other}")
            await wait_status(story, MigrationStatus.ACTIVE)


async def test_a_destination_muted_by_a_stranger_answers_when_the_stranger_is_cut(binary: Path, tmp_path: Path):
    async with real_qemu(binary, incoming=True) as qemu:
        await use_key(qemu, tmp_path, Endpoint.SERVER)
        await qemu.migrate_incoming(f"tcp:{LOOPBACK}:0")
        port = (await qemu.query_migrate()).port
        assert port is not None
        with socket.create_connection((LOOPBACK, port)) as stranger:
            await qemu.monitor.watch_mute(MUTE_S)
            with pytest.raises(QemuSilent):
                await qemu.monitor.execute("query-status", timeout_s=MUTE_S)

            own_port = stranger.getsockname()[1]
            assert cut(qemu.monitor.process.pid, await connection_to(qemu, own_port, TcpState.ESTABLISHED))
            assert await qemu.query_status() is RunState.INMIGRATE


async def test_a_listening_destination_shows_its_listener_only_when_asked(binary: Path):
    async with real_qemu(binary, incoming=True) as qemu:
        await qemu.migrate_incoming("tcp:[::1]:0")
        pid = qemu.monitor.process.pid

        assert connections(pid) == ()
        (listener,) = connections(pid, with_listening=True)
        assert listener.local == ("::1", (await qemu.query_migrate()).port)
