"""A fleet whose wall clock a test sets: that of its servers and of their QEMUs."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.lab.fleet import REPOSITORY, Fleet, Security
from tests.e2e.binaries import require

_SOURCE = REPOSITORY / "tests" / "tools" / "stepped_clock.c"


class SteppedClock:
    """The wall clock of a fleet."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "clock"
        self.library = directory / "stepped_clock.so"
        self.set_ahead(0.0)
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", self.library, _SOURCE, "-lm", "-ldl"], check=True)

    def set_ahead(self, by_s: float) -> None:
        """Set it ahead of the host's by so much, or back."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(struct.pack("d", by_s))

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process read it."""
        return {"LD_PRELOAD": str(self.library), "STEPPED_CLOCK": str(self.path)}

    def emulator(self, version: str, directory: Path) -> str:
        """Write a script that runs a QEMU by this clock; return its path."""
        script = directory / f"qemu-{version}"
        words = " ".join(f'{name}="{value}"' for name, value in self.environment.items())
        script.write_text(f'#!/bin/sh\nexec env {words} STEPPED_WAITS=1 "{require(version)}" "$@"\n')
        script.chmod(0o755)
        return str(script)


@contextmanager
def stepped_fleet(directory: Path) -> Iterator[tuple[Fleet, SteppedClock]]:
    """Run a fleet by a clock that can be set; without certificates, which a clock of two days ago would refuse."""
    if not Path("/usr/bin/cc").exists():
        pytest.skip("a clock that can be set needs a C compiler")
    clock = SteppedClock(directory)
    emulators = {host: clock.emulator(version, directory) for host, version in (("host-a", "7.2"), ("host-b", "10.0"))}
    allowed = ", ".join(f'"{path}"' for path in emulators.values())
    settings = dict.fromkeys(emulators, f"emulators = [{allowed}]")
    fleet = Fleet(directory, security=Security.INSECURE, qemu=emulators, settings=settings, environment=clock.environment)
    with fleet:
        yield fleet, clock
