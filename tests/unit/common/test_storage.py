"""What a file system's refusal is told as."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from common.storage import NO_SPACE, StorageFailed, find_database_failure, find_failure, storing

PLACE = Path("/var/lib/ferry/a.json")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_told_with_the_path(number: int):
    with pytest.raises(StorageFailed) as caught, storing(PLACE):
        raise OSError(number, os.strerror(number))

    assert caught.value.reason == NO_SPACE
    assert caught.value.text.startswith(f"{PLACE}: {os.strerror(number).lower()}")


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_one_that_fails_otherwise_is_told_with_the_path(number: int):
    with pytest.raises(StorageFailed) as caught, storing(PLACE):
        raise OSError(number, os.strerror(number))

    assert caught.value.reason == "STORAGE_FAILED"
    assert str(PLACE) in caught.value.text


def test_storage_that_fails_is_found_among_several_errors_and_other_errors_are_not():
    full = OSError(errno.ENOSPC, "No space left on device", str(PLACE))

    assert find_failure(ExceptionGroup("two", [ValueError(), ExceptionGroup("one", [full])])) is not None
    assert find_failure(OSError(errno.ECONNRESET, "Connection reset by peer")) is None
    assert find_failure(ValueError()) is None


def test_a_database_that_cannot_grow_is_told_as_full(tmp_path: Path):
    path = tmp_path / "journal.db"
    connection = sqlite3.connect(path)
    connection.execute("create table t (a)")
    connection.execute("pragma max_page_count = 2")

    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("insert into t values (zeroblob(100000))")
    connection.close()
    failure = find_database_failure(caught.value, path)

    assert failure is not None
    assert (failure.reason, failure.facts["path"]) == (NO_SPACE, str(path))
    assert find_database_failure(sqlite3.OperationalError("no such table"), path) is None
