"""The destination's connection in post-copy: when the guest has arrived over it, and how it is made anew when it is lost."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.migration import incoming as inc
from agent.migration.errors import GuestLost, GuestNeverRan, GuestWhole
from agent.migration.migrate_uri import Target, listen_uri, parse_migrate_uri, resolve
from agent.migration.order import Endpoint, Transport
from agent.migration.parts import PathProof
from agent.migration.path_proof import Echo, first_free_port
from agent.qemu.errors import QemuRefused
from agent.qemu.status import MigrationStatus, RunState
from common.errors import Expired, FerryError, WrongState

if TYPE_CHECKING:
    from agent.migration.destination import DestinationSession
    from agent.migration.surroundings import Surroundings

LOOK_INTERVAL_S: Final = 0.002
PAUSE_TIMEOUT_S: Final = 3.0
TOKEN_BYTES: Final = 32
TOKEN_LIFETIME_S: Final = 24 * 3600.0

_BEFORE_ARRIVED = (inc.Listening, inc.Loading)
_IN_POST_COPY = (inc.Arrived, inc.Entering, inc.Filling)
_POST_COPY_STATUSES: Final = frozenset(
    status.value
    for status in (
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
        MigrationStatus.POSTCOPY_RECOVER_SETUP,
        MigrationStatus.POSTCOPY_RECOVER,
    )
)
_STARVED: Final = frozenset(
    {MigrationStatus.POSTCOPY_PAUSED, MigrationStatus.POSTCOPY_RECOVER_SETUP, MigrationStatus.POSTCOPY_RECOVER}
)
_PAUSED: Final = MigrationStatus.POSTCOPY_PAUSED.value


class DestinationLink:
    """The connection of one destination session, as post-copy needs it."""

    def __init__(self, session: DestinationSession, around: Surroundings) -> None:
        self._session = session
        self._around = around
        self._echo: Echo | None = None

    # the arrival

    async def watch_arrival(self) -> None:
        """Notice that QEMU holds the guest: it says `postcopy-active` before it has read the devices, and nothing after."""
        session = self._session
        if isinstance(session.phase, _IN_POST_COPY):
            self.hold_vm()
        while session.facts.options.post_copy.is_allowed:
            if session.status_text not in _POST_COPY_STATUSES or not isinstance(session.phase, _BEFORE_ARRIVED):
                await session.wait_change()
                continue
            with suppress(FerryError):
                if await session.qemu.query_status() in {RunState.PAUSED, RunState.RUNNING}:
                    self.hold_vm()
                    session.observe(inc.GuestArrived())
            await asyncio.sleep(LOOK_INTERVAL_S)

    def hold_vm(self) -> None:
        """Let the job lock tell why the guest's QEMU must not be ended."""
        session = self._session
        if session.lock is not None:
            session.lock.why = f"not possible now, part of the guest's memory is still on {session.facts.peer or 'the source'}"

    def see(self, status: MigrationStatus) -> None:
        """Let the job lock tell how QEMU is."""
        lock = self._session.lock
        if lock is not None:
            lock.is_starved = status in _STARVED
            if status is MigrationStatus.COMPLETED:
                lock.why = ""

    # a new connection

    async def prove_path(self) -> PathProof:
        """Give the connection up if QEMU has not, and echo where QEMU is going to listen.

        Raises:
            WrongState: the guest does not wait for a connection here.
            Expired: QEMU does not give the connection up.
        """
        session = self._session
        self._check()
        await self._give_connection_up()
        if session.facts.options.transport is Transport.TUNNEL:
            return PathProof("", session.facts.is_fragile)
        target, address = await self._listen_address()
        port = target.port or first_free_port(address, self._around.pool, self._around.identity.name)
        await self.close()
        self._echo = await Echo.open(address, port)
        return PathProof(f"tcp:{target.bracketed}:{port}", session.facts.is_fragile)

    async def reopen(self) -> Endpoint:
        """Let QEMU listen anew, out of band: its main loop may wait for memory of the guest.

        Raises:
            WrongState: the guest does not wait for a connection here, or the way was not proved.
            FerryError: QEMU or the tunnel refused.
        """
        session = self._session
        self._check()
        migration_id = session.facts.migration_id
        if session.facts.options.transport is Transport.TUNNEL:
            return await self._reopen_tunnel(migration_id)
        echo = self._echo
        if echo is None:
            raise WrongState(f"migration {migration_id}: the way has to be proved first", reason="PATH_NOT_PROVED")
        target, address = await self._listen_address()
        await self.close()
        await session.qemu.migrate_recover(listen_uri(address, echo.port, self._around.pool))
        if session.facts.options.is_psk:
            session.guard_port(echo.port)
        return Endpoint(uri=f"tcp:{target.bracketed}:{echo.port}")

    async def close(self) -> None:
        """End the echo, if there is one."""
        echo, self._echo = self._echo, None
        if echo is not None:
            await echo.close()

    async def _reopen_tunnel(self, migration_id: str) -> Endpoint:
        around, session = self._around, self._session
        path = around.store.session_socket_path(migration_id, "in")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        digest = hashlib.sha256(token.encode()).digest()
        await around.tunnel.open_exit(migration_id, digest, path, session.facts.options.channel_count, TOKEN_LIFETIME_S)
        await session.qemu.migrate_recover(f"unix:{path}")
        return Endpoint(tunnel_token=token, tunnel_address=around.tunnel_address)

    async def _give_connection_up(self) -> None:
        session = self._session
        if session.status_text == _PAUSED:
            return
        try:
            await session.qemu.migrate_pause()
        except QemuRefused:  # it has given it up, which an agent that was started since has not heard
            return
        try:
            async with asyncio.timeout(PAUSE_TIMEOUT_S):
                while session.status_text != _PAUSED:
                    await session.wait_change()
        except TimeoutError as error:
            raise Expired(
                f"QEMU does not give the lost connection up in {PAUSE_TIMEOUT_S:g} s (status {session.status_text})",
                reason="POSTCOPY_NOT_PAUSED",
            ) from error

    def _check(self) -> None:
        session = self._session
        phase = session.phase
        if isinstance(phase, inc.Lost | inc.Ending):
            raise GuestLost.because(phase.cause, is_kept=isinstance(phase, inc.Lost) and phase.is_kept)
        if isinstance(phase, inc.Undoing | inc.Abandoned):
            raise GuestNeverRan(
                f"the guest never ran on {self._around.identity.name}, and its QEMU there is gone: {phase.cause.text}"
            )
        if isinstance(phase, inc.Loaded | inc.Resuming | inc.Running | inc.Finished):
            raise GuestWhole("all of the guest's memory is here")
        if not isinstance(phase, _IN_POST_COPY):
            raise WrongState(
                f"migration {session.facts.migration_id}: the guest here waits for no connection (phase {type(phase).__name__})",
                reason="NOT_BROKEN",
            )

    async def _listen_address(self) -> tuple[Target, str]:
        """Find again what Prepare chose."""
        wished = self._session.facts.options.migrate_uri
        target = parse_migrate_uri(wished) if wished else Target(self._around.migration_address, None)
        return target, (await asyncio.to_thread(resolve, target.host))[0]
