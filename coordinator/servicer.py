"""The gRPC edge of the coordinator: decode, call, encode. No decisions are taken here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, TypeAlias

import grpc

from common.rpc.peer import title
from coordinator import wire
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.halves import Bounds
from coordinator.moves import Moves
from coordinator.planning import Planner
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc

DEFAULT_WAIT_S: Final = 30.0
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CoordinatorServicer(rpc.CoordinatorServiceServicer):
    """Answers operators and viewers."""

    def __init__(self, fleet: Fleet, board: Board, moves: Moves, planner: Planner) -> None:
        self._fleet = fleet
        self._board = board
        self._moves = moves
        self._planner = planner

    async def ListHosts(self, request: pb.ListHostsRequest, context: Context) -> pb.ListHostsResponse:
        """List the hosts and how they are."""
        return pb.ListHostsResponse(hosts=[wire.host(state) for state in await self._fleet.look()])

    async def PlanMigration(self, request: pb.PlanMigrationRequest, context: Context) -> AsyncIterator[pb.PlanMigrationResponse]:
        """Look at a migration beforehand."""
        wire.check_request(request)
        options = request.options.SerializeToString()
        async with aclosing(self._planner.plan(request.vm, request.source_host, request.destination_host, options)) as events:
            async for event in events:
                if isinstance(event, str):
                    yield pb.PlanMigrationResponse(step=event)
                else:
                    yield pb.PlanMigrationResponse(plan=wire.plan(event))

    async def StartMigration(self, request: pb.StartMigrationRequest, context: Context) -> pb.StartMigrationResponse:
        """Start moving a VM and return at once."""
        order = wire.order(request)
        forecast = self._planner.find_forecast(order.vm, order.destination, order.options)
        move = await self._moves.start(replace(order, forecast=forecast, started_by=title(context)))
        return pb.StartMigrationResponse(migration=wire.migration(move))

    async def GetMigration(self, request: pb.GetMigrationRequest, context: Context) -> pb.GetMigrationResponse:
        """Show one migration."""
        return pb.GetMigrationResponse(migration=wire.migration(self._board.get(request.migration_id)))

    async def ListMigrations(self, request: pb.ListMigrationsRequest, context: Context) -> pb.ListMigrationsResponse:
        """List migrations, the newest first."""
        moves = self._board.newest(request.vm, wire.page_size(request.page_size))
        return pb.ListMigrationsResponse(migrations=[wire.migration(move) for move in moves])

    async def WatchMigration(self, request: pb.WatchMigrationRequest, context: Context) -> AsyncIterator[pb.WatchMigrationResponse]:
        """Send the current state at once, then every change, and end after a final one."""
        async for move in self._board.follow(request.migration_id):
            yield pb.WatchMigrationResponse(migration=wire.migration(move))

    async def WaitMigration(self, request: pb.WaitMigrationRequest, context: Context) -> pb.WaitMigrationResponse:
        """Wait until a migration is final, at most for the given time."""
        timeout_s = wire.wait_s(request.timeout) if request.HasField("timeout") else DEFAULT_WAIT_S
        move = self._board.get(request.migration_id)
        try:
            async with asyncio.timeout(timeout_s):
                async for current in self._board.follow(move.migration_id):
                    move = current
        except TimeoutError:
            pass
        return pb.WaitMigrationResponse(migration=wire.migration(move))

    async def CancelMigration(self, request: pb.CancelMigrationRequest, context: Context) -> pb.CancelMigrationResponse:
        """Ask for a cancel."""
        return pb.CancelMigrationResponse(migration=wire.migration(await self._moves.cancel(request.migration_id)))

    async def PauseMigration(self, request: pb.PauseMigrationRequest, context: Context) -> pb.PauseMigrationResponse:
        """Stop the guest for the rest of the transfer."""
        return pb.PauseMigrationResponse(migration=wire.migration(await self._moves.pause(request.migration_id)))

    async def UnpauseMigration(self, request: pb.UnpauseMigrationRequest, context: Context) -> pb.UnpauseMigrationResponse:
        """Let the guest go on while memory is sent."""
        return pb.UnpauseMigrationResponse(migration=wire.migration(await self._moves.unpause(request.migration_id)))

    async def UpdateMigration(self, request: pb.UpdateMigrationRequest, context: Context) -> pb.UpdateMigrationResponse:
        """Change bounds while it runs."""
        bandwidth = request.bandwidth_bytes_per_second if request.HasField("bandwidth_bytes_per_second") else None
        max_downtime_s = wire.seconds(request.max_downtime) if request.HasField("max_downtime") else None
        max_duration_s = wire.seconds(request.max_duration) if request.HasField("max_duration") else None
        has_disk_bandwidth = request.HasField("disk_bandwidth_bytes_per_second")
        disk_bandwidth = request.disk_bandwidth_bytes_per_second if has_disk_bandwidth else None
        wire.check_bounds(bandwidth, max_downtime_s)
        bounds = Bounds(bandwidth, max_downtime_s, max_duration_s, disk_bandwidth)
        move = await self._moves.update(request.migration_id, bounds)
        return pb.UpdateMigrationResponse(migration=wire.migration(move))

    async def StartPostcopy(self, request: pb.StartPostcopyRequest, context: Context) -> pb.StartPostcopyResponse:
        """Let the guest go now, and the rest of its memory after it."""
        return pb.StartPostcopyResponse(migration=wire.migration(await self._moves.start_postcopy(request.migration_id)))

    async def RecoverMigration(self, request: pb.RecoverMigrationRequest, context: Context) -> pb.RecoverMigrationResponse:
        """Make a lost connection anew, now."""
        return pb.RecoverMigrationResponse(migration=wire.migration(await self._moves.recover_connection(request.migration_id)))

    async def ReleaseMigration(self, request: pb.ReleaseMigrationRequest, context: Context) -> pb.ReleaseMigrationResponse:
        """Give up a migration whose hosts do not all answer."""
        return pb.ReleaseMigrationResponse(migration=wire.migration(await self._moves.release(request.migration_id)))

    async def GetTrace(self, request: pb.GetTraceRequest, context: Context) -> pb.GetTraceResponse:
        """Hand out the spans of a migration's trace."""
        return pb.GetTraceResponse(traces_data=await self._moves.trace(request.migration_id))
