"""A source in post-copy whose guest never ran at the destination is brought to give it back.

It has all of the memory and the devices as they were at the stop, but QEMU obeys no `cont` before its migration has ended:

    postcopy-active, -device     the connection is given up, and cut: nobody is at its other end
    postcopy-paused              it recovers to a receiver of ours, which says that it has all and cannot load it: `failed`
    device, no channels left     QEMU 10.0 has forgotten to end it: a debugger runs the guest
    failed, finish-migrate       QEMU 10.2 could not take an image back that the destination's held: likewise, once that has ended
    anything for too long        likewise, as the last resort

QEMU reports `failed`, and the machine goes on from there. Nothing here ends a QEMU.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from agent.migration import outgoing as out
from agent.migration.clocks import now_s
from agent.qemu.debugger import run_by_debugger
from agent.qemu.errors import QemuGone, QemuRefused, QemuSilent
from agent.qemu.ram_blocks import ram_block_bytes
from agent.qemu.receiver import Receiver
from agent.qemu.status import MigrationStatus, RunState
from agent.vm.image_activation import ImageLocked, activate_images
from common.errors import Expired, FerryError

if TYPE_CHECKING:
    from agent.migration.source import SourceSession
    from agent.migration.surroundings import Surroundings

RETRY_FIRST_S: Final = 0.02
RETRY_LAST_S: Final = 2.0
GIVEN_BACK_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 1.0
LAST_RESORT_S: Final = 10.0

_IN_POST_COPY = (
    MigrationStatus.POSTCOPY_ACTIVE,
    MigrationStatus.POSTCOPY_DEVICE,
    MigrationStatus.POSTCOPY_RECOVER_SETUP,
    MigrationStatus.POSTCOPY_RECOVER,
)
_log = structlog.get_logger()


class GivingBack:
    """Brings the QEMU of one source session out of post-copy."""

    def __init__(self, session: SourceSession, around: Surroundings) -> None:
        self._session = session
        self._around = around

    async def run(self) -> None:
        """Try until QEMU reports how its migration ended."""
        session = self._session
        delay_s = RETRY_FIRST_S
        await session.wait_attached()
        began_s = now_s()
        while isinstance(session.phase, out.Refused):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    report = await session.qemu.query_migrate()
                await self._act(report.status, is_late=now_s() - began_s > LAST_RESORT_S)
            except QemuGone:
                return
            except (QemuSilent, TimeoutError):  # it sends to nobody with its lock held
                await session.cut_and_yank()
            except (FerryError, OSError) as error:
                text = error.text if isinstance(error, FerryError) else str(error)
                session.update(waiting_for=f"QEMU on {session.host_name} does not give the guest back yet: {text}")
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await session.wait_phase(out.Keeping)
            delay_s = min(2 * delay_s, RETRY_LAST_S)

    async def _act(self, status: MigrationStatus, *, is_late: bool) -> None:
        session = self._session
        if status is MigrationStatus.POSTCOPY_PAUSED:
            await self._recover_to_receiver()
        elif is_late and not status.is_final:
            await self._end_forgotten()
        elif status in _IN_POST_COPY:
            with suppress(QemuRefused):  # only some versions, in some states
                await session.qemu.migrate_pause()
            await session.cut_and_yank()
        elif status is MigrationStatus.DEVICE and await session.qemu.has_migration_channels():
            await session.cut_and_yank()
        elif status is MigrationStatus.DEVICE:
            await self._end_forgotten()
        else:
            await session.ask_qemu()

    async def _recover_to_receiver(self) -> None:
        session = self._session
        blocks = await ram_block_bytes(session.qemu)
        path = self._around.store.session_socket_path(session.facts.migration_id, "back")
        receiver = await Receiver.listen(path, blocks)
        try:
            self._around.store.guests.own(path)
            if session.facts.options.is_psk:  # else QEMU would talk TLS to it
                await session.qemu.set_parameters({"tls-creds": ""})
            _log.warning("the guest is taken back out of post-copy", migration=session.facts.migration_id)
            await session.qemu.migrate_again(f"unix:{path}")
            async with asyncio.timeout(GIVEN_BACK_TIMEOUT_S):
                await session.wait_phase(out.Keeping)
        except TimeoutError as error:
            raise Expired(f"no end of its migration in {GIVEN_BACK_TIMEOUT_S:g} s", reason="GUEST_NOT_GIVEN_BACK") from error
        finally:
            await receiver.close()
            path.unlink(missing_ok=True)

    async def _end_forgotten(self) -> None:
        session = self._session
        await self.leave_finish_migrate()
        text = (
            f"the QEMU of VM {session.facts.vm_name} can be neither migrated nor saved any more, by a fault of QEMU's: "
            "stop the VM and start it again when it suits you"
        )
        session.update(warnings=(*session.facts.warnings, text))
        if isinstance(session.phase, out.Refused):
            session.observe(out.QemuGaveUp(session.phase.cause))

    async def leave_finish_migrate(self) -> None:
        """Run a guest whose QEMU has ended its migration and left it stopped, where `cont` is refused.

        Raises:
            ImageLocked: another QEMU holds an image of the guest; the destination's is asked to end.
        """
        session = self._session
        if await session.qemu.query_status() is not RunState.FINISH_MIGRATE:
            return
        _log.warning("QEMU left the guest stopped: a debugger runs it", migration=session.facts.migration_id)
        try:
            await activate_images(session.qemu, session.facts.vm_name)
        except ImageLocked:
            await self._abandon_destination()
            raise
        await run_by_debugger(session.qemu, self._around.store.session_socket_path(session.facts.migration_id, "gdb"))
        if session.facts.guest_was_paused:
            await session.qemu.stop()

    async def _abandon_destination(self) -> None:
        """Let the destination's agent end a QEMU that has the guest and may not run it: QEMU 7.2 holds its images by then."""
        session = self._session
        if session.destination is not None:
            with suppress(FerryError):
                await session.destination.abandon(session.facts.migration_id, bytes.fromhex(session.facts.token))
