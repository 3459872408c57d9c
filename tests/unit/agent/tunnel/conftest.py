"""Certificates and short directories for tunnels."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.identity import Identity, Role
from common.pki import init_authority, issue
from tests.unit.agent.tunnel.fakes import LOOPBACK, Pair, pair


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's certificates: directories `agent` and `operator`."""
    directory = tmp_path_factory.mktemp("pki")
    init_authority(directory / "ca")
    for role in (Role.AGENT, Role.OPERATOR):
        issue(directory / "ca", directory / role.value, f"one-{role.value}", role, [LOOPBACK])
    return directory


@pytest.fixture(scope="session")
def identity(pki: Path) -> Identity:
    """An agent's certificate."""
    return Identity.in_directory(pki / "agent")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name, as UNIX sockets want."""
    with tempfile.TemporaryDirectory(prefix="ferry-tunnel-") as name:
        yield Path(name)


@pytest.fixture
async def tunnels(directory: Path, identity: Identity) -> AsyncIterator[Pair]:
    """Two tunnels with mTLS between them."""
    async with pair(directory, identity) as both:
        yield both
