"""The gRPC edge of the agent: decode, call, encode. No decisions are taken here; errors become statuses in an interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from agent import wire, wire_past
from agent.host import Host
from agent.migration import operator_actions
from agent.migration import outgoing as out
from agent.migration.destination import DestinationSession
from agent.migration.machine import Cause
from agent.migration.migrations import Migrations
from agent.vm.lifecycle import DEFAULT_STOP_TIMEOUT_S, Vms
from agent.vm_servicer import VmServicer
from common.errors import InvalidRequest
from common.identity import Role
from common.rpc.peer import is_host, peer
from common.rpc.tracing import server_span
from ferry.agent.v1 import adoption_pb2, host_pb2, statistics_pb2, vm_pb2
from ferry.agent.v1 import migration_pb2 as pb

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

DEFAULT_WAIT_S: Final = 30.0
_MAY_HAVE_TOKEN: Final = (None, Role.COORDINATOR, Role.OPERATOR)  # None is plain text, which is loopback
_PERFORMED = (out.HandedOver, out.Retiring)


class AgentServicer(VmServicer):
    """Answers the coordinator, the command line and other agents."""

    def __init__(
        self,
        host: Host,
        vms: Vms,
        migrations: Migrations,
        *,
        advertised_address: str,
        spans_of: Callable[[str], bytes],
    ) -> None:
        super().__init__(vms)
        self._host = host
        self._migrations = migrations
        self._advertised_address = advertised_address
        self._spans_of = spans_of

    # the host

    async def GetHost(self, request: host_pb2.GetHostRequest, context: Context) -> host_pb2.GetHostResponse:
        """Describe the host."""
        found = self._host.look()
        return host_pb2.GetHostResponse(host=wire.host(self._host.identity, found, len(self._vms.all())))

    async def ListSpans(self, request: host_pb2.ListSpansRequest, context: Context) -> host_pb2.ListSpansResponse:
        """Hand out the spans of one trace."""
        return host_pb2.ListSpansResponse(traces_data=self._spans_of(request.trace_id))

    # VMs

    async def DefineVm(self, request: vm_pb2.DefineVmRequest, context: Context) -> vm_pb2.DefineVmResponse:
        """Check and store a definition."""

        async def work() -> vm_pb2.DefineVmResponse:
            vm = await self._vms.define(request.domain_xml, "domain XML", force=request.force)
            return vm_pb2.DefineVmResponse(vm=wire.vm(await self._vms.view(vm)))

        return await self._answers.once("DefineVm", request.request_id, work)

    async def UndefineVm(self, request: vm_pb2.UndefineVmRequest, context: Context) -> vm_pb2.UndefineVmResponse:
        """Remove the definition of a VM."""

        async def work() -> vm_pb2.UndefineVmResponse:
            unread = self._vms.find_unreadable(request.vm) if request.force else None
            if unread is None:
                await self._vms.undefine(self._vms.get(request.vm), force=request.force)
            else:
                await self._vms.undefine_unreadable(unread)
            return vm_pb2.UndefineVmResponse()

        return await self._answers.once("UndefineVm", request.request_id, work)

    async def StartVm(self, request: vm_pb2.StartVmRequest, context: Context) -> vm_pb2.StartVmResponse:
        """Start a stopped VM."""

        async def work() -> vm_pb2.StartVmResponse:
            vm = self._vms.get(request.vm)
            await self._vms.start(vm, paused=request.paused, force=request.force)
            return vm_pb2.StartVmResponse(vm=wire.vm(await self._vms.view(vm), is_full=True))

        return await self._answers.once("StartVm", request.request_id, work)

    async def StopVm(self, request: vm_pb2.StopVmRequest, context: Context) -> vm_pb2.StopVmResponse:
        """Stop a VM."""

        async def work() -> vm_pb2.StopVmResponse:
            if request.force and (unread := self._vms.find_unreadable(request.vm)) is not None:
                await self._vms.end_unreadable(unread)
                return vm_pb2.StopVmResponse(vm=wire.unreadable_vm(unread))
            vm = self._vms.get(request.vm)
            timeout_s = wire.seconds(request.timeout) if request.HasField("timeout") else DEFAULT_STOP_TIMEOUT_S
            await self._vms.stop(vm, force=request.force, timeout_s=timeout_s, kill=request.kill)
            return vm_pb2.StopVmResponse(vm=wire.vm(await self._vms.view(vm)))

        return await self._answers.once("StopVm", request.request_id, work)

    async def GetVm(self, request: vm_pb2.GetVmRequest, context: Context) -> vm_pb2.GetVmResponse:
        """Show one VM in full."""
        if (unread := self._vms.find_unreadable(request.vm)) is not None:
            return vm_pb2.GetVmResponse(vm=wire.unreadable_vm(unread))
        return vm_pb2.GetVmResponse(vm=wire.vm(await self._vms.view(self._vms.get(request.vm)), is_full=True))

    async def ListVms(self, request: vm_pb2.ListVmsRequest, context: Context) -> vm_pb2.ListVmsResponse:
        """List the VMs of this host."""
        unread = [wire.unreadable_vm(one) for one in self._vms.unreadable()]
        return vm_pb2.ListVmsResponse(vms=[*(wire.vm(view) for view in await self._vms.views()), *unread])

    async def AdoptVm(self, request: adoption_pb2.AdoptVmRequest, context: Context) -> adoption_pb2.AdoptVmResponse:
        """Take over a running QEMU, or say what that would mean."""

        async def work() -> adoption_pb2.AdoptVmResponse:
            qmp_path = Path(request.qmp_path)
            plan = await self._vms.plan_adoption(qmp_path, request.name)
            if request.dry_run:
                return adoption_pb2.AdoptVmResponse(plan=wire.adoption_plan(plan))
            vm = await self._vms.adopt(qmp_path, plan)
            view = wire.vm(await self._vms.view(vm), is_full=True)
            return adoption_pb2.AdoptVmResponse(vm=view, plan=wire.adoption_plan(plan))

        return await self._answers.once("AdoptVm", request.request_id, work)

    async def ReleaseVm(self, request: adoption_pb2.ReleaseVmRequest, context: Context) -> adoption_pb2.ReleaseVmResponse:
        """Let go of an adopted VM."""

        async def work() -> adoption_pb2.ReleaseVmResponse:
            ran = await self._vms.release(self._vms.get(request.vm))
            return adoption_pb2.ReleaseVmResponse(pid=0 if ran.process is None else ran.process.pid, qmp_path=str(ran.qmp_path))

        return await self._answers.once("ReleaseVm", request.request_id, work)

    async def WatchEvents(self, request: vm_pb2.WatchEventsRequest, context: Context) -> AsyncIterator[vm_pb2.WatchEventsResponse]:
        """Follow the life of the VMs."""
        async for event in self._vms.events.follow(request.after_sequence):
            yield vm_pb2.WatchEventsResponse(event=wire.vm_event(event))

    # migrations, step by step

    async def BeginMigration(self, request: pb.BeginMigrationRequest, context: Context) -> pb.BeginMigrationResponse:
        """Take a running VM for a migration."""

        async def work() -> pb.BeginMigrationResponse:
            wish = wire.wish(request)
            session, begun = await self._migrations.begin(wish)
            return wire.begun(session, begun)

        return await self._answers.once("BeginMigration", request.request_id, work)

    async def PrepareMigration(self, request: pb.PrepareMigrationRequest, context: Context) -> pb.PrepareMigrationResponse:
        """Make this host ready for the guest."""

        async def work() -> pb.PrepareMigrationResponse:
            session, endpoint = await self._migrations.prepare(wire.offer(request))
            return pb.PrepareMigrationResponse(
                migration=wire.migration(session),
                endpoint=wire.endpoint_message(endpoint),
                agent_address=self._advertised_address,
            )

        return await self._answers.once("PrepareMigration", request.request_id, work)

    async def PerformMigration(
        self, request: pb.PerformMigrationRequest, context: Context
    ) -> AsyncIterator[pb.PerformMigrationResponse]:
        """Transfer and hand over; the stream ends when the guest was handed over or stays."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        session = self._migrations.get_source(request.migration_id)

        async def work() -> None:
            if isinstance(session.phase, out.Begun):
                endpoint = wire.endpoint(request.endpoint)
                await session.perform(endpoint, request.destination_agent_address, request.destination_host)

        await self._answers.once("PerformMigration", request.request_id, work)
        with session.attention.held():
            async for _ in session.follow():
                is_last = isinstance(session.phase, _PERFORMED)  # as told: it may change while the answer is sent
                yield pb.PerformMigrationResponse(migration=wire.migration(session, with_token=_may_have_token(context)))
                if is_last:
                    return

    async def ResumeMigration(self, request: pb.ResumeMigrationRequest, context: Context) -> pb.ResumeMigrationResponse:
        """Let the guest go on here."""
        ran_for_s = await self._resume(request)
        session = self._migrations.get_destination(request.migration_id)
        return pb.ResumeMigrationResponse(migration=wire.migration(session), ran_for=wire.duration(ran_for_s))

    async def _resume(self, request: pb.ResumeMigrationRequest) -> float:
        session = self._migrations.get_destination(request.migration_id)
        return await session.resume(request.resume_token, keep_paused=request.keep_paused)

    async def HandOver(
        self, request_iterator: AsyncIterator[pb.HandOverRequest], context: Context
    ) -> AsyncIterator[pb.HandOverResponse]:
        """Take Resume on a stream that has long been open."""
        await context.send_initial_metadata(())  # else the caller could only begin to read the answer when it is there
        async for request in request_iterator:
            with server_span(wire.RESUME_METHOD, [("traceparent", request.traceparent)]):
                ran_for_s = await self._resume(request.resume)
            yield pb.HandOverResponse(ran_for=wire.duration(ran_for_s))

    async def ReportChannels(self, request: pb.ReportChannelsRequest, context: Context) -> pb.ReportChannelsResponse:
        """Take the source's word for which connections are its own."""
        session = self._get_for_source(request.migration_id, context)
        session.report_channels(tuple(request.local_ports), is_complete=request.is_complete)
        return pb.ReportChannelsResponse()

    async def PingMigration(self, request: pb.PingMigrationRequest, context: Context) -> pb.PingMigrationResponse:
        """Say that this agent is there and holds the destination's half."""
        session = self._migrations.get_destination(request.migration_id)
        session.source_address = request.source_agent_address
        return pb.PingMigrationResponse()

    async def ClaimGuest(self, request: pb.ClaimGuestRequest, context: Context) -> pb.ClaimGuestResponse:
        """Give the guest to a destination whose agent is away, as Resume would have."""
        session = self._migrations.get_source(request.migration_id)
        token = session.claim(peer(context).name)
        return pb.ClaimGuestResponse(resume_token=token, keep_paused=session.facts.stays_paused)

    async def FinishMigration(self, request: pb.FinishMigrationRequest, context: Context) -> pb.FinishMigrationResponse:
        """Keep the VM here."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        session = self._migrations.get_destination(request.migration_id)
        await session.finish()
        return pb.FinishMigrationResponse(migration=wire.migration(session))

    async def ConfirmMigration(self, request: pb.ConfirmMigrationRequest, context: Context) -> pb.ConfirmMigrationResponse:
        """End the source's QEMU."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        lost = wire.lost_guest(request.lost) if request.HasField("lost") else None
        return pb.ConfirmMigrationResponse(migration=wire.migration(await self._migrations.confirm(request.migration_id, lost)))

    # steering

    async def AbandonMigration(self, request: pb.AbandonMigrationRequest, context: Context) -> pb.AbandonMigrationResponse:
        """Undo Prepare."""
        if request.resume_token or peer(context).role is Role.AGENT:
            await self._migrations.abandon_for_source(request.migration_id, request.resume_token)
            return pb.AbandonMigrationResponse(migration=wire.migration(self._migrations.get_destination(request.migration_id)))
        self._migrations.check_epoch(request.migration_id, request.epoch)
        cause = Cause(request.cause or "the migration was given up", "ABANDONED", by_wish=True)
        has_ended = request.source_has_ended
        session = await self._migrations.abandon(request.migration_id, cause, source_has_ended=has_ended)
        return pb.AbandonMigrationResponse(migration=wire.migration(session))

    async def CancelMigration(self, request: pb.CancelMigrationRequest, context: Context) -> pb.CancelMigrationResponse:
        """Keep the guest here."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        cause = Cause(request.cause or "cancelled by a client", "CANCELLED", by_wish=True)
        return pb.CancelMigrationResponse(migration=wire.migration(await self._migrations.cancel(request.migration_id, cause)))

    async def PauseMigration(self, request: pb.PauseMigrationRequest, context: Context) -> pb.PauseMigrationResponse:
        """Stop the guest for the rest of the transfer."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        return pb.PauseMigrationResponse(migration=wire.migration(await self._migrations.pause(request.migration_id)))

    async def UnpauseMigration(self, request: pb.UnpauseMigrationRequest, context: Context) -> pb.UnpauseMigrationResponse:
        """Let the guest go on while memory is sent."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        return pb.UnpauseMigrationResponse(migration=wire.migration(await self._migrations.unpause(request.migration_id)))

    async def UpdateMigration(self, request: pb.UpdateMigrationRequest, context: Context) -> pb.UpdateMigrationResponse:
        """Change bandwidth and longest downtime."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        session = self._migrations.get_source(request.migration_id)
        has_bandwidth, has_downtime = request.HasField("bandwidth_bytes_per_second"), request.HasField("max_downtime")
        await session.set_limits(
            bandwidth_bytes_per_second=request.bandwidth_bytes_per_second if has_bandwidth else None,
            max_downtime_s=wire.seconds(request.max_downtime) if has_downtime else None,
            max_duration_s=wire.seconds(request.max_duration) if request.HasField("max_duration") else None,
            disk_bandwidth_bytes_per_second=(
                request.disk_bandwidth_bytes_per_second if request.HasField("disk_bandwidth_bytes_per_second") else None
            ),
        )
        return pb.UpdateMigrationResponse(migration=wire.migration(session))

    async def StartPostcopy(self, request: pb.StartPostcopyRequest, context: Context) -> pb.StartPostcopyResponse:
        """Let the guest go now, and the rest of its memory after it."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        session = self._migrations.get_source(request.migration_id)
        session.start_postcopy(request.cause or "ordered by a client")
        return pb.StartPostcopyResponse(migration=wire.migration(session))

    async def RecoverMigration(self, request: pb.RecoverMigrationRequest, context: Context) -> pb.RecoverMigrationResponse:
        """Make a lost connection anew, now."""
        self._migrations.check_epoch(request.migration_id, request.epoch)
        session = self._migrations.get_source(request.migration_id)
        session.recovery.ask()
        return pb.RecoverMigrationResponse(migration=wire.migration(session))

    async def ProvePath(self, request: pb.ProvePathRequest, context: Context) -> pb.ProvePathResponse:
        """Give a lost connection up, and echo where QEMU is going to listen."""
        proof = await self._get_for_source(request.migration_id, context).link.prove_path()
        return pb.ProvePathResponse(uri=proof.uri, is_fragile=proof.is_fragile)

    async def ReopenMigration(self, request: pb.ReopenMigrationRequest, context: Context) -> pb.ReopenMigrationResponse:
        """Let QEMU listen anew."""
        endpoint = await self._get_for_source(request.migration_id, context).link.reopen()
        return pb.ReopenMigrationResponse(endpoint=wire.endpoint_message(endpoint))

    async def FenceMigration(self, request: pb.FenceMigrationRequest, context: Context) -> pb.FenceMigrationResponse:
        """Own the guest here."""
        session = self._migrations.get(request.migration_id)
        await operator_actions.fence(session, peer_is_dead=request.peer_is_dead)
        return pb.FenceMigrationResponse(migration=wire.migration(session))

    async def ReleaseMigration(self, request: pb.ReleaseMigrationRequest, context: Context) -> pb.ReleaseMigrationResponse:
        """Let go of this host's half."""
        session = self._migrations.get(request.migration_id)
        await operator_actions.release(session, is_forced=request.force)
        return pb.ReleaseMigrationResponse(migration=wire.migration(session))

    def _get_for_source(self, migration_id: str, context: Context) -> DestinationSession:
        """Return the destination's half for a caller that has to be the agent of its source.

        Raises:
            InvalidRequest: it is another host's.
        """
        session, caller = self._migrations.get_destination(migration_id), peer(context)
        if caller.role is Role.AGENT and not is_host(caller.name, session.facts.peer):
            raise InvalidRequest(
                f"migration {migration_id}: its source is {session.facts.peer}, the caller's certificate is that of {caller.name}; "
                "an agent's certificate has to carry the name of its host (ferry pki issue)",
                reason="NOT_THE_SOURCE",
            )
        return session

    # looking

    async def GetMigration(self, request: pb.GetMigrationRequest, context: Context) -> pb.GetMigrationResponse:
        """Show one half."""
        session = self._migrations.get(request.migration_id)
        if _may_drive(context):
            session.attention.note()
        return pb.GetMigrationResponse(migration=wire.migration(session, with_token=_may_have_token(context)))

    async def ListMigrations(self, request: pb.ListMigrationsRequest, context: Context) -> pb.ListMigrationsResponse:
        """List the halves."""
        sessions = [one for one in self._migrations.all() if not (request.unfinished and one.is_over)]
        return pb.ListMigrationsResponse(migrations=[wire.migration(session) for session in sessions])

    async def WatchMigration(self, request: pb.WatchMigrationRequest, context: Context) -> AsyncIterator[pb.WatchMigrationResponse]:
        """Send the current state at once, then every change, and end after a final one."""
        session = self._migrations.get(request.migration_id)
        with session.attention.held() if _may_drive(context) else nullcontext():
            async for _ in session.follow():
                yield pb.WatchMigrationResponse(migration=wire.migration(session, with_token=_may_have_token(context)))

    async def WaitMigration(self, request: pb.WaitMigrationRequest, context: Context) -> pb.WaitMigrationResponse:
        """Wait until one half is final, at most for the given time."""
        session = self._migrations.get(request.migration_id)
        timeout_s = wire.seconds(request.timeout) if request.HasField("timeout") else DEFAULT_WAIT_S
        try:
            async with asyncio.timeout(timeout_s):
                while not session.is_over:
                    await session.wait_change()
        except TimeoutError:
            pass
        return pb.WaitMigrationResponse(migration=wire.migration(session))

    async def ListMigrationStatistics(
        self, request: statistics_pb2.ListMigrationStatisticsRequest, context: Context
    ) -> statistics_pb2.ListMigrationStatisticsResponse:
        """List the figures of a VM's migrations."""
        found = self._migrations.statistics(request.vm)
        return statistics_pb2.ListMigrationStatisticsResponse(migrations=[wire_past.statistics(past) for past in found])


def _may_drive(context: Context) -> bool:
    """Say whether who looks on may be driving the migration; other agents and operators look for themselves."""
    return peer(context).role in {None, Role.COORDINATOR}


def _may_have_token(context: Context) -> bool:
    return peer(context).role in _MAY_HAVE_TOKEN
