"""A fake fleet of two hosts and a way to type commands at it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs

from coordinator.cli.app import run
from coordinator.cli.exits import ExitCode
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from tests.unit.cli.fake_fleet import FakeAgent, FakeCoordinator, serve_fakes


@dataclass(frozen=True)
class Typed:
    """What one command did."""

    code: ExitCode
    out: str
    err: str


@dataclass(frozen=True)
class Fleet:
    coordinator: FakeCoordinator
    agent: FakeAgent
    address: str
    ferry: Callable[..., Awaitable[Typed]]


@pytest.fixture
async def fleet(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Fleet]:
    # They answer what the command line asks, and nothing else.
    coordinator = FakeCoordinator()  # type: ignore[abstract]
    agent = FakeAgent()  # type: ignore[abstract]
    with capture_logs():  # the fakes' server is of this process, its log is not the command's
        async with serve_fakes(coordinator, agent) as address:
            coordinator.hosts += [
                pb.Host(name=name, agent_address=address, is_reachable=True, qemu_version="10.0.2", accelerator="tcg")
                for name in ("host-a", "host-b")
            ]

            async def ferry(*arguments: str) -> Typed:
                code = await run([*arguments, "--coordinator", address, "--pki", "none"])
                captured = capsys.readouterr()
                return Typed(code, captured.out, captured.err)

            yield Fleet(coordinator, agent, address, ferry)
