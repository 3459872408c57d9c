"""The tick guest: boots from a raw disk image in a third of a second, changes and checks its memory.

`tick.S` says what it does and prints. This module assembles it once and writes disk images with
the parameters filled in. Needs `as` and `ld` of binutils.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
from pathlib import Path

from tests.guests.cache import CACHE, run_tool, write_whole

SOURCE = Path(__file__).with_name("tick.S")
BOOT_SECTOR = Path(__file__).with_name("boot_sector.S")

_PARAMETERS_AT = 512  # the second sector; `parameters` in tick.S
_PARAMETERS = struct.Struct("<4s9I")
_PIT_HZ = 1193182
_LONGEST_INTERRUPT_MS = 50.0  # of a 16-bit divisor; a longer period counts several
_PAGES_PER_MIB = 256
_BLOCKS_OF_A_WHOLE_PAGE = 146
_BLOCKS_OF_ITS_EDGES = 1
_TLB_BITS = 8  # TCG's TLB at first
_IMAGE_BYTES = 1024 * 1024
_LARGEST_MEBIBYTES = 2560  # what pc and q35 give below 4 GiB, with room to spare
_FIRMWARE_MIB = 15


def build(  # noqa: PLR0913 - one keyword for each property of the guest
    megabytes: int = 16,
    dirty_mib_s: float = 1.0,
    period_ms: float = 10.0,
    *,
    verify_mib_s: float | None = None,
    whole_pages: bool = True,
    wide_tlb: bool = False,
    seed: int = 1,
    directory: Path | None = None,
) -> Path:
    """Make a raw disk image that boots into the tick guest.

    Args:
        megabytes: MiB of memory that carry the pattern; give the VM `memory_kib(megabytes)`.
        dirty_mib_s: MiB rewritten each second, in page order.
        period_ms: time between two ticks.
        verify_mib_s: MiB checked each second without writing; all of the memory when None.
        whole_pages: fill and check every word of a page, not only its first and last 28 bytes.
            Costs about a third more CPU.
        wide_tlb: rewrite pages without a TLB miss under TCG: the hard case for dirty tracking, which
            QEMU before 9.0 gets wrong when memory is a multiple of 256 KiB. There each dirty sync
            then costs (pages)^2 and freezes the guest: 3 s for 256 MiB, so use it with few.
        seed: makes the pattern another one, so that two guests have no page in common.
        directory: where to put the image. The default is shared: QEMU locks an image that it
            writes, so two VMs at a time need an image each, or open it read-only.

    Returns:
        The image; the same path again for the same arguments.

    Raises:
        ValueError: a parameter that the guest cannot keep.
    """
    verify = float(megabytes) if verify_mib_s is None else verify_mib_s
    if not 1 <= megabytes <= _LARGEST_MEBIBYTES:
        raise ValueError(f"megabytes: {megabytes} is not within 1 and {_LARGEST_MEBIBYTES}")
    interrupts, divisor = _timer(period_ms)
    pages = megabytes * _PAGES_PER_MIB
    parameters = _PARAMETERS.pack(
        b"TICK",
        pages,
        _credit(dirty_mib_s, period_ms),
        _credit(verify, period_ms),
        divisor,
        interrupts,
        _BLOCKS_OF_A_WHOLE_PAGE if whole_pages else _BLOCKS_OF_ITS_EDGES,
        seed,
        megabytes,
        max(pages.bit_length() - _TLB_BITS + 1, 0) if wide_tlb else 0,
    )
    code = _assemble()
    after = _PARAMETERS_AT + len(parameters)
    image = (code[:_PARAMETERS_AT] + parameters + code[after:]).ljust(_IMAGE_BYTES, b"\0")
    name = f"tick-{hashlib.sha256(image).hexdigest()[:16]}.img"
    path = (directory or CACHE) / name
    if not path.exists():
        write_whole(path, image)
    return path


def memory_kib(megabytes: int) -> int:
    """Return the VM memory that `build(megabytes)` needs, in KiB.

    The 8 KiB keep it from being a multiple of 256 KiB: there QEMU before 9.0 loses pages under TCG.
    """
    return (megabytes + 1 + _FIRMWARE_MIB) * 1024 + 8


def _timer(period_ms: float) -> tuple[int, int]:
    """Return how many interrupts make a period, and the timer's divisor."""
    if not 1 <= period_ms <= 60_000:
        raise ValueError(f"period_ms: {period_ms} is not within 1 and 60000")
    interrupts = max(1, -int(-period_ms // _LONGEST_INTERRUPT_MS))
    return interrupts, round(_PIT_HZ * period_ms / 1000 / interrupts)


def _credit(mib_s: float, period_ms: float) -> int:
    """Return pages a tick as a 16.16 fixed point number."""
    pages = mib_s * _PAGES_PER_MIB * period_ms / 1000
    if not 0 <= pages < 0xFFFF:
        raise ValueError(f"{mib_s} MiB/s in ticks of {period_ms} ms: more than 65534 pages a tick")
    return round(pages * 0x10000)


def _assemble() -> bytes:
    """Return the guest's code, assembled when its source is new."""
    content = SOURCE.read_bytes() + BOOT_SECTOR.read_bytes()
    binary = CACHE / f"tick-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as scratch:
            assembled, linked = Path(scratch, "tick.o"), Path(scratch, "tick.bin")
            run_tool("as", "--32", "-I", BOOT_SECTOR.parent, "-o", assembled, SOURCE)
            run_tool("ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", linked, assembled)
            write_whole(binary, linked.read_bytes())
    return binary.read_bytes()
