"""Moving the definition of a stopped VM, by the same steps as a guest.

Nothing runs on either host and nothing is sent, so both halves are told at once what QEMU would say last. Who has the definition is
decided as who has a guest is: the source gives it away, by the token, before the destination keeps it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

from agent.migration import incoming as inc
from agent.migration.adaptation import adapt, elsewhere
from agent.migration.begin import Look, open_session, place_disks
from agent.migration.named_files import prove_files
from agent.migration.order import OFFLINE_URI, Begun, Endpoint, Offer, SourceFacts, Wish
from agent.migration.prepare import Preparation
from agent.migration.record import Facts
from agent.migration.shared_disks import check_marker, unless_lost, write_markers
from agent.migration.source import SourceSession
from agent.migration.surroundings import Surroundings
from agent.vm.definition import Definition
from agent.vm.jobs import Job
from agent.vm.stored import Stored, find_stored
from agent.vm.vm import Vm
from common.errors import WrongState
from common.findings import Findings


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
        seen = await look_offline(around, vm, wish)
        with unless_lost(seen.markers, around.store):
            return open_session(around, vm, lock, wish, seen)
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


async def look_offline(around: Surroundings, vm: Vm, wish: Wish) -> Look:
    """Check a stopped VM and describe it; leaves markers beside its images.

    Raises:
        FerryError: its definition cannot be moved.
    """
    definition = here = _find_definition(vm, around.identity.name)
    if wish.destination_xml:
        definition = await asyncio.to_thread(adapt, definition, wish.destination_xml, name=wish.options.destination_name)
    definition = place_disks(definition, wish)
    stored = replace(find_stored(vm) or Stored(), definition=definition)
    markers, risks = write_markers(here, around.store, force=wish.options.force)
    with unless_lost(markers, around.store):
        moved_markers = elsewhere(markers, here, definition)
        files = await asyncio.to_thread(prove_files, here, None)
    facts = SourceFacts(
        host=around.identity,
        qemu_version="",
        machine=definition.machine,
        cpu_words=(),
        disk_markers=moved_markers,
        stored=stored.to_bytes(),
        files=files,
    )
    return Look(definition, facts, risks, markers, is_running=False)


class OfflinePreparation(Preparation):
    """One Prepare that starts no QEMU."""

    async def check(self, findings: Findings) -> None:
        """Look whether the VM could be started here.

        Raises:
            FerryError: it could not, unless `findings` collects that; nothing was changed.
        """
        await self._around.vms.check_startable(self.definition, findings)
        source, here, force = self._source.host, self._around.identity, self._options.force
        for marker in self._source.disk_markers:
            with findings.check():
                hint = " (disks of a stopped VM are not copied)"
                risks = await asyncio.to_thread(check_marker, marker, source, here, force=force, hint=hint)
                self.session.update(warnings=(*self.session.facts.warnings, *risks))
        await self._compare_files((), findings)

    async def start(self) -> Endpoint:
        """Reserve name and UUID; the caller undoes it when this raises."""
        session = self.session
        session.take(*self._around.vms.reserve_incoming(self.definition, session.facts.migration_id))
        session.endpoint = Endpoint(OFFLINE_URI)
        session.request(inc.QemuListening(), "it was undone while it was being prepared", "WRONG_PHASE")
        session.observe(inc.QemuLoaded())
        session.save()  # no QEMU remembers it
        return session.endpoint


def preparation(around: Surroundings, offer: Offer) -> Preparation:
    """Make ready for a guest, or for a definition.

    Raises:
        InvalidRequest: what the source sent is neither.
    """
    return (OfflinePreparation if offer.options.modes.offline else Preparation)(around, offer)


def reserve_again(around: Surroundings, facts: Facts) -> None:
    """Reserve name and UUID of a definition that is on its way here, after the agent was restarted."""
    definition = None if facts.stored is None else facts.stored.definition
    is_open = facts.options.modes.offline and facts.ended_at_s is None
    if is_open and definition is not None and around.vms.find(UUID(facts.vm_uuid)) is None:
        around.vms.reserve_incoming(definition, facts.migration_id)
