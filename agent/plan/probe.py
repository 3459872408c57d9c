"""Measures a way with two QEMUs whose machines never run: one sends the other what a piece of the guest's memory looks like.

Their machine type is the guest's, since how QEMU writes multifd's stream goes by that. They listen, connect and encrypt as those of
a real move, so a way that carries this carries the guest.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.migration.budget import Budget
from agent.migration.forecast import Span
from agent.migration.listening import Listening
from agent.migration.means import Means
from agent.migration.migrate_uri import parse_migrate_uri
from agent.migration.order import Endpoint, HostIdentity, Options, Transport
from agent.migration.post_copy import PostCopy
from agent.migration.qemu_setup import apply_settings, remove_key
from agent.migration.transfer import Transfer
from agent.qemu.binary import short_lived
from agent.qemu.status import MigrationReport, MigrationStatus
from common.errors import FerryError, Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from agent.migration.surroundings import Surroundings
    from agent.qemu.commands import Qemu

MEMORY_BYTES: Final = 256 << 20
LASTS_S: Final = 2.0
# Nothing at all has come through after this.
SILENT_S: Final = 3.0
# What a way that carried the same before may carry the next time, where slices do not tell.
SCATTER: Final = (0.6, 1.5)
_LOOK_S: Final = 0.02
_LEAST_PART: Final = 0.001
_DOWNTIME_S: Final = 0.02
_DONE: Final = (MigrationStatus.PRE_SWITCHOVER, MigrationStatus.DEVICE, MigrationStatus.COMPLETED)
_FAILED: Final = (MigrationStatus.FAILED, MigrationStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class Way:
    """What a way carries.

    Attributes:
        bytes_per_second: of the guest's memory, which channels that compress make less of.
        setup_s: from `migrate` until the first byte counted.
        sent_part: what went over the way, as a part of the memory.
    """

    bytes_per_second: Span
    setup_s: float
    sent_part: float = 1.0


def probe_options(options: Options) -> Options:
    """Return what a measurement has in common with the move: how bytes go, and not what becomes of a guest."""
    means = Means(
        compression=options.means.compression, compression_level=options.means.compression_level, zero_copy=options.means.zero_copy
    )
    return replace(
        options,
        means=means,
        post_copy=PostCopy(),
        budget=Budget(),
        pause=False,
        max_downtime_s=_DOWNTIME_S,
        destination_name="",
        migrate_uri=_without_port(options.migrate_uri),
    )


def _without_port(uri: str) -> str:
    """Leave the port to the move itself, which may come at the same time."""
    return f"tcp:{parse_migrate_uri(uri).bracketed}" if uri else ""


@asynccontextmanager
async def listening(
    around: Surroundings, binary: Path, machine: str, options: Options, source: HostIdentity
) -> AsyncIterator[Endpoint]:
    """Have a QEMU listen while the context is open.

    Raises:
        FerryError: it cannot.
    """
    probe_id = f"plan-{secrets.token_hex(8)}"
    ear = Listening(around, options, source, probe_id)
    try:
        async with short_lived(_argv(binary, machine, "memory-backend-ram", "", incoming=True)) as qemu:
            key = await ear.install_key(qemu)
            await apply_settings(qemu, options, ())
            endpoint, _ = await ear.open(qemu, key)
            yield endpoint
    finally:
        remove_key(around.key_directory(probe_id))
        if options.transport is Transport.TUNNEL:
            around.store.session_socket_path(probe_id, "in").unlink(missing_ok=True)
            with suppress(FerryError):
                await around.tunnel.close_session(probe_id)


async def measure(  # noqa: PLR0913, PLR0917 -- what both ends have in common, and what is sent
    around: Surroundings, binary: Path, machine: str, options: Options, endpoint: Endpoint, content: bytes
) -> Way:
    """Send for two seconds, or until all has arrived.

    Raises:
        Unreachable: nothing comes through.
        FerryError: QEMU or the tunnel refuse.
    """
    probe_id = f"plan-{secrets.token_hex(8)}"
    transfer = Transfer(probe_id, options, around)
    descriptor = await asyncio.to_thread(_make_memory, content)
    argv = _argv(binary, machine, "memory-backend-file", f",mem-path=/proc/self/fd/{descriptor},share=on", incoming=False)
    try:
        async with short_lived(argv, pass_fds=[descriptor]) as qemu:
            uri = await transfer.open(qemu, endpoint)
            way = await _send(qemu, uri)
            await qemu.migrate_cancel()
        return way
    finally:
        os.close(descriptor)
        remove_key(around.key_directory(probe_id))
        with suppress(FerryError, TimeoutError):
            await transfer.close_tunnel()


async def _send(qemu: Qemu, uri: str) -> Way:
    began_s = time.monotonic()
    await qemu.migrate(uri)
    points: list[tuple[float, int]] = []
    sent_part = 1.0
    while True:
        await asyncio.sleep(_LOOK_S)
        report = await qemu.query_migrate()
        at_s = time.monotonic() - began_s
        sent = 0 if report.ram is None else report.ram.normal_count * report.ram.page_size_bytes
        if report.ram is not None and sent:
            points.append((at_s, sent))
            sent_part = max(report.ram.transferred_bytes / sent, _LEAST_PART)
        if report.status in _FAILED:
            raise Unreachable(f"nothing goes to {uri}: {_why(report)}", reason="PATH_BROKEN", uri=uri)
        if report.status in _DONE or at_s >= LASTS_S + (points[0][0] if points else SILENT_S):
            break
    if not points:
        raise Unreachable(f"nothing came through to {uri} in {SILENT_S:g} s: is the way open?", reason="PATH_SILENT", uri=uri)
    return replace(judge(points), sent_part=sent_part)


def _why(report: MigrationReport) -> str:
    return report.error_desc or "QEMU does not say why"


def judge(points: list[tuple[float, int]]) -> Way:
    """Make sense of how many bytes had been sent when, from the start. Pure.

    Args:
        points: seconds and bytes, at least one.
    """
    first_s, first = points[0]
    last_s, last = points[-1]
    setup_s = max(first_s - _LOOK_S, 0.0)
    likely = last / max(last_s - setup_s, _LOOK_S / 2)
    half_s = first_s + (last_s - first_s) / 2
    at_s, sent = next((point for point in points if point[0] >= half_s), points[-1])
    halves = [rate for rate in (_rate(first_s, first, at_s, sent), _rate(at_s, sent, last_s, last)) if rate]
    low, high = (likely * part for part in SCATTER)
    return Way(Span(min([low, *halves]), likely, max([high, *halves])), setup_s)


def _rate(from_s: float, from_bytes: int, to_s: float, to_bytes: int) -> float:
    return (to_bytes - from_bytes) / (to_s - from_s) if to_s - from_s > 2 * _LOOK_S else 0.0


def _argv(binary: Path, machine: str, backend: str, more: str, *, incoming: bool) -> list[str]:
    # fmt: off
    return [
        str(binary),
        "-machine", f"{machine},memory-backend=ram,accel=tcg",
        "-m", f"size={MEMORY_BYTES >> 20}M",
        "-object", f"{backend},id=ram,size={MEMORY_BYTES}{more}",
        *(("-incoming", "defer") if incoming else ()),
    ]
    # fmt: on


def _make_memory(content: bytes) -> int:
    """Make memory that has the content again and again, or noise without any; return its descriptor."""
    descriptor = os.memfd_create("ferry-plan", os.MFD_CLOEXEC)
    piece = content or os.urandom(1 << 20)
    left = MEMORY_BYTES
    while left > 0:
        left -= os.write(descriptor, piece[: min(left, len(piece))])
    return descriptor
