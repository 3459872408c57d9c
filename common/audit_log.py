"""The audit log: JSON lines of who asked for what, and what came of it; rotated, and its process's alone.

Facts are cut, since callers choose them. A line is in the page cache on return and survives the process; it is not synced, so a
power cut may take the last seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 16 * 1024 * 1024
KEPT_COUNT: Final = 4
MAX_FACT_CHARACTERS: Final = 300


class AuditLog:
    """One file, and `KEPT_COUNT` older ones beside it: `audit.jsonl.1` is the youngest of them."""

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._wall_clock = wall_clock
        self._max_bytes = max_bytes

    def write(self, **facts: str) -> None:
        """Append a line with the time and these facts; empty ones are left out, long ones cut.

        Raises:
            OSError: the file system refused, as when it is full.
        """
        at = datetime.fromtimestamp(self._wall_clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": at, **{name: _cut(fact) for name, fact in facts.items() if fact}}, ensure_ascii=False)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode(errors="replace") + b"\n")
            size_bytes = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size_bytes >= self._max_bytes:
            self._rotate()

    def _rotate(self) -> None:
        for number in range(KEPT_COUNT, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.rename(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path if number == 0 else self._path.with_name(f"{self._path.name}.{number}")


def _cut(fact: str) -> str:
    return fact if len(fact) <= MAX_FACT_CHARACTERS else f"{fact[:MAX_FACT_CHARACTERS]} ... ({len(fact)} characters)"
