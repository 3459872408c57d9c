"""Moving the definition of a stopped VM, by the same steps as a guest.

Nothing runs on either host and nothing is sent, so both halves are told at once what QEMU would say last. Who has the definition is
decided as who has a guest is: the source gives it away, by the token, before the destination keeps it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from dataclasses import replace
from uuid import UUID

from opentelemetry import context as otel_context

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration.adaptation import adapt, elsewhere
from agent.migration.begin import TOKEN_BYTES, current_traceparent
from agent.migration.clocks import now_s
from agent.migration.order import OFFLINE_URI, Begun, Endpoint, Role, SourceFacts, Wish
from agent.migration.prepare import Preparation
from agent.migration.record import Facts, Record
from agent.migration.shared_disks import check_markers, write_markers
from agent.migration.source import SourceSession
from agent.migration.surroundings import Surroundings
from agent.vm.definition import Definition
from agent.vm.jobs import Job, JobLock
from agent.vm.stored import Stored, find_stored
from agent.vm.vm import Vm
from common.errors import WrongState


async def begin_offline(around: Surroundings, wish: Wish) -> tuple[SourceSession, Begun]:
    """Take a stopped VM for a move of its definition.

    Raises:
        NotFound: this host has no such VM.
        WrongState: it runs, or there is more to it than a definition.
        Busy: a job holds it.
    """
    vm = around.vms.get(wish.vm)
    lock = around.vms.lock(vm, Job.MIGRATION_OUT, wish.migration_id)
    try:
        return await _describe(around, lock, wish, vm, _find_definition(vm, around.identity.name))
    except BaseException:
        lock.release()
        raise


def _find_definition(vm: Vm, host: str) -> Definition:
    """Return the definition that is to be moved.

    Raises:
        WrongState: the VM runs, or there is more to it than a definition.
    """
    if vm.running is not None or vm.persistent is None:
        raise WrongState(
            f"VM {vm.name} runs on {host}: --offline moves the definition of a stopped one; without it, its guest is moved",
            reason="VM_RUNNING",
            vm=vm.name,
        )
    if vm.has_saved_guest:
        raise WrongState(
            f"VM {vm.name} has a saved guest on {host}, which would be lost; start it, or discard that first "
            "(ferry vm discard-saved)",
            reason="SAVED_GUEST_KEPT",
            vm=vm.name,
        )
    if vm.wishes.moved_to:
        raise WrongState(
            f"VM {vm.name} was moved to {vm.wishes.moved_to} and only its definition stayed on {host}: move it from there",
            reason="VM_MOVED_AWAY",
            vm=vm.name,
        )
    return vm.persistent


async def _describe(
    around: Surroundings, lock: JobLock, wish: Wish, vm: Vm, stored_here: Definition
) -> tuple[SourceSession, Begun]:
    definition = stored_here
    if wish.destination_xml:
        definition = await asyncio.to_thread(adapt, definition, wish.destination_xml, name=wish.options.destination_name)
    stored = replace(find_stored(vm) or Stored(), definition=definition)
    markers, risks = write_markers(stored_here, force=wish.options.force)
    facts = SourceFacts(
        host=around.identity,
        qemu_version="",
        machine=definition.machine,
        cpu_words=(),
        disk_markers=elsewhere(markers, stored_here, definition),
        stored=stored.to_bytes(),
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
            traceparent=current_traceparent(),
            warnings=risks,
            made_files=tuple(marker.marker_path for marker in markers if marker.marker_path),
        ),
        out.Begun(),
    )
    session = SourceSession(record, around=around, vm=vm, lock=lock, parent=otel_context.get_current())
    return session, Begun(json.dumps(definition.to_record()).encode(), hashlib.sha256(token).digest(), facts)


class OfflinePreparation(Preparation):
    """One Prepare that starts no QEMU."""

    async def check(self) -> None:
        """Look whether the VM could be started here.

        Raises:
            FerryError: it could not; nothing was changed.
        """
        vms = self._around.vms
        await vms.check_startable(self._definition)
        source, here, force = self._source.host, self._around.identity, self._options.force
        self.session.update(warnings=await asyncio.to_thread(check_markers, self._source.disk_markers, source, here, force=force))

    async def start(self) -> Endpoint:
        """Reserve name and UUID; the caller undoes it when this raises."""
        session = self.session
        session.take(*self._around.vms.reserve_incoming(self._definition, session.facts.migration_id))
        session.endpoint = Endpoint(OFFLINE_URI)
        session.request(inc.QemuListening(), "it was undone while it was being prepared", "WRONG_PHASE")
        session.observe(inc.QemuLoaded())
        session.save()  # no QEMU remembers it
        return session.endpoint


def reserve_again(around: Surroundings, facts: Facts) -> None:
    """Reserve name and UUID of a definition that is on its way here, after the agent was restarted."""
    definition = None if facts.stored is None else facts.stored.definition
    is_open = facts.options.modes.offline and facts.ended_at_s is None
    if is_open and definition is not None and around.vms.find(UUID(facts.vm_uuid)) is None:
        around.vms.reserve_incoming(definition, facts.migration_id)
