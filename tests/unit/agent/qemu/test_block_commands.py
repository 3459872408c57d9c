"""What is chosen where QEMU's own choice does not fit."""

from __future__ import annotations

import pytest

from agent.qemu.block_commands import LARGEST_PIECE_BYTES, piece_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("bytes_per_second", "expected"),
    [(1, 1 << 16), (1 << 16, 1 << 16), (MIB, MIB), (100 * MIB, LARGEST_PIECE_BYTES), (0, LARGEST_PIECE_BYTES)],
)
def test_a_bounded_mirror_copies_at_a_time_what_it_may_in_a_second(bytes_per_second: int, expected: int):
    assert piece_bytes(bytes_per_second) == expected
