"""A fleet whose servers keep their state on small file systems of their own, which a test fills up."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.lab.fleet import HOSTS, Fleet
from tests.e2e.binaries import installed

SIZE_MIB = 16
_PIECE = bytes(1 << 16)
_AGAIN_S = 0.001


@contextmanager
def small_fleet(directory: Path) -> Iterator[Fleet]:
    """Run a fleet on file systems of `SIZE_MIB` each; needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    with ExitStack() as stack:
        for name in (*HOSTS, "coordinator"):
            place = directory / name
            place.mkdir(mode=0o700)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "ferry-test", place], check=True)
            stack.callback(_unmount, place)
        found = installed()
        emulators = ", ".join(f'"{path}"' for path in found)
        settings = dict.fromkeys(HOSTS, f"emulators = [{emulators}]")
        yield stack.enter_context(Fleet(directory, qemu=dict(zip(HOSTS, (found[0], found[-1]), strict=True)), settings=settings))


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


class Filler:
    """Takes all the room that a server's file system has."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._filling: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def fill(self, name: str) -> None:
        """Fill the file system of a host or of the coordinator, to the last byte; room that comes free is taken as well."""
        self._fill_once(name)
        is_over = threading.Event()

        def keep_full() -> None:
            while not is_over.wait(_AGAIN_S):
                self._fill_once(name)

        thread = threading.Thread(target=keep_full)
        thread.start()
        self._filling[name] = thread, is_over

    def _fill_once(self, name: str) -> None:
        with self._path(name).open("ab", buffering=0) as file:
            for piece in (_PIECE, _PIECE[:512], b"0"):
                try:
                    while file.write(piece) == len(piece):
                        pass
                except OSError:
                    continue

    def free(self, name: str) -> None:
        """Give the room back."""
        if name in self._filling:
            thread, is_over = self._filling.pop(name)
            is_over.set()
            thread.join()
        self._path(name).unlink(missing_ok=True)

    def free_all(self) -> None:
        """Give all room back."""
        for name in (*HOSTS, "coordinator"):
            self.free(name)

    def _path(self, name: str) -> Path:
        return self._fleet.directory / name / "filler"
