"""Real QEMUs for the contract suite: no kernel, little memory, gone with the context."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agent.qemu.binary import short_lived

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.qemu.commands import Qemu

MACHINE = "pc-q35-7.2"
MEMORY_KIB = 16 * 1024 + 8  # a multiple of 256 KiB loses dirty pages under TCG before 9.0


@asynccontextmanager
async def real_qemu(binary: Path, *, incoming: bool = False) -> AsyncIterator[Qemu]:
    """Start a paused guest without a kernel; `incoming` makes it a destination."""
    argv = [str(binary), "-machine", f"{MACHINE},accel=tcg", "-m", f"{MEMORY_KIB}k"]
    if incoming:
        argv += ["-incoming", "defer"]
    async with short_lived(argv) as qemu:
        yield qemu
