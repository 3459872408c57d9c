"""Telling two files on two hosts apart by their size and some of their content, in bounded time.

A small file is compared whole. Of a large one its beginning, its end, places in what is allocated of it and places anywhere are
hashed: images that begin alike, or are mostly holes, are told apart too. Who has the first file chooses the places, at random and
as many as its storage gives in a moment, and tells the other host. A difference of few bytes in a large file can be missed.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import time
from dataclasses import dataclass
from typing import Final

from common.errors import InvalidRequest

PIECE_BYTES: Final = 64 * 1024
MAX_PIECES: Final = 512  # 32 MiB
_FIRST_PIECES: Final = 16
_LAST_PIECES: Final = 8
_ANYWHERE: Final = 180
_OF_EXTENTS: Final = 128
_OF_ALLOCATED: Final = 180
_AT_LEAST: Final = 64
_ENOUGH_S: Final = 0.5
_MOST_EXTENTS: Final = 1000


class TooSlow(Exception):
    """The storage did not give the content in time."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file's size, the pieces of it that were read, and their SHA-256 in hexadecimal digits."""

    size_bytes: int
    offsets: tuple[int, ...]
    digest: str

    def __post_init__(self) -> None:
        """Refuse more than is ever made, or places outside of the file."""
        if len(self.offsets) > MAX_PIECES or not all(0 <= offset < self.size_bytes for offset in self.offsets):
            raise InvalidRequest("fingerprint: its places are out of range", reason="FINGERPRINT_INVALID")


def take(path: str, deadline_s: float) -> Fingerprint:
    """Take the fingerprint of a file or block device; `deadline_s` is on the monotonic clock.

    Raises:
        OSError: it cannot be read, or is neither.
        TooSlow: the time is over.
    """
    descriptor, size_bytes = _open(path)
    try:
        offsets = _choose(descriptor, size_bytes)
        enough_s = time.monotonic() + _ENOUGH_S if size_bytes > MAX_PIECES * PIECE_BYTES else deadline_s
        read, digest = _digest(descriptor, offsets, deadline_s, enough_s)
        return Fingerprint(size_bytes, offsets[:read], digest)
    finally:
        os.close(descriptor)


def difference(wanted: Fingerprint, path: str, deadline_s: float) -> str:
    """Say in a clause what differs at a path; empty when nothing of what was compared does.

    Raises:
        OSError, TooSlow: as `take`.
    """
    descriptor, size_bytes = _open(path)
    try:
        if size_bytes != wanted.size_bytes:
            return f"it has {size_bytes} bytes here and {wanted.size_bytes} there"
        _, digest = _digest(descriptor, wanted.offsets, deadline_s, deadline_s)
        is_equal = digest == wanted.digest
        return "" if is_equal else "its content differs"
    finally:
        os.close(descriptor)


def _open(path: str) -> tuple[int, int]:
    mode = os.stat(path).st_mode  # noqa: PTH116 -- looked at before it is opened: a pipe would wait
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise OSError(0, "neither a file nor a block device")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return descriptor, os.lseek(descriptor, 0, os.SEEK_END)
    except BaseException:
        os.close(descriptor)
        raise


def _choose(descriptor: int, size_bytes: int) -> tuple[int, ...]:
    count = -(-size_bytes // PIECE_BYTES)
    if count <= MAX_PIECES:
        return tuple(piece * PIECE_BYTES for piece in range(count))
    chance = random.SystemRandom()
    allocated = _allocated(descriptor, size_bytes)
    chosen = [chance.randrange(count) for _ in range(_ANYWHERE)]
    if allocated:  # small extents are as good as large ones for one half, else they would hardly be met
        weights = [end - start for start, end in allocated]
        extents = chance.sample(allocated, min(len(allocated), _OF_EXTENTS)) + chance.choices(allocated, weights, k=_OF_ALLOCATED)
        chosen += [chance.randrange(start, end) // PIECE_BYTES for start, end in extents]
    chance.shuffle(chosen)  # whatever is left out for want of time, the rest is of every kind
    ends = [*range(_FIRST_PIECES), *range(count - _LAST_PIECES, count)]
    return tuple(piece * PIECE_BYTES for piece in dict.fromkeys((*ends, *chosen)))


def _allocated(descriptor: int, size_bytes: int) -> list[tuple[int, int]]:
    """List what is no hole; nothing where the file system does not tell. Source: lseek(2), SEEK_DATA."""
    found: list[tuple[int, int]] = []
    end = 0
    try:
        while end < size_bytes and len(found) < _MOST_EXTENTS:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, end))
    except OSError:  # no data behind this, or a device
        pass
    return found


def _digest(descriptor: int, offsets: tuple[int, ...], deadline_s: float, enough_s: float) -> tuple[int, str]:
    """Hash pieces in their order, after `enough_s` no more than it must; return how many, and the digest."""
    found = hashlib.sha256()
    for number, offset in enumerate(offsets):
        if time.monotonic() > deadline_s:
            raise TooSlow
        if time.monotonic() > enough_s and number >= _AT_LEAST:
            return number, found.hexdigest()
        found.update(os.pread(descriptor, PIECE_BYTES, offset))
    return len(offsets), found.hexdigest()
