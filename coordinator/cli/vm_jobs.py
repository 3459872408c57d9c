"""Following a save, restore or dump to its end. The job is the agent's: it goes on without this process."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import FerryError, Unreachable
from common.tasks import OwnedTasks
from coordinator.cli.ctrl_c import ctrl_c_calls
from coordinator.cli.exits import ExitCode
from coordinator.cli.link import Undecided
from coordinator.cli.live_line import LiveLine
from coordinator.cli.plain import to_plain
from coordinator.cli.screen import Format, Screen, pairs
from coordinator.cli.units import format_bytes, format_duration, format_rate
from ferry.agent.v1 import save_service_pb2 as pb
from ferry.agent.v1 import save_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from coordinator.cli.link import Agent

_PERCENT = 100
_DOING = {pb.VmJob.KIND_SAVE: "saving", pb.VmJob.KIND_RESTORE: "restoring", pb.VmJob.KIND_DUMP: "dumping"}
_DONE = {pb.VmJob.KIND_SAVE: "saved to", pb.VmJob.KIND_RESTORE: "restored from", pb.VmJob.KIND_DUMP: "dumped to"}


def saves_of(agent: Agent) -> rpc.SaveServiceStub:
    """Take the agent's methods about guests in files."""
    return rpc.SaveServiceStub(agent.peer.channel)


async def follow(agent: Agent, job: pb.VmJob, output: Format) -> ExitCode:
    """Show a job until it is over and say how it ended; Ctrl-C asks the agent to cancel it, a second one leaves it.

    Raises:
        Undecided: the agent is gone; the next one ends the job.
    """
    screen, saves = Screen(), saves_of(agent)
    with LiveLine(screen) as line:
        async with OwnedTasks() as tasks:
            with interrupts(lambda: tasks.start(_cancel(agent, saves, job, line))) as leaving:
                try:
                    async with leaving:
                        last = await _watch(agent, saves, job, line)
                except TimeoutError:
                    line.note(f"left; ferry vm job {job.vm_name} tells what becomes of the {_kind(job)}")
                    return ExitCode.INTERRUPTED
    return tell_end(screen, agent, last, output)


def tell_end(screen: Screen, agent: Agent, job: pb.VmJob, output: Format) -> ExitCode:
    """Say how a job ended."""
    is_done = job.state == pb.VmJob.STATE_COMPLETED
    if is_done:
        took_s = job.end_time.ToNanoseconds() / 1e9 - job.create_time.ToNanoseconds() / 1e9
        screen.note(f"{job.vm_name} {_DONE[job.kind]} {job.path} on {agent.host} in {format_duration(max(took_s, 0))}")
    else:
        screen.fail(f"{job.error} [{job.reason}]")
    if output is not Format.TABLE:
        screen.show({"host": agent.host, **to_plain(job)}, lambda: job_details(agent.host, job), output)
    return ExitCode.DONE if is_done else ExitCode.REFUSED


def job_details(host: str, job: pb.VmJob) -> RenderableType:
    """Show one job."""
    bound = job.bandwidth_bytes_per_second
    rows = [
        ("vm", job.vm_name),
        ("host", host),
        ("job", f"{_kind(job)} {job.id}"),
        ("state", pb.VmJob.State.Name(job.state).removeprefix("STATE_").lower()),
        ("file", job.path),
        ("step", job.step or "-"),
        ("done", f"{format_bytes(job.processed_bytes)} of {format_bytes(job.total_bytes)}"),
        ("bandwidth", format_rate(bound) if bound else "no bound"),
    ]
    if job.error:
        rows.append(("error", f"{job.error} [{job.reason}]"))
    return pairs(rows)


async def _watch(agent: Agent, saves: rpc.SaveServiceStub, job: pb.VmJob, line: LiveLine) -> pb.VmJob:
    last = job
    try:
        async for response in agent.peer.follow(saves.WatchVmJob, pb.WatchVmJobRequest(vm=job.id)):
            last = response.job
            line.show(_where(last))
    except Unreachable as error:
        raise Undecided(
            f"{error.text}; when it is back, ferry vm job {job.vm_name} and ferry vm events tell what became of the {_kind(job)}"
        ) from error
    return last


async def _cancel(agent: Agent, saves: rpc.SaveServiceStub, job: pb.VmJob, line: LiveLine) -> None:
    try:
        await agent.peer.read(saves.CancelVmJob, pb.CancelVmJobRequest(vm=job.id))
    except FerryError as error:
        line.note(f"not cancelled: {error.text}; Ctrl-C again leaves it")
    else:
        line.note("cancelling; Ctrl-C again leaves it to the agent")


@contextmanager
def interrupts(*cancel: Callable[[], object]) -> Iterator[asyncio.Timeout]:
    """Take Ctrl-C over: each calls the next of `cancel`, the one after these ends the block that enters what this gives."""
    loop = asyncio.get_running_loop()
    leaving = asyncio.timeout(None)
    actions = iter(cancel)

    def press() -> None:
        next(actions, lambda: leaving.reschedule(loop.time()))()

    with ctrl_c_calls(press):
        yield leaving


def _where(job: pb.VmJob) -> str:
    """Say where a job stands."""
    text = f"{_DOING[job.kind]} {job.vm_name}: {job.step}"
    if job.total_bytes:
        share = _PERCENT * job.processed_bytes // job.total_bytes
        text += f" {share} %, {format_bytes(job.processed_bytes)} of {format_bytes(job.total_bytes)}"
    return text


def _kind(job: pb.VmJob) -> str:
    return pb.VmJob.Kind.Name(job.kind).removeprefix("KIND_").lower()
