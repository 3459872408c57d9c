"""Two files are told apart by little of their content."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.vm.fingerprint import MAX_PIECES, PIECE_BYTES, Fingerprint, TooSlow, difference, take
from common.errors import InvalidRequest

LATER_S = time.monotonic() + 3600
MIB = 1 << 20


def sparse(path: Path, size_bytes: int, **pieces: bytes) -> Path:
    """Make a file of holes with content at some places, given as `at_<offset>`."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at, content in pieces.items():
            file.seek(int(at.removeprefix("at_")))
            file.write(content)
    return path


def test_equal_files_have_no_difference(tmp_path: Path):
    first = sparse(tmp_path / "a", 200 * MIB, at_0=b"x", at_99999999=b"y" * MIB)
    second = sparse(tmp_path / "b", 200 * MIB, at_0=b"x", at_99999999=b"y" * MIB)

    assert difference(take(str(first), LATER_S), str(second), LATER_S) == ""


def test_the_size_tells_files_apart(tmp_path: Path):
    first, second = sparse(tmp_path / "a", 10), sparse(tmp_path / "b", 11)

    assert difference(take(str(first), LATER_S), str(second), LATER_S) == "it has 11 bytes here and 10 there"


@pytest.mark.parametrize("size_bytes", [1, PIECE_BYTES, PIECE_BYTES * MAX_PIECES])
def test_of_a_small_file_every_byte_counts(size_bytes: int, tmp_path: Path):
    first = sparse(tmp_path / "a", size_bytes)
    second = sparse(tmp_path / "b", size_bytes, **{f"at_{size_bytes // 2}": b"x"})

    assert difference(take(str(first), LATER_S), str(second), LATER_S) == "its content differs"


def test_equal_beginnings_and_ends_do_not_hide_what_is_allocated_in_between(tmp_path: Path):
    """A terabyte of holes: no place that is chosen anywhere would hit the content."""
    first = sparse(tmp_path / "a", 1 << 40, at_0=b"head", at_77777777777=b"one" * PIECE_BYTES)
    second = sparse(tmp_path / "b", 1 << 40, at_0=b"head", at_77777777777=b"two" * PIECE_BYTES)

    assert difference(take(str(first), LATER_S), str(second), LATER_S) == "its content differs"


def test_a_small_extent_is_compared_beside_large_ones(tmp_path: Path):
    content = {f"at_{at * 50 * MIB}": bytes([at]) * (4 * MIB) for at in range(5)}
    first = sparse(tmp_path / "a", 512 * MIB, **content, **{f"at_{300 * MIB}": b"one" * 10})
    second = sparse(tmp_path / "b", 512 * MIB, **content, **{f"at_{300 * MIB}": b"two" * 10})

    assert difference(take(str(first), LATER_S), str(second), LATER_S) == "its content differs"


def test_no_more_is_read_than_32_mib_and_no_longer_than_allowed(tmp_path: Path):
    path = sparse(tmp_path / "a", 1 << 40, at_77777777777=b"one" * PIECE_BYTES)

    assert len(take(str(path), LATER_S).offsets) <= MAX_PIECES
    with pytest.raises(TooSlow):
        take(str(path), time.monotonic() - 1)


def test_a_pipe_and_a_directory_have_no_fingerprint(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="neither a file nor"):
            take(str(path), LATER_S)


@pytest.mark.parametrize("offsets", [(-1,), (10,), tuple(range(MAX_PIECES + 1))])
def test_places_out_of_range_are_refused(offsets: tuple[int, ...]):
    with pytest.raises(InvalidRequest):
        Fingerprint(10, offsets, "00")
