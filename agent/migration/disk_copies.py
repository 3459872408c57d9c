"""The disks that one source copies: the way to the destination, the copies while they run, and their end.

A copy that fails or stands still ends the attempt, never the guest: its disk is here and as it was.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry import trace

from agent.blockjobs.mirrors import MirrorFailed, Mirrors, copy_name
from agent.blockjobs.nbd import greet
from agent.migration import outgoing as out
from agent.migration.clocks import now_s
from agent.migration.disk_exports import disks_session
from agent.migration.disk_facts import find_drive
from agent.migration.disk_wishes import Mode
from agent.migration.machine import Cause
from agent.migration.migrate_uri import parse_migrate_uri
from agent.migration.order import Transport
from agent.migration.qemu_setup import CREDENTIALS_ID
from agent.migration.transfer_spans import untraced
from agent.qemu.block_commands import LARGEST_PIECE_BYTES, Sync, piece_bytes
from agent.qemu.errors import QemuRefused, QemuSilent
from agent.qemu.subscription import Event, Gone, Reconnected
from agent.qemu.threads import find_threads, is_working
from agent.vm.disk_images import FILTERS, disk_images
from common.errors import FerryError, WrongState
from common.storage import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.migration.order import DiskCopy, Endpoint
    from agent.migration.source import SourceSession
    from agent.migration.surroundings import Surroundings
    from agent.qemu.block_status import DriveReport
    from agent.qemu.subscription import Subscription
    from agent.vm.definition import Definition

POLL_INTERVAL_S: Final = 0.25
# No byte of a disk has moved: writes of the guest may hang for as long, and SCSI drivers give up after 30 s.
STALL_LIMIT_S: Final = 10.0
MUTE_LIMIT_S: Final = 3.0
# The same of a QEMU that an overloaded host holds up, which a cut would not help.
OVERLOAD_LIMIT_S: Final = 15.0
LOOK_INTERVAL_S: Final = 0.05
_LOOKS: Final = 5
CLOSE_TIMEOUT_S: Final = 0.3

_COPYING = (out.Mirroring, out.Connecting, out.Transferring, out.Leaving)
_log = structlog.get_logger()
_tracer = trace.get_tracer("agent.migration")


class DiskCopies:
    """The copies of one source session."""

    def __init__(self, session: SourceSession, around: Surroundings) -> None:
        self._session = session
        self._around = around
        self._made: Mirrors | None = None
        self._listens = asyncio.Event()
        self._are_started = False
        self._share: int | None = None
        self._piece_bytes = LARGEST_PIECE_BYTES  # under a low bound the byte after a piece moves late
        self._moved: dict[str, tuple[int, float]] = {}
        self._spans: dict[str, trace.Span] = {}
        self._doing = asyncio.Lock()  # starting and removing exclude each other

    @property
    def are_wanted(self) -> bool:
        """Whether there are disks to copy."""
        return bool(self._session.facts.copies)

    @property
    def _mirrors(self) -> Mirrors:
        if self._made is None:
            facts = self._session.facts
            names = {copy.disk: copy_name(facts.migration_id, index) for index, copy in enumerate(facts.copies)}
            self._made = Mirrors(self._session.qemu, names)
        return self._made

    # start

    async def start(self, endpoint: Endpoint, definition: Definition) -> None:
        """Start to copy every disk; MirrorsReady follows, or CancelRequested.

        Raises:
            FerryError: QEMU, the tunnel or the destination refused.
        """
        session = self._session
        await self._listens.wait()
        server = await self._open_way(endpoint)
        async with self._doing:
            drives = await session.qemu.block.query_drives()
        images = {image.disk: image for image in disk_images(definition)}
        for copy in session.facts.copies:
            async with self._doing:
                if not isinstance(session.phase, out.Mirroring):
                    return
                drive = find_drive(drives, images[copy.disk])
                if drive is None or not drive.node:
                    raise WrongState(f"disk {copy.disk}: QEMU has no image for it any more", reason="DISK_CHANGED", disk=copy.disk)
                await self._add(copy, drive, server)
        self._are_started = True
        self._judge()

    async def _add(self, copy: DiskCopy, drive: DriveReport, server: Mapping[str, object]) -> None:
        options = self._session.facts.options
        attributes = {"disk": copy.disk, "path": copy.path}
        self._spans[copy.disk] = _tracer.start_span("block.mirror", self._session.parent, attributes=attributes)
        credentials = CREDENTIALS_ID if options.is_psk else ""
        sync = _sync(copy, drive, options.disks.mode)
        self._share = self._share_of_each()
        self._piece_bytes = piece_bytes(self._share)
        try:
            await self._mirrors.add(copy.disk, drive.node, server, credentials, sync, bytes_per_second=self._share)
        except QemuRefused as error:
            text = f"disk {copy.disk} cannot be copied to {self._peer}: {error.text}"
            raise WrongState(text, reason=MirrorFailed.default_reason, disk=copy.disk) from error

    async def take_up(self) -> None:
        """Go on with the copies that an agent before this one started.

        Raises:
            WrongState: it had not started them all.
        """
        await self._listens.wait()
        if await self._mirrors.ask() != {copy.disk for copy in self._session.facts.copies}:
            raise WrongState(
                "the agent was restarted before the copies of all disks had begun; try again", reason="AGENT_RESTARTED"
            )
        self._are_started = True
        self._judge()

    async def _open_way(self, endpoint: Endpoint) -> Mapping[str, object]:
        session, disks = self._session, endpoint.disks
        if disks is None:
            raise WrongState("the destination waits for no disks", reason="ENDPOINT_INVALID")
        if session.facts.options.transport is Transport.TUNNEL:
            path = self._around.store.session_socket_path(session.facts.migration_id, "nbd-out")
            channel_count = len(disks.copies) + 1  # one for the look beforehand
            await self._around.tunnel.open_entrance(
                self._tunnel_session, disks.tunnel_token, path, endpoint.tunnel_address, channel_count
            )
            self._around.store.guests.own(path)
            server: Mapping[str, object] = {"type": "unix", "path": str(path)}
        else:
            target = parse_migrate_uri(disks.uri)
            server = {"type": "inet", "host": target.host, "port": str(target.port)}
        await greet(server, f"the NBD server of {self._peer}")
        return server

    # while they run

    async def watch(self, *, after_restart: bool) -> None:
        """Follow the copies until cancelled."""
        session = self._session
        await session.wait_phase(*_COPYING, out.Settling)
        monitor = await session.wait_attached() if self.are_wanted else None
        if monitor is None:
            return
        with monitor.subscribe() as notices:
            self._listens.set()
            if after_restart and not isinstance(session.phase, out.Mirroring):
                await self._look_again()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(notices))
                group.create_task(self._poll())

    async def _look_again(self) -> None:
        """Look at copies that were ready when an agent before this one looked last."""
        try:
            await self.take_up()
        except FerryError as error:
            self._session.observe(out.CancelRequested(Cause(error.text, error.reason)))

    async def _follow(self, notices: Subscription) -> None:
        async for notice in notices:
            match notice:
                case Event():
                    self._mirrors.see(notice)
                    await self._find_reason()
                case Reconnected():
                    with suppress(FerryError):
                        await self._mirrors.ask()
                case Gone():
                    return
            self._judge()

    async def _find_reason(self) -> None:
        """Ask why a copy stands still; its event does not tell."""
        if self._mirrors.are_broken and isinstance(self._session.phase, _COPYING):
            with suppress(FerryError, TimeoutError):
                async with asyncio.timeout(MUTE_LIMIT_S):
                    await self._mirrors.ask()

    def _judge(self) -> None:
        """Tell the machine what the copies have come to."""
        session = self._session
        if not isinstance(session.phase, _COPYING):
            return
        for copy in session.facts.copies:
            if self._mirrors.is_ready(copy.disk) and (span := self._spans.pop(copy.disk, None)) is not None:
                span.end()
        if failure := self._mirrors.find_failure():
            reason = NO_SPACE if "No space left" in failure else MirrorFailed.default_reason
            session.observe(out.CancelRequested(Cause(f"{failure}{self._hint(failure)}", reason)))
        elif isinstance(session.phase, out.Mirroring) and self._are_started and self._mirrors.are_ready:
            session.observe(out.MirrorsReady())

    def _hint(self, failure: str) -> str:
        if "(reading" in failure:
            return f"; mend its storage on {self._session.host_name} and try again"
        if "No space left" in failure:
            return f"; make room on {self._peer} and try again"
        there = f"the connection to {self._peer}, or storage there, failed"
        if "(writing" in failure:
            return f"; {there}"
        return f"; its storage on {self._session.host_name}, {there}" if "Input/output error" in failure else ""

    async def _poll(self) -> None:
        session, answered_s = self._session, now_s()
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            if not isinstance(session.phase, _COPYING) or not self._are_started:
                answered_s = now_s()
                continue
            try:
                with untraced():
                    async with asyncio.timeout(MUTE_LIMIT_S):
                        await self._mirrors.ask()
                        await self._bound()
            except (TimeoutError, QemuSilent):
                silent_s = now_s() - answered_s
                if silent_s > OVERLOAD_LIMIT_S or not await self._has_work():
                    self._give_up(f"QEMU has not answered for {silent_s:.0f} s while it copies disks to {self._peer}")
            except FerryError as error:
                _log.debug("copies not asked", migration=session.facts.migration_id, error=error.text)
            else:
                answered_s = now_s()
                self._see_amounts()
                self._judge()

    async def _has_work(self) -> bool:
        """Say whether QEMU has work of its own, so that it is the host that keeps it from answering and not a silent peer."""
        for _ in range(_LOOKS):
            if is_working(find_threads(self._session.process.pid)):
                return True
            await asyncio.sleep(LOOK_INTERVAL_S)
        return False

    def _see_amounts(self) -> None:
        session, amounts = self._session, self._mirrors.amounts
        copies = tuple(
            replace(
                copy,
                total_bytes=amounts[copy.disk].total,
                copied_bytes=amounts[copy.disk].copied,
                is_ready=self._mirrors.is_ready(copy.disk),
            )
            if copy.disk in amounts
            else copy
            for copy in session.facts.copies
        )
        if copies != session.facts.copies:
            session.update(copies=copies)
        for copy in copies:
            self._see_stall(copy)

    def _see_stall(self, copy: DiskCopy) -> None:
        """Give up when a disk has stood still for too long though there is something to copy: writes of the guest hang in that."""
        moved, since_s = self._moved.get(copy.disk, (-1, 0.0))
        if copy.copied_bytes != moved or copy.copied_bytes >= copy.total_bytes:
            self._moved[copy.disk] = (copy.copied_bytes, now_s())
            return
        limit_s = max(STALL_LIMIT_S, 2 * self._piece_bytes / self._share) if self._share else STALL_LIMIT_S
        if now_s() - since_s > limit_s:
            self._give_up(f"disk {copy.disk}: no byte has moved for {limit_s:.0f} s: the network or {self._peer} is silent")

    def _give_up(self, text: str) -> None:
        self._session.observe(out.CancelRequested(Cause(text, "DISK_COPY_STALLED")))

    async def _bound(self) -> None:
        """Give each copy that is not ready its share of the bandwidth."""
        share = self._share_of_each()
        if share != self._share:
            self._share = share
            await self._mirrors.set_speed(share)

    def _share_of_each(self) -> int:
        most = self._session.facts.options.disks.bandwidth_bytes_per_second
        waiting = sum(not self._mirrors.is_ready(copy.disk) for copy in self._session.facts.copies)
        return most // max(waiting, 1)

    async def set_bandwidth(self) -> None:
        """Let a change of the bound take effect."""
        if self._are_started:
            await self._bound()

    # the end

    async def settle(self) -> None:
        """End every copy while the guest stands still, and tell the machine what came of it."""
        session = self._session
        limit_s = session.facts.options.max_downtime_s + 1.0
        await self._listens.wait()
        try:
            async with asyncio.timeout(limit_s):
                await self._mirrors.settle()
        except TimeoutError:
            text = f"the last writes to the disks did not reach {self._peer} in {limit_s:g} s"
            session.observe(out.CancelRequested(Cause(text, "DISK_COPY_STALLED")))
        except FerryError as error:
            session.observe(out.CancelRequested(Cause(error.text, error.reason)))
        else:
            session.heartbeat.tell(out.MirrorsSettled())
            self._see_amounts()

    async def break_connections(self) -> None:
        """Break the connections, so that nothing in QEMU waits for the destination; never raises, and is quick."""
        if not self.are_wanted:
            return
        await self._close_tunnel()
        with suppress(FerryError, TimeoutError):
            await self._mirrors.break_connections()

    async def remove(self) -> None:
        """Ensure that QEMU has nothing of the copies any more.

        Raises:
            TimeoutError: QEMU does not let go.
            FerryError: it does not answer.
        """
        if not self.are_wanted:
            return
        async with self._doing:
            await self._close_tunnel()
            await self._mirrors.remove()
        for span in self._spans.values():
            span.end()
        self._spans.clear()

    async def _close_tunnel(self) -> None:
        if self._session.facts.options.transport is Transport.TUNNEL:
            path = self._around.store.session_socket_path(self._session.facts.migration_id, "nbd-out")
            try:
                with suppress(FerryError, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._around.tunnel.close_session(self._tunnel_session)
            finally:
                path.unlink(missing_ok=True)

    @property
    def _tunnel_session(self) -> str:
        return disks_session(self._session.facts.migration_id)

    @property
    def _peer(self) -> str:
        return self._session.facts.peer or "the destination"


def _sync(copy: DiskCopy, drive: DriveReport, mode: Mode) -> Sync:
    """Choose what the mirror copies.

    A full copy clears the target first, without which what was in an image would show through. An empty one needs none of that; a
    mirror of the top image does without, and of a disk that stands on no other it copies all. Source: blockdev.c,
    qmp_blockdev_mirror and blockdev_mirror_common.
    """
    stands_alone = drive.image is not None and drive.image.backing is None and drive.image.format not in FILTERS
    return Sync.TOP if copy.is_new and (mode is Mode.TOP or stands_alone) else Sync.FULL
