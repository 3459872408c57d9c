"""Protobuf to the agent's own types and back. Nothing is decided here; what cannot be decoded is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent import wire_budget, wire_disks, wire_facts, wire_means, wire_modes, wire_post_copy
from agent.host import Findings
from agent.migration import incoming as inc
from agent.migration import newest_disks
from agent.migration.clocks import now_s
from agent.migration.convergence import Decision
from agent.migration.machine import Cause
from agent.migration.operator_actions import AnySession, advice_of, side_of
from agent.migration.order import DEFAULT_DOWNTIME_S, Begun, Endpoint, HostIdentity, Offer, Options, Role, Transport, Wish
from agent.migration.outgoing import DestinationLost
from agent.migration.progress import Leg, Progress, Timeline
from agent.migration.record import find_cause, tells_all
from agent.migration.source import SourceSession
from agent.vm.adoption.plan import AdoptionPlan
from agent.vm.events import DiskJob, VmEvent
from agent.vm.unreadable import UnreadableVm
from agent.vm.vm import VmState, VmView
from agent.wire_phases import MAY_TELL_TOKEN, advice_messages, state_and_place
from ferry.agent.v1 import adoption_pb2, host_pb2, migration_pb2, vm_pb2
from ferry.common.v1 import migration_pb2 as common_pb2

RESUME_METHOD: Final = "/ferry.agent.v1.AgentService/ResumeMigration"
_NS: Final = 1_000_000_000
_KIB: Final = 1024
_TRANSPORTS: Final = {
    common_pb2.TRANSPORT_UNSPECIFIED: Transport.DIRECT,
    common_pb2.TRANSPORT_DIRECT: Transport.DIRECT,
    common_pb2.TRANSPORT_TUNNEL: Transport.TUNNEL,
}
_VM_STATES: Final = {state: vm_pb2.Vm.State.Value(f"STATE_{state.name}") for state in VmState}


# towards us


def options(message: common_pb2.MigrationOptions) -> Options:
    """Decode what the user wishes.

    Raises:
        InvalidRequest: a value is out of range, or two exclude each other.
    """
    return Options(
        transport=_TRANSPORTS.get(message.transport, Transport.DIRECT),
        plain=message.plain,
        multifd_channel_count=message.multifd_channel_count,
        bandwidth_bytes_per_second=message.bandwidth_bytes_per_second,
        max_downtime_s=seconds(message.max_downtime) if message.HasField("max_downtime") else DEFAULT_DOWNTIME_S,
        pause=message.pause,
        destination_name=message.destination_name,
        migrate_uri=message.migrate_uri,
        force=message.force,
        means=wire_means.means(message.means),
        post_copy=wire_post_copy.post_copy(message.post_copy),
        budget=wire_budget.budget(message.budget),
        modes=wire_modes.modes(message.modes),
        disks=wire_disks.disk_wishes(message.disks),
    )


def wish(request: migration_pb2.BeginMigrationRequest) -> Wish:
    """Decode what Begin asks for.

    Raises:
        InvalidRequest: a wish is out of range.
    """
    xml = request.options.destination_domain_xml
    return Wish(request.migration_id, request.vm, options(request.options), request.epoch, xml)


def offer(request: migration_pb2.PrepareMigrationRequest) -> Offer:
    """Decode what Prepare is given.

    Raises:
        InvalidRequest: a wish is out of range.
    """
    return Offer(
        migration_id=request.migration_id,
        options=options(request.options),
        source=wire_facts.source_facts(request.source),
        definition=request.definition,
        token_sha256=request.resume_token_sha256,
        epoch=request.epoch,
    )


def endpoint(message: migration_pb2.Endpoint) -> Endpoint:
    """Decode where the source has to connect to.

    Raises:
        InvalidRequest: it is not one.
    """
    return Endpoint(
        uri=message.uri,
        psk_key=message.psk_key,
        psk_identity=message.psk_identity,
        psk_priority=message.psk_priority,
        tunnel_token=message.tunnel_token,
        tunnel_address=message.tunnel_address,
        agreed=tuple(message.agreed_capabilities),
        disks=wire_disks.disk_endpoint(message.disks) if message.HasField("disks") else None,
    )


def seconds(message: Duration) -> float:
    """Decode a span of time."""
    return message.seconds + message.nanos / _NS


# towards others


def duration(span_s: float) -> Duration:
    """Encode a span of time."""
    message = Duration()
    message.FromNanoseconds(round(span_s * _NS))
    return message


def timestamp(at_s: float) -> Timestamp:
    """Encode an instant of the host's wall clock."""
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(at_s, UTC))
    return message


def begun(session: SourceSession, answer: Begun) -> migration_pb2.BeginMigrationResponse:
    """Encode the answer to Begin."""
    facts = answer.source
    return migration_pb2.BeginMigrationResponse(
        migration=migration(session),
        definition=answer.definition,
        resume_token_sha256=answer.resume_token_sha256,
        source=wire_facts.source_facts_message(facts),
    )


