"""One migration of a test, started through the coordinator and looked at on both hosts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias
from uuid import uuid4

import grpc
from google.protobuf.duration_pb2 import Duration

from ferry.agent.v1 import agent_service_pb2_grpc as agent_rpc
from ferry.agent.v1 import migration_pb2 as agent_pb
from ferry.common.v1 import budget_pb2 as budget_pb
from ferry.common.v1 import disks_pb2 as disks_pb
from ferry.common.v1 import means_pb2 as means_pb
from ferry.common.v1 import migration_pb2 as common_pb
from ferry.common.v1 import modes_pb2 as modes_pb
from ferry.common.v1 import post_copy_pb2 as post_copy_pb
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc
from tests.e2e.waiting import POLL_S, deadline

Half: TypeAlias = agent_pb.Migration
Whole: TypeAlias = pb.Migration
State = pb.Migration.State
Where = pb.Migration.GuestLocation

OUTCOME_TIMEOUT_S = 40.0
_NS = 1_000_000_000


def seconds(value: float) -> Duration:
    """Make a Duration."""
    span = Duration()
    span.FromNanoseconds(math.floor(value * _NS))
    return span


def wishes(  # noqa: PLR0913 -- what a user may wish
    *,
    plain: bool = False,
    tunnel: bool = False,
    multifd: int = 0,
    bandwidth_mib_s: float = 0,
    max_downtime_s: float | None = None,
    pause: bool = False,
    destination_name: str = "",
    migrate_uri: str = "",
    destination_xml: bytes = b"",
    means: means_pb.Means | None = None,
    post_copy: post_copy_pb.PostCopy | None = None,
    policy: budget_pb.Policy.ValueType = budget_pb.POLICY_UNSPECIFIED,
    max_duration_s: float | None = None,
    on_timeout: budget_pb.TimeoutAction.ValueType = budget_pb.TIMEOUT_ACTION_UNSPECIFIED,
    modes: modes_pb.Modes | None = None,
    disks: disks_pb.DiskWishes | None = None,
) -> common_pb.MigrationOptions:
    """Say what is wished of a migration; direct and encrypted by default."""
    return common_pb.MigrationOptions(
        transport=common_pb.TRANSPORT_TUNNEL if tunnel else common_pb.TRANSPORT_DIRECT,
        plain=plain,
        multifd_channel_count=multifd,
        bandwidth_bytes_per_second=round(bandwidth_mib_s * (1 << 20)),
        max_downtime=None if max_downtime_s is None else seconds(max_downtime_s),
        pause=pause,
        destination_name=destination_name,
        migrate_uri=migrate_uri,
        destination_domain_xml=destination_xml,
        means=means,
        post_copy=post_copy,
        modes=modes,
        disks=disks,
        budget=budget_pb.Budget(
            policy=policy, max_duration=None if max_duration_s is None else seconds(max_duration_s), on_timeout=on_timeout
        ),
    )


WAYS: Mapping[str, Callable[..., common_pb.MigrationOptions]] = {
    "plain": partial(wishes, plain=True),
    "psk": wishes,
    "multifd": partial(wishes, multifd=4),
    "tunnel": partial(wishes, tunnel=True),
}


class Move:
    """A migration that the coordinator has accepted."""

    def __init__(
        self,
        migration_id: str,
        coordinator: rpc.CoordinatorServiceStub,
        source: agent_rpc.AgentServiceStub,
        destination: agent_rpc.AgentServiceStub,
    ) -> None:
        self.id = migration_id
        self._coordinator = coordinator
        self.source = source
        self.destination = destination

    async def whole(self) -> Whole:
        """Ask the coordinator."""
        return (await self._coordinator.GetMigration(pb.GetMigrationRequest(migration_id=self.id))).migration

    async def at_source(self) -> Half:
        """Ask the source's agent."""
        return (await self.source.GetMigration(agent_pb.GetMigrationRequest(migration_id=self.id))).migration

    async def at_destination(self) -> Half:
        """Ask the destination's agent."""
        return (await self.destination.GetMigration(agent_pb.GetMigrationRequest(migration_id=self.id))).migration

    async def outcome(self, *, timeout_s: float = OUTCOME_TIMEOUT_S) -> Whole:
        """Wait until it is final, as the coordinator tells it.

        Raises:
            TimeoutError: it is not in time; the text has its latest state.
        """
        request = pb.WaitMigrationRequest(migration_id=self.id, timeout=seconds(timeout_s))
        move = (await self._coordinator.WaitMigration(request)).migration
        if move.state not in (State.STATE_SUCCEEDED, State.STATE_FAILED, State.STATE_CANCELLED):
            raise TimeoutError(f"migration {self.id} is not final after {timeout_s:g} s:\n{move}")
        return move

    async def wait(self, is_so: Callable[[Whole], object], wanted: str, *, timeout_s: float = 20.0) -> Whole:
        """Follow the coordinator's story until it tells what is wanted."""
        latest = pb.Migration()
        request = pb.WatchMigrationRequest(migration_id=self.id)
        async with deadline(f"{wanted} of migration {self.id}", timeout_s=timeout_s):
            async for response in self._coordinator.WatchMigration(request):
                latest = response.migration
                if is_so(latest):
                    return latest
        raise AssertionError(f"migration {self.id} ended without {wanted}:\n{latest}")

    async def wait_source(self, is_so: Callable[[Half], object], wanted: str, *, timeout_s: float = 20.0) -> Half:
        """Follow the source's half until it tells what is wanted."""
        return await _wait(self.source, self.id, is_so, f"source: {wanted}", timeout_s)

    async def wait_destination(self, is_so: Callable[[Half], object], wanted: str, *, timeout_s: float = 20.0) -> Half:
        """Follow the destination's half until it tells what is wanted."""
        return await _wait(self.destination, self.id, is_so, f"destination: {wanted}", timeout_s)

    async def wait_source_phase(self, *phases: str, timeout_s: float = 20.0) -> Half:
        """Follow the source's half until it is in one of these phases."""
        return await self.wait_source(lambda half: half.phase in phases, " or ".join(phases), timeout_s=timeout_s)

    async def wait_destination_phase(self, *phases: str, timeout_s: float = 20.0) -> Half:
        """Follow the destination's half until it is in one of these phases."""
        return await self.wait_destination(lambda half: half.phase in phases, " or ".join(phases), timeout_s=timeout_s)

    async def wait_transferring(self) -> Half:
        """Wait until memory is on its way."""
        return await self.wait_source(
            lambda half: half.phase == "Transferring" and half.progress.ram_transferred_bytes > 0, "memory on its way"
        )

    async def cancel(self) -> Whole:
        """Ask for a cancel."""
        return (await self._coordinator.CancelMigration(pb.CancelMigrationRequest(migration_id=self.id))).migration

    async def pause(self) -> Whole:
        """Stop the guest for the rest of the transfer."""
        return (await self._coordinator.PauseMigration(pb.PauseMigrationRequest(migration_id=self.id))).migration

    async def unpause(self) -> Whole:
        """Let the guest that was stopped for the transfer go on."""
        return (await self._coordinator.UnpauseMigration(pb.UnpauseMigrationRequest(migration_id=self.id))).migration

    async def start_postcopy(self) -> Whole:
        """Let the guest go now."""
        return (await self._coordinator.StartPostcopy(pb.StartPostcopyRequest(migration_id=self.id))).migration

    async def recover(self) -> Whole:
        """Make a lost connection anew."""
        return (await self._coordinator.RecoverMigration(pb.RecoverMigrationRequest(migration_id=self.id))).migration

    async def update(
        self,
        *,
        bandwidth_mib_s: float | None = None,
        max_downtime_s: float | None = None,
        max_duration_s: float | None = None,
        disk_bandwidth_mib_s: float | None = None,
    ) -> Whole:
        """Change bounds while it runs."""
        request = pb.UpdateMigrationRequest(
            request_id=str(uuid4()),
            migration_id=self.id,
            bandwidth_bytes_per_second=None if bandwidth_mib_s is None else round(bandwidth_mib_s * (1 << 20)),
            max_downtime=None if max_downtime_s is None else seconds(max_downtime_s),
            max_duration=None if max_duration_s is None else seconds(max_duration_s),
            disk_bandwidth_bytes_per_second=None if disk_bandwidth_mib_s is None else round(disk_bandwidth_mib_s * (1 << 20)),
        )
        return (await self._coordinator.UpdateMigration(request)).migration

    async def hasten(self) -> Half:
        """Lift the bound of the bandwidth at the source itself, without the coordinator."""
        epoch = (await self.at_source()).epoch
        request = agent_pb.UpdateMigrationRequest(epoch=epoch, migration_id=self.id, bandwidth_bytes_per_second=0)
        return (await self.source.UpdateMigration(request)).migration


def post_copy(
    when: post_copy_pb.PostCopy.When.ValueType = post_copy_pb.PostCopy.WHEN_AFTER_FIRST_PASS,
    *,
    bandwidth_mib_s: float = 0,
    preempt: bool = False,
) -> post_copy_pb.PostCopy:
    """Say what is wished of post-copy."""
    return post_copy_pb.PostCopy(when=when, bandwidth_bytes_per_second=round(bandwidth_mib_s * (1 << 20)), preempt=preempt)


async def _wait(
    agent: agent_rpc.AgentServiceStub, migration_id: str, is_so: Callable[[Half], object], wanted: str, timeout_s: float
) -> Half:
    latest = agent_pb.Migration()
    async with deadline(f"{wanted} (migration {migration_id})", timeout_s=timeout_s):
        while True:
            try:
                async for response in agent.WatchMigration(agent_pb.WatchMigrationRequest(migration_id=migration_id)):
                    latest = response.migration
                    if is_so(latest):
                        return latest
                raise AssertionError(f"ended without {wanted} (migration {migration_id}):\n{latest}")
            except grpc.aio.AioRpcError as error:  # the agent has yet to hear of it, or is being started again
                if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                    raise
            await asyncio.sleep(POLL_S)
