"""Versioned JSON records on disk, each written whole or not at all.

A record is one file: `{"kind": ..., "version": ..., "body": {...}}`. It is written to a temporary file in the same
directory, synced, renamed over the old one, and the directory is synced, so a reader sees the old record or the new
one and a power cut keeps one of the two. Reading is strict: whatever is not exactly a record of the wanted kind and
version is an error that names the file; nothing is guessed or repaired.

The functions are synchronous: a write costs about half a millisecond, less than a trip to a thread and back is worth
where a guest waits. Callers with slow disks and time to spare wrap them in `asyncio.to_thread`.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import WrongState
from common.storage import storing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_RECORD_BYTES = 16 * 1024 * 1024


class BrokenRecord(WrongState):
    """A record on disk cannot be read; it was left as it is."""

    default_reason = "RECORD_BROKEN"


class StagedRecord:
    """A record that is on disk beside its place; putting it there is a rename, which takes a tenth of a millisecond.

    For a record that has to be written while somebody waits, and whose content is known before. Ends with `commit` and `sync`, or
    with `discard`.
    """

    def __init__(self, path: Path, *, kind: str, version: int, body: Mapping[str, object]) -> None:
        """Write it to a temporary file, durably. The directory must exist.

        Raises:
            StorageFailed: the file system refused, as when it is full.
        """
        text = json.dumps({"kind": kind, "version": version, "body": body}, ensure_ascii=False)
        self._path = path
        self._replaced = -1
        with storing(path):
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            self._temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it 0600
                    file.write(text.encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                self.discard()
                raise

    def commit(self) -> None:
        """Replace the record at `path`; after return the new one survives our end, after failure the old one is untouched.

        Raises:
            StorageFailed: the file system refused.
        """
        with suppress(OSError):  # held until `sync`: to free the old file's blocks takes longer than all else here
            self._replaced = os.open(self._path, os.O_RDONLY)
        with storing(self._path):
            try:
                self._temporary.rename(self._path)
            except BaseException:
                self.discard()
                raise

    def sync(self) -> None:
        """Make the commit survive a power cut.

        Raises:
            StorageFailed: the file system refused.
        """
        try:
            with storing(self._path):
                sync_directory(self._path.parent)
        finally:
            self._release()

    def discard(self) -> None:
        """Forget it."""
        with suppress(OSError):  # a file system that fails now; the next agent removes it
            self._temporary.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._replaced >= 0:
            os.close(self._replaced)
            self._replaced = -1


def write_record(path: Path, *, kind: str, version: int, body: Mapping[str, object]) -> None:
    """Put a record at `path`, replacing the one that is there.

    The directory must exist. After return the record survives a power cut; after failure the old one is untouched.

    Raises:
        StorageFailed: the file system refused, as when it is full.
    """
    staged = StagedRecord(path, kind=kind, version=version, body=body)
    staged.commit()
    staged.sync()


def find_record(path: Path, *, kind: str, version: int) -> dict[str, object] | None:
    """Read the body of the record at `path`, or None when there is no such file.

    Raises:
        BrokenRecord: the file is not a record of this kind and version.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BrokenRecord(f"record {path}: {error.strerror}", path=path) from error
    return _decode(path, content, kind, version)


def _decode(path: Path, content: bytes, kind: str, version: int) -> dict[str, object]:
    if len(content) > MAX_RECORD_BYTES:
        raise BrokenRecord(f"record {path}: longer than {MAX_RECORD_BYTES} bytes", path=path)
    try:
        envelope = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BrokenRecord(f"record {path}: not JSON: {error}", path=path) from error
    if not isinstance(envelope, dict) or set(envelope) != {"kind", "version", "body"}:
        raise BrokenRecord(f"record {path}: not an object of kind, version and body", path=path)
    if envelope["kind"] != kind:
        raise BrokenRecord(f"record {path}: of kind {envelope['kind']!r}, not {kind!r}", path=path)
    if type(envelope["version"]) is not int or envelope["version"] != version:
        raise BrokenRecord(f"record {path}: of version {envelope['version']!r}, not {version}", path=path)
    body = envelope["body"]
    if not isinstance(body, dict):
        raise BrokenRecord(f"record {path}: its body is not an object", path=path)
    return body


def parts_of(content: bytes, names: Sequence[str]) -> dict[str, object]:
    """Find parts of the body of what may be no record any more, by their names, in the order in which they were written.

    One that is not there as a whole is left out: of a record that was cut off the first parts are there still.
    """
    text = content[:MAX_RECORD_BYTES].decode(errors="replace")
    with suppress(ValueError, RecursionError):
        envelope = json.loads(text)
        body = envelope.get("body") if isinstance(envelope, dict) else None
        return {name: body[name] for name in names if name in body} if isinstance(body, dict) else {}
    found: dict[str, object] = {}
    at = 0
    for name in names:
        mark = f'"{name}": '
        where = text.find(mark, at)
        if where >= 0:
            with suppress(ValueError, RecursionError):
                found[name], at = json.JSONDecoder().raw_decode(text, where + len(mark))
    return found


def find_text(content: bytes, name: str) -> str:
    """Find the first text of a name in what may be no record any more; empty where there is none."""
    mark = f'"{name}": "'.encode()
    at = content.find(mark)
    with suppress(ValueError):
        value, _ = json.JSONDecoder().raw_decode(content[max(at, 0) + len(mark) - 1 :].decode(errors="replace"))
        return value if at >= 0 and isinstance(value, str) else ""
    return ""


def get_record(path: Path, *, kind: str, version: int) -> dict[str, object]:
    """Read the body of the record at `path`.

    Raises:
        BrokenRecord: there is no file, or it is not a record of this kind and version.
    """
    body = find_record(path, kind=kind, version=version)
    if body is None:
        raise BrokenRecord(f"record {path}: no such file", path=path)
    return body


def remove_record(path: Path) -> None:
    """Ensure that there is no record at `path`, durably.

    Raises:
        StorageFailed: the file system refused.
    """
    with storing(path):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        sync_directory(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files of writes that a crash cut short; only while nobody writes there."""
    for leftover in directory.glob(".*.tmp"):
        with suppress(OSError):  # as on a file system that has become read-only
            leftover.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
