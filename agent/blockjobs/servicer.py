"""The gRPC edge of jobs on disks: decode, call, encode. No decisions are taken here; errors become statuses in an interceptor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias

import grpc
import structlog

from agent import wire
from agent.answers import Answers
from agent.blockjobs.block_job import BlockJob, Kind, State
from agent.blockjobs.block_jobs import BlockJobs
from agent.blockjobs.chain import Layer
from agent.blockjobs.disks import SeenDisk
from agent.blockjobs.mirrors import is_copy
from agent.blockjobs.orders import CommitOrder, CopyOrder, PullOrder
from agent.vm.lifecycle import Vms
from agent.vm.vm import Vm
from common.errors import FerryError, InvalidRequest
from ferry.agent.v1 import block_service_pb2 as pb
from ferry.agent.v1 import block_service_pb2_grpc as rpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()

READERS: Final = frozenset({"ListDisks", "GetBlockJob", "WatchBlockJob"})
_KINDS: Final = {kind: pb.BlockJob.Kind.Value(f"KIND_{kind.name}") for kind in Kind}
_STATES: Final = {state: pb.BlockJob.State.Value(f"STATE_{state.name}") for state in State}
_MAX_BANDWIDTH_BYTES_PER_SECOND: Final = 1 << 40


class BlockServicer(rpc.BlockServiceServicer):
    """Answers about disks and the jobs on them."""

    def __init__(self, vms: Vms, jobs: BlockJobs) -> None:
        self._vms = vms
        self._jobs = jobs
        self._answers = Answers()

    async def ListDisks(self, request: pb.ListDisksRequest, context: Context) -> pb.ListDisksResponse:
        """List disks with their images and jobs."""
        if request.vm:
            return pb.ListDisksResponse(disks=await self._disks_of(self._vms.get(request.vm)))
        disks: list[pb.DiskChain] = []
        for vm in self._vms.all():
            if vm.running is not None and not vm.is_incoming:
                try:
                    disks += await self._disks_of(vm)
                except FerryError as error:  # it has ended meanwhile, or does not answer: that is no reason to hide the others
                    _log.warning("disks of a vm are not known", vm=vm.name, error=error.text)
        return pb.ListDisksResponse(disks=disks)

    async def CopyDisk(self, request: pb.CopyDiskRequest, context: Context) -> pb.CopyDiskResponse:
        """Start to copy a disk."""

        async def work() -> pb.CopyDiskResponse:
            path = self._vms.premises.check_place(request.path)
            if request.reuse:
                self._vms.premises.check_image(str(path), request.format)
            order = CopyOrder(
                path,
                request.format,
                is_top_only=request.top_only,
                reuses=request.reuse,
                pivots_when_ready=request.pivot,
                bandwidth_bytes_per_second=_bandwidth(request.bandwidth_bytes_per_second),
            )
            return pb.CopyDiskResponse(job=_job(await self._jobs.copy(self._vms.get(request.vm), request.disk, order)))

        return await self._answers.once("CopyDisk", request.request_id, work)

    async def PullDisk(self, request: pb.PullDiskRequest, context: Context) -> pb.PullDiskResponse:
        """Start to pull."""

        async def work() -> pb.PullDiskResponse:
            order = PullOrder(request.base, _bandwidth(request.bandwidth_bytes_per_second))
            return pb.PullDiskResponse(job=_job(await self._jobs.pull(self._vms.get(request.vm), request.disk, order)))

        return await self._answers.once("PullDisk", request.request_id, work)

    async def CommitDisk(self, request: pb.CommitDiskRequest, context: Context) -> pb.CommitDiskResponse:
        """Start to commit."""

        async def work() -> pb.CommitDiskResponse:
            bandwidth = _bandwidth(request.bandwidth_bytes_per_second)
            order = CommitOrder(request.base, request.top, pivots_when_ready=request.pivot, bandwidth_bytes_per_second=bandwidth)
            return pb.CommitDiskResponse(job=_job(await self._jobs.commit(self._vms.get(request.vm), request.disk, order)))

        return await self._answers.once("CommitDisk", request.request_id, work)

    async def SnapshotDisk(self, request: pb.SnapshotDiskRequest, context: Context) -> pb.SnapshotDiskResponse:
        """Put a new image on top."""

        async def work() -> pb.SnapshotDiskResponse:
            path = self._vms.premises.check_place(request.path)
            return pb.SnapshotDiskResponse(job=_job(await self._jobs.snapshot(self._vms.get(request.vm), request.disk, path)))

        return await self._answers.once("SnapshotDisk", request.request_id, work)

    async def GetBlockJob(self, request: pb.GetBlockJobRequest, context: Context) -> pb.GetBlockJobResponse:
        """Show a job."""
        return pb.GetBlockJobResponse(job=_job(self._jobs.get(request.vm, request.disk).job))

    async def WatchBlockJob(self, request: pb.WatchBlockJobRequest, context: Context) -> AsyncIterator[pb.WatchBlockJobResponse]:
        """Follow a job to its end."""
        async for job in self._jobs.get(request.vm, request.disk).follow(until_ready=request.until_ready):
            yield pb.WatchBlockJobResponse(job=_job(job))

    async def UpdateBlockJob(self, request: pb.UpdateBlockJobRequest, context: Context) -> pb.UpdateBlockJobResponse:
        """Change the bandwidth of a job."""
        work = self._jobs.get(request.vm, request.disk)
        await self._jobs.set_speed(work, _bandwidth(request.bandwidth_bytes_per_second))
        return pb.UpdateBlockJobResponse(job=_job(work.job))

    async def PivotBlockJob(self, request: pb.PivotBlockJobRequest, context: Context) -> pb.PivotBlockJobResponse:
        """Let a disk go over."""
        work = self._jobs.get(request.vm, request.disk)
        await self._jobs.pivot(work)
        return pb.PivotBlockJobResponse(job=_job(work.job))

    async def AbortBlockJob(self, request: pb.AbortBlockJobRequest, context: Context) -> pb.AbortBlockJobResponse:
        """Ask a job to end."""
        work = self._jobs.get(request.vm, request.disk)
        await self._jobs.abort(work, keeps_copy=request.keep)
        return pb.AbortBlockJobResponse(job=_job(work.job))

    async def _disks_of(self, vm: Vm) -> list[pb.DiskChain]:
        return [_disk(vm, seen, self._jobs.find(vm.uuid, seen.disk.target)) for seen in await self._jobs.see(vm)]


def _bandwidth(bytes_per_second: int) -> int:
    if not 0 <= bytes_per_second <= _MAX_BANDWIDTH_BYTES_PER_SECOND:
        raise InvalidRequest(
            f"bandwidth {bytes_per_second}: 0 to {_MAX_BANDWIDTH_BYTES_PER_SECOND} bytes a second is wanted", reason="VALUE_INVALID"
        )
    return bytes_per_second


def _disk(vm: Vm, seen: SeenDisk, job: BlockJob | None) -> pb.DiskChain:
    ours = set() if job is None else {job.record.qemu_id}
    moving = {name for name in seen.jobs if is_copy(name)}
    return pb.DiskChain(
        vm_name=vm.name,
        vm_uuid=str(vm.uuid),
        disk=seen.disk.target,
        images=[] if seen.chain is None else [_image(layer) for layer in seen.chain.layers],
        is_read_only=seen.chain is not None and seen.chain.is_read_only,
        job=None if job is None else _job(job),
        foreign_jobs=sorted(seen.jobs - ours - moving),
        migration_jobs=sorted(moving),
    )


def _image(layer: Layer) -> pb.DiskImage:
    return pb.DiskImage(
        path=layer.path,
        format=layer.format,
        virtual_size_bytes=layer.virtual_size_bytes,
        actual_size_bytes=layer.actual_size_bytes,
        node=layer.node,
    )


def _job(job: BlockJob) -> pb.BlockJob:
    record = job.record
    return pb.BlockJob(
        id=job.id,
        kind=_KINDS[record.kind],
        state=_STATES[job.state],
        vm_name=record.vm_name,
        vm_uuid=str(record.vm_uuid),
        disk=record.disk,
        path=job.path,
        file=record.file,
        status=job.status,
        total_bytes=job.total_bytes,
        processed_bytes=job.processed_bytes,
        bandwidth_bytes_per_second=record.bandwidth_bytes_per_second,
        pivots_when_ready=record.pivots_when_ready,
        create_time=wire.timestamp(record.started_at_s),
        end_time=None if job.ended_at_s is None else wire.timestamp(job.ended_at_s),
        error=job.error,
        reason=job.reason,
        warnings=record.losses,
    )