def endpoint_message(value: Endpoint) -> migration_pb2.Endpoint:
    """Encode where the source has to connect to."""
    return migration_pb2.Endpoint(
        uri=value.uri,
        psk_key=value.psk_key,
        psk_identity=value.psk_identity,
        psk_priority=value.psk_priority,
        tunnel_token=value.tunnel_token,
        tunnel_address=value.tunnel_address,
        agreed_capabilities=value.agreed,
        disks=None if value.disks is None else wire_disks.disk_endpoint_message(value.disks),
    )


def migration(session: AnySession, *, with_token: bool = False) -> migration_pb2.Migration:
    """Encode one half of a migration; with the resume token only for whom it concerns."""
    facts, phase = session.facts, session.phase
    state, where = state_and_place(phase)
    cause = find_cause(phase)
    message = migration_pb2.Migration(
        id=facts.migration_id,
        vm_name=facts.vm_name,
        vm_uuid=facts.vm_uuid,
        role=migration_pb2.Migration.ROLE_SOURCE if facts.role is Role.SOURCE else migration_pb2.Migration.ROLE_DESTINATION,
        state=state,
        phase=type(phase).__name__,
        status=session.status_text,
        guest_location=where,
        is_final=session.is_over,
        error=_error_text(session),
        error_reason="" if cause is None else cause.reason,
        epoch=facts.epoch,
        create_time=timestamp(facts.began_at_s),
        phases=[leg(Leg(name, span_s)) for name, span_s in session.phase_times],
        warnings=facts.warnings,
        options=options_message(facts.options),
        guest_ran=facts.guest_ran,
        waiting_for=facts.waiting_for,
        keep_paused=facts.stays_paused,
        advice=advice_messages(side_of(session), advice_of(session)),
        peer=facts.peer,
        unattended=duration(session.attention.missing_s),
        is_definition_kept=isinstance(phase, inc.Lost) and phase.is_kept,
    )
    if facts.ended_at_s is not None:
        message.end_time.CopyFrom(timestamp(facts.ended_at_s))
    if facts.progress is not None:
        message.progress.CopyFrom(progress(facts.progress, facts.timeline, facts.decisions))
    if facts.role is Role.SOURCE and facts.copies:
        there = isinstance(session, SourceSession) and newest_disks.are_there(facts, session.phase)
        message.progress.disks.extend(wire_disks.disk_progress(facts.copies, are_newest=there))
    if isinstance(phase, inc.Finished) and not facts.options.modes.offline:
        message.progress.arrival.CopyFrom(wire_modes.arrival_message(facts.arrival))
    elif facts.arrival.network_gap is not None:
        message.progress.arrival.network_gap.CopyFrom(wire_modes.network_gap_message(facts.arrival.network_gap))
    if facts.timeline.downtime_legs():
        message.downtime.CopyFrom(downtime(facts.timeline))
    if with_token and isinstance(phase, MAY_TELL_TOKEN):
        message.resume_token = bytes.fromhex(facts.token)
    return message


def lost_guest(message: migration_pb2.LostGuest) -> DestinationLost:
    """Decode how a guest ended at the destination."""
    return DestinationLost(Cause(message.cause, message.reason or "QEMU_ENDED"), message.is_definition_kept)


def _error_text(session: AnySession) -> str:
    cause = find_cause(session.phase)
    if cause is None:
        return ""
    words, text = session.facts.peer_words, cause.text
    if not tells_all(cause) and words and words not in text:
        text = f"{text}; {session.facts.peer or 'the destination'}: {words}"
    disks = newest_disks.text(session.facts, session.phase) if isinstance(session, SourceSession) else ""
    return f"{text}; {disks}" if disks else text


def options_message(value: Options) -> common_pb2.MigrationOptions:
    """Encode what the user wishes."""
    is_tunnel = value.transport is Transport.TUNNEL
    return common_pb2.MigrationOptions(
        transport=common_pb2.TRANSPORT_TUNNEL if is_tunnel else common_pb2.TRANSPORT_DIRECT,
        plain=value.plain,
        multifd_channel_count=value.multifd_channel_count,
        bandwidth_bytes_per_second=value.bandwidth_bytes_per_second,
        max_downtime=duration(value.max_downtime_s),
        pause=value.pause,
        destination_name=value.destination_name,
        migrate_uri=value.migrate_uri,
        force=value.force,
        means=wire_means.means_message(value.means),
        post_copy=None if not value.post_copy.is_allowed else wire_post_copy.post_copy_message(value.post_copy),
        budget=wire_budget.budget_message(value.budget),
        modes=wire_modes.modes_message(value.modes),
        disks=wire_disks.disk_wishes_message(value.disks),
    )


def leg(value: Leg) -> common_pb2.Leg:
    """Encode a named part of a span of time."""
    return common_pb2.Leg(name=value.name, duration=duration(value.duration_s))


