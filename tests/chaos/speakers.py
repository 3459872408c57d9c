"""Which QEMU speaks on a guest's console: told by the kernel's position of each QEMU's own open file, not by what Ferry says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

_POLL_S = 0.02
_LOOK_S = 0.2


def find_open(pid: int, file: Path) -> Path | None:
    """Return where the kernel tells how far a process has written into a file; None where it does not have it open."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if entry.readlink() == file:
                return Path(f"/proc/{pid}/fdinfo/{entry.name}")
    except OSError:
        return None
    return None


def position(info: Path) -> int | None:
    """Return how far that is, in bytes; None when the process has ended.

    Source: proc(5), `fdinfo`; a write by O_APPEND leaves the position at the end of what was written.
    """
    try:
        return int(info.read_text().split(maxsplit=2)[1])
    except (OSError, IndexError):
        return None


class Speakers:
    """Follows who writes to a console; a context manager.

    Args:
        log: the console, which every QEMU of the guest appends to.
        pids: finds the QEMUs.
    """

    def __init__(self, log: Path, pids: Callable[[], list[int]]) -> None:
        self._log = log
        self._pids = pids
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speakers", daemon=True)
        self._spoke_at_s: dict[int, float] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def since(self, at_s: float) -> list[int]:
        """Return the processes that have written since a time of `time.monotonic()`."""
        return [pid for pid, last_s in dict(self._spoke_at_s).items() if last_s >= at_s]

    def _run(self) -> None:
        files: dict[int, Path] = {}
        known: dict[int, int] = {}
        looked_at_s = 0.0
        while not self._stopping.wait(_POLL_S):
            if time.monotonic() - looked_at_s > _LOOK_S:
                looked_at_s = time.monotonic()
                for pid in self._pids():
                    if pid not in files and (found := find_open(pid, self._log)) is not None:
                        files[pid] = found
            for pid, info in [*files.items()]:
                now = position(info)
                if now is None:
                    del files[pid]
                    continue
                if now != known.get(pid, now):
                    self._spoke_at_s[pid] = time.monotonic()
                known[pid] = now
