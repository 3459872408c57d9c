"""File systems that refuse to be written to: full, read-only, broken. Told with the path, and tried again when there is room.

Source: errno(3), open(2), write(2); sqlite3.org/rescode.html.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import WrongState

NO_SPACE: Final = "NO_SPACE"
STORAGE_REASONS: Final = frozenset({NO_SPACE, "STORAGE_FAILED"})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BROKEN: Final = frozenset({errno.EIO, errno.EROFS, errno.ENODEV, errno.ESTALE, errno.EUCLEAN})
# Primary result codes are the lowest byte of extended ones.
_SQLITE_FULL: Final = frozenset({sqlite3.SQLITE_FULL})
_SQLITE_BROKEN: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


class StorageFailed(WrongState):
    """A file could not be written; what was there before is as it was."""

    default_reason = "STORAGE_FAILED"


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Tell of what fails inside with the path that was to be written.

    Raises:
        StorageFailed: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise failure_of(error, path) from error


def failure_of(error: OSError, path: Path | None = None) -> StorageFailed:
    """Say what a file system's refusal means."""
    where = path or error.filename or "a file"
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFailed(f"{where}: {why.lower()}; it is tried again when there is room", reason=NO_SPACE, path=where)
    return StorageFailed(f"{where} cannot be written: {why.lower()}", path=where)


def find_failure(error: BaseException) -> StorageFailed | None:
    """Tell storage that fails from mistakes of our own; None for anything else."""
    match error:
        case StorageFailed():
            return error
        case OSError(errno=int(number)) if number in _FULL | _BROKEN:
            return failure_of(error)
        case BaseExceptionGroup():
            return next((found for one in error.exceptions if (found := find_failure(one)) is not None), None)
    return None


def find_database_failure(error: BaseException, path: Path) -> StorageFailed | None:
    """Tell storage that fails below an SQLite database from anything else."""
    cause = getattr(error, "orig", error)
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return None
    if code & 0xFF in _SQLITE_FULL or (code & 0xFF in _SQLITE_BROKEN and is_full(path.parent)):
        full = os.strerror(errno.ENOSPC).lower()
        return StorageFailed(f"{path}: {full}; it is tried again when there is room", reason=NO_SPACE, path=path)
    if code & 0xFF in _SQLITE_BROKEN:
        return StorageFailed(f"{path} cannot be written: {cause}", path=path)
    return None


def is_full(directory: Path) -> bool:
    """Say whether a file system has no block left for us."""
    found = os.statvfs(directory)
    return not found.f_bavail or (found.f_files > 0 and not found.f_favail)
