"""A migration from QEMU to QEMU together with its disk, with no management: the yardstick for `ferry migrate --disks`.

The shortest script that is as safe: the destination exports its image over NBD, the source mirrors into it with the guest's writes
on both sides from the start; when the copy is ready memory goes, at pre-switchover the copy is settled and looked at, and the
destination drops its export before the guest runs there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.bench import raw
from tests.bench.qmp import Qmp, QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE: Final = "disk"
_COPY: Final = "copy"
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Figures:
    """When things happened, by `time.monotonic()` of this process, and what QEMU said.

    Attributes:
        started_at_s: `blockdev-add` was sent.
        ready_at_s: the copy was ready.
        sent_at_s: `migrate` was sent.
        stopped_at_s: the source's STOP arrived.
        settle_s: from `block-job-cancel` sent, with the guest stopped, until QEMU had said that the copy is complete.
        loaded_at_s: the source's `completed` arrived.
        resumed_at_s: the destination's RESUME arrived.
        transferred_bytes: QEMU's `ram.transferred`.
        qemu_downtime_s: QEMU's `downtime`.
    """

    started_at_s: float
    ready_at_s: float
    sent_at_s: float
    stopped_at_s: float
    settle_s: float
    loaded_at_s: float
    resumed_at_s: float
    transferred_bytes: int
    qemu_downtime_s: float


async def move(source: raw.RawQemu, destination: raw.RawQemu, options: raw.Options, nbd_port: int) -> Figures:
    """Move the guest and its disk, and return when it runs on the destination; the source stays, stopped.

    Raises:
        QmpError: QEMU refused or failed; its log says more.
        TimeoutError: it took longer than `options.timeout_s`.
    """
    async with asyncio.timeout(options.timeout_s):
        uri = await raw.listen(source, destination, options)
        credentials = {"tls-creds": raw.KEY_ID} if options.is_encrypted else {}
        await _export(destination.qmp, nbd_port, credentials)
        return await _move(source.qmp, destination.qmp, uri, _node(nbd_port, credentials), options.timeout_s)


async def _export(destination: Qmp, port: int, credentials: Mapping[str, object]) -> None:
    address = {"type": "inet", "data": {"host": _LOOPBACK, "port": str(port)}}
    await destination.execute("nbd-server-start", {"addr": address, "max-connections": 16, **credentials})
    await destination.execute(
        "block-export-add", {"type": "nbd", "id": "export", "node-name": NODE, "name": NODE, "writable": True}
    )


def _node(port: int, credentials: Mapping[str, object]) -> Mapping[str, object]:
    return {
        "driver": "nbd",
        "node-name": _COPY,
        "server": {"type": "inet", "host": _LOOPBACK, "port": str(port)},
        "export": NODE,
        "open-timeout": 1,
        "reconnect-delay": 0,
        "discard": "unmap",
        "detect-zeroes": "unmap",
        **credentials,
    }


def _mirror() -> Mapping[str, object]:
    return {
        "job-id": _COPY,
        "device": NODE,
        "target": _COPY,
        "sync": "full",
        "copy-mode": "write-blocking",
        "speed": 0,
        "auto-finalize": True,
        "auto-dismiss": False,
        "on-source-error": "report",
        "on-target-error": "report",
    }


async def _move(source: Qmp, destination: Qmp, uri: str, node: Mapping[str, object], patience_s: float) -> Figures:
    source_from, destination_from = len(source.events), len(destination.events)

    started_at_s = time.monotonic()
    await source.execute("blockdev-add", node)
    await source.execute("blockdev-mirror", _mirror())
    ready = await source.wait_event("BLOCK_JOB_READY", after=source_from, timeout_s=patience_s)
    sent_at_s = time.monotonic()
    await source.execute("migrate", {"uri": uri})
    await source.wait_event("MIGRATION", status="pre-switchover", after=source_from, timeout_s=patience_s)
    settling_at_s = time.monotonic()
    await source.execute("block-job-cancel", {"device": _COPY})
    await source.wait_event("JOB_STATUS_CHANGE", status="concluded", after=source_from)
    await _check_complete(source)
    settle_s = time.monotonic() - settling_at_s
    await source.execute("migrate-continue", {"state": "pre-switchover"})
    completed = await source.wait_event("MIGRATION", status="completed", after=source_from)
    await destination.wait_event("MIGRATION", status="completed", after=destination_from)
    await destination.execute("nbd-server-stop")
    await destination.execute("cont")
    resumed = await destination.wait_event("RESUME", after=destination_from)

    stopped = await source.wait_event("STOP", after=source_from)
    report = await source.execute("query-migrate")
    await source.execute("job-dismiss", {"id": _COPY})
    await source.execute("blockdev-del", {"node-name": _COPY})
    return Figures(
        started_at_s=started_at_s,
        ready_at_s=ready.received_at_s,
        sent_at_s=sent_at_s,
        stopped_at_s=stopped.received_at_s,
        settle_s=settle_s,
        loaded_at_s=completed.received_at_s,
        resumed_at_s=resumed.received_at_s,
        transferred_bytes=report["ram"]["transferred"],
        qemu_downtime_s=report["downtime"] / 1000,
    )


async def _check_complete(source: Qmp) -> None:
    [job] = await source.execute("query-jobs")
    if job["status"] != "concluded" or "error" in job:
        raise QmpError(f"the copy has ended as {job}")
