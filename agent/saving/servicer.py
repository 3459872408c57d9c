"""The gRPC edge of saving: decode, call, encode. No decisions are taken here; errors become statuses in an interceptor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import grpc

from agent import wire
from agent.answers import Answers
from agent.saving.job import Kind, State, VmJob
from agent.saving.vm_jobs import VmJobs
from agent.vm.lifecycle import Vms
from common.errors import InvalidRequest
from ferry.agent.v1 import save_service_pb2 as pb
from ferry.agent.v1 import save_service_pb2_grpc as rpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

READERS: Final = frozenset({"GetVmJob", "WatchVmJob"})
_KINDS: Final = {kind: pb.VmJob.Kind.Value(f"KIND_{kind.name}") for kind in Kind}
_STATES: Final = {state: pb.VmJob.State.Value(f"STATE_{state.name}") for state in State}
_MAX_BANDWIDTH_BYTES_PER_SECOND: Final = 1 << 40


class SaveServicer(rpc.SaveServiceServicer):
    """Answers about saves, restores and dumps."""

    def __init__(self, vms: Vms, jobs: VmJobs) -> None:
        self._vms = vms
        self._jobs = jobs
        self._answers = Answers()

    async def SaveVm(self, request: pb.SaveVmRequest, context: Context) -> pb.SaveVmResponse:
        """Start to save a guest."""

        async def work() -> pb.SaveVmResponse:
            if request.managed is bool(request.path):
                raise InvalidRequest("either a path or `managed` is wanted", reason="VALUE_INVALID")
            job = await self._jobs.save(
                self._vms.get(request.vm),
                request.path,
                bandwidth_bytes_per_second=_bandwidth(request.bandwidth_bytes_per_second),
                is_mapped_ram=request.mapped_ram,
            )
            return pb.SaveVmResponse(job=_job(job))

        return await self._answers.once("SaveVm", request.request_id, work)

    async def RestoreVm(self, request: pb.RestoreVmRequest, context: Context) -> pb.RestoreVmResponse:
        """Start to bring a guest back."""
        if request.dry_run:
            saved = self._jobs.inspect(request.path)
            found = pb.VmJob(kind=pb.VmJob.KIND_RESTORE, vm_name=saved.name, vm_uuid=str(saved.uuid), path=request.path)
            return pb.RestoreVmResponse(job=found)

        async def work() -> pb.RestoreVmResponse:
            job = await self._jobs.restore(request.path, paused=request.paused, force=request.force)
            return pb.RestoreVmResponse(job=_job(job))

        return await self._answers.once("RestoreVm", request.request_id, work)

    async def DumpVm(self, request: pb.DumpVmRequest, context: Context) -> pb.DumpVmResponse:
        """Start to dump a guest's memory."""

        async def work() -> pb.DumpVmResponse:
            job = await self._jobs.dump(self._vms.get(request.vm), request.path, request.format)
            return pb.DumpVmResponse(job=_job(job))

        return await self._answers.once("DumpVm", request.request_id, work)

    async def DiscardSavedVm(self, request: pb.DiscardSavedVmRequest, context: Context) -> pb.DiscardSavedVmResponse:
        """Remove a saved guest."""

        async def work() -> pb.DiscardSavedVmResponse:
            self._jobs.discard_saved(self._vms.get(request.vm))
            return pb.DiscardSavedVmResponse()

        return await self._answers.once("DiscardSavedVm", request.request_id, work)

    async def GetVmJob(self, request: pb.GetVmJobRequest, context: Context) -> pb.GetVmJobResponse:
        """Show a job."""
        return pb.GetVmJobResponse(job=_job(self._jobs.get(request.vm).job))

    async def WatchVmJob(self, request: pb.WatchVmJobRequest, context: Context) -> AsyncIterator[pb.WatchVmJobResponse]:
        """Follow a job to its end."""
        async for job in self._jobs.get(request.vm).follow():
            yield pb.WatchVmJobResponse(job=_job(job))

    async def UpdateVmJob(self, request: pb.UpdateVmJobRequest, context: Context) -> pb.UpdateVmJobResponse:
        """Change the bandwidth of a save."""
        work = self._jobs.get(request.vm)
        await self._jobs.set_bandwidth(work, _bandwidth(request.bandwidth_bytes_per_second))
        return pb.UpdateVmJobResponse(job=_job(work.job))

    async def CancelVmJob(self, request: pb.CancelVmJobRequest, context: Context) -> pb.CancelVmJobResponse:
        """Ask a job to end."""
        work = self._jobs.get(request.vm)
        self._jobs.cancel(work)
        return pb.CancelVmJobResponse(job=_job(work.job))


def _bandwidth(bytes_per_second: int) -> int:
    if not 0 <= bytes_per_second <= _MAX_BANDWIDTH_BYTES_PER_SECOND:
        raise InvalidRequest(
            f"bandwidth {bytes_per_second}: 0 to {_MAX_BANDWIDTH_BYTES_PER_SECOND} bytes a second is wanted", reason="VALUE_INVALID"
        )
    return bytes_per_second


def _job(job: VmJob) -> pb.VmJob:
    return pb.VmJob(
        id=job.id,
        kind=_KINDS[job.kind],
        state=_STATES[job.state],
        vm_name=job.vm_name,
        vm_uuid=str(job.vm_uuid),
        path=str(job.path),
        step=job.step,
        total_bytes=job.total_bytes,
        processed_bytes=job.processed_bytes,
        remaining_bytes=job.remaining_bytes,
        create_time=wire.timestamp(job.started_at_s),
        end_time=None if job.ended_at_s is None else wire.timestamp(job.ended_at_s),
        bandwidth_bytes_per_second=job.bandwidth_bytes_per_second,
        error=job.error,
        reason=job.reason,
    )
