"""The source's way out of a lost connection in post-copy: prove the way, let the destination listen, connect anew.

    lost -> destination gives its end up -> way proved end to end -> it listens -> `migrate` with resume -> postcopy-active
      ^                                                                                                    |
      `------------------------------- with growing waits -------------------------------------------------'

A destination whose QEMU dies when a connection is lost while it recovers gets one attempt, on a way that has lasted for 5 s; more
are made only on a user's word. Nothing here ends a QEMU.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from agent.migration import outgoing as out
from agent.migration.clocks import now_s, wall_of
from agent.migration.errors import GuestLost, GuestNeverRan, GuestWhole
from agent.migration.machine import Cause
from agent.migration.migrate_uri import parse_migrate_uri
from agent.migration.path_proof import prove
from agent.qemu.errors import QemuGone, QemuRefused
from agent.qemu.status import MigrationStatus
from common.errors import FerryError, Unreachable, WrongState

if TYPE_CHECKING:
    from agent.migration.order import Endpoint
    from agent.migration.parts import Destination
    from agent.migration.source import SourceSession

RETRY_FIRST_S: Final = 0.5
RETRY_LAST_S: Final = 10.0
FRAGILE_PROOF_S: Final = 5.0
PROOF_S: Final = 0.5
RESUMED_TIMEOUT_S: Final = 10.0
REPORT_TIMEOUT_S: Final = 2.0
SETTLE_S: Final = 1.0

_UNDER_WAY = (MigrationStatus.POSTCOPY_RECOVER, MigrationStatus.POSTCOPY_RECOVER_SETUP)
_log = structlog.get_logger()


class Recovery:
    """Makes the connection of one source session anew."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._is_asked = False
        self._is_spent = False

    def ask(self) -> None:
        """Try now, on a user's word.

        Raises:
            WrongState: the connection is not lost.
        """
        session = self._session
        if not isinstance(session.phase, out.Broken):
            raise WrongState(
                f"migration {session.facts.migration_id}: no connection is lost, so there is nothing to recover "
                f"(phase {type(session.phase).__name__})",
                reason="NOT_BROKEN",
            )
        self._is_spent = False
        self._is_asked = True
        session.update()

    async def give_connection_up(self) -> None:
        """Let QEMU give a silent connection up, so that it can be made anew."""
        with suppress(FerryError):
            await self._session.qemu.migrate_pause()

    async def run(self) -> None:
        """Try until QEMU reports `postcopy-active`, or the guest is lost."""
        session = self._session
        delay_s = RETRY_FIRST_S
        self._is_spent = False
        await session.wait_attached()
        while self._is_broken():
            why = ""
            try:
                await self._try_once()
            except (GuestLost, GuestNeverRan) as error:
                if isinstance(error, GuestLost):
                    session.observe(out.DestinationLost(Cause(error.text, error.cause), error.is_kept))
                else:
                    session.observe(out.DestinationNeverRan(Cause(error.text, error.reason)))
                return
            except GuestWhole:  # the connection was lost just before QEMU could say so here
                session.update(waiting_for="", broken_since_s=None)
                session.observe(out.QemuCompleted())
                return
            except QemuGone:
                return
            except FerryError as error:
                why = error.text
            if not self._is_broken():
                return
            session.update(waiting_for=self._waiting_text(why))
            await self._wait(delay_s)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _wait(self, delay_s: float) -> None:
        """Wait, but not longer than until a user asks or the connection is back."""
        session = self._session
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self._is_spent else delay_s):
                while not self._is_asked and self._is_broken():
                    await session.wait_change()
        self._is_asked = False

    def _is_broken(self) -> bool:
        return isinstance(self._session.phase, out.Broken)

    async def _try_once(self) -> None:
        session = self._session
        destination = session.destination
        if destination is None:
            raise Unreachable("the address of its agent is not known")
        session.update(waiting_for=self._waiting_text("the way is being proved"))
        proof = await destination.prove_path(session.facts.migration_id)
        proof_s = FRAGILE_PROOF_S if proof.is_fragile else PROOF_S
        if proof.uri:
            target = parse_migrate_uri(proof.uri)
            await prove(target.host, target.port or 0, for_s=proof_s)
        endpoint = await destination.reopen(session.facts.migration_id)
        uri = await self._open(endpoint, 0.0 if proof.uri else proof_s)
        if session.facts.options.is_psk:
            await destination.report_channels(session.facts.migration_id, (), is_complete=False)
        self._is_spent = proof.is_fragile
        _log.info("post-copy goes on over a new connection", migration=session.facts.migration_id, uri=uri)
        session.status_text = ""
        await session.qemu.migrate_again(uri)
        await self._wait_resumed(destination)

    async def _open(self, endpoint: Endpoint, proof_s: float) -> str:
        """Make the way ready; a tunnel proves itself whenever it is opened, so it is opened again and again for a while."""
        session = self._session
        loop = asyncio.get_running_loop()
        until_s = loop.time() + proof_s
        uri = await session.transfer.open_again(endpoint)
        while loop.time() < until_s:
            await asyncio.sleep(RETRY_FIRST_S)
            uri = await session.transfer.open_again(endpoint)
        if endpoint.uri:
            session.update(peer_uri=endpoint.uri)
            session.keep()
        return uri

    async def _wait_resumed(self, destination: Destination) -> None:
        """Wait until QEMU says that it goes on, or that it does not; 7.2 says nothing when nobody listens."""
        session = self._session
        if session.facts.options.is_psk:
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(REPORT_TIMEOUT_S):
                    await session.transfer.report_channels(session.process.pid, destination)
        with suppress(TimeoutError):
            async with asyncio.timeout(RESUMED_TIMEOUT_S):
                while self._is_broken() and session.status_text != MigrationStatus.POSTCOPY_PAUSED.value:
                    await session.wait_change()
        with suppress(TimeoutError):  # a status that was asked for before QEMU had connected says nothing
            async with asyncio.timeout(SETTLE_S):
                while self._is_broken():
                    await session.wait_change()
        if not self._is_broken():
            return
        report = await session.qemu.query_migrate()
        if report.status in _UNDER_WAY:
            with suppress(QemuRefused):  # 7.2 has no way back from here
                await session.qemu.migrate_pause()
        why = report.error_desc or f"QEMU did not go on in {RESUMED_TIMEOUT_S:g} s"
        raise Unreachable(why, reason="RECOVERY_FAILED")

    def _waiting_text(self, why: str) -> str:
        facts = self._session.facts
        since = time.strftime("%H:%M:%S UTC", time.gmtime(wall_of(facts.broken_since_s or now_s())))
        peer = facts.peer or "the destination"
        how = "it is made anew by itself"
        if self._is_spent:
            how = "another loss while it recovers would end the destination's QEMU, so the next attempt needs your word"
        return (
            f"the guest runs on {peer} and waits for memory that is still on {self._session.host_name}, since {since}: "
            f"the connection was lost{': ' if why else ''}{why}; {how}"
        )
