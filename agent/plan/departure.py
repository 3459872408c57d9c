"""The source's part of a plan: what speaks against the move, what the guest is like, and what the way carries."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.migration.begin import get_running_vm, look
from agent.migration.disk_facts import totals
from agent.migration.forecast import Forecast, Measured, Span, forecast
from agent.migration.offline import look_offline
from agent.migration.shared_disks import paths_of, remove_markers
from agent.plan.copying import copying
from agent.plan.dirty_rate import DirtyRate, measure_dirty_rate
from agent.plan.guest_memory import MemorySample, sample_memory
from agent.plan.probe import measure, probe_options
from agent.qemu.status import RunState
from agent.vm.jobs import Job
from common.errors import NotFound
from common.findings import Finding, Findings, warnings_of

if TYPE_CHECKING:
    from agent.migration.begin import Look
    from agent.migration.order import Endpoint, SourceFacts, Wish
    from agent.migration.surroundings import Surroundings
    from agent.vm.vm import Vm

SIDE = "source"
_KIB = 1024
_NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the source is like.

    Attributes:
        definition: for the destination, as Begin gives it; empty when the guest cannot be described.
        now_s: the source's wall clock.
    """

    findings: tuple[Finding, ...]
    vm_name: str
    vm_uuid: str
    definition: bytes
    facts: SourceFacts | None
    now_s: float


class Departure:
    """One plan at the source. Close it, so that markers beside images go."""

    def __init__(self, around: Surroundings, wish: Wish) -> None:
        self._around = around
        self._wish = wish
        self._vm: Vm | None = None
        self._look: Look | None = None

    async def look(self) -> Seen:
        """Look at the guest; changes nothing but for markers beside its images.

        Raises:
            NotFound: this host has no such VM.
        """
        findings = Findings(collects=True)
        vm = self._around.vms.get(self._wish.vm)
        with findings.check():
            if self._wish.options.modes.offline:
                self._look = await look_offline(self._around, vm, self._wish)
            else:
                self._vm = get_running_vm(self._around, self._wish.vm)
        if self._vm is not None:
            with findings.check():
                self._around.vms.lock(vm, Job.MIGRATION_OUT, self._wish.migration_id).release()
            with findings.check():
                self._look = await look(self._around, vm, self._wish, findings)
        seen = self._look
        risks = () if seen is None else seen.risks
        return Seen(
            (*findings.of(SIDE), *warnings_of(SIDE, risks)),
            vm.name,
            str(vm.uuid),
            b"" if seen is None else json.dumps(seen.definition.to_record()).encode(),
            None if seen is None else seen.facts,
            time.time(),
        )

    async def measure(
        self, endpoint: Endpoint | None, agent_address: str, copied_disks: tuple[str, ...]
    ) -> tuple[tuple[Finding, ...], Forecast | None]:
        """Measure the guest and the way, one after the other, so that neither disturbs the other."""
        findings = Findings(collects=True)
        vm, seen = self._vm, self._look
        if vm is None or seen is None:
            return (), None
        with findings.check():
            await self._reach(agent_address)
        dirty = DirtyRate(_NOTHING, 0)
        memory_bytes = seen.definition.memory_kib * _KIB
        with findings.check():
            dirty = await self._watch_guest(vm, memory_bytes)
        sample = await asyncio.to_thread(self._sample, vm, memory_bytes)
        way = None
        if endpoint is not None:
            with findings.check():
                binary = (await self._around.vms.premises.qemu_facts(vm.get_running().definition)).path
                options = probe_options(self._wish.options)
                way = await measure(self._around, binary, seen.facts.machine, options, endpoint, sample.content)
        if way is None:
            return findings.of(SIDE), None
        measured = Measured(
            memory_bytes=memory_bytes,
            used_bytes=round(sample.used_part * memory_bytes),
            bytes_per_second=way.bytes_per_second,
            setup_s=way.setup_s,
            dirty_bytes_per_second=dirty.bytes_per_second,
            working_set_bytes=dirty.working_set_bytes,
            sent_part=way.sent_part,
        )
        found = await asyncio.to_thread(forecast, measured, self._wish.options)
        return findings.of(SIDE), self._with_disks(found, seen, copied_disks)

    def _with_disks(self, found: Forecast, seen: Look, copied: tuple[str, ...]) -> Forecast:
        wishes = self._wish.options.disks
        facts = {disk.disk: disk for disk in seen.facts.disks}
        disk_bytes = totals(facts, (disk for disk in copied if disk in facts), wishes.mode)
        disk_s = copying(disk_bytes, found.measured.bytes_per_second, wishes.bandwidth_bytes_per_second)
        return replace(found, disk_s=disk_s, disk_bytes=disk_bytes)

    def close(self) -> None:
        """Remove what was made."""
        if self._look is not None:
            remove_markers(paths_of(self._look.markers), self._around.store)

    async def _reach(self, agent_address: str) -> None:
        """Require that this agent reaches the destination's, as the hand-over will."""
        async with self._around.peers.connect(agent_address) as destination:
            try:
                async for _ in destination.watch(self._wish.migration_id):
                    break
            except NotFound:
                pass  # which is its answer

    async def _watch_guest(self, vm: Vm, memory_bytes: int) -> DirtyRate:
        qemu = self._around.vms.qemu(vm)
        if self._wish.options.pause or await qemu.query_status() is not RunState.RUNNING:
            return DirtyRate(_NOTHING, 0)
        return await measure_dirty_rate(qemu, memory_bytes)

    @staticmethod
    def _sample(vm: Vm, memory_bytes: int) -> MemorySample:
        """Look at the guest's memory; where that is not possible, all of it counts as used."""
        sample = sample_memory(vm.get_keeper().identity.pid, memory_bytes)
        return MemorySample(1.0, b"") if sample is None else sample
