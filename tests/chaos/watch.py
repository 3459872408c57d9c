"""The moment of a fault: the phases that a migration's sides write down, followed by a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_POLL_S = 0.0004


@dataclass(slots=True)
class Seen:
    """The phases of both sides in the order in which they were seen, with the time on `time.monotonic()`."""

    phases: list[tuple[float, str, str]] = field(default_factory=list)

    def has(self, side: str, *names: str) -> bool:
        """Say whether a side has been in one of these phases."""
        return any(one == side and phase in names for _, one, phase in self.phases)

    def latest(self, side: str, *, before_s: float | None = None) -> str:
        """Give a side's phase, now or at a time; empty when it had none."""
        found = [phase for at_s, one, phase in self.phases if one == side and (before_s is None or at_s <= before_s)]
        return found[-1] if found else ""


class PhaseWatch:
    """Follows the session records that appear from now on in two hosts' directories; a context manager.

    Args:
        directories: by side, where its agent keeps the records of its sessions.
        is_moment: asked at each change, with the side and its phase; the first time that it says yes `act` is called in the thread.
        act: what to do then.
        deadline_s: when to act at the latest, on `time.monotonic()`.
    """

    def __init__(
        self, directories: dict[str, Path], is_moment: Callable[[str, str], bool], act: Callable[[], None], deadline_s: float
    ) -> None:
        self.seen = Seen()
        self._known = {side: set(directory.glob("*.json")) for side, directory in directories.items()}
        self._directories = directories
        self._is_moment = is_moment
        self._act = act
        self._deadline_s = deadline_s
        self._stopping = threading.Event()
        self._has_acted = False
        self.migration_id = ""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="phase watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        paths: dict[str, Path] = {}
        latest: dict[str, tuple[int, int]] = {}
        try:
            while not self._stopping.is_set():
                for side, directory in self._directories.items():
                    if side not in paths:
                        new = set(directory.glob("*.json")) - self._known[side]
                        if not new:
                            continue
                        paths[side] = new.pop()
                        self.migration_id = paths[side].stem
                    self._look(side, paths[side], latest)
                if not self._has_acted and time.monotonic() > self._deadline_s:
                    self._do()
                time.sleep(_POLL_S)
        except BaseException as error:  # noqa: BLE001 -- told by whoever waits for this thread
            self.error = error

    def _look(self, side: str, path: Path, latest: dict[str, tuple[int, int]]) -> None:
        with suppress(OSError, ValueError, KeyError):
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if latest.get(side) == stamp:
                return
            phase = json.loads(path.read_bytes())["body"]["phase"]["name"]
            latest[side] = stamp
            if self.seen.latest(side) != phase:
                self.seen.phases.append((time.monotonic(), side, phase))
                if not self._has_acted and self._is_moment(side, phase):
                    self._do()

    def _do(self) -> None:
        self._has_acted = True
        self._act()
