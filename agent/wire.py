"""Protobuf to the agent's own types and back. Nothing is decided here; what cannot be decoded is refused."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from agent import wire_budget, wire_disks, wire_means, wire_modes
from agent.host import Findings
from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.convergence import Decision
from agent.migration.migrations import AnySession
from agent.migration.order import (
    DEFAULT_DOWNTIME_S,
    Begun,
    CpuWord,
    Endpoint,
    HostIdentity,
    Offer,
    Options,
    Role,
    SourceFacts,
    Transport,
    Wish,
)
from agent.migration.post_copy import PostCopy, When
from agent.migration.progress import Leg, Progress, Timeline
from agent.migration.record import find_cause, tells_all
from agent.migration.source import SourceSession
from agent.vm.adoption.plan import AdoptionPlan
from agent.vm.events import DiskJob, VmEvent
from agent.vm.vm import VmState, VmView
from common.errors import InvalidRequest
from ferry.agent.v1 import adoption_pb2, host_pb2, migration_pb2, vm_pb2
from ferry.common.v1 import migration_pb2 as common_pb2
from ferry.common.v1 import post_copy_pb2

RESUME_METHOD: Final = "/ferry.agent.v1.AgentService/ResumeMigration"
_NS: Final = 1_000_000_000
_KIB: Final = 1024
_State = migration_pb2.Migration.State
_Where = migration_pb2.Migration.GuestLocation

_TRANSPORTS: Final = {
    common_pb2.TRANSPORT_UNSPECIFIED: Transport.DIRECT,
    common_pb2.TRANSPORT_DIRECT: Transport.DIRECT,
    common_pb2.TRANSPORT_TUNNEL: Transport.TUNNEL,
}
_STATES: Final[dict[type, tuple[_State.ValueType, _Where.ValueType]]] = {
    out.Begun: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    out.Mirroring: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Connecting: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Transferring: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Settling: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SOURCE),
    out.Switching: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Leaving: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    out.Crossing: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Following: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Broken: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Refused: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    out.Losing: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    out.Sent: (_State.STATE_HANDING_OVER, _Where.GUEST_LOCATION_SWITCHING),
    out.HandedOver: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    out.Retiring: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    out.Retired: (_State.STATE_SUCCEEDED, _Where.GUEST_LOCATION_DESTINATION),
    out.Cancelling: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    out.Keeping: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    out.Kept: (_State.STATE_FAILED, _Where.GUEST_LOCATION_SOURCE),
    out.Lost: (_State.STATE_FAILED, _Where.GUEST_LOCATION_NOWHERE),
    inc.Reserved: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    inc.Listening: (_State.STATE_PREPARING, _Where.GUEST_LOCATION_SOURCE),
    inc.Loading: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SOURCE),
    inc.Loaded: (_State.STATE_SWITCHING, _Where.GUEST_LOCATION_SWITCHING),
    inc.Arrived: (_State.STATE_TRANSFERRING, _Where.GUEST_LOCATION_SWITCHING),
    inc.Entering: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    inc.Filling: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_DESTINATION),
    inc.Ending: (_State.STATE_POST_COPY, _Where.GUEST_LOCATION_NOWHERE),
    inc.Resuming: (_State.STATE_HANDING_OVER, _Where.GUEST_LOCATION_DESTINATION),
    inc.Running: (_State.STATE_HANDED_OVER, _Where.GUEST_LOCATION_DESTINATION),
    inc.Finished: (_State.STATE_SUCCEEDED, _Where.GUEST_LOCATION_DESTINATION),
    inc.Undoing: (_State.STATE_CANCELLING, _Where.GUEST_LOCATION_SOURCE),
    inc.Abandoned: (_State.STATE_FAILED, _Where.GUEST_LOCATION_SOURCE),
    inc.Lost: (_State.STATE_FAILED, _Where.GUEST_LOCATION_NOWHERE),
}
_WHENS: Final = {
    post_copy_pb2.PostCopy.WHEN_UNSPECIFIED: When.NEVER,
    post_copy_pb2.PostCopy.WHEN_NEVER: When.NEVER,
    post_copy_pb2.PostCopy.WHEN_ALLOWED: When.ALLOWED,
    post_copy_pb2.PostCopy.WHEN_IMMEDIATELY: When.IMMEDIATELY,
    post_copy_pb2.PostCopy.WHEN_AFTER_FIRST_PASS: When.AFTER_FIRST_PASS,
}
_MAY_TELL_TOKEN: Final = (out.Following, out.Broken, out.Sent, out.HandedOver, out.Retiring, out.Retired)
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
        post_copy=post_copy(message.post_copy),
        budget=wire_budget.budget(message.budget),
        modes=wire_modes.modes(message.modes),
        disks=wire_disks.disk_wishes(message.disks),
    )


def post_copy(message: post_copy_pb2.PostCopy) -> PostCopy:
    """Decode what the user wishes of post-copy.

    Raises:
        InvalidRequest: a value is unknown or out of range.
    """
    if message.when not in _WHENS:
        raise InvalidRequest(f"post_copy.when {message.when} is unknown; 0 to {max(_WHENS)} are known", reason="POSTCOPY_UNKNOWN")
    return PostCopy(_WHENS[message.when], message.bandwidth_bytes_per_second, message.preempt)


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
        source=source_facts(request.source),
        definition=request.definition,
        token_sha256=request.resume_token_sha256,
        epoch=request.epoch,
    )


def source_facts(message: migration_pb2.SourceFacts) -> SourceFacts:
    """Decode what the source tells of itself."""
    return SourceFacts(
        host=HostIdentity(
            name=message.host.name,
            boot_id=message.host.boot_id,
            network_namespace_inode=message.host.network_namespace_inode,
            cpu_has_aes=message.host.cpu_has_aes,
        ),
        qemu_version=message.qemu_version,
        machine=message.machine,
        cpu_words=tuple(CpuWord(word.eax, word.ecx, word.register, word.features) for word in message.cpu_feature_words),
        disk_markers=tuple(wire_disks.marker(marker) for marker in message.disk_markers),
        cpu_shares=message.cpu_shares if message.HasField("cpu_shares") else None,
        cgroup_version=message.cgroup_version,
        known=frozenset(message.known),
        stored=message.stored,
        disks=tuple(wire_disks.disk_facts(disk) for disk in message.disks),
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


def identity(host: HostIdentity) -> common_pb2.HostIdentity:
    """Encode what a host is."""
    return common_pb2.HostIdentity(
        name=host.name,
        boot_id=host.boot_id,
        network_namespace_inode=host.network_namespace_inode,
        cpu_has_aes=host.cpu_has_aes,
    )


def begun(session: SourceSession, answer: Begun) -> migration_pb2.BeginMigrationResponse:
    """Encode the answer to Begin."""
    facts = answer.source
    return migration_pb2.BeginMigrationResponse(
        migration=migration(session),
        definition=answer.definition,
        resume_token_sha256=answer.resume_token_sha256,
        source=source_facts_message(facts),
    )


def source_facts_message(facts: SourceFacts) -> migration_pb2.SourceFacts:
    """Encode what the source tells of itself."""
    return migration_pb2.SourceFacts(
        host=identity(facts.host),
        qemu_version=facts.qemu_version,
        machine=facts.machine,
        cpu_feature_words=[
            migration_pb2.CpuFeatureWord(eax=word.eax, ecx=word.ecx, register=word.register, features=word.features)
            for word in facts.cpu_words
        ],
        disk_markers=[wire_disks.marker_message(marker) for marker in facts.disk_markers],
        cpu_shares=facts.cpu_shares,
        cgroup_version=facts.cgroup_version,
        known=sorted(facts.known),
        stored=facts.stored,
        disks=[wire_disks.disk_facts_message(disk) for disk in facts.disks],
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
    state, where = _STATES[type(phase)]
    cause = find_cause(phase)
    if isinstance(phase, out.Kept | inc.Abandoned) and cause is not None and cause.by_wish:
        state = _State.STATE_CANCELLED
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
    )
    if facts.ended_at_s is not None:
        message.end_time.CopyFrom(timestamp(facts.ended_at_s))
    if facts.progress is not None:
        message.progress.CopyFrom(progress(facts.progress, facts.timeline, facts.decisions))
    if facts.role is Role.SOURCE and facts.copies:
        message.progress.disks.extend(wire_disks.disk_progress(facts.copies))
    if isinstance(phase, inc.Finished) and not facts.options.modes.offline:
        message.progress.arrival.CopyFrom(wire_modes.arrival_message(facts.arrival))
    elif facts.arrival.network_gap is not None:
        message.progress.arrival.network_gap.CopyFrom(wire_modes.network_gap_message(facts.arrival.network_gap))
    if facts.timeline.downtime_legs():
        message.downtime.CopyFrom(downtime(facts.timeline))
    if with_token and isinstance(phase, _MAY_TELL_TOKEN):
        message.resume_token = bytes.fromhex(facts.token)
    return message


def _error_text(session: AnySession) -> str:
    cause = find_cause(session.phase)
    if cause is None:
        return ""
    words = session.facts.peer_words
    if tells_all(cause) or not words or words in cause.text:
        return cause.text
    return f"{cause.text}; {session.facts.peer or 'the destination'}: {words}"


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
        post_copy=None if not value.post_copy.is_allowed else _post_copy_message(value.post_copy),
        budget=wire_budget.budget_message(value.budget),
        modes=wire_modes.modes_message(value.modes),
        disks=wire_disks.disk_wishes_message(value.disks),
    )


def _post_copy_message(value: PostCopy) -> post_copy_pb2.PostCopy:
    when = next(number for number, known in _WHENS.items() if known is value.when and number)
    return post_copy_pb2.PostCopy(when=when, bandwidth_bytes_per_second=value.bandwidth_bytes_per_second, preempt=value.preempt)


def leg(value: Leg) -> common_pb2.Leg:
    """Encode a named part of a span of time."""
    return common_pb2.Leg(name=value.name, duration=duration(value.duration_s))


def progress(value: Progress, line: Timeline, decisions: tuple[Decision, ...]) -> common_pb2.Progress:
    """Encode the numbers of a transfer; before QEMU says how long it took, our clock does."""
    elapsed_s = value.elapsed_s
    if not elapsed_s and line.started_at_s is not None:
        elapsed_s = max(time.time() - line.started_at_s, 0.0)
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
        identity=identity(who),
        agent_version=found.agent_version,
        qemu_version=found.qemu_version,
        accelerator=found.accelerator,
        memory_available_bytes=found.memory_kib[0] * _KIB,
        memory_total_bytes=found.memory_kib[1] * _KIB,
        vm_count=vm_count,
        warnings=found.warnings,
    )
