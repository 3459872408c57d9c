"""The QEMU binaries that tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

_PATHS = {
    "7.2": Path("/usr/bin/qemu-system-x86_64"),
    "10.0": Path(__file__).parents[2] / ".cache/qemu-10.0/bin/qemu-system-x86_64",
}


def get_binary(version: str) -> str:
    """Return the QEMU of that version; skip the test that asks when `make setup` has not brought it."""
    path = _PATHS[version]
    if not path.exists():
        pytest.skip(f"no QEMU {version} at {path}; `make setup` brings it")
    return str(path)
