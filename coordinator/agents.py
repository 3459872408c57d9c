"""The agents of the fleet, as the coordinator calls them: typed, with a deadline on each call, in our own errors.

`Unreachable` and `Expired` mean that the call may have happened: it may be repeated, since every request carries an id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from common.errors import Expired, FerryError, NotFound, Unreachable
from common.identity import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from coordinator.agent_plans import Arrival, Departure, Seen
from coordinator.halves import Advice, Bounds, Half, HalfState, Location, Move
from ferry.agent.v1 import agent_service_pb2_grpc as rpc
from ferry.agent.v1 import host_pb2, vm_pb2
from ferry.agent.v1 import migration_pb2 as pb
from ferry.agent.v1 import plan_service_pb2 as plan_pb
from ferry.agent.v1 import plan_service_pb2_grpc as plan_rpc
from ferry.common.v1 import migration_pb2 as common_pb2

LOOK_TIMEOUT_S: Final = 2.0
BEGIN_TIMEOUT_S: Final = 15.0
PREPARE_TIMEOUT_S: Final = 60.0
RESUME_TIMEOUT_S: Final = 8.0
FINISH_TIMEOUT_S: Final = 15.0
_NS: Final = 1_000_000_000
Q = TypeVar("Q")
R = TypeVar("R")


class _WithHalf(Protocol):
    """An answer that tells what a half is now."""

    @property
    def migration(self) -> pb.Migration: ...


A = TypeVar("A", bound=_WithHalf)


@dataclass(frozen=True, slots=True)
class Begun:
    """Begin's answer, for Prepare."""

    definition: bytes
    resume_token_sha256: bytes
    source: bytes
    half: Half


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prepare's answer, for Perform; the endpoint holds secrets and is never stored."""

    endpoint: bytes
    agent_address: str
    half: Half

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Prepared(agent_address={self.agent_address!r})"


@dataclass(frozen=True, slots=True)
class HostView:
    """A host as its agent describes it."""

    qemu_version: str
    accelerator: str
    memory_available_bytes: int
    vm_count: int
    agent_version: str
    warnings: tuple[str, ...]


class Presence(Enum):
    """How a VM is on a host; LEFT: its definition stayed when its guest was moved away."""

    RUNS = "runs"
    STOPPED = "stopped"
    LEFT = "left"