def progress(value: Progress, line: Timeline, decisions: tuple[Decision, ...]) -> common_pb2.Progress:
    """Encode the numbers of a transfer; before QEMU says how long it took, our clock does."""
    elapsed_s = value.elapsed_s
    if not elapsed_s and line.started_at_s is not None:
        elapsed_s = max(now_s() - line.started_at_s, 0.0)
    return common_pb2.Progress(
        elapsed=duration(elapsed_s),
        ram_total_bytes=value.ram_total_bytes,
        ram_transferred_bytes=value.ram_transferred_bytes,
        ram_remaining_bytes=value.ram_remaining_bytes,
        normal_page_count=value.normal_page_count,
        zero_page_count=value.zero_page_count,
        bytes_per_second=value.bytes_per_second,
        dirty_bytes_per_second=value.dirty_bytes_per_second,
        pass_count=value.pass_count,
        throttle_percent=value.throttle_percent,
        expected_downtime=duration(value.expected_downtime_s),
        setup=duration(value.setup_s),
        figures=wire_means.figures(value.figures),
        decisions=[wire_budget.decision_message(decision) for decision in decisions],
    )


def downtime(line: Timeline) -> common_pb2.Downtime:
    """Encode how long the guest stood still."""
    legs = line.downtime_legs()
    message = common_pb2.Downtime(total=duration(sum(one.duration_s for one in legs)), legs=[leg(one) for one in legs])
    if line.qemu_downtime_ms is not None:
        message.qemu_reported.CopyFrom(duration(line.qemu_downtime_ms / 1000))
    return message


def vm(view: VmView, *, is_full: bool = False) -> vm_pb2.Vm:
    """Encode a VM; the command line and files only when it is to be shown in full."""
    definition = view.definition
    accelerator = definition.accelerator
    return vm_pb2.Vm(
        name=view.name,
        uuid=str(view.uuid),
        state=_VM_STATES[view.state],
        is_persistent=view.is_persistent,
        job="" if view.job is None else view.job.value,
        migration_id=view.migration_id,
        pid=view.pid or 0,
        memory_bytes=definition.memory_kib * _KIB,
        vcpu_count=definition.vcpu_count,
        machine=definition.machine,
        accelerator="" if accelerator is None or view.pid is None else accelerator.value,
        argv=view.argv if is_full else (),
        files=dict(view.files) if is_full else {},
        autostart=view.wishes.autostart,
        definition_differs=view.differs,
        has_saved_guest=view.has_saved_guest,
        cpu_shares=view.cpu_shares,
        next_cpu_shares=view.wishes.tunables.cpu_shares,
        moved_to=view.wishes.moved_to,
        problems=view.problems,
    )


def unreadable_vm(unread: UnreadableVm) -> vm_pb2.Vm:
    """Encode a VM of which nothing can be read that could be served."""
    return vm_pb2.Vm(
        name=unread.name,
        uuid=str(unread.uuid),
        state=vm_pb2.Vm.STATE_UNKNOWN,
        is_persistent=True,
        pid=unread.process.pid if unread.process is not None and unread.is_running else 0,
        problems=[one.text for one in unread.problems],
    )


def adoption_plan(plan: AdoptionPlan) -> adoption_pb2.AdoptionPlan:
    """Encode what adopting a QEMU means."""
    return adoption_pb2.AdoptionPlan(
        name=plan.definition.name,
        uuid=str(plan.definition.uuid),
        pid=plan.found.identity.pid,
        given_argv=plan.found.argv,
        argv=plan.command_line(),
        dropped=plan.dropped,
        changed=plan.changed,
        blockers=plan.definition.blockers,
    )


def vm_event(event: VmEvent) -> vm_pb2.VmEvent:
    """Encode a change in the life of a VM."""
    return vm_pb2.VmEvent(
        sequence=event.sequence,
        create_time=timestamp(event.at_s),
        vm_name=event.vm_name,
        vm_uuid=str(event.vm_uuid),
        event=event.happening.value,
        reason=event.reason.value,
        detail=event.detail,
        tunables=dict(event.tunables),
        disk_job=None if event.disk_job is None else _disk_job(event.disk_job),
    )


def _disk_job(job: DiskJob) -> vm_pb2.DiskJob:
    return vm_pb2.DiskJob(id=job.id, path=job.path, target=job.target, type=job.type)


def host(who: HostIdentity, found: Findings, vm_count: int) -> host_pb2.Host:
    """Encode the agent's host."""
    return host_pb2.Host(
        identity=wire_facts.identity(who),
        agent_version=found.agent_version,
        qemu_version=found.qemu_version,
        accelerator=found.accelerator,
        memory_available_bytes=found.memory_kib[0] * _KIB,
        memory_total_bytes=found.memory_kib[1] * _KIB,
        vm_count=vm_count,
        warnings=found.warnings,
    )
