"""The source's way to the destination: opened before `migrate`, cut when the other end goes silent, removed at the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from agent.migration.migrate_uri import parse_migrate_uri, resolve
from agent.migration.order import Endpoint, Options, Transport
from agent.migration.parts import Destination
from agent.migration.qemu_setup import CREDENTIALS_ID, apply_settings, remove_key
from agent.migration.surroundings import Surroundings
from agent.qemu import cut
from agent.qemu.commands import Qemu
from agent.qemu.cut import Connection
from agent.qemu.machine import Endpoint as TlsEndpoint
from common.errors import FerryError

REPORT_INTERVAL_S: Final = 0.01
REPORT_FOR_S: Final = 10.0
TIDY_TIMEOUT_S: Final = 1.0
SENDER_GRACE_S: Final = 0.1

_log = structlog.get_logger()


class Transfer:
    """The connections of one migration at the source."""

    def __init__(self, migration_id: str, options: Options, around: Surroundings, *, uri: str = "") -> None:
        """Name the transfer; `uri` is the destination of a direct one, if it is already known."""
        self._migration_id = migration_id
        self._options = options
        self._around = around
        self._uri = uri
        self._addresses: tuple[str, ...] = ()
        self._has_key = options.is_psk and bool(uri)  # after a restart of the agent it may be there

    async def open(self, qemu: Qemu, endpoint: Endpoint) -> str:
        """Make everything ready and return the URI for `migrate`.

        Raises:
            FerryError: QEMU, the tunnel or the destination refused; nothing was sent.
        """
        if self._options.is_psk:
            await self._install_key(qemu, endpoint)
        await apply_settings(qemu, self._options, endpoint.agreed)
        if self._options.transport is Transport.TUNNEL:
            return await self._open_tunnel(endpoint)
        self._uri = endpoint.uri
        return endpoint.uri

    async def open_again(self, endpoint: Endpoint) -> str:
        """Make the way ready for a post-copy that lost its connection; return the URI for `migrate`.

        Raises:
            FerryError: the tunnel refused.
        """
        if self._options.transport is Transport.TUNNEL:
            return await self._open_tunnel(endpoint)
        self._uri, self._addresses = endpoint.uri, ()
        return endpoint.uri

    async def _install_key(self, qemu: Qemu, endpoint: Endpoint) -> None:
        try:
            directory = self._around.write_key(self._migration_id, endpoint.psk_key)
            await qemu.add_psk(CREDENTIALS_ID, directory, TlsEndpoint.CLIENT, endpoint.psk_identity, endpoint.psk_priority or None)
            self._has_key = True
        finally:
            remove_key(self._around.key_directory(self._migration_id))  # a client reads it once

    async def _open_tunnel(self, endpoint: Endpoint) -> str:
        path = self._around.store.session_socket_path(self._migration_id, "out")
        await self._around.tunnel.open_entrance(
            self._migration_id, endpoint.tunnel_token, path, endpoint.tunnel_address, self._options.channel_count
        )
        self._around.store.guests.own(path)
        return f"unix:{path}"

    async def report_channels(self, process_id: int, destination: Destination) -> None:
        """Tell the destination which connections are ours, as they appear, until all have.

        Without this a stranger on the destination's port could not be told from us.
        """
        known: tuple[int, ...] = ()
        async with asyncio.timeout(REPORT_FOR_S):
            while len(known) < self._options.channel_count:
                ports = tuple(sorted(one.local[1] for one in await self._connections(process_id)))
                if not set(ports) <= set(known):
                    known = tuple(sorted({*known, *ports}))
                    is_complete = len(known) >= self._options.channel_count
                    await destination.report_channels(self._migration_id, known, is_complete=is_complete)
                await asyncio.sleep(REPORT_INTERVAL_S)

    async def cut(self, process_id: int) -> None:
        """End the connections from outside, so that QEMU is freed from a silent peer.

        The sending side goes first: when both of QEMU's threads see the end at the same time, the one that reads closes
        the connection under the one that writes, and QEMU 7.2 then waits for ever, with the guest standing still.
        """
        await self.close_tunnel(timeout_s=SENDER_GRACE_S)
        await self._cut_directly(process_id)

    async def _cut_directly(self, process_id: int) -> None:
        sending = await self._connections(process_id)
        for one in sending:
            cut.cut(process_id, one, sending_only=True)
        if sending:
            await asyncio.sleep(SENDER_GRACE_S)
        for one in await self._connections(process_id):
            if cut.cut(process_id, one):
                _log.warning("connection cut", migration=self._migration_id, remote=f"{one.remote[0]}:{one.remote[1]}")

    async def close_tunnel(self, *, timeout_s: float = TIDY_TIMEOUT_S) -> None:
        """End every connection through the tunnel, if this transfer has one.

        Raises:
            TimeoutError: the tunnel does not answer.
        """
        if self._options.transport is Transport.TUNNEL:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._around.tunnel.close_session(self._migration_id)
            finally:  # a tunnel that is killed leaves the socket that it listened on
                self._around.store.session_socket_path(self._migration_id, "out").unlink(missing_ok=True)

    async def tidy(self, qemu: Qemu, process_id: int) -> None:
        """Remove what `open` made; what QEMU does not answer for is left to its end."""
        remove_key(self._around.key_directory(self._migration_id))
        with suppress(FerryError, TimeoutError):
            await self.close_tunnel()
        with suppress(FerryError, TimeoutError):
            await self._cut_directly(process_id)
            await self._wait_until_cut(qemu)
        if self._has_key or self._options.is_psk:  # after a restart it is not known whether QEMU has it
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(TIDY_TIMEOUT_S):
                    await qemu.set_parameters({"tls-creds": ""})
                    await qemu.object_del(CREDENTIALS_ID)

    async def _wait_until_cut(self, qemu: Qemu) -> None:
        """Wait until QEMU let go of its channels: QEMU 10.0 takes no new `migrate` before, though it says `cancelled`."""
        async with asyncio.timeout(TIDY_TIMEOUT_S):
            while await qemu.has_migration_channels():  # noqa: ASYNC110 - only QEMU knows, and it has no event for it
                await asyncio.sleep(REPORT_INTERVAL_S)

    async def _connections(self, process_id: int) -> tuple[Connection, ...]:
        """Find QEMU's connections to the destination, also those that are still being made."""
        if not self._uri:
            return ()
        target = parse_migrate_uri(self._uri)
        if not self._addresses:
            self._addresses = await asyncio.to_thread(resolve, target.host)
        found = cut.connections(process_id)
        return tuple(one for one in found if one.remote[1] == target.port and one.remote[0] in self._addresses)
