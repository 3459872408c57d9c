"""The file that holds a saved guest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.saving import save_file
from agent.saving.save_file import CONTENTS_OFFSET, SavedGuest
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH = Path("one.save")
GUEST = SavedGuest({"name": "one"}, "running", "10.0.2", "stream")
CONTENTS = bytes(range(256)) * 8


def test_a_sealed_file_says_what_was_saved(tmp_path: Path) -> None:
    with (tmp_path / "one").open("w+b") as file:
        file.seek(CONTENTS_OFFSET)
        file.write(CONTENTS)

        sealed = save_file.seal(file, GUEST)

        assert save_file.verify(file, PATH) == sealed
        assert (sealed.guest, sealed.contents_bytes) == (GUEST, len(CONTENTS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give a sealed file."""
    path = tmp_path_factory.mktemp("saved") / "one"
    with path.open("w+b") as file:
        file.seek(CONTENTS_OFFSET)
        file.write(CONTENTS)
        save_file.seal(file, GUEST)
    return path.read_bytes()


def _is_refused(file: bytes) -> bool:
    try:
        save_file.verify(io.BytesIO(file), PATH)
    except InvalidRequest:
        return True
    return False


def test_a_file_that_nobody_touched_is_accepted(whole: bytes) -> None:
    assert not _is_refused(whole)


# Both the header with what precedes the contents, and the contents themselves.
POSITIONS = st.one_of(st.integers(0, 600), st.integers(0, CONTENTS_OFFSET + len(CONTENTS) - 1))


@given(position=POSITIONS, flipped=st.integers(1, 255))
def test_a_file_with_any_byte_changed_is_refused(whole: bytes, position: int, flipped: int) -> None:
    damaged = bytearray(whole)
    damaged[position] ^= flipped

    assert _is_refused(bytes(damaged))


@given(length=POSITIONS)
def test_a_file_cut_anywhere_is_refused(whole: bytes, length: int) -> None:
    assert _is_refused(whole[:length])


@given(more=st.binary(min_size=1))
def test_a_file_with_anything_appended_is_refused(whole: bytes, more: bytes) -> None:
    assert _is_refused(whole + more)


@given(foreign=st.binary())
def test_a_foreign_file_is_refused(foreign: bytes) -> None:
    assert _is_refused(foreign)


def test_a_file_that_was_not_finished_is_refused() -> None:
    assert _is_refused(bytes(CONTENTS_OFFSET) + CONTENTS)


@pytest.mark.parametrize(
    ("definition", "contents", "error"),
    [({"name": "x" * CONTENTS_OFFSET}, CONTENTS, InvalidRequest), ({}, b"", WrongState)],
)
def test_what_cannot_be_sealed_is_refused(
    tmp_path: Path, definition: Mapping[str, object], contents: bytes, error: type[Exception]
) -> None:
    with (tmp_path / "one").open("w+b") as file:
        file.seek(CONTENTS_OFFSET)
        file.write(contents)

        with pytest.raises(error):
            save_file.seal(file, SavedGuest(definition, "paused", "7.2.22", "mapped-ram"))
