"""What a real QEMU answers about the images of a guest that came and stands still, inactive and activated.

Part of `tests.transcripts.record`.

The guest has a disk of every kind that shows in its own way whether it is active: a node and a `-drive`, both read-only too, one
that is shared, and a drive and a node without a device.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.qemu.binary import short_lived
from agent.qemu.status import MigrationStatus
from agent.vm.image_activation import activate_images
from tests.contract.real import MACHINE, MEMORY_KIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.qemu.commands import Qemu
    from tests.transcripts.record import Recorder

REACH_TIMEOUT_S = 10.0
POLL_S = 0.002
SIZE_BYTES = 1 << 20
SHARED = "shared"
CAPABILITIES = {"events": True, "return-path": True, "late-block-activate": True}


async def record_activation(recorder: Recorder) -> None:
    """Record a move of a guest that stays paused, and its images after it."""
    with tempfile.TemporaryDirectory(prefix="ferry-record-") as name:
        directory = Path(name)
        async with guest(recorder, directory) as source, guest(recorder, directory, "-incoming", "defer") as destination:
            for qemu in (source, destination):
                await qemu.set_capabilities(CAPABILITIES)
            await destination.migrate_incoming(f"unix:{directory}/way")
            await source.migrate(f"unix:{directory}/way")
            async with asyncio.timeout(REACH_TIMEOUT_S):
                while (await source.query_migrate()).status is not MigrationStatus.COMPLETED:  # noqa: ASYNC110  (QEMU is polled)
                    await asyncio.sleep(POLL_S)
            await keep(recorder, destination, "inactive")
            await activate_images(destination, "guest")
            await keep(recorder, destination, "active")


async def keep(recorder: Recorder, qemu: Qemu, state: str) -> None:
    """Record the nodes and drives in a state."""
    await recorder.keep(qemu, f"x-debug-query-block-graph.{state}", "x-debug-query-block-graph")
    await recorder.keep(qemu, f"query-block.{state}", "query-block")


@asynccontextmanager
async def guest(recorder: Recorder, directory: Path, *more: str) -> AsyncIterator[Qemu]:
    """Start the guest, stopped."""

    def image(name: str) -> str:
        path = directory / name
        path.write_bytes(bytes(SIZE_BYTES))
        return str(path)

    def node(name: str, **options: object) -> tuple[str, str]:
        storage = {"driver": "file", "filename": image(name), **options}
        return "-blockdev", json.dumps({"driver": "raw", "node-name": name, "file": storage, **options})

    argv = (
        *(str(recorder.binary), "-machine", f"{MACHINE},accel=tcg", "-m", f"{MEMORY_KIB}k", *more),
        *(*node("disk"), "-device", "virtio-blk-pci,drive=disk"),
        *(*node(SHARED, **{"read-only": True}), "-device", f"virtio-blk-pci,drive={SHARED},share-rw=on"),
        *(*node("cd", **{"read-only": True}), "-device", "ide-cd,drive=cd"),
        *(*node("spare"), "-drive", f"file={image('drive')},if=virtio,format=raw"),
        *(
            "-drive",
            f"file={image('constant')},if=none,id=constant,format=raw,readonly=on",
            "-device",
            "virtio-blk-pci,drive=constant",
        ),
        *("-drive", f"file={image('loose')},if=none,id=loose,format=raw"),
    )
    async with short_lived(argv) as qemu:
        yield qemu
