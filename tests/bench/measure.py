"""Measures one move, by QEMU alone or by Ferry; each with a guest of its own that has just booted."""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import psutil
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from deploy.lab.fleet import Fleet
from deploy.lab.processes import ProcessFailed
from ferry.agent.v1 import agent_service_pb2_grpc as agent_rpc
from ferry.agent.v1 import vm_pb2
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc
from tests.bench import raw
from tests.bench.guest import NAME, Guest, Make
from tests.bench.sample import COMMAND, Sample
from tests.bench.ways import WAYS, FerryWay, RawWay
from tests.guests.console import Console

SOURCE: Final = "host-a"
DESTINATION: Final = "host-b"
BOOT_TIMEOUT_S: Final = 60.0
SETTLE_S: Final = 0.3  # for what a start or an end leaves behind
# A machine that is itself a guest may give free memory back to its host after 2 to 4 s, and its next touch costs many times a copy.
# So all wait until what the last one left is gone: else the way whose destination starts sooner would find it, and win.
# Source: mm/page_reporting.c, PAGE_REPORTING_DELAY; what comes while it works waits for its next turn.
COOL_S: Final = 5.0
GAP_MARGIN_S: Final = 0.1
GAP_TICKS: Final = 100
_NS: Final = 1e9


class Bench:
    """A fleet that guests are moved on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stack = AsyncExitStack()
        identity = fleet.identity("operator")
        channels = [open_channel(fleet.agent_address(host), identity) for host in (SOURCE, DESTINATION)]
        channels.append(open_channel(fleet.coordinator_address, identity))
        for channel in channels:
            self._stack.push_async_callback(channel.close)
        self._source, self._destination = (agent_rpc.AgentServiceStub(channel) for channel in channels[:2])
        self._coordinator = rpc.CoordinatorServiceStub(channels[2])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def move(self, round_number: int, way: str, make: Make) -> Sample:
        """Start a guest, move it that way, end it, and say what the move took."""
        await asyncio.sleep(COOL_S)
        with tempfile.TemporaryDirectory(prefix="fb", dir=self._fleet.directory) as name:
            guest = make(Path(name))
            with Console(guest.serial) as console:
                match WAYS[way]:
                    case RawWay(options):
                        return replace(await _move_raw(guest, console, options), round_number=round_number, way=way)
                    case FerryWay(options):
                        return replace(await self._move_ferry(guest, console, options), round_number=round_number, way=way)

    async def _move_ferry(self, guest: Guest, console: Console, options: Sequence[str]) -> Sample:
        async with self.guest(guest, console):
            wall_offset_s = time.time() - time.monotonic()
            began_s = time.monotonic()
            migration, cpu_s = await self.migrate(*options)
            command_s = time.monotonic() - began_s - SETTLE_S
            moments = await self.moments(migration.id)
            started_s, resumed_s = (
                at_s - wall_offset_s for at_s in (moments.began_s("qmp migrate"), moments.ended_s("migration.downtime"))
            )
            return Sample(
                elapsed_s=moments.elapsed_s(),
                transferred_bytes=migration.progress.ram_transferred_bytes,
                qemu_downtime_s=migration.downtime.qemu_reported.ToNanoseconds() / _NS,
                gap_s=await silence_s(console, started_s, resumed_s),
                own_downtime_s=moments.own_downtime_s(),
                legs_s={leg.name: leg.duration.ToNanoseconds() / _NS for leg in migration.downtime.legs},
                command_s=command_s,
                cpu_s=cpu_s,
                agent_resident_bytes=self.agent_resident_bytes(),
            )

    async def migrate(self, *options: str) -> tuple[pb.Migration, Mapping[str, float]]:
        """Run `ferry migrate` to its end; give the migration and the CPU time that each process of Ferry took, in seconds."""
        before = self._cpu_s()
        with _children_cpu_s() as command_cpu:
            done = await asyncio.to_thread(self._fleet.ferry, "migrate", NAME, "--to", DESTINATION, *options, "--output", "json")
        # What the agents tidy up after the command has been answered counts too.
        await asyncio.sleep(SETTLE_S)
        cpu_s = {name: spent_s - before[name] for name, spent_s in self._cpu_s().items()} | {COMMAND: sum(command_cpu)}
        if not done.stdout:
            raise ProcessFailed(f"ferry migrate {' '.join(options)} ended with {done.returncode}:\n{done.stderr}")
        migration_id = json.loads(done.stdout)["id"]
        with calls_to("the coordinator"):
            return (await self._coordinator.GetMigration(pb.GetMigrationRequest(migration_id=migration_id))).migration, cpu_s

    async def moments(self, migration_id: str) -> Moments:
        """Read when things happened in a migration."""
        with calls_to("the coordinator"):
            answer = await self._coordinator.GetTrace(pb.GetTraceRequest(migration_id=migration_id))
        return Moments(answer.traces_data)

    def agent_resident_bytes(self) -> int:
        """Give the memory that the larger of the two agents has resident."""
        return int(max(self._process(name).memory_info().rss for name in ("agent-a", "agent-b")))

    @asynccontextmanager
    async def guest(self, guest: Guest, console: Console) -> AsyncIterator[None]:
        """Have the guest run at the source, and nowhere on leaving."""
        with calls_to("the source's agent"):
            definition = vm_pb2.DefineVmRequest(request_id=str(uuid4()), domain_xml=guest.domain)
            await self._source.DefineVm(definition)
            await self._source.StartVm(vm_pb2.StartVmRequest(request_id=str(uuid4()), vm=NAME))
        await console.wait_ticks(timeout_s=BOOT_TIMEOUT_S)
        await asyncio.sleep(SETTLE_S)
        yield
        for host, agent in ((SOURCE, self._source), (DESTINATION, self._destination)):
            with calls_to(f"the agent of {host}"):
                for vm in (await agent.ListVms(vm_pb2.ListVmsRequest())).vms:
                    if vm.state != vm_pb2.Vm.STATE_STOPPED:
                        await agent.StopVm(vm_pb2.StopVmRequest(vm=NAME, force=True))
                    if vm.is_persistent:
                        await agent.UndefineVm(vm_pb2.UndefineVmRequest(vm=NAME))

    def _process(self, name: str) -> psutil.Process:
        return psutil.Process(self._fleet.pid(name))

    def _cpu_s(self) -> Mapping[str, float]:
        times = {name: self._process(name).cpu_times() for name in self._fleet.processes}
        return {name: spent.user + spent.system for name, spent in times.items()}


class Moments:
    """When things happened, by the spans of a migration: all on the source's wall clock."""

    def __init__(self, traces: bytes) -> None:
        self._spans: dict[str, Span] = {}
        for resources in TracesData.FromString(traces).resource_spans:
            for scope in resources.scope_spans:
                for span in scope.spans:
                    if span.kind is not Span.SPAN_KIND_SERVER:
                        self._spans.setdefault(span.name, span)

    def began_s(self, name: str) -> float:
        """Say when the first span of that name began; `time.time()`."""
        return self._spans[name].start_time_unix_nano / _NS

    def ended_s(self, name: str) -> float:
        """Say when the first span of that name ended; `time.time()`."""
        return self._spans[name].end_time_unix_nano / _NS

    def elapsed_s(self) -> float:
        """Give the time from `migrate` sent until the guest runs at the destination, with all of its memory."""
        ended_s = self.ended_s("migration.postcopy" if "migration.postcopy" in self._spans else "migration.downtime")
        return ended_s - self.began_s("qmp migrate")

    def own_downtime_s(self) -> float:
        """Give what of the downtime is not QEMU's."""
        stop_s = self.ended_s("migration.downtime.stop") - self.began_s("migration.downtime.stop")
        return stop_s + self.ended_s("AgentService/ResumeMigration") - self.began_s("migration.downtime.resume")


