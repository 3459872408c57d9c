"""Following a job on a disk. The job is QEMU's: it goes on without this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import FerryError, Unreachable
from common.tasks import OwnedTasks
from coordinator.cli.block_view import job_details, kind_word, progress_words
from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Undecided
from coordinator.cli.live_line import LiveLine
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen
from coordinator.cli.units import format_duration
from coordinator.cli.vm_jobs import interrupts
from ferry.agent.v1 import block_service_pb2 as pb
from ferry.agent.v1 import block_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from coordinator.cli.link import Agent

_DONE = {
    pb.BlockJob.KIND_COPY: "copied to {file}",
    pb.BlockJob.KIND_PULL: "pulled into {path}",
    pb.BlockJob.KIND_COMMIT: "committed into {file}",
    pb.BlockJob.KIND_ACTIVE_COMMIT: "committed into {file}",
    pb.BlockJob.KIND_SNAPSHOT: "writes to {file}",
}


def blocks_of(agent: Agent) -> rpc.BlockServiceStub:
    """Take the agent's methods about disks."""
    return rpc.BlockServiceStub(agent.peer.channel)


async def follow(  # noqa: PLR0913 -- how commands differ
    agent: Agent, job: pb.BlockJob, output: Format, *, aborts: bool, until_ready: bool, is_wanted: bool = False
) -> ExitCode:
    """Show a job until it is over and say how it ended.

    Args:
        agent: whose job it is.
        job: as it was when it began.
        output: how it is written at the end.
        aborts: Ctrl-C asks the agent to abort it, and a second one leaves it; else the first leaves it.
        until_ready: return when it waits for a pivot.
        is_wanted: that it is cancelled is what was asked for.

    Raises:
        Undecided: the agent is gone; the next one goes on with the job.
    """
    screen, blocks = Screen(), blocks_of(agent)
    for warning in job.warnings:
        screen.warn(warning)
    with LiveLine(screen) as line:
        async with OwnedTasks() as tasks:
            with interrupts(*((lambda: tasks.start(_abort(agent, blocks, job, line)),) if aborts else ())) as leaving:
                try:
                    async with leaving:
                        last = await _watch(agent, blocks, job, line, until_ready=until_ready)
                except TimeoutError:
                    line.note(f"left; the {kind_word(job)} goes on: ferry block watch {job.vm_name} {job.disk}")
                    return ExitCode.INTERRUPTED
    return tell_end(screen, agent, last, output, is_wanted=is_wanted)


def tell_end(screen: Screen, agent: Agent, job: pb.BlockJob, output: Format, *, is_wanted: bool = False) -> ExitCode:
    """Say how a job ended, or that it is ready."""
    is_done = job.state in (pb.BlockJob.STATE_COMPLETED, pb.BlockJob.STATE_READY)
    is_done = is_done or (is_wanted and job.state == pb.BlockJob.STATE_CANCELLED)
    if job.state == pb.BlockJob.STATE_READY:
        name = f"{job.vm_name} {job.disk}"
        there = f"ferry block pivot {name} goes over to {job.file}"
        screen.note(f"{name}: {kind_word(job)} is ready and follows the guest; {there}, ferry block abort {name} ends it")
    elif job.state == pb.BlockJob.STATE_COMPLETED:
        took_s = job.end_time.ToNanoseconds() / 1e9 - job.create_time.ToNanoseconds() / 1e9
        done = _DONE[job.kind].format(file=job.file, path=job.path)
        stays = "" if job.path == job.file or job.kind not in _GOES_OVER else f"; the guest stays on {job.path}"
        screen.note(f"{job.vm_name} {job.disk} {done} on {agent.host} in {format_duration(max(took_s, 0))}{stays}")
    elif is_done:
        screen.note(job.error)
    else:
        screen.fail(f"{job.error} [{job.reason}]")
    if output is not Format.TABLE:
        screen.show({"host": agent.host, **to_plain(job)}, lambda: job_details(agent.host, job), output)
    if job.state == pb.BlockJob.STATE_UNDECIDED:
        return ExitCode.UNKNOWN
    return ExitCode.DONE if is_done else ExitCode.REFUSED


_GOES_OVER = frozenset({pb.BlockJob.KIND_COPY, pb.BlockJob.KIND_ACTIVE_COMMIT})


async def _watch(agent: Agent, blocks: rpc.BlockServiceStub, job: pb.BlockJob, line: LiveLine, *, until_ready: bool) -> pb.BlockJob:
    last = job
    try:
        request = pb.WatchBlockJobRequest(vm=job.id, until_ready=until_ready)
        async for response in agent.peer.follow(blocks.WatchBlockJob, request):
            last = response.job
            line.show(_where(last))
    except Unreachable as error:
        raise Undecided(
            f"{error.text}; the {kind_word(job)} goes on without the agent: when that is back, "
            f"ferry block watch {job.vm_name} {job.disk} and ferry vm events tell what becomes of it"
        ) from error
    return last


async def _abort(agent: Agent, blocks: rpc.BlockServiceStub, job: pb.BlockJob, line: LiveLine) -> None:
    try:
        await agent.peer.read(blocks.AbortBlockJob, pb.AbortBlockJobRequest(vm=job.id))
    except FerryError as error:
        line.note(f"not aborted: {error.text}; Ctrl-C again leaves it")
    else:
        line.note("aborting; Ctrl-C again leaves it to the agent")


def _where(job: pb.BlockJob) -> str:
    """Say where a job stands."""
    is_ready = job.state == pb.BlockJob.STATE_READY
    return f"{kind_word(job)} of {job.vm_name} {job.disk}: {'ready' if is_ready else progress_words(job) or 'begins'}"
