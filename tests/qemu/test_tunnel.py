"""Real QEMUs migrate through two tunnels, and the destination's memory is the source's, byte by byte."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from agent.tunnel.client import TunnelClient
from common.identity import Identity, Role
from common.pki import init_authority, issue
from tests.bench.qmp import QmpError
from tests.bench.raw import Guest, Options, RawQemu, listen, start
from tests.binaries import MOSTLY_OLDER, skip_without
from tests.contract.real import MACHINE
from tests.unit.agent.tunnel.fakes import LOOPBACK, SESSION, Pair, pair

MIB = 1024 * 1024
MEMORY_KIB = 64 * 1024 + 8
CONTENT_AT = 16 * MIB
CONTENT_BYTES = 32 * MIB


@pytest.fixture(params=MOSTLY_OLDER)
def binary(request: pytest.FixtureRequest) -> Path:
    """A real QEMU."""
    return Path(skip_without(request.param))


@pytest.fixture
def identity(place: Path) -> Identity:
    """An agent's certificate."""
    init_authority(place / "ca")
    issue(place / "ca", place / "pki", "host", Role.AGENT, [LOOPBACK])
    return Identity.in_directory(place / "pki")


def guest(binary: Path, *more: str) -> Guest:
    return Guest(("-machine", MACHINE, "-accel", "tcg", "-m", f"{MEMORY_KIB}k", *more), str(binary))


def guest_with_content(binary: Path, place: Path) -> Guest:
    """A guest that has nothing to run, and much in its memory."""
    path = place / "content"
    path.write_bytes(random.Random(5).randbytes(CONTENT_BYTES))
    return guest(binary, "-device", f"loader,file={path},addr={CONTENT_AT:#x},force-raw=on")


async def open_way(tunnels: Pair, uri: str, connection_count: int) -> str:
    """Open a session to the UNIX socket that a destination listens on; return the URI for the source."""
    token = "a token"
    digest = hashlib.sha256(token.encode()).digest()
    await tunnels.destination.open_exit(SESSION, digest, Path(uri.removeprefix("unix:")), connection_count, 60.0)
    address = f"{LOOPBACK}:{tunnels.peer_port}"
    await tunnels.source.open_entrance(SESSION, token, tunnels.entrance_path, address, connection_count)
    return f"unix:{tunnels.entrance_path}"


async def send(source: RawQemu, destination: RawQemu, uri: str) -> None:
    """Move the guest; both stand still afterwards."""
    await source.qmp.execute("migrate", {"uri": uri})
    await source.qmp.wait_event("MIGRATION", status="pre-switchover")
    await source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
    await source.qmp.wait_event("MIGRATION", status="completed")
    await destination.qmp.wait_event("MIGRATION", status="completed")


async def memory(qemu: RawQemu) -> bytes:
    path = qemu.directory / "memory"
    await qemu.qmp.execute("pmemsave", {"val": CONTENT_AT, "size": CONTENT_BYTES + MIB, "filename": str(path)})
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize("channel_count", [1, 4])
async def test_memory_arrives_as_it_was(place, binary, identity, channel_count):
    connection_count = 1 if channel_count == 1 else 1 + channel_count
    async with (
        pair(place, identity) as tunnels,
        start(guest_with_content(binary, place), place / "a") as source,
        start(guest(binary), place / "b", incoming=True) as destination,
    ):
        uri = await listen(source, destination, Options(channel_count=channel_count, is_unix=True))
        await send(source, destination, await open_way(tunnels, uri, connection_count))
        (entrance,) = await tunnels.source.list_sessions()

        assert await memory(source) == await memory(destination)
        assert entrance.connection_count == connection_count
        assert entrance.forward_bytes > CONTENT_BYTES
        assert entrance.backward_bytes > 0
        assert entrance.error == ""
        await destination.qmp.execute("cont")
        await destination.qmp.wait_event("RESUME")


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_session_that_is_closed_in_the_middle_leaves_the_guest_on_the_source(place, binary, identity, side):
    async with (
        pair(place, identity) as tunnels,
        start(guest_with_content(binary, place), place / "a") as source,
        start(guest(binary), place / "b", incoming=True) as destination,
    ):
        uri = await listen(source, destination, Options(is_unix=True, bandwidth_bytes_s=MIB))
        await source.qmp.execute("migrate", {"uri": await open_way(tunnels, uri, 1)})
        await source.qmp.wait_event("MIGRATION", status="active")

        client: TunnelClient = getattr(tunnels, side)
        await client.close_session(SESSION)

        with pytest.raises(QmpError, match="the migration failed"):
            await source.qmp.wait_event("MIGRATION", status="completed", timeout_s=5.0)
        assert (await source.qmp.execute("query-status"))["status"] == "running"