async def _move_raw(guest: Guest, console: Console, options: raw.Options) -> Sample:
    directory = guest.serial.parent
    async with raw.start(guest.raw, directory / "a") as source:
        await console.wait_ticks(timeout_s=BOOT_TIMEOUT_S)
        async with raw.start(guest.raw, directory / "b", incoming=True) as destination:
            await asyncio.sleep(SETTLE_S)
            figures = await raw.move(source, destination, options)
            gap_s = await silence_s(console, figures.started_at_s, figures.resumed_at_s)
    return Sample(
        elapsed_s=figures.elapsed_s,
        transferred_bytes=figures.transferred_bytes,
        qemu_downtime_s=figures.qemu_downtime_ms / 1000,
        gap_s=gap_s,
        own_downtime_s=figures.stop_to_continue_s + figures.loaded_to_resume_s,
        legs_s={
            "stop": figures.stop_to_continue_s,
            "device": figures.continue_to_loaded_s,
            "resume": figures.loaded_to_resume_s,
        },
    )


async def silence_s(console: Console, started_s: float, resumed_s: float) -> float:
    """Find the longest silence of the guest around its move, and make sure that it is whole."""
    await console.wait_ticks(GAP_TICKS)
    console.assert_continuous()
    return console.max_gap_s(started_s, resumed_s + GAP_MARGIN_S)


@contextmanager
def _children_cpu_s() -> Iterator[list[float]]:
    """Give the CPU time, in user and system, of the child processes that end while the context is open."""
    spent: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield spent
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent += [after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime]
