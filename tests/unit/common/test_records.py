"""Records are written whole and read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.records import BrokenRecord, StagedRecord, find_record, get_record, remove_leftovers, remove_record, write_record
from common.storage import StorageFailed

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    body = {"name": "grüße", "list": [1, None, {"deep": True}]}

    write_record(path, kind="thing", version=3, body=body)

    assert find_record(path, kind="thing", version=3) == body


def test_a_record_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    write_record(path, kind="thing", version=1, body={})

    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_that_is_not_there_is_none_to_find_and_an_error_to_get(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    assert find_record(path, kind="thing", version=1) is None
    with pytest.raises(BrokenRecord, match="no such file"):
        get_record(path, kind="thing", version=1)


def test_a_write_that_fails_leaves_the_old_record_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, kind="thing", version=1, body={"n": 1})

    with pytest.raises(TypeError):
        write_record(path, kind="thing", version=1, body={"n": object()})

    assert find_record(path, kind="thing", version=1) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.mkdir()

    with pytest.raises(StorageFailed, match="directory"):
        write_record(path, kind="thing", version=1, body={})

    assert list(tmp_path.iterdir()) == [path]


def _write(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        _write(b""),
        _write(b"{"),
        _write(b"\xff\xfe"),
        _write(b"[" * 100_000),
        _write(b"[]"),
        _write(b'{"kind":"thing","version":1}'),
        _write(b'{"kind":"thing","version":1,"body":{},"more":1}'),
        _write(b'{"kind":"other","version":1,"body":{}}'),
        _write(b'{"kind":"thing","version":2,"body":{}}'),
        _write(b'{"kind":"thing","version":true,"body":{}}'),
        _write(b'{"kind":"thing","version":1,"body":[]}'),
        lambda path: path.mkdir(),
    ],
)
def test_whatever_is_not_the_wanted_record_is_an_error_that_names_the_file(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "a.json"
    damage(path)

    with pytest.raises(BrokenRecord) as raised:
        find_record(path, kind="thing", version=1)

    assert str(path) in raised.value.text
    assert raised.value.reason == "RECORD_BROKEN"


def test_no_prefix_of_a_record_passes_for_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, kind="thing", version=1, body={"n": 1})
    whole = path.read_bytes().rstrip()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BrokenRecord):
            find_record(path, kind="thing", version=1)


def test_removing_a_record_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, kind="thing", version=1, body={})

    remove_record(path)
    remove_record(path)

    assert not path.exists()


def test_leftovers_of_a_crash_are_swept_and_records_stay(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", kind="thing", version=1, body={})
    (tmp_path / ".a.json.x1.tmp").write_text("half")

    remove_leftovers(tmp_path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_the_envelope_is_json_that_people_can_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    write_record(path, kind="thing", version=1, body={"n": 1})

    assert json.loads(path.read_text()) == {"kind": "thing", "version": 1, "body": {"n": 1}}


def test_a_staged_record_takes_its_place_only_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_record(path, kind="thing", version=1, body={"n": 1})

    staged = StagedRecord(path, kind="thing", version=1, body={"n": 2})
    assert find_record(path, kind="thing", version=1) == {"n": 1}
    staged.commit()

    assert find_record(path, kind="thing", version=1) == {"n": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_staged_record_that_is_discarded_or_left_by_a_crash_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"

    StagedRecord(path, kind="thing", version=1, body={}).discard()
    assert list(tmp_path.iterdir()) == []

    StagedRecord(path, kind="thing", version=1, body={})
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
