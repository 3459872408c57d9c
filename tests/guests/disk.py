"""The disk guest: boots from its first disk in half a second, then writes numbered blocks to its disks and checks them.

`disk_guest/main.c` says what it does and prints, `disk_check.py` compares an image with what it said. This module
compiles it once and writes boot images with the parameters filled in. Needs `gcc` and binutils.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.guests.cache import CACHE, run_tool, write_whole

SOURCES = Path(__file__).with_name("disk_guest")
BOOT_SECTOR = Path(__file__).with_name("boot_sector.S")
SECTOR_BYTES = 512
MAX_DISKS = 16
MAX_DEPTH = 16
SEED = 1
BOOT_BYTES = 64 * 1024
"""What the code takes at the start of a disk to boot from; an area lies behind it."""

_CODE_SECTORS = 49
_PARAMETERS_AT = 512
_PARAMETERS = struct.Struct("<4s7I")
_AREAS_AT = 1024
_AREA = struct.Struct("<QIIIIIHH")
_PIT_HZ = 1193182
_LONGEST_INTERRUPT_MS = 50.0
_MIB = 1 << 20
_PAGES_PER_MIB = 256
_FIRMWARE_MIB = 15
_DISK_KIB = 64
_LARGEST_SLOT_SECTORS = 2048
# fmt: off
_COMPILER = (
    "gcc", "-m32", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns", "-mgeneral-regs-only", "-O2", "-Wall", "-Wextra",
)
# fmt: on
_LINKER = ("ld", "-m", "elf_i386", "-z", "noexecstack", "-N", "-Ttext=0x7c00", "-Tbss=0x20000", "-e", "_start", "--oformat=binary")


@dataclass(frozen=True, slots=True)
class Area:
    """Where and how one disk is written: slots of equal size, one behind the other.

    Attributes:
        first_byte: where the first slot begins; a multiple of 512.
        slot_count: 0 leaves the disk alone.
        slot_bytes: what one write brings; a multiple of 512, and of the disk's logical block.
        write_mib_s: MiB written each second, at random.
        verify_mib_s: MiB read and checked each second beside that, in order.
        flush_ms: time between two flushes; 0 for none before the end.
        depth: how many slots are on their way at a time.
        is_blank: the area reads as zeroes at first, and the guest checks that too.
    """

    first_byte: int = _MIB
    slot_count: int = 2048
    slot_bytes: int = 4096
    write_mib_s: float = 2.0
    verify_mib_s: float = 2.0
    flush_ms: float = 100.0
    depth: int = 8
    is_blank: bool = True

    @property
    def end_byte(self) -> int:
        """Where the last slot ends."""
        return self.first_byte + self.slot_count * self.slot_bytes


LEFT_ALONE = Area(slot_count=0)


@dataclass(frozen=True, slots=True)
class DiskGuest:
    """What the guest does.

    Attributes:
        areas: of each disk, in the order of their PCI addresses.
        period_ms: time between two lines of each disk.
        memory_mib: memory that carries a pattern.
        dirty_mib_s: MiB of it rewritten each second.
        sweeps_per_s: how often all of it is checked each second.
        latencies_ms: time between two lines of latencies; 0 for none before the end.
        seed: makes each content another one.
    """

    areas: tuple[Area, ...] = (Area(),)
    period_ms: float = 20.0
    memory_mib: int = 1
    dirty_mib_s: float = 0.5
    sweeps_per_s: float = 4.0
    latencies_ms: float = 1000.0
    seed: int = SEED

    @property
    def memory_kib(self) -> int:
        """The memory that its VM needs. The 8 KiB keep QEMU before 9.0 from losing pages under TCG; see tick.py."""
        buffers = sum(
            _DISK_KIB + area.slot_count * 4 // 1024 + (area.depth + 1) * (area.slot_bytes // 1024 + 8) for area in self.areas
        )
        whole_mib = 1 + self.memory_mib + _FIRMWARE_MIB + -(-(buffers + MAX_DISKS * _DISK_KIB) // 1024)
        return whole_mib * 1024 + 8


def boot_sectors(guest: DiskGuest) -> bytes:
    """Return what the disk that it boots from must begin with: at most `BOOT_BYTES`.

    Raises:
        ValueError: something that the guest cannot keep.
    """
    if not 1 <= len(guest.areas) <= MAX_DISKS:
        raise ValueError(f"areas: {len(guest.areas)} is not within 1 and {MAX_DISKS}")
    interrupts, divisor = _timer(guest.period_ms)
    code = bytearray(_compile())
    _PARAMETERS.pack_into(
        code,
        _PARAMETERS_AT,
        b"DISK",
        divisor,
        interrupts,
        guest.seed,
        guest.memory_mib * _PAGES_PER_MIB,
        _credit(guest.dirty_mib_s * _PAGES_PER_MIB, guest.period_ms),
        _credit(guest.sweeps_per_s * guest.memory_mib * _PAGES_PER_MIB, guest.period_ms),
        round(guest.latencies_ms / guest.period_ms),
    )
    for index, area in enumerate(guest.areas):
        _AREA.pack_into(code, _AREAS_AT + index * _AREA.size, *_area(area, guest.period_ms))
    return bytes(code)


def build(guest: DiskGuest, directory: Path | None = None) -> Path:
    """Make a raw image of 1 MiB to boot from, for a guest that leaves that disk alone or writes nothing behind.

    Returns:
        The image; the same path again for the same guest.
    """
    content = boot_sectors(guest).ljust(_MIB, b"\0")
    path = (directory or CACHE) / f"disk-{hashlib.sha256(content).hexdigest()[:16]}.img"
    if not path.exists():
        write_whole(path, content)
    return path


def create_image(path: Path, size_bytes: int, *, kind: str = "qcow2", boots: DiskGuest | None = None, options: str = "") -> Path:
    """Make an image with qemu-img; with `boots` a VM can boot that guest from it.

    Args:
        path: a new file.
        size_bytes: what the guest sees.
        kind: a format of qemu-img.
        boots: a guest whose area on this disk begins behind `BOOT_BYTES`.
        options: of the format, such as `cluster_size=4096` or `backing_file=base.qcow2,backing_fmt=qcow2`.

    Raises:
        CalledProcessError: qemu-img refused.
    """
    # fmt: off
    command = (
        "qemu-img", "create",
        "-q",
        "-f", kind,
        *(("-o", options) if options else ()),
        path,
        str(size_bytes),
    )
    # fmt: on
    run_tool(*command)
    if boots is not None:
        write_to_image(path, {0: boot_sectors(boots)}, kind=kind)
    return path


def write_to_image(path: Path, parts: Mapping[int, bytes], *, kind: str) -> None:
    """Write to the disk in an image that no QEMU has open: content by the byte where it begins.

    Raises:
        AssertionError: qemu-io complained.
    """
    with tempfile.TemporaryDirectory() as scratch:
        orders: list[str] = []
        for number, (at, content) in enumerate(parts.items()):
            part = Path(scratch, str(number))
            part.write_bytes(content)
            orders += ["-c", f"write -s {part} {at} {len(content)}"]
        done = subprocess.run(("qemu-io", "-f", kind, *orders, path), check=True, capture_output=True, text=True)
    assert done.stdout.count("wrote ") == len(parts), done.stdout + done.stderr


def _area(area: Area, period_ms: float) -> Sequence[int]:
    slot_sectors, odd_bytes = divmod(area.slot_bytes, SECTOR_BYTES)
    if odd_bytes or area.first_byte % SECTOR_BYTES or not 1 <= slot_sectors <= _LARGEST_SLOT_SECTORS:
        raise ValueError(f"area: {area.slot_bytes} bytes from {area.first_byte} are not whole sectors")
    if not 1 <= area.depth <= MAX_DEPTH:
        raise ValueError(f"depth: {area.depth} is not within 1 and {MAX_DEPTH}")
    return (
        area.first_byte // SECTOR_BYTES,
        area.slot_count,
        slot_sectors,
        _credit(area.write_mib_s * _MIB / area.slot_bytes, period_ms),
        _credit(area.verify_mib_s * _MIB / area.slot_bytes, period_ms),
        max(1, round(area.flush_ms / period_ms)) if area.flush_ms else 0,
        area.depth,
        area.is_blank,
    )


def _timer(period_ms: float) -> tuple[int, int]:
    """Return how many interrupts make a period, and the timer's divisor."""
    if not 1 <= period_ms <= 60_000:
        raise ValueError(f"period_ms: {period_ms} is not within 1 and 60000")
    interrupts = max(1, -int(-period_ms // _LONGEST_INTERRUPT_MS))
    return interrupts, round(_PIT_HZ * period_ms / 1000 / interrupts)


def _credit(per_s: float, period_ms: float) -> int:
    """Return how many a tick as a 16.16 fixed point number."""
    per_tick = per_s * period_ms / 1000
    if not 0 <= per_tick < 0x7FFF:
        raise ValueError(f"{per_s:g} a second in ticks of {period_ms} ms: more than 32766 a tick")
    return round(per_tick * 0x10000)


def _compile() -> bytes:
    """Return the guest's code, compiled when its source is new."""
    sources = sorted(SOURCES.glob("*.[cS]"), key=lambda path: (path.name != "boot.S", path.name))
    content = b"".join(path.read_bytes() for path in (*sorted(SOURCES.iterdir()), BOOT_SECTOR))
    binary = CACHE / f"disk-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as scratch:
            objects = [Path(scratch, f"{source.name}.o") for source in sources]  # boot.S is linked first
            for source, compiled in zip(sources, objects, strict=True):
                run_tool(*_COMPILER, "-I", BOOT_SECTOR.parent, "-c", "-o", compiled, source)
            linked = Path(scratch, "disk.bin")
            run_tool(*_LINKER, "-o", linked, *objects)
            code = linked.read_bytes()
        if len(code) > _CODE_SECTORS * SECTOR_BYTES:
            raise ValueError(f"{len(code)} bytes are more than {_CODE_SECTORS} sectors: boot.S loads no more")
        write_whole(binary, code.ljust(_CODE_SECTORS * SECTOR_BYTES, b"\0"))
    return binary.read_bytes()
