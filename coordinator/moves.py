"""What clients may ask of migrations: start, steer, cancel; and what a new coordinator takes up from the old one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, replace

import structlog
from opentelemetry import context as otel_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.clock import Clock
from common.errors import Bug, Busy, FerryError, InvalidRequest, WrongState
from common.rpc.acting import acting_for
from common.tasks import OwnedTasks
from coordinator.agents import MAY_HAVE_HAPPENED, Agent
from coordinator.board import Board
from coordinator.fleet import Fleet
from coordinator.halves import Bounds, Move, MoveState
from coordinator.slots import Slots
from coordinator.traces import Traces
from coordinator.workflows import give_up
from coordinator.workflows.migrate import migrate
from coordinator.workflows.moving import WAITING, Moving, Origin
from coordinator.workflows.pace import Pace

_log = structlog.get_logger()
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Order:
    """What StartMigration asks for; `options` and `forecast` are serialised messages, the latter empty without a fresh plan."""

    request_id: str
    vm: str
    source: str
    destination: str
    options: bytes
    wants_tunnel: bool
    is_offline: bool = False
    forecast: bytes = b""
    started_by: str = ""


class Moves:
    """The migrations of this coordinator."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a coordinator
        self,
        fleet: Fleet,
        board: Board,
        traces: Traces,
        clock: Clock,
        tasks: OwnedTasks,
        pace: Pace | None = None,
        *,
        slots: Slots,
    ) -> None:
        self._fleet = fleet
        self._board = board
        self._traces = traces
        self._clock = clock
        self._tasks = tasks
        self._pace = pace or Pace()
        self._slots = slots
        self._runs: dict[str, asyncio.Task[None]] = {}

    def recover(self) -> None:
        """Take up every migration that has something left to do, in a new epoch."""
        for move in self._board.unfinished():
            taken = replace(move, epoch=move.epoch + 1)
            self._board.take_up(taken)
            try:
                agents = self._fleet.get(taken.source), self._fleet.get(taken.destination)
            except FerryError as error:
                _log.error("migration cannot be taken up", migration=taken.migration_id, error=error.text)
                self._stop(taken, f"{error.text}; the coordinator takes it up when it is started with that host", WAITING)
                continue
            self._start(self._run(taken, *agents, Origin.JOURNAL), taken)
            _log.info("migration taken up", migration=taken.migration_id, epoch=taken.epoch)

    def take_up(self, move: Move, origin: Origin) -> None:
        """Drive a migration of which agents hold sides that nobody drives.

        Raises:
            NotFound: the fleet has not both hosts.
        """
        agents = self._fleet.get(move.source), self._fleet.get(move.destination)
        self._board.put(move)
        self._start(self._run(move, *agents, origin), move)

    async def release(self, id_or_beginning: str) -> Move:
        """Give up a migration whose hosts do not all answer; what answers lets go of its side.

        Raises:
            WrongState: it has ended, both hosts answer, or a side may have the only copy of the guest: the text says what works.
        """
        move = self._board.get(id_or_beginning)
        task = self._runs.get(move.migration_id)
        if task is None:
            raise WrongState(f"migration {move.migration_id}: this coordinator waits for nothing of it", reason="MIGRATION_ENDED")
        agents = self._fleet.get(move.source), self._fleet.get(move.destination)
        moving = Moving(move.migration_id, *agents, self._board, self._clock, self._slots, self._pace, origin=Origin.JOURNAL)
        words = await give_up.let_go(moving)
        task.cancel()
        await asyncio.wait([task])
        give_up.tell(moving, *words)
        self._board.drop(move.migration_id)
        return self._board.get(move.migration_id)

    def _start(self, run: Coroutine[None, None, None], move: Move) -> None:
        with acting_for(move.started_by):
            task = self._tasks.start(run)
        self._runs[move.migration_id] = task
        task.add_done_callback(lambda _: self._runs.pop(move.migration_id, None))

    async def start(self, order: Order) -> Move:
        """Accept a migration; it goes on by itself. The same request again gives the same migration.

        Raises:
            FerryError: it cannot work; nothing was changed.
        """
        known = self._known(order)
        if known is not None:
            return known
        destination = self._fleet.get(order.destination)
        source = self._fleet.get(order.source) if order.source else await self._fleet.locate(order.vm)
        if source is destination:
            raise InvalidRequest(
                f"VM {order.vm} is on {source.host} already: source and destination are one host",
                reason="SAME_HOST",
                host=source.host,
            )
        await self._fleet.check_movable(source, order.vm, is_offline=order.is_offline)
        await self._fleet.check_destination(destination, wants_tunnel=order.wants_tunnel)
        known = self._known(order)  # others may have come meanwhile
        if known is not None:
            return known
        move = Move(
            migration_id=secrets.token_hex(8),
            vm_name=order.vm,
            source=source.host,
            destination=destination.host,
            options=order.options,
            traceparent=_traceparent(),
            epoch=1,
            created_at_s=self._clock.wall_s(),
            request_id=order.request_id,
            forecast=order.forecast,
            started_by=order.started_by,
        )
        self._board.put(move)
        self._start(self._run(move, source, destination, Origin.CLIENT), move)
        return move

    def _known(self, order: Order) -> Move | None:
        """Find the migration that this very request started.

        Raises:
            Busy: another one moves the VM.
        """
        known = self._board.find_request(order.request_id)
        active = self._board.active_of(order.vm)
        if known is None and active is not None:
            raise Busy(
                f"VM {order.vm} is being moved already: migration {active.migration_id}",
                reason="VM_BUSY",
                migration=active.migration_id,
            )
        return known

    async def cancel(self, id_or_beginning: str) -> Move:
        """Ask for a cancel; the outcome is told by following the migration.

        A source whose agent does not answer now is told later: the wish is kept.

        Raises:
            WrongState: it has ended, or the guest was sent.
        """
        move = self._get_active(id_or_beginning)
        self._board.change(move.migration_id, cancel_wanted=True)
        source = self._fleet.get(move.source)
        try:
            if await source.find(move.migration_id) is not None:
                await source.cancel(move, "")
        except MAY_HAVE_HAPPENED as error:
            _log.info("cancel not heard yet", migration=move.migration_id, error=error.text)
            self._tasks.start(self._repeat_cancel(move, source))
        return self._board.get(move.migration_id)

    async def _repeat_cancel(self, move: Move, source: Agent) -> None:
        """Tell a source that did not answer, until it has: it may go on without its stream ever being broken."""
        for delay_s in self._pace.delays():
            await asyncio.sleep(delay_s)
            if self._board.get(move.migration_id).state.is_final:
                return
            try:
                if await source.find(move.migration_id) is not None:
                    await source.cancel(move, "")
            except MAY_HAVE_HAPPENED:
                continue
            except FerryError as error:
                _log.info("cancel not taken", migration=move.migration_id, error=error.text)
            return

    async def pause(self, id_or_beginning: str) -> Move:
        """Stop the guest for the rest of the transfer."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).pause(move)
        return self._board.get(move.migration_id)

    async def unpause(self, id_or_beginning: str) -> Move:
        """Let a guest that was stopped for the transfer go on."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).unpause(move)
        return self._board.get(move.migration_id)

    async def start_postcopy(self, id_or_beginning: str) -> Move:
        """Let the guest go now, and the rest of its memory after it."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).start_postcopy(move)
        return self._board.get(move.migration_id)

    async def recover_connection(self, id_or_beginning: str) -> Move:
        """Make a connection that was lost in post-copy anew, now."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).recover(move)
        return self._board.get(move.migration_id)

    async def update(self, id_or_beginning: str, bounds: Bounds) -> Move:
        """Change bounds while it runs."""
        move = self._get_active(id_or_beginning)
        await self._fleet.get(move.source).update(move, bounds)
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

    async def _run(self, move: Move, source: Agent, destination: Agent, origin: Origin) -> None:
        token = otel_context.attach(_propagator.extract({"traceparent": move.traceparent}, otel_context.Context()))
        try:
            await migrate(
                Moving(move.migration_id, source, destination, self._board, self._clock, self._slots, self._pace, origin=origin)
            )
            await self._collect(move)
            if self._board.get(move.migration_id).is_tidy:
                self._board.drop(move.migration_id)
        except Exception:  # noqa: BLE001 - one migration's bug must not end the coordinator
            _log.exception("workflow ended by a bug", migration=move.migration_id)
            self._stop(
                move,
                "a mistake of Ferry's own, the coordinator's log has more; a coordinator that is started again takes it up",
                Bug.default_reason,
            )
        finally:
            otel_context.detach(token)

    def _stop(self, move: Move, text: str, reason: str) -> None:
        """Tell that nothing more is done for a migration; an end that was told stays."""
        if not self._board.get(move.migration_id).state.is_final:
            self._board.change(move.migration_id, state=MoveState.WAITING, error=text, error_reason=reason)

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
