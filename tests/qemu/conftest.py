"""Fixtures of tests on a real QEMU."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.qemu.identity import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator


ENDING_S = 2.0


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory with a short name, as sockets need; afterwards no process may be left that uses it."""
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    yield directory
    deadline = time.monotonic() + ENDING_S
    while (left := _processes_in(directory)) and time.monotonic() < deadline:
        time.sleep(0.01)  # a TPM ends a moment after its QEMU
    for identity in left:
        identity.send_signal(9)  # type: ignore[arg-type]
    shutil.rmtree(directory)
    assert not left


def _processes_in(directory: Path) -> list[ProcessIdentity]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(ProcessIdentity.of(int(entry.name)))
        except (OSError, ValueError):
            continue
    return found
