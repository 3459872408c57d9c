"""Which guests QEMU itself would damage, by the pieces of their memory; the layouts are those that were tried."""

from __future__ import annotations

import pytest

from agent.migration.lost_memory import memory_warnings
from agent.qemu.machine import QemuVersion
from agent.qemu.ram_blocks import RamBlock
from common.errors import WrongState

KIB = 1024
OLD, NEW, NEWEST = QemuVersion(7, 2, 22, ""), QemuVersion(10, 0, 2, ""), QemuVersion(11, 1, 3, "")


def layout(*sizes_kib: int, names: tuple[str, ...] = ("r0", "r1", "r2")) -> tuple[RamBlock, ...]:
    """Put pieces one behind the other, as QEMU does, and firmware behind them."""
    blocks, at = [], 0
    for name, size_kib in zip((*names[: len(sizes_kib)], "pc.bios"), (*sizes_kib, 256), strict=True):
        blocks.append(RamBlock(name, at, size_kib * KIB, size_kib * KIB))
        at += -(-size_kib // 256) * 256 * KIB
    return tuple(reversed(blocks))


def warnings_of(blocks: tuple[RamBlock, ...], version: QemuVersion) -> tuple[str, ...]:
    """Return what is said of a guest that goes once all is sent."""
    return memory_warnings(blocks, version, stands_still=False, may_post_copy=False)


@pytest.mark.parametrize("version", [NEW, NEWEST], ids=str)
@pytest.mark.parametrize("sizes_kib", [(16384, 32768), (16392, 32768), (32768, 16384, 65536)])
def test_a_layout_that_ends_qemu_is_refused_with_a_way_out(version, sizes_kib):
    with pytest.raises(WrongState, match=rf"{sizes_kib[-1]} KiB, .* larger than r0 .*--pause") as caught:
        warnings_of(layout(*sizes_kib), version)

    assert caught.value.reason == "MEMORY_LOST_BY_QEMU"


@pytest.mark.parametrize("version", [NEW, NEWEST], ids=str)
@pytest.mark.parametrize(
    ("sizes_kib", "said"), [((32768, 16384), 1), ((24576, 24576), 1), ((32776, 16384), 1), ((65536, 16384, 32768), 2)]
)
def test_another_piece_than_the_first_is_warned_of(version, sizes_kib, said):
    warnings = warnings_of(layout(*sizes_kib), version)

    assert len(warnings) == said
    assert "r0" not in "".join(warnings)


@pytest.mark.parametrize("version", [OLD, NEW, NEWEST], ids=str)
@pytest.mark.parametrize("sizes_kib", [(16392,), (16392, 32776), (32776, 16392)])
def test_sizes_that_are_no_multiple_are_right_everywhere(version, sizes_kib):
    assert warnings_of(layout(*sizes_kib), version) == ()


def test_before_9_every_multiple_is_lost_and_since_then_not_the_first():
    assert len(warnings_of(layout(32768, 65536), OLD)) == 2
    assert warnings_of(layout(32768), NEW) == ()


def test_what_is_advised_is_free_of_warnings():
    assert warnings_of(layout(32768), OLD)[0].endswith("give the guest 32776 KiB")
    assert warnings_of(layout(32776), OLD) == ()


def test_an_old_qemu_does_not_end_of_it():
    assert len(warnings_of(layout(16384, 32768), OLD)) == 2


def test_a_guest_that_may_go_by_post_copy_is_warned_of_where_that_loses_pages():
    said = memory_warnings(layout(32776), NEWEST, stands_still=False, may_post_copy=True)

    assert [warning for warning in said if "without post-copy" in warning] == list(said) != []
    assert memory_warnings(layout(32776), NEW, stands_still=False, may_post_copy=True) == ()


@pytest.mark.parametrize("version", [OLD, NEW, NEWEST], ids=str)
def test_a_guest_that_stands_still_loses_nothing(version):
    assert memory_warnings(layout(32768, 16384), version, stands_still=True, may_post_copy=True) == ()


def test_a_guest_that_stands_still_is_let_go_from_a_layout_that_would_end_qemu():
    (warning,) = memory_warnings(layout(16384, 32768), NEW, stands_still=True, may_post_copy=False)

    assert "must not be continued" in warning


def test_what_the_guest_cannot_write_does_no_harm():
    blocks = (*layout(1024), RamBlock("isa-bios", 2048 * KIB, 4096 * KIB, 4096 * KIB, is_read_only=True))

    assert warnings_of(blocks, NEW) == ()
