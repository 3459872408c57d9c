"""Begin: the source takes the guest's job lock, looks at it, and describes it. Nothing of the guest is changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.migration import outgoing as out
from agent.migration.abilities import source_ability
from agent.migration.adaptation import adapt, elsewhere
from agent.migration.checks import guest_cpu, memory_warnings
from agent.migration.clocks import now_s
from agent.migration.order import Begun, Role, SourceFacts, Wish
from agent.migration.record import Facts, Record
from agent.migration.shared_disks import write_markers
from agent.migration.source import SourceSession
from agent.migration.surroundings import Surroundings
from agent.qemu.commands import Qemu
from agent.qemu.status import RunState
from agent.vm.jobs import Job, JobLock
from agent.vm.vm import Vm
from common.errors import WrongState

TOKEN_BYTES = 32
_MOVABLE = (RunState.RUNNING, RunState.PAUSED, RunState.PRELAUNCH)


async def begin(around: Surroundings, wish: Wish) -> tuple[SourceSession, Begun]:
    """Take a running VM for a migration.

    Raises:
        NotFound: this host has no such VM.
        WrongState: it does not run, or is in a state that cannot be moved.
        Busy: another job holds it.
    """
    vm = around.vms.get(wish.vm)
    if vm.is_incoming and (held := around.vms.lock_of(vm)) is not None:
        raise held.refusal(vm.name)
    if vm.running is None or vm.is_incoming:
        raise WrongState(
            f"VM {vm.name} is not running on {around.identity.name}: only a running VM can be moved; start it first "
            "(--offline, for stopped ones, comes later)",
            reason="VM_NOT_RUNNING",
            vm=vm.name,
        )
    lock = around.vms.lock(vm, Job.MIGRATION_OUT, wish.migration_id)
    try:
        return await _describe(around, vm, lock, wish)
    except BaseException:
        lock.release()
        raise


async def _describe(around: Surroundings, vm: Vm, lock: JobLock, wish: Wish) -> tuple[SourceSession, Begun]:
    qemu = around.vms.qemu(vm)
    state = await qemu.query_status()
    if state not in _MOVABLE:
        raise WrongState(f"VM {vm.name} is {state.value}: it cannot be moved", reason="VM_NOT_MOVABLE", vm=vm.name)
    running = vm.get_running()
    await _check_blockers(vm, qemu)
    version = await qemu.query_version()
    ability = await source_ability(qemu, around.identity.name, running, wish.options)
    definition = running.definition
    if wish.destination_xml:
        definition = await asyncio.to_thread(adapt, definition, wish.destination_xml, name=wish.options.destination_name)
    machine, cpu_words = await qemu.machine_type(), await guest_cpu(qemu)
    markers, risks = write_markers(running.definition, force=wish.options.force)
    facts = SourceFacts(
        host=around.identity,
        qemu_version=str(version),
        machine=machine,
        cpu_words=cpu_words,
        disk_markers=elsewhere(markers, running.definition, definition),
        cpu_shares=definition.cpu_shares if wish.destination_xml else vm.live.cpu_shares,
        cgroup_version="" if vm.live.cgroup is None else vm.live.cgroup.value,
        known=ability.known,
    )
    token = secrets.token_bytes(TOKEN_BYTES)
    record = Record[out.Phase](
        Facts(
            migration_id=wish.migration_id,
            role=Role.SOURCE,
            vm_uuid=str(vm.uuid),
            vm_name=vm.name,
            options=wish.options,
            epoch=wish.epoch,
            began_at_s=now_s(),
            token=token.hex(),
            token_sha256=hashlib.sha256(token).hexdigest(),
            guest_was_paused=state is not RunState.RUNNING,
            traceparent=current_traceparent(),
            warnings=(*memory_warnings(running.definition, running.accelerator, version), *risks),
            made_files=tuple(marker.marker_path for marker in markers if marker.marker_path),
        ),
        out.Begun(),
    )
    session = SourceSession(record, around=around, vm=vm, lock=lock, parent=otel_context.get_current())
    return session, Begun(json.dumps(definition.to_record()).encode(), hashlib.sha256(token).digest(), facts)


async def _check_blockers(vm: Vm, qemu: Qemu) -> None:
    """Refuse a guest with what cannot migrate: by its definition, and by QEMU's own word."""
    blocked = (await qemu.query_migrate()).blocked_reasons
    reasons = [*vm.get_running().definition.blockers, *(reason.strip() for reason in blocked)]
    if reasons:
        raise WrongState(f"VM {vm.name} cannot migrate: {'; '.join(reasons)}", reason="VM_CANNOT_MIGRATE", vm=vm.name)


def current_traceparent() -> str:
    """Return the W3C trace context of the current request; empty when it has none."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def context_of(traceparent: str) -> otel_context.Context:
    """Return the context that `current_traceparent` told of."""
    if not traceparent:
        return trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context())
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, otel_context.Context())
