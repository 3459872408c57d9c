"""One coordinator, put together."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import structlog

from common.clock import SystemClock
from common.errors import WrongState
from common.identity import Role
from common.rpc.auditing import Auditing
from common.rpc.server import Allowed, Service, serve
from common.tasks import OwnedTasks
from common.telemetry import SpanBuffer
from coordinator.board import Board
from coordinator.config import CoordinatorConfig
from coordinator.fleet import Fleet
from coordinator.journal import Journal
from coordinator.moves import Moves
from coordinator.orphans import Orphans
from coordinator.otlp import SERVICE as OTLP_SERVICE
from coordinator.otlp import TraceReceiver
from coordinator.planning import Planner
from coordinator.servicer import CoordinatorServicer
from coordinator.slots import Slots
from coordinator.traces import Traces
from ferry.coordinator.v1 import coordinator_service_pb2, coordinator_service_pb2_grpc

_CHANGERS: Final = frozenset({Role.OPERATOR, Role.COORDINATOR})
_READERS: Final = frozenset({Role.OPERATOR, Role.VIEWER, Role.COORDINATOR})
READERS: Final = frozenset({"ListHosts", "GetMigration", "ListMigrations", "WatchMigration", "WaitMigration", "GetTrace"})
ALLOWED: Final = Allowed(
    default=_CHANGERS,
    methods={
        **dict.fromkeys(READERS, _READERS),
        "Export": frozenset({Role.OPERATOR, Role.COORDINATOR, Role.AGENT}),  # what is kept takes room: not of who only looks
    },
)
_log = structlog.get_logger()


async def run(config: CoordinatorConfig, spans: SpanBuffer, stopping: asyncio.Event) -> None:
    """Serve until told to stop; migrations go on at the agents, and a new coordinator takes them up.

    Raises:
        FerryError: the coordinator cannot serve as configured.
    """
    _make(config.state_dir)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        journal = Journal(config.state_dir / "journal.db", clock)
        stack.callback(journal.close)
        traces = Traces(config.state_dir / "traces.db", spans.spans_of)
        stack.callback(traces.close)
        receiver = TraceReceiver(traces, config.otlp_endpoint)
        stack.push_async_callback(receiver.close)
        fleet = await stack.enter_async_context(Fleet(config))
        tasks = await stack.enter_async_context(OwnedTasks())
        tasks.start(traces.run())
        tasks.start(receiver.run())
        board = Board(journal)
        tasks.start(board.run())
        stack.callback(board.write_all)
        moves = Moves(fleet, board, traces, clock, tasks, slots=Slots(config.max_outgoing, config.max_incoming))
        moves.recover()
        tasks.start(Orphans(fleet, board, moves, clock).run())
        servicer = CoordinatorServicer(fleet, board, moves, Planner(fleet, clock))
        description = coordinator_service_pb2.DESCRIPTOR.services_by_name["CoordinatorService"]
        name, auditing = description.full_name, Auditing(config.state_dir)
        services = [
            Service(
                name,
                lambda server: coordinator_service_pb2_grpc.add_CoordinatorServiceServicer_to_server(servicer, server),
                auditing.interceptor(frozenset(description.methods_by_name) - READERS - {"PlanMigration"}),
            ),
            Service(OTLP_SERVICE, receiver.add_to),
        ]
        serving = serve(config.listen, config.identity, services, allowed=ALLOWED, reflects=config.reflection)
        port = await stack.enter_async_context(serving)
        listen = f"{config.listen.rpartition(':')[0]}:{port}" if port else config.listen
        _log.info("ready", listen=listen, hosts=sorted(config.hosts), state_dir=str(config.state_dir))
        await stopping.wait()
        _log.info("stopping")


def _make(state_dir: Path) -> None:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WrongState(f"state_dir {state_dir}: {error.strerror}", reason="STATE_DIR_UNUSABLE") from error
    if not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK):
        raise WrongState(f"state_dir {state_dir} may not be written to by this user", reason="STATE_DIR_UNUSABLE")
