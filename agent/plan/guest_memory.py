"""How much of a guest's memory is not zero, and a piece of it to measure a way with; read from outside, QEMU notices nothing.

Source: proc(5), /proc/pid/maps and /proc/pid/mem; pagemap in the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import io
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096
# Pages are looked at in stretches, since a read costs more than what it reads.
STRETCH_BYTES: Final = 64 * PAGE_BYTES
STRETCH_COUNT: Final = 512
_ZERO_PAGE: Final = bytes(PAGE_BYTES)
_ENTRY_BYTES: Final = 8
# Bits 63 and 62 of an entry: the page is in memory, or in swap.
_IS_THERE: Final = 0xC0


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What was found in stretches picked at random.

    Attributes:
        used_part: how much of the memory is not zero, 0 to 1.
        content: pages that are not zero, one behind the other; may be empty.
    """

    used_part: float
    content: bytes


def sample_memory(process_id: int, memory_bytes: int) -> MemorySample | None:
    """Look at the memory of a guest; None when the kernel does not let us, or it cannot be told from QEMU's own."""
    try:
        start = _find_memory(Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8"), memory_bytes)
        if start is None:
            return None
        with io.FileIO(f"/proc/{process_id}/mem") as memory, io.FileIO(f"/proc/{process_id}/pagemap") as pagemap:
            return _sample(memory.fileno(), pagemap.fileno(), start, memory_bytes)
    except OSError:
        return None


def _find_memory(maps: str, memory_bytes: int) -> int | None:
    """Find where the guest's memory begins: the smallest writable mapping that it fits into."""
    fitting = []
    for line in maps.splitlines():
        area, mode, *_ = line.split()
        start, end = (int(edge, 16) for edge in area.split("-"))
        if mode.startswith("rw-") and end - start >= memory_bytes:
            fitting.append((end - start, start))
    return min(fitting)[1] if fitting else None


def _sample(memory_fd: int, pagemap_fd: int, start: int, memory_bytes: int) -> MemorySample:
    count = max(memory_bytes // STRETCH_BYTES, 1)
    chosen = sorted(random.sample(range(count), min(count, STRETCH_COUNT)))
    pages: list[bytes] = []
    for index in chosen:
        at = start + index * STRETCH_BYTES
        # A page that is nowhere is not touched: to read it might make it.
        entries = os.pread(pagemap_fd, STRETCH_BYTES // PAGE_BYTES * _ENTRY_BYTES, at // PAGE_BYTES * _ENTRY_BYTES)
        for number in range(len(entries) // _ENTRY_BYTES):
            if entries[number * _ENTRY_BYTES + _ENTRY_BYTES - 1] & _IS_THERE:
                page = os.pread(memory_fd, PAGE_BYTES, at + number * PAGE_BYTES)
                if page != _ZERO_PAGE:
                    pages.append(page)
    looked_at = len(chosen) * (STRETCH_BYTES // PAGE_BYTES)
    return MemorySample(len(pages) / looked_at, b"".join(pages))
