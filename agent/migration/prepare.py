"""Prepare: the destination checks itself, starts QEMU with the source's definition, and listens.

Whatever fails here is undone before the error is told; the guest at the source has noticed nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from dataclasses import replace
from typing import Final

from opentelemetry import context as otel_context

from agent.migration import incoming as inc
from agent.migration.abilities import destination_ability, needs
from agent.migration.begin import current_traceparent
from agent.migration.checks import check_cpu, guest_cpu, rename
from agent.migration.clocks import now_s
from agent.migration.destination import DestinationSession
from agent.migration.means_check import OPTIONAL, OPTIONAL_IN_POST_COPY, Ability, agree, require
from agent.migration.migrate_uri import Target, check_port_free, listen_uri, parse_migrate_uri, refuse_loopback, resolve
from agent.migration.order import Endpoint, Offer, Role, Transport
from agent.migration.qemu_setup import CREDENTIALS_ID, PSK_IDENTITY, apply_settings, psk_priority
from agent.migration.record import Facts, Record
from agent.migration.shared_disks import check_caches, check_markers
from agent.migration.surroundings import Surroundings
from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuRefused
from agent.qemu.machine import Endpoint as TlsEndpoint
from agent.vm.cpu_shares import read_shares
from agent.vm.definition import Definition
from common.errors import InvalidRequest, WrongState

KEY_BYTES: Final = 32
TOKEN_LIFETIME_S: Final = 24 * 3600.0
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
        self._definition = rename(_read_definition(offer.definition), offer.options.destination_name)
        record = Record[inc.Phase](
            Facts(
                migration_id=offer.migration_id,
                role=Role.DESTINATION,
                vm_uuid=str(self._definition.uuid),
                vm_name=self._definition.name,
                options=offer.options,
                epoch=offer.epoch,
                began_at_s=now_s(),
                token_sha256=offer.token_sha256.hex(),
                peer=offer.source.host.name,
                traceparent=current_traceparent(),
            ),
            inc.Reserved(),
        )
        self.session = DestinationSession(record, around=around, vm=None, lock=None, parent=otel_context.get_current())

    async def check(self) -> None:
        """Look at what needs no QEMU.

        Raises:
            FerryError: the guest cannot come here; nothing was changed.
        """
        if self._options.transport is Transport.DIRECT:
            await self._listen_address()
        await self._check_abilities()
        source, here, force = self._source.host, self._around.identity, self._options.force
        risks = await asyncio.to_thread(check_markers, self._source.disk_markers, source, here, force=force)
        self.session.update(warnings=(*risks, *check_caches(self._definition, source, here, force=force)))

    async def _check_abilities(self) -> None:
        """Refuse what one side lacks, and find what both have."""
        around, source = self._around, self._source
        facts = await around.vms.qemu_facts(self._definition)
        here = destination_ability(facts, around.identity.name, around.store.guests)
        there = Ability(Role.SOURCE, source.host.name, source.qemu_version, source.known)
        for name in needs(self._options):
            require(name, there, here)
        optional = (*OPTIONAL, *(OPTIONAL_IN_POST_COPY if self._options.post_copy.is_allowed else ()))
        self._agreed = agree(optional, there, here)

    async def start(self) -> Endpoint:
        """Start QEMU and let it listen; the caller undoes it when this raises."""
        session, around = self.session, self._around
        shares = read_shares(self._source.cpu_shares, self._source.cgroup_version)
        vm, lock = await around.vms.start_incoming(self._definition, session.facts.migration_id, shares)
        session.take(vm, lock)
        qemu = around.vms.qemu(vm)
        check_cpu(self._source, await guest_cpu(qemu), self._definition)
        key = await self._install_key(qemu) if self._options.is_psk else ""
        await self._apply_settings(qemu)
        if self._options.transport is Transport.TUNNEL:
            endpoint = await self._listen_for_tunnel(qemu)
        else:
            endpoint = await self._listen_directly(qemu, key)
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
        if self._options.post_copy.is_allowed:
            version = await qemu.query_version()
            self.session.update(is_fragile=version.major < STURDY_VERSION)

    async def _install_key(self, qemu: Qemu) -> str:
        key = secrets.token_hex(KEY_BYTES)
        # A server reads it at every handshake, so it stays until the end.
        directory = self._around.write_key(self.session.facts.migration_id, key)
        await qemu.add_psk(CREDENTIALS_ID, directory, TlsEndpoint.SERVER, PSK_IDENTITY)
        return key

    async def _listen_for_tunnel(self, qemu: Qemu) -> Endpoint:
        around, migration_id = self._around, self.session.facts.migration_id
        path = around.store.session_socket_path(migration_id, "in")
        token = secrets.token_urlsafe(KEY_BYTES)
        await around.tunnel.open_exit(
            migration_id,
            hashlib.sha256(token.encode()).digest(),
            path,
            self._options.channel_count,
            TOKEN_LIFETIME_S,
        )
        await qemu.migrate_incoming(f"unix:{path}")
        return Endpoint(tunnel_token=token, tunnel_address=around.tunnel_address)

    async def _listen_directly(self, qemu: Qemu, key: str) -> Endpoint:
        target, address = await self._listen_address()
        check_port_free(address, target.port or 0)
        pool = self._around.pool
        try:
            await qemu.migrate_incoming(listen_uri(address, target.port, pool))
        except QemuRefused as error:
            if target.port is None and "available port" in error.description:
                raise WrongState(
                    f"no free port between {pool.first} and {pool.last} on {self._around.identity.name}; "
                    "end what listens there or widen port_min and port_max",
                    reason="PORT_POOL_EXHAUSTED",
                    first=pool.first,
                    last=pool.last,
                ) from error
            raise
        port = (await qemu.query_migrate()).port
        if port is None:
            raise WrongState("QEMU listens and does not say on which port", reason="PORT_UNKNOWN")
        if self._options.is_psk:
            self.session.guard_port(port)
        return Endpoint(
            uri=f"tcp:{target.bracketed}:{port}",
            psk_key=key,
            psk_identity=PSK_IDENTITY if key else "",
            psk_priority=psk_priority(self._source.host, self._around.identity) if key else "",
        )

    async def _listen_address(self) -> tuple[Target, str]:
        """Choose the host that the source connects to, and the address of it that QEMU listens on."""
        around = self._around
        target = (
            parse_migrate_uri(self._options.migrate_uri) if self._options.migrate_uri else Target(around.migration_address, None)
        )
        addresses = await asyncio.to_thread(resolve, target.host)
        refuse_loopback(target.host, addresses, peer_is_this_host=self._source.host.is_same_network(around.identity))
        return target, addresses[0]


def _read_definition(content: bytes) -> Definition:
    try:
        return Definition.from_record(json.loads(content))
    except ValueError as error:
        raise InvalidRequest(f"definition: not JSON: {error}", reason="DEFINITION_MALFORMED") from error
