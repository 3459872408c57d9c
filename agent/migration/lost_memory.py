"""Guests whose memory QEMU itself would lose on the way, by the pieces that it lies in. Pure.

Under TCG a vCPU notes a page that it writes only after its cache of addresses was told to. QEMU has to tell it each time that it
takes the notes of a piece, and does not always:

- of pieces whose size is a multiple of 256 KiB, before 9.0 never, so that what is written again later is not sent. Since 9.0 it
  tells the cache of the first piece in its own numbering, whichever it has read: what is written to another one is not sent, and
  when that one is larger than the first, QEMU ends with an assertion;
- since 9.0 of these pieces, and since 11.0 of all, when what was noted was to be sent anyway, as all is when a migration begins.
  What a guest writes to a page that was sent, before the notes are taken again, is lost unless it writes there once more: seen
  where it goes by post-copy soon after.

KVM keeps notes of its own.

Source: migration/ram.c and system/physmem.c, physical_memory_sync_dirty_bitmap(), physical_memory_test_and_clear_dirty() and
tlb_reset_dirty_range_all(); tried on 7.2.22, 10.0.2 and 11.1.3, see docs/qemu-notes.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.errors import WrongState
from common.findings import Risk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.qemu.machine import QemuVersion
    from agent.qemu.ram_blocks import RamBlock

REASON: Final = "MEMORY_LOST_BY_QEMU"
FIRST_PIECE_SINCE: Final = 9
"""The major version from which on the first piece is sent right, whatever its size."""
BEGINS_WRONG_SINCE: Final = 11
"""The major version from which on what is written soon after a migration began may be lost."""
GRANULE_BYTES: Final = 256 << 10
PADDING_KIB: Final = 8
_KIB: Final = 1024


def memory_warnings(
    blocks: Sequence[RamBlock], version: QemuVersion, *, stands_still: bool, may_post_copy: bool
) -> tuple[str, ...]:
    """Warn of memory that a busy guest would lose, for a source under TCG.

    Args:
        blocks: all that QEMU has.
        version: of the source's QEMU.
        stands_still: whether it writes nothing on the way.
        may_post_copy: whether it may go before its memory.

    Raises:
        WrongState: QEMU would end.
    """
    blocks = [block for block in blocks if not block.is_read_only]
    is_old = version.major < FIRST_PIECE_SINCE
    first = next((block for block in blocks if block.offset_bytes == 0), None)
    whole = [block for block in blocks if block.used_bytes % GRANULE_BYTES == 0 and (is_old or block.offset_bytes)]
    ending = [] if is_old or first is None else [block for block in whole if block.used_bytes > first.total_bytes]
    if ending and first is not None:
        text = (
            f"memory in several pieces ends QEMU {version} under TCG when the guest writes to it on the way: {ending[0].label} "
            f"has {_kib(ending[0])} KiB, a multiple of 256, and is larger than {first.label} with {_kib(first)} KiB"
        )
        if stands_still:
            return (Risk(f"{text}; it stands still now, and must not be continued on the way", REASON),)
        raise WrongState(f"{text}; --pause stops the guest for the whole transfer", reason=REASON, block=ending[0].label)
    if stands_still:
        return ()
    lost = [block for block in whole if block.is_memory]
    alone = len([block for block in blocks if block.is_memory]) == 1
    warnings = tuple(_warning(block, version, alone=alone) for block in lost)
    if may_post_copy and version.major >= BEGINS_WRONG_SINCE:
        text = (
            f"QEMU {version} under TCG loses some of what a guest writes shortly before it goes by post-copy: a page may arrive as "
            "it was a moment before, without an error; move it without post-copy"
        )
        return (*warnings, Risk(text, REASON))
    return warnings


def _warning(block: RamBlock, version: QemuVersion, *, alone: bool) -> Risk:
    """Say what may be lost; of several pieces the front ends round the sizes, so that none can be given another one."""
    size_kib = _kib(block)
    way_out = f"give the guest {size_kib + PADDING_KIB} KiB" if alone else "--pause stops the guest for the whole transfer"
    text = (
        f"{block.label} has {size_kib} KiB of the guest's memory, a multiple of 256: QEMU {version} under TCG may lose what a "
        f"busy guest writes to it on the way; {way_out}"
    )
    return Risk(text, REASON)


def _kib(block: RamBlock) -> int:
    return block.used_bytes // _KIB
