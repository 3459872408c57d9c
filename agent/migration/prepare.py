"""Prepare: the destination checks itself, starts QEMU with the source's definition, and listens.

Whatever fails here is undone before the error is told; the guest at the source has noticed nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from opentelemetry import context as otel_context

from agent.migration import incoming as inc
from agent.migration.abilities import destination_ability, needs
from agent.migration.arrival import Arrival, network_card_count
from agent.migration.begin import current_traceparent
from agent.migration.checks import check_cpu, guest_cpu, rename
from agent.migration.clocks import now_era, wall_s
from agent.migration.destination import DestinationSession
from agent.migration.disk_exports import DiskExports
from agent.migration.incoming_disks import IncomingDisks
from agent.migration.listening import Listening
from agent.migration.means_check import OPTIONAL, OPTIONAL_IN_POST_COPY, Ability, agree, require
from agent.migration.named_files import Comparison
from agent.migration.order import Endpoint, Offer, Role, Transport
from agent.migration.qemu_setup import apply_settings
from agent.migration.record import Facts, Record
from agent.migration.shared_disks import check_caches
from agent.migration.surroundings import Surroundings
from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuRefused
from agent.vm.bridges import check_mtus
from agent.vm.cpu_shares import read_shares
from agent.vm.definition import Definition
from agent.vm.stored import Stored
from common.errors import InvalidRequest, WrongState
from common.findings import Findings
from common.foreign_json import parse_json

DIGEST_BYTES: Final = 32
# Before it a connection that is lost while post-copy recovers ends the destination's QEMU; versions between were not tried.
STURDY_VERSION: Final = 10


class Preparation:
    """One Prepare, from its checks to the endpoint."""

    def __init__(self, around: Surroundings, offer: Offer) -> None:
        """Read what the source sent.

        Raises:
            InvalidRequest: the definition or the digest is not one.
        """
        if len(offer.token_sha256) != DIGEST_BYTES:
            raise InvalidRequest(
                f"resume_token_sha256 has {len(offer.token_sha256)} bytes; a SHA-256 has {DIGEST_BYTES}",
                reason="DIGEST_INVALID",
            )
        self._around = around
        self._options = offer.options
        self._source = offer.source
        self._agreed: tuple[str, ...] = ()
        self.definition = rename(_read_definition(offer.definition), offer.options.destination_name)
        stored = Stored.from_bytes(offer.source.stored)
        is_kept = offer.options.modes.is_persistent(on_source=stored is not None)
        self._stored = (stored or Stored()).renamed(offer.options.destination_name) if is_kept else None
        record = Record[inc.Phase](
            Facts(
                migration_id=offer.migration_id,
                role=Role.DESTINATION,
                vm_uuid=str(self.definition.uuid),
                vm_name=self.definition.name,
                options=offer.options,
                epoch=offer.epoch,
                began_at_s=wall_s(),
                era=now_era(),
                token_sha256=offer.token_sha256.hex(),
                peer=offer.source.host.name,
                arrival=Arrival(network_card_count=network_card_count(self.definition)),
                stored=self._stored,
                traceparent=current_traceparent(),
            ),
            inc.Reserved(),
        )
        self.disks = IncomingDisks(around, offer.options, offer.source)
        self._listening = Listening(around, offer.options, offer.source.host, offer.migration_id)
        self.session = DestinationSession(record, around=around, vm=None, lock=None, parent=otel_context.get_current())

    async def check(self, findings: Findings) -> None:
        """Look at what needs no QEMU.

        Raises:
            FerryError: the guest cannot come here, unless `findings` collects that; nothing was changed.
        """
        with findings.check():
            if self._options.transport is Transport.DIRECT:
                await self._listening.address()
        with findings.check():
            await self._check_abilities(findings)
        with findings.check():
            if self._stored is not None:
                self._around.vms.premises.check_storable(self._stored)
        source, here, force = self._source.host, self._around.identity, self._options.force
        risks = await self.disks.check(self.definition, findings)
        self.session.update(warnings=(*self.session.facts.warnings, *risks))
        self._take_places()
        with findings.check():
            risks = check_caches(self.definition, source, here, force=force, but=self.disks.copied)
            self.session.update(warnings=(*self.session.facts.warnings, *risks))
        with findings.check():
            risks = check_mtus(self.definition, self._source.card_mtus, force=force, host=here.name)
            self.session.update(warnings=(*self.session.facts.warnings, *risks))
        await self._compare_files(self.disks.copied, findings)

    async def _compare_files(self, copied: tuple[str, ...], findings: Findings) -> None:
        """Hold files that do not go along with the guest against those of the source."""
        source = self._source
        facts = {disk.disk: disk for disk in source.disks}
        comparison = Comparison(source.files, facts, source.host.name, self._around.identity.name, self._options.force)
        risks = await asyncio.to_thread(comparison.check, self.definition, copied, self._options.disks.mode, findings)
        self.session.update(warnings=(*self.session.facts.warnings, *risks))

    def _take_places(self) -> None:
        """Let definitions name the images where they are going to be here."""
        wanted = self.definition
        self.definition = self.disks.adapt(wanted, wanted)
        if self._stored is not None and self._stored.definition is not None:
            self._stored = replace(self._stored, definition=self.disks.adapt(self._stored.definition, wanted))
            self.session.update(stored=self._stored)

    async def _check_abilities(self, findings: Findings) -> None:
        """Refuse what one side lacks, and find what both have."""
        around, source = self._around, self._source
        facts = await around.vms.premises.qemu_facts(self.definition)
        here = destination_ability(facts, around.identity.name, around.store.guests)
        there = Ability(Role.SOURCE, source.host.name, source.qemu_version, source.known)
        for name in needs(self._options):
            with findings.check():
                require(name, there, here)
        optional = (*OPTIONAL, *(OPTIONAL_IN_POST_COPY if self._options.post_copy.is_allowed else ()))
        self._agreed = agree(optional, there, here)

    async def start(self) -> Endpoint:
        """Start QEMU and let it listen; the caller undoes it when this raises."""
        session, around = self.session, self._around
        await self.disks.make(self.definition, session)
        shares = read_shares(self._source.cpu_shares, self._source.cgroup_version)
        vm, lock = await around.vms.start_incoming(self.definition, session.facts.migration_id, shares)
        session.take(vm, lock)
        qemu = around.vms.qemu(vm)
        check_cpu(self._source, await guest_cpu(qemu), self.definition)
        key = await self._listening.install_key(qemu)
        await self._apply_settings(qemu)
        endpoint, port = await self._listening.open(qemu, key)
        if self._options.is_psk:
            session.guard_port(port)
        if copies := session.facts.copies:
            exports = DiskExports(around, session.facts.migration_id, self._options, copies)
            endpoint = replace(endpoint, disks=await exports.open(qemu, self.definition, self._listening))
        session.endpoint = endpoint = replace(endpoint, agreed=self._agreed)
        session.request(inc.QemuListening(), "it was undone while it was being prepared", "WRONG_PHASE")
        return endpoint

    async def _apply_settings(self, qemu: Qemu) -> None:
        try:
            await apply_settings(qemu, self._options, self._agreed)
        except QemuRefused as error:
            if not self._options.post_copy.is_allowed or "ostcopy" not in error.description:
                raise
            here = self._around.identity.name
            raise WrongState(
                f"post-copy is not possible to {here}: its QEMU may not use userfaultfd there ({error.description}); set "
                "vm.unprivileged_userfaultfd=1, or give the user of QEMU access to /dev/userfaultfd (QEMU 8 and newer), "
                "or move without --postcopy",
                reason="POSTCOPY_NOT_POSSIBLE",
                host=here,
            ) from error
        if (rounds := self._options.modes.announce_round_count) is not None:
            await qemu.set_parameters({"announce-rounds": rounds})
        if self._options.post_copy.is_allowed:
            version = await qemu.query_version()
            self.session.update(is_fragile=version.major < STURDY_VERSION)


def _read_definition(content: bytes) -> Definition:
    try:
        return Definition.from_record(parse_json(content))
    except ValueError as error:
        raise InvalidRequest(f"definition: not JSON: {error}", reason="DEFINITION_MALFORMED") from error