class Agent:
    """The agent of one host."""

    def __init__(self, host: str, address: str, tunnel_address: str, identity: Identity | None) -> None:
        self.host = host
        self.address = address
        self.tunnel_address = tunnel_address
        self._peer = f"the agent of {host} at {address}"
        self._channel = open_channel(address, identity)
        self._stub = rpc.AgentServiceStub(self._channel)
        self._plans = plan_rpc.PlanServiceStub(self._channel)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def look(self, *, timeout_s: float = LOOK_TIMEOUT_S) -> HostView:
        """Describe the host."""
        with calls_to(self._peer):
            found = (await self._stub.GetHost(host_pb2.GetHostRequest(), timeout=timeout_s)).host
        return HostView(
            found.qemu_version,
            found.accelerator,
            found.memory_available_bytes,
            found.vm_count,
            found.agent_version,
            tuple(found.warnings),
        )

    async def find_vm(self, name_or_uuid: str) -> Presence | None:
        """Say how a VM is there; None when the host has none of that name, or only one on its way there."""
        try:
            with calls_to(self._peer):
                answer = await self._stub.GetVm(vm_pb2.GetVmRequest(vm=name_or_uuid), timeout=LOOK_TIMEOUT_S)
        except NotFound:
            return None
        state = answer.vm.state
        if state == vm_pb2.Vm.STATE_INCOMING or (answer.vm.job == _COMING and state not in _WITH_GUEST):
            return None  # its QEMU may have ended already while what it leaves behind is removed
        if state not in _NOT_RUNNING:
            return Presence.RUNS
        return Presence.LEFT if answer.vm.moved_to else Presence.STOPPED

    async def spans(self, trace_id: str) -> bytes:
        """Return the spans of a trace that the agent holds."""
        with calls_to(self._peer):
            return (await self._stub.ListSpans(host_pb2.ListSpansRequest(trace_id=trace_id), timeout=LOOK_TIMEOUT_S)).traces_data

    async def begin(self, move: Move) -> Begun:
        """Source: take the VM."""
        request = pb.BeginMigrationRequest(
            request_id=f"{move.migration_id}-begin",
            epoch=move.epoch,
            migration_id=move.migration_id,
            vm=move.vm_uuid or move.vm_name,
            options=common_pb2.MigrationOptions.FromString(move.options),
        )
        with self._refusals():
            answer = await self._stub.BeginMigration(request, timeout=BEGIN_TIMEOUT_S)
        return Begun(answer.definition, answer.resume_token_sha256, answer.source.SerializeToString(), _half(answer.migration))

    async def prepare(self, move: Move, begun: Begun) -> Prepared:
        """Destination: make ready for the guest."""
        request = pb.PrepareMigrationRequest(
            request_id=f"{move.migration_id}-prepare",
            epoch=move.epoch,
            migration_id=move.migration_id,
            definition=begun.definition,
            resume_token_sha256=begun.resume_token_sha256,
            source=pb.SourceFacts.FromString(begun.source),
            options=common_pb2.MigrationOptions.FromString(move.options),
        )
        with self._refusals():
            answer = await self._stub.PrepareMigration(request, timeout=PREPARE_TIMEOUT_S)
        if answer.endpoint.tunnel_token and self.tunnel_address:
            answer.endpoint.tunnel_address = self.tunnel_address
        return Prepared(answer.endpoint.SerializeToString(), self.address, _half(answer.migration))

    async def perform(self, move: Move, prepared: Prepared) -> AsyncGenerator[Half]:
        """Source: transfer and hand over; yields the half at every change."""
        request = pb.PerformMigrationRequest(
            request_id=f"{move.migration_id}-perform",
            epoch=move.epoch,
            migration_id=move.migration_id,
            endpoint=pb.Endpoint.FromString(prepared.endpoint),
            destination_agent_address=prepared.agent_address,
            destination_host=move.destination,
        )
        async with self._stream(self._stub.PerformMigration(request)) as responses:
            async for response in responses:
                yield _half(response.migration)

    async def watch(self, migration_id: str) -> AsyncGenerator[Half]:
        """Either: follow a half until it is final."""
        async with self._stream(self._stub.WatchMigration(pb.WatchMigrationRequest(migration_id=migration_id))) as responses:
            async for response in responses:
                yield _half(response.migration)

    async def find(self, migration_id: str, *, timeout_s: float = LOOK_TIMEOUT_S) -> Half | None:
        """Either: return the half, or None when the agent does not know it."""
        try:
            with calls_to(self._peer):
                answer = await self._stub.GetMigration(pb.GetMigrationRequest(migration_id=migration_id), timeout=timeout_s)
        except NotFound:
            return None
        return _half(answer.migration)

    async def unfinished(self) -> list[Half]:
        """Either: list the halves that have not ended."""
        with calls_to(self._peer):
            answer = await self._stub.ListMigrations(pb.ListMigrationsRequest(unfinished=True), timeout=LOOK_TIMEOUT_S)
        return [_half(message) for message in answer.migrations if not message.is_final]

    async def glance(self, migration_id: str) -> Half | None:
        """Either: return the half without being taken for somebody who drives it."""
        with calls_to(self._peer):
            answer = await self._stub.ListMigrations(pb.ListMigrationsRequest(), timeout=LOOK_TIMEOUT_S)
        return next((_half(message) for message in answer.migrations if message.id == migration_id), None)

    async def release(self, migration_id: str) -> Half:
        """Either: let go of the half, where that makes no second copy of the guest and ends no only one."""
        request = pb.ReleaseMigrationRequest(request_id=f"{migration_id}-release", migration_id=migration_id)
        return await self._change(self._stub.ReleaseMigration, request)

    async def resume(self, migration_id: str, token: bytes, *, keep_paused: bool) -> None:
        """Destination: let the guest go on there, as the source's agent would."""
        request = pb.ResumeMigrationRequest(
            request_id=f"{migration_id}-resume", migration_id=migration_id, resume_token=token, keep_paused=keep_paused
        )
        with calls_to(self._peer):
            await self._stub.ResumeMigration(request, timeout=RESUME_TIMEOUT_S)

    async def finish(self, move: Move) -> Half:
        """Destination: keep the VM."""
        request = pb.FinishMigrationRequest(
            request_id=f"{move.migration_id}-finish", epoch=move.epoch, migration_id=move.migration_id
        )
        return await self._change(self._stub.FinishMigration, request)

    async def confirm(self, move: Move) -> Half:
        """Source: end its QEMU."""
        request = pb.ConfirmMigrationRequest(
            request_id=f"{move.migration_id}-confirm", epoch=move.epoch, migration_id=move.migration_id
        )
        return await self._change(self._stub.ConfirmMigration, request)

    async def confirm_lost(self, move: Move, lost: Half) -> Half:
        """Source: end its QEMU, since the guest was taken over and has ended at the destination."""
        request = pb.ConfirmMigrationRequest(
            request_id=f"{move.migration_id}-confirm-lost",
            epoch=move.epoch,
            migration_id=move.migration_id,
            lost=pb.LostGuest(
                cause=f"{move.destination}: {lost.error}", reason=lost.error_reason, is_definition_kept=lost.is_definition_kept
            ),
        )
        return await self._change(self._stub.ConfirmMigration, request)

    async def cancel(self, move: Move, cause: str) -> Half:
        """Source: keep the guest."""
        request = pb.CancelMigrationRequest(
            request_id=f"{move.migration_id}-cancel", epoch=move.epoch, migration_id=move.migration_id, cause=cause
        )
        return await self._change(self._stub.CancelMigration, request)

    async def abandon(self, move: Move, cause: str, *, source_has_ended: bool = False) -> Half:
        """Destination: undo Prepare."""
        request = pb.AbandonMigrationRequest(
            request_id=f"{move.migration_id}-abandon",
            epoch=move.epoch,
            migration_id=move.migration_id,
            cause=cause,
            source_has_ended=source_has_ended,
        )
        return await self._change(self._stub.AbandonMigration, request)

    async def pause(self, move: Move) -> Half:
        """Source: stop the guest for the rest of the transfer."""
        request = pb.PauseMigrationRequest(epoch=move.epoch, migration_id=move.migration_id)
        return await self._change(self._stub.PauseMigration, request)

    async def unpause(self, move: Move) -> Half:
        """Source: let a guest that was stopped for the transfer go on."""
        request = pb.UnpauseMigrationRequest(epoch=move.epoch, migration_id=move.migration_id)
        return await self._change(self._stub.UnpauseMigration, request)

    async def start_postcopy(self, move: Move) -> Half:
        """Source: let the guest go now, and the rest of its memory after it."""
        request = pb.StartPostcopyRequest(epoch=move.epoch, migration_id=move.migration_id)
        return await self._change(self._stub.StartPostcopy, request)

    async def recover(self, move: Move) -> Half:
        """Source: make a connection that was lost in post-copy anew."""
        request = pb.RecoverMigrationRequest(epoch=move.epoch, migration_id=move.migration_id)
        return await self._change(self._stub.RecoverMigration, request)

    async def update(self, move: Move, bounds: Bounds) -> Half:
        """Source: change bounds."""
        request = pb.UpdateMigrationRequest(
            epoch=move.epoch,
            migration_id=move.migration_id,
            bandwidth_bytes_per_second=bounds.bandwidth_bytes_per_second,
            disk_bandwidth_bytes_per_second=bounds.disk_bandwidth_bytes_per_second,
        )
        if bounds.max_downtime_s is not None:
            request.max_downtime.FromNanoseconds(round(bounds.max_downtime_s * _NS))
        if bounds.max_duration_s is not None:
            request.max_duration.FromNanoseconds(round(bounds.max_duration_s * _NS))
        return await self._change(self._stub.UpdateMigration, request)

    @asynccontextmanager
    async def plan_departure(self) -> AsyncIterator[Departure]:
        """Source: look at a guest beforehand; what is needed for it goes with the context."""
        call = self._plans.PlanDeparture()
        try:
            yield Departure(call, self._refusals)
        finally:
            call.cancel()

    @asynccontextmanager
    async def plan_arrival(self, plan_id: str, seen: Seen, options: bytes) -> AsyncIterator[Arrival]:
        """Destination: look whether the guest could come, and have an end of the way open with the context."""
        request = plan_pb.PlanArrivalRequest(
            plan_id=plan_id,
            definition=seen.definition,
            source=pb.SourceFacts.FromString(seen.source),
            options=common_pb2.MigrationOptions.FromString(options),
        )
        async with self._stream(self._plans.PlanArrival(request)) as responses:
            answer = await anext(aiter(responses))
            if answer.endpoint.tunnel_token and self.tunnel_address:
                answer.endpoint.tunnel_address = self.tunnel_address
            yield Arrival.of(answer)

    async def _change(self, call: grpc.aio.UnaryUnaryMultiCallable[Q, A], request: Q) -> Half:
        """Change a half, and return what it is then."""
        with calls_to(self._peer):
            return _half((await call(request, timeout=FINISH_TIMEOUT_S)).migration)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Name the host in what its agent says: `this host` means nothing to who reads it elsewhere."""
        try:
            with calls_to(self._peer):
                yield
        except FerryError as error:
            if self.host in error.text:
                raise
            raise type(error)(f"{self.host}: {error.text}", reason=error.reason, **error.facts) from error

    @asynccontextmanager
    async def _stream(self, call: grpc.aio.UnaryStreamCall[Any, R]) -> AsyncIterator[grpc.aio.UnaryStreamCall[Any, R]]:
        """Own a stream: it is cancelled when the caller has heard enough."""
        try:
            with self._refusals():
                yield call
        finally:
            call.cancel()


_COMING: Final = "migration-in"
_WITH_GUEST: Final = (vm_pb2.Vm.STATE_RUNNING, vm_pb2.Vm.STATE_PAUSED)
_NOT_RUNNING: Final = (vm_pb2.Vm.STATE_STOPPED, vm_pb2.Vm.STATE_CRASHED)
_KNOWN_STATES: Final = frozenset(state.value for state in HalfState)
_VERBS: Final = {
    pb.Advice.COMMAND_FENCE: "fence",
    pb.Advice.COMMAND_RELEASE: "release",
    pb.Advice.COMMAND_RECOVER: "recover",
}
_KNOWN_LOCATIONS: Final = frozenset(location.value for location in Location)
MAY_HAVE_HAPPENED: Final = (Unreachable, Expired)


def _half(message: pb.Migration) -> Half:
    """Decode a half; a state that only a newer agent knows is UNSPECIFIED, which nothing is concluded from."""
    return Half(
        state=HalfState(message.state) if message.state in _KNOWN_STATES else HalfState.UNSPECIFIED,
        phase=message.phase,
        status=message.status,
        location=Location(message.guest_location) if message.guest_location in _KNOWN_LOCATIONS else Location.UNKNOWN,
        is_final=message.is_final,
        error=message.error,
        error_reason=message.error_reason,
        vm_name=message.vm_name,
        vm_uuid=message.vm_uuid,
        guest_ran=message.guest_ran,
        waiting_for=message.waiting_for,
        resume_token=message.resume_token,
        keep_paused=message.keep_paused,
        options=_bytes(message, "options"),
        progress=_bytes(message, "progress"),
        downtime=_bytes(message, "downtime"),
        phases=tuple((leg.name, leg.duration.ToNanoseconds() / _NS) for leg in message.phases),
        warnings=tuple(message.warnings),
        epoch=message.epoch,
        advice=tuple(Advice(_VERBS[one.command], one.is_forced, one.condition) for one in message.advice if one.command in _VERBS),
        is_definition_kept=message.is_definition_kept,
        migration_id=message.id,
        is_source=message.role == pb.Migration.ROLE_SOURCE,
        peer=message.peer,
        began_at_s=message.create_time.ToNanoseconds() / _NS,
        unattended_s=message.unattended.ToNanoseconds() / _NS,
    )


def _bytes(message: pb.Migration, name: str) -> bytes:
    value = getattr(message, name)
    return value.SerializeToString() if isinstance(value, Message) and message.HasField(name) else b""  # type: ignore[arg-type]
