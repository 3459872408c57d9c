"""The command `ferry-tunnel`: what it prints, what it refuses, how much memory it takes, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from agent.tunnel.client import TunnelClient
from tests.unit.agent.tunnel.fakes import LOOPBACK, Pair

MIB = 1024 * 1024
ROOT = Path(__file__).parents[4]
STALL_S = 1.0
GROWTH_LIMIT_BYTES = 48 * MIB


class Process:
    """A ferry-tunnel of our own."""

    def __init__(self, directory: Path, name: str, security: list[str]) -> None:
        self.control = directory / f"{name}.control"
        self.log = directory / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "agent.tunnel",
            "--listen",
            f"{LOOPBACK}:0",
            "--control",
            str(self.control),
            "--name",
            name,
        ]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen([*command, *security, "--log-level", "debug"], stderr=log, env=environment, cwd="/")

    @property
    def rss_bytes(self) -> int:
        return psutil.Process(self.popen.pid).memory_info().rss

    async def ready(self) -> int:
        """Wait for the line that says so; return the port."""
        async with asyncio.timeout(20.0):
            while True:
                for line in self.log.read_text().splitlines():
                    if '"ready"' in line:
                        port: int = json.loads(line)["port"]
                        return port
                assert self.popen.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    def end(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(5.0)


@contextmanager
def processes(directory: Path, *security: str) -> Iterator[tuple[Process, Process]]:
    both = (Process(directory, "source", list(security)), Process(directory, "destination", list(security)))
    try:
        yield both
    finally:
        for one in both:
            one.popen.kill()
            one.popen.wait(5.0)


@pytest.fixture
def two(directory: Path, pki: Path) -> Iterator[tuple[Process, Process]]:
    """Two tunnels, with certificates."""
    with processes(directory, "--pki", str(pki / "agent")) as both:
        yield both


async def connect(directory: Path, two: tuple[Process, Process], stack: AsyncExitStack) -> Pair:
    clients = [await stack.enter_async_context(TunnelClient(one.control)) for one in two]
    tunnels = Pair(directory, clients[0], clients[1], [await one.ready() for one in two][1])
    stack.callback(tunnels.qemu.close)
    return tunnels


async def test_sigterm_ends_every_connection_and_leaves_nothing(directory, two):
    async with AsyncExitStack() as stack:
        tunnels = await connect(directory, two, stack)
        await tunnels.open()
        source, destination = await tunnels.connect()

        code = await asyncio.to_thread(two[0].end)
        await source.wait_end()
        await destination.wait_end()

    assert code == 0
    assert not tunnels.entrance_path.exists()
    assert not two[0].control.exists()
    assert "Traceback" not in two[0].log.read_text() + two[1].log.read_text()


async def test_a_killed_tunnel_ends_the_connections_on_both_sides(directory, two):
    async with AsyncExitStack() as stack:
        tunnels = await connect(directory, two, stack)
        await tunnels.open()
        source, destination = await tunnels.connect()

        two[1].popen.kill()

        await source.wait_end()
        await destination.wait_end()


async def test_neither_tokens_nor_guest_bytes_are_logged(directory, two):
    token, guest = secrets.token_hex(32), secrets.token_hex(32)
    async with AsyncExitStack() as stack:
        tunnels = await connect(directory, two, stack)
        await tunnels.open_exit(token=token)
        await tunnels.open_entrance(token=token)
        source, destination = await tunnels.connect()
        await source.send(guest.encode())
        await destination.receive_exactly(len(guest))
        destination.close()
        await source.wait_end()

    for one in two:
        one.end()
    logs = two[0].log.read_text() + two[1].log.read_text()
    assert "connection broke" in logs or "entrance opened" in logs
    assert token not in logs
    assert guest not in logs


async def test_a_stalled_reader_does_not_make_either_tunnel_grow(directory, two):
    async with AsyncExitStack() as stack:
        tunnels = await connect(directory, two, stack)
        await tunnels.open()
        source, _stalled = await tunnels.connect()
        before_bytes = [one.rss_bytes for one in two]

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(STALL_S):
                await source.send(bytes(512 * MIB))

        growth_bytes = [one.rss_bytes - before for one, before in zip(two, before_bytes, strict=True)]
    assert max(growth_bytes) < GROWTH_LIMIT_BYTES


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no certificates: give --pki DIR, or --insecure"),
        (["--insecure", "--listen", "0.0.0.0:0"], "plain text is for loopback only"),
        (["--insecure", "--frame-size", "1"], "frame-size 1:"),
        (["--pki", "/nowhere"], "certificate file /nowhere/ca.pem"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(directory, arguments, text):
    control = directory / "x.control"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
    command = [sys.executable, "-m", "agent.tunnel", "--listen", f"{LOOPBACK}:0", "--control", str(control), *arguments]

    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/", timeout=20)

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"ferry-tunnel: {text}") or text in ended.stderr.splitlines()[-1]
    assert not control.exists()
