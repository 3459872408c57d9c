"""The destination's part of a plan: whether the guest could come, and an end of the way to measure it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.migration.checks import check_cpu, guest_cpu
from agent.migration.offline import preparation
from agent.plan.probe import listening, probe_options
from agent.qemu.binary import short_lived
from agent.vm.argv import cpu_words
from common.errors import Bug
from common.findings import Finding, Findings, notes_of, warnings_of

if TYPE_CHECKING:
    from pathlib import Path

    from agent.migration.order import Endpoint, Offer, SourceFacts
    from agent.migration.surroundings import Surroundings
    from agent.vm.definition import Definition

SIDE = "destination"


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the destination is like.

    Attributes:
        endpoint: where a QEMU listens for the measurement; None when none could.
        now_s: the destination's wall clock.
        copied_disks: those that would be copied.
    """

    findings: tuple[Finding, ...]
    endpoint: Endpoint | None
    now_s: float
    copied_disks: tuple[str, ...] = ()


@asynccontextmanager
async def arrival(around: Surroundings, offer: Offer) -> AsyncIterator[Arrival]:
    """Collect what Prepare would refuse, and listen while the context is open."""
    findings = Findings(collects=True)
    prepared = None
    with findings.check():
        prepared = preparation(around, offer)
    async with AsyncExitStack() as stack:
        endpoint = None
        risks: tuple[str, ...] = ()
        if prepared is not None:
            await prepared.check(findings)
            risks = prepared.session.facts.warnings
        if prepared is not None and not offer.options.modes.offline:
            to_come = prepared.disks.paths(prepared.definition)
            startable = await around.vms.check_incoming(prepared.definition, findings, to_come=to_come)
            if startable is not None:
                with findings.check():
                    await _check_cpu(offer.source, *startable)
                with findings.check():
                    ears = listening(around, startable[1], offer.source.machine, probe_options(offer.options), offer.source.host)
                    endpoint = await stack.enter_async_context(ears)
        notes = () if prepared is None else notes_of(SIDE, "DISK_COPIED", prepared.disks.notes(prepared.definition))
        copied = () if prepared is None else prepared.disks.copied
        yield Arrival((*findings.of(SIDE), *warnings_of(SIDE, risks), *notes), endpoint, time.time(), copied)


async def _check_cpu(source: SourceFacts, definition: Definition, binary: Path) -> None:
    """Start the machine without the guest, to see what CPU it would give it.

    Raises:
        WrongState: another one.
    """
    accelerator = definition.accelerator
    if accelerator is None:
        raise Bug("a definition that could be started names no accelerator")
    words = ("-accel", accelerator.value, "-cpu", cpu_words(definition, accelerator), "-smp", str(definition.vcpu_count))
    async with short_lived([str(binary), "-machine", definition.machine, *words]) as qemu:
        check_cpu(source, await guest_cpu(qemu), definition)
