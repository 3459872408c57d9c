"""How a QEMU of the destination listens for the source: a port of the pool, one that was named, or a socket behind the tunnel."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from agent.migration.migrate_uri import Target, check_port_free, listen_uri, parse_migrate_uri, refuse_loopback, resolve
from agent.migration.order import Endpoint, HostIdentity, Options, Transport
from agent.migration.qemu_setup import CREDENTIALS_ID, PSK_IDENTITY, psk_priority
from agent.qemu.errors import QemuRefused
from agent.qemu.machine import Endpoint as TlsEndpoint
from common.errors import WrongState

if TYPE_CHECKING:
    from agent.migration.surroundings import Surroundings
    from agent.qemu.commands import Qemu

KEY_BYTES: Final = 32
TOKEN_LIFETIME_S: Final = 24 * 3600.0


class Listening:
    """The destination's end of one transfer."""

    def __init__(self, around: Surroundings, options: Options, source: HostIdentity, transfer_id: str) -> None:
        self._around = around
        self._options = options
        self._source = source
        self._transfer_id = transfer_id

    async def address(self) -> tuple[Target, str]:
        """Choose the host that the source connects to, and the address of it that QEMU listens on.

        Raises:
            InvalidRequest, WrongState: there is none that the source could reach.
        """
        around = self._around
        target = (
            parse_migrate_uri(self._options.migrate_uri) if self._options.migrate_uri else Target(around.migration_address, None)
        )
        addresses = await asyncio.to_thread(resolve, target.host)
        refuse_loopback(target.host, addresses, peer_is_this_host=self._source.is_same_network(around.identity))
        return target, addresses[0]

    async def install_key(self, qemu: Qemu) -> str:
        """Give QEMU a key of this transfer alone, where QEMU itself encrypts; return it, or nothing."""
        if not self._options.is_psk:
            return ""
        key = secrets.token_hex(KEY_BYTES)
        # A server reads it at every handshake, so it stays until the end.
        directory = self._around.write_key(self._transfer_id, key)
        await qemu.add_psk(CREDENTIALS_ID, directory, TlsEndpoint.SERVER, PSK_IDENTITY)
        return key

    async def open(self, qemu: Qemu, key: str) -> tuple[Endpoint, int]:
        """Let QEMU, which has its settings, listen; return where, and the port, 0 behind a tunnel.

        Raises:
            WrongState: no port is free.
        """
        if self._options.transport is Transport.TUNNEL:
            return await self._open_tunnel(qemu), 0
        return await self._open_port(qemu, key)

    async def _open_tunnel(self, qemu: Qemu) -> Endpoint:
        around = self._around
        path = around.store.session_socket_path(self._transfer_id, "in")
        token = secrets.token_urlsafe(KEY_BYTES)
        await around.tunnel.open_exit(
            self._transfer_id,
            hashlib.sha256(token.encode()).digest(),
            path,
            self._options.channel_count,
            TOKEN_LIFETIME_S,
        )
        await qemu.migrate_incoming(f"unix:{path}")
        return Endpoint(tunnel_token=token, tunnel_address=around.tunnel_address)

    async def _open_port(self, qemu: Qemu, key: str) -> tuple[Endpoint, int]:
        target, address = await self.address()
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
        endpoint = Endpoint(
            uri=f"tcp:{target.bracketed}:{port}",
            psk_key=key,
            psk_identity=PSK_IDENTITY if key else "",
            psk_priority=psk_priority(self._source, self._around.identity) if key else "",
        )
        return endpoint, port
