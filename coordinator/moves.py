"""What clients may ask of migrations: start, steer, cancel; and what a new coordinator takes up from the old one."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import structlog
from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.clock import Clock
from common.errors import Busy, FerryError, InvalidRequest, WrongState
from common.tasks import OwnedTasks
from coordinator.agents import Agent
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.halves import Move
from coordinator.traces import Traces
from coordinator.workflows.migrate import Migration

_log = structlog.get_logger()
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Order:
    """What StartMigration asks for; `options` is a serialised message."""

    request_id: str
    vm: str
    source: str
    destination: str
    options: bytes
    wants_tunnel: bool


class Moves:
    """The migrations of this coordinator."""

    def __init__(self, fleet: Fleet, board: Board, traces: Traces, clock: Clock, tasks: OwnedTasks) -> None:
        self._fleet = fleet
        self._board = board
        self._traces = traces
        self._clock = clock
        self._tasks = tasks
        self._started: dict[str, str] = {}

    def recover(self) -> None:
        """Take up every migration that has something left to do, in a new epoch."""
        for move in self._board.unfinished():
            taken = replace(move, epoch=move.epoch + 1)
            try:
                agents = self._fleet.get(taken.source), self._fleet.get(taken.destination)
            except FerryError as error:
                _log.error("migration cannot be taken up", migration=taken.migration_id, error=error.text)
                continue
            self._board.put(taken)
            self._tasks.start(self._run(taken, *agents))
            _log.info("migration taken up", migration=taken.migration_id, epoch=taken.epoch)

    async def start(self, order: Order) -> Move:
        """Accept a migration; it goes on by itself.

        Raises:
            FerryError: it cannot work; nothing was changed.
        """
        if order.request_id in self._started:
            return self._board.get(self._started[order.request_id])
        destination = self._fleet.get(order.destination)
        active = self._board.active_of(order.vm)
        if active is not None:
            raise Busy(
                f"VM {order.vm} is being moved already: migration {active.migration_id}",
                reason="VM_BUSY",
                migration=active.migration_id,
            )
        source = self._fleet.get(order.source) if order.source else await self._fleet.locate(order.vm)
        if source is destination:
            raise InvalidRequest(
                f"VM {order.vm} is on {source.host} already: source and destination are one host",
                reason="SAME_HOST",
                host=source.host,
            )
        await self._fleet.check_running(source, order.vm)
        await self._fleet.check_destination(destination, wants_tunnel=order.wants_tunnel)
        move = Move(
            migration_id=secrets.token_hex(8),
            vm_name=order.vm,
            source=source.host,
            destination=destination.host,
            options=order.options,
            traceparent=_traceparent(),
            epoch=1,
            created_at_s=self._clock.wall_s(),
        )
        self._board.put(move)
        if order.request_id:
            self._started[order.request_id] = move.migration_id
        self._tasks.start(self._run(move, source, destination))
        return move

    async def cancel(self, id_or_beginning: str) -> Move:
        """Ask for a cancel; the outcome is told by following the migration.

        Raises:
            WrongState: it has ended, or the guest was sent.
        """
        move = self._get_active(id_or_beginning)
        source = self._fleet.get(move.source)
        if await source.find(move.migration_id) is not None:
            await source.cancel(move, "cancelled by a client")
        return self._board.change(move.migration_id, cancel_wanted=True)

    async def pause(self, id_or_beginning: str) -> Move:
        """Stop the guest for the rest of the transfer."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).pause(move)
        return self._board.get(move.migration_id)

    async def update(self, id_or_beginning: str, bandwidth_bytes_per_second: int | None, max_downtime_s: float | None) -> Move:
        """Change bounds while it runs."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).update(move, bandwidth_bytes_per_second, max_downtime_s)
        return self._board.get(move.migration_id)

    async def trace(self, id_or_beginning: str) -> bytes:
        """Return every span of a migration's trace, collected anew from both agents."""
        move = self._board.get(id_or_beginning)
        await self._collect(move)
        return self._traces.of(move.trace_id)

    def _get_active(self, id_or_beginning: str) -> Move:
        move = self._board.get(id_or_beginning)
        if move.state.is_final:
            raise WrongState(
                f"migration {move.migration_id} has ended: {move.state.name.lower()}, "
                f"the guest is at the {move.location.name.lower()}",
                reason="MIGRATION_ENDED",
            )
        return move

    async def _run(self, move: Move, source: Agent, destination: Agent) -> None:
        token = otel_context.attach(_propagator.extract({"traceparent": move.traceparent}, otel_context.Context()))
        try:
            await Migration(move.migration_id, source, destination, self._board).run()
            await self._collect(move)
            self._board.drop(move.migration_id)
        except Exception:  # noqa: BLE001 - one migration's bug must not end the coordinator
            _log.exception("workflow ended by a bug", migration=move.migration_id)
            self._board.change(
                move.migration_id, error="a mistake of Ferry's own; the coordinator's log has more", error_reason="BUG"
            )
        finally:
            otel_context.detach(token)

    async def _collect(self, move: Move) -> None:
        """Gather the spans of both agents; best effort."""
        self._traces.keep_own(move.trace_id)
        for host in (move.source, move.destination):
            try:
                self._traces.keep(await self._fleet.get(host).spans(move.trace_id))
            except FerryError as error:
                _log.debug("no spans", host=host, error=error.text)


def _traceparent() -> str:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")
