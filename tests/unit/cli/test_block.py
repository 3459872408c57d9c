"""`ferry block` and `ferry doctor`: what is asked, what is said, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from common.errors import FerryError, WrongState
from coordinator.cli.app import run
from coordinator.cli.exits import ExitCode
from ferry.agent.v1 import block_service_pb2 as pb
from ferry.agent.v1 import block_service_pb2_grpc as rpc
from ferry.agent.v1 import doctor_service_pb2 as doctor_pb
from ferry.agent.v1 import doctor_service_pb2_grpc as doctor_rpc
from ferry.agent.v1 import migration_pb2 as half_pb
from ferry.agent.v1 import vm_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as coordinator_pb
from tests.unit.cli.conftest import Typed
from tests.unit.cli.fake_fleet import ID, FakeAgent, FakeCoordinator, migration, serve_fakes

Job = pb.BlockJob


def job(state: Job.State.ValueType, kind: Job.Kind.ValueType = Job.KIND_COPY, **more: object) -> Job:
    made = Job(
        id="j",
        kind=kind,
        state=state,
        vm_name="web",
        disk="vda",
        path="/i/top",
        file="/i/new",
        total_bytes=400,
        processed_bytes=100,
    )
    made.MergeFrom(Job(**more))  # type: ignore[arg-type]
    made.create_time.FromSeconds(1_700_000_000)
    if state in (Job.STATE_COMPLETED, Job.STATE_FAILED, Job.STATE_CANCELLED):
        made.end_time.FromSeconds(1_700_000_004)
    return made


@dataclass
class FakeBlocks(rpc.BlockServiceServicer, doctor_rpc.DoctorServiceServicer):
    """Answers from its fields: `story` is what Watch tells, the last of it once an abort was asked for if `waits_for_abort`."""

    story: list[Job] = field(default_factory=lambda: [job(Job.STATE_ACTIVE), job(Job.STATE_COMPLETED, path="/i/new")])
    disks: list[pb.DiskChain] = field(default_factory=list)
    findings: list[doctor_pb.Finding] = field(default_factory=list)
    refusal: FerryError | None = None
    waits_for_abort: bool = False
    is_watched: asyncio.Event = field(default_factory=asyncio.Event)
    is_aborted: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[object] = field(default_factory=list)

    def _take(self, request: object) -> Job:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        return self.story[0]

    async def CopyDisk(self, request, context):  # noqa: N802 -- gRPC names it
        return pb.CopyDiskResponse(job=self._take(request))

    async def PullDisk(self, request, context):  # noqa: N802
        return pb.PullDiskResponse(job=self._take(request))

    async def CommitDisk(self, request, context):  # noqa: N802
        return pb.CommitDiskResponse(job=self._take(request))

    async def SnapshotDisk(self, request, context):  # noqa: N802
        self._take(request)
        return pb.SnapshotDiskResponse(job=job(Job.STATE_COMPLETED, Job.KIND_SNAPSHOT, path="/i/new"))

    async def GetBlockJob(self, request, context):  # noqa: N802
        return pb.GetBlockJobResponse(job=self._take(request))

    async def UpdateBlockJob(self, request, context):  # noqa: N802
        return pb.UpdateBlockJobResponse(job=self._take(request))

    async def PivotBlockJob(self, request, context):  # noqa: N802
        return pb.PivotBlockJobResponse(job=self._take(request))

    async def AbortBlockJob(self, request, context):  # noqa: N802
        self.is_aborted.set()
        return pb.AbortBlockJobResponse(job=self._take(request))

    async def ListDisks(self, request, context):  # noqa: N802
        self._take(request)
        return pb.ListDisksResponse(disks=self.disks)

    async def Examine(self, request, context):  # noqa: N802
        self._take(request)
        return doctor_pb.ExamineResponse(findings=self.findings, vm_count=1)

    async def WatchBlockJob(self, request, context):  # noqa: N802
        self.requests.append(request)
        for one in self.story:
            if one is self.story[-1] and self.waits_for_abort:
                self.is_watched.set()
                await self.is_aborted.wait()
            yield pb.WatchBlockJobResponse(job=one)
            if request.until_ready and one.state == Job.STATE_READY:
                return


@dataclass(frozen=True)
class Fleet:
    blocks: FakeBlocks
    coordinator: FakeCoordinator
    agent: FakeAgent
    ferry: Callable[..., Coroutine[None, None, Typed]]


@pytest.fixture
async def one(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Fleet]:
    coordinator, blocks = FakeCoordinator(), FakeBlocks()  # type: ignore[abstract]
    agent = FakeAgent(vms=[vm_pb2.Vm(name="web", uuid="0f1e", state=vm_pb2.Vm.STATE_RUNNING)])  # type: ignore[abstract]
    with capture_logs():
        adding = (
            lambda server: rpc.add_BlockServiceServicer_to_server(blocks, server),
            lambda server: doctor_rpc.add_DoctorServiceServicer_to_server(blocks, server),
        )
        async with serve_fakes(coordinator, agent, *adding) as address:
            coordinator.hosts.append(coordinator_pb.Host(name="host-a", agent_address=address, is_reachable=True))

            async def ferry(*arguments: str) -> Typed:
                code = await run([*arguments, "--coordinator", address, "--pki", "none"])
                captured = capsys.readouterr()
                return Typed(code, captured.out, captured.err)

            yield Fleet(blocks, coordinator, agent, ferry)


async def test_a_copy_asks_for_what_was_typed_and_says_where_the_disk_is(one: Fleet):
    typed = await one.ferry(
        "block", "copy", "web", "vda", "--to", "/i/new", "--shallow", "--reuse", "--pivot", "--bandwidth", "1MiB/s"
    )

    asked = one.blocks.requests[0]
    assert isinstance(asked, pb.CopyDiskRequest)
    assert (asked.vm, asked.disk, asked.path, asked.top_only, asked.reuse, asked.pivot) == (
        "web",
        "vda",
        "/i/new",
        True,
        True,
        True,
    )
    assert asked.bandwidth_bytes_per_second == 1 << 20
    assert typed == Typed(ExitCode.DONE, "", "web vda copied to /i/new on host-a in 4.00 s\n")


async def test_a_copy_without_pivot_returns_when_it_is_ready_and_says_what_next(one: Fleet):
    one.blocks.story = [job(Job.STATE_ACTIVE), job(Job.STATE_READY), job(Job.STATE_COMPLETED)]

    typed = await one.ferry("block", "copy", "web", "vda", "--to", "/i/new")

    assert typed.code is ExitCode.DONE
    assert "ferry block pivot web vda goes over to /i/new, ferry block abort web vda ends it" in typed.err


async def test_a_detached_job_is_not_followed(one: Fleet):
    typed = await one.ferry("block", "pull", "web", "vda", "--detach", "-o", "json")

    assert [type(request) for request in one.blocks.requests] == [pb.PullDiskRequest]
    assert typed.err == "begun on host-a; ferry block watch web vda follows it\n"
    assert json.loads(typed.out)["state"] == "ACTIVE"


async def test_a_failed_job_tells_why_and_what_became_of_the_disk(one: Fleet):
    failed = job(
        Job.STATE_FAILED, error="the copy failed: No space left on device; the guest stays on /i/top", reason="BLOCK_JOB_FAILED"
    )
    one.blocks.story = [job(Job.STATE_ACTIVE), failed]

    typed = await one.ferry("block", "watch", "web")

    error = "error: the copy failed: No space left on device; the guest stays on /i/top [BLOCK_JOB_FAILED]\n"
    assert typed == Typed(ExitCode.REFUSED, "", error)


async def test_a_refusal_is_told_with_its_reason(one: Fleet):
    one.blocks.refusal = WrongState("base /i/x is not below top /i/y", reason="IMAGES_NOT_IN_ORDER")

    typed = await one.ferry("block", "commit", "web", "vda", "--base", "/i/x")

    assert typed == Typed(ExitCode.REFUSED, "", "error: base /i/x is not below top /i/y [IMAGES_NOT_IN_ORDER]\n")


async def test_an_undecided_disk_has_an_exit_code_of_its_own(one: Fleet):
    one.blocks.story = [job(Job.STATE_UNDECIDED, error="nobody saw", reason="DISK_UNDECIDED")]

    assert (await one.ferry("block", "watch", "web", "vda")).code is ExitCode.UNKNOWN


async def test_ctrl_c_aborts_and_waits_for_the_end(one: Fleet):
    one.blocks.story = [job(Job.STATE_ACTIVE), job(Job.STATE_CANCELLED, error="it was aborted", reason="CANCELLED")]
    one.blocks.waits_for_abort = True

    async with asyncio.TaskGroup() as tasks:
        typing = tasks.create_task(one.ferry("block", "copy", "web", "vda", "--to", "/i/new"))
        await one.blocks.is_watched.wait()
        os.kill(os.getpid(), signal.SIGINT)
    typed = typing.result()

    assert typed.code is ExitCode.REFUSED
    assert typed.err == "aborting; Ctrl-C again leaves it to the agent\nerror: it was aborted [CANCELLED]\n"


async def test_ctrl_c_leaves_a_job_that_is_only_watched(one: Fleet):
    one.blocks.waits_for_abort = True

    async with asyncio.TaskGroup() as tasks:
        typing = tasks.create_task(one.ferry("block", "watch", "web", "vda"))
        await one.blocks.is_watched.wait()
        os.kill(os.getpid(), signal.SIGINT)
    typed = typing.result()

    assert typed == Typed(ExitCode.INTERRUPTED, "", "left; the copy goes on: ferry block watch web vda\n")
    assert not one.blocks.is_aborted.is_set()


async def test_an_abort_that_was_asked_for_is_no_failure(one: Fleet):
    one.blocks.story = [job(Job.STATE_READY), job(Job.STATE_CANCELLED, error="the copy was aborted", reason="CANCELLED")]

    typed = await one.ferry("block", "abort", "web", "vda")

    assert typed == Typed(ExitCode.DONE, "", "the copy was aborted\n")


async def test_a_kept_copy_says_where_the_guest_stays(one: Fleet):
    one.blocks.story = [job(Job.STATE_READY), job(Job.STATE_COMPLETED)]

    typed = await one.ferry("block", "abort", "web", "vda", "--keep")

    assert typed.err == "web vda copied to /i/new on host-a in 4.00 s; the guest stays on /i/top\n"


async def test_a_snapshot_and_a_speed_are_told(one: Fleet):
    assert (await one.ferry("block", "snapshot", "web", "vda", "/i/new")).err == "web vda writes to /i/new on host-a in 4.00 s\n"
    assert "bandwidth  no bound" in (await one.ferry("block", "set-speed", "web", "vda", "0")).out
    assert "rate per second" in (await one.ferry("block", "set-speed", "web", "vda", "50MiB")).err


async def test_disks_are_listed_an_image_a_line(one: Fleet):
    images = [
        pb.DiskImage(path="/i/top", format="qcow2", virtual_size_bytes=1 << 30, actual_size_bytes=1 << 20),
        pb.DiskImage(path="/i/base"),
    ]
    one.blocks.disks = [
        pb.DiskChain(vm_name="web", disk="vda", images=images, job=job(Job.STATE_ACTIVE)),
        pb.DiskChain(vm_name="web", disk="sda", foreign_jobs=["other"]),
    ]

    typed = await one.ferry("block", "ls")

    lines = typed.out.splitlines()
    assert typed.code is ExitCode.DONE
    assert lines[1].split() == [
        "web",
        "host-a",
        "vda",
        "/i/top",
        "qcow2",
        "1.00",
        "GiB",
        "1.00",
        "MiB",
        "copy",
        "active",
        "25",
        "%,",
        "100",
        "B",
        "of",
        "400",
        "B",
    ]
    assert lines[2].split()[:2] == ["on", "/i/base"]
    assert lines[3].split() == ["web", "host-a", "sda", "(no", "medium)", "other", "(not", "Ferry's)"]


async def test_disks_of_a_vm_that_does_not_run_are_refused(one: Fleet):
    one.blocks.refusal = WrongState("VM web is not running", reason="VM_NOT_RUNNING")

    assert await one.ferry("block", "ls", "web") == Typed(ExitCode.REFUSED, "", "error: VM web is not running [VM_NOT_RUNNING]\n")


async def test_the_doctor_is_content_with_nothing(one: Fleet):
    assert await one.ferry("doctor") == Typed(ExitCode.DONE, "", "nothing is left over: 1 host, 1 VM\n")


async def test_the_doctor_names_sides_of_migrations_that_no_coordinator_drives_with_the_command(one: Fleet):
    advice = half_pb.Advice(command=half_pb.Advice.COMMAND_RELEASE, condition="if no coordinator ends it")
    running = half_pb.Migration(id="b1", vm_name="web", role=half_pb.Migration.ROLE_DESTINATION, phase="Running", advice=[advice])
    one.agent.halves = [running, half_pb.Migration(id="b2", phase="Undoing"), half_pb.Migration(id=ID, advice=[advice])]
    one.coordinator.story = [migration(coordinator_pb.Migration.STATE_TRANSFERRING)]

    typed = await one.ferry("doctor", "-o", "json")

    (found,) = json.loads(typed.out)
    assert typed.code is ExitCode.REFUSED
    assert (found["kind"], found["vm_name"], found["name"]) == ("MIGRATION_WITHOUT_COORDINATOR", "web", "b1")
    assert "the coordinator does not know it" in found["text"]
    assert found["advice"] == "if no coordinator ends it: ferry migration release b1 --host host-a"


async def test_the_doctor_tells_what_it_found_and_what_to_do(one: Fleet):
    one.blocks.findings = [
        doctor_pb.Finding(vm_name="web", kind="FOREIGN_JOB", name="x", text="job x is not ours", advice="end it")
    ]

    typed = await one.ferry("doctor")

    assert typed.code is ExitCode.REFUSED
    assert typed.out.splitlines()[1].split() == ["host-a", "web", "foreign-job", "job", "x", "is", "not", "ours", "end", "it"]
    assert json.loads((await one.ferry("doctor", "-o", "json")).out)[0]["advice"] == "end it"
