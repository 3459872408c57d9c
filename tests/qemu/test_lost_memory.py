"""QEMU ends, with nothing of Ferry, where Ferry refuses to move a guest: a failure here says that QEMU was mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import raw
from tests.bench.qmp import QmpError
from tests.binaries import skip_without
from tests.guests import tick
from tests.guests.console import Console

MEGABYTES = 24
CELLS_KIB = (16 * 1024, 32 * 1024)


def guest_of(version: str, directory: Path) -> raw.Guest:
    """Make a guest with two cells of memory, the second larger, both multiples of 256 KiB."""
    image = tick.build(MEGABYTES, dirty_mib_s=8.0, directory=directory)
    guest = raw.tick_guest(image, sum(CELLS_KIB), directory / "serial.log", binary=skip_without(version))
    cells: list[str] = []
    for index, size_kib in enumerate(CELLS_KIB):
        cells += ["-object", f"memory-backend-ram,id=r{index},size={size_kib}k", "-numa", f"node,memdev=r{index}"]
    return replace(guest, options=(*guest.options, *cells))


@pytest.mark.parametrize("version", ["11.1", pytest.param("10.0", marks=pytest.mark.matrix)])
async def test_qemu_ends_when_a_later_piece_of_memory_is_larger_than_the_first(place: Path, version: str) -> None:
    guest = guest_of(version, place)
    async with raw.start(guest, place / "s") as source:
        with Console(place / "serial.log") as console:
            await console.wait_ticks(3)
            async with raw.start(guest, place / "d", incoming=True) as destination:
                with pytest.raises(QmpError, match="gone"):
                    await raw.move(source, destination, raw.Options(is_unix=True, bandwidth_bytes_s=16 << 20, timeout_s=20.0))

    assert "tlb_reset_dirty_range_all" in (place / "s" / "stderr.log").read_text()
