"""A file that is written beside its place and appears there whole, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from common.errors import WrongState
from common.records import sync_directory

if TYPE_CHECKING:
    from pathlib import Path


def part_path(path: Path, job_id: str) -> Path:
    """Name the file that is written until it is complete."""
    return path.with_name(f".{path.name[:200]}.{job_id[:8]}.part")


def check_free(path: Path) -> None:
    """Require a directory with nothing under this name.

    Raises:
        WrongState: there is no such directory, or there is something.
    """
    if not path.parent.is_dir():
        raise WrongState(f"{path}: its directory does not exist on this host", reason="FILE_MISSING", path=path)
    if path.exists() or path.is_symlink():
        raise WrongState(f"{path} exists already; remove it or choose another name", reason="FILE_EXISTS", path=path)


def create(part: Path) -> BinaryIO:
    """Make the file for its owner alone, open for reading and writing."""
    return os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b")


def commit(part: Path, path: Path) -> None:
    """Put a file that is durable itself to its place.

    Raises:
        WrongState: something is there by now.
    """
    check_free(path)
    part.rename(path)
    sync_directory(path.parent)


def discard(part: Path) -> None:
    """Ensure that the file is gone."""
    part.unlink(missing_ok=True)
