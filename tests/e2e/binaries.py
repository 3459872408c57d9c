"""The QEMUs that the end-to-end tests need; a missing one fails the test that asks for it, and says how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_MISSING = REPOSITORY / ".cache" / "qemu-10.0" / "missing"
PATHS = {
    "7.2": Path("/usr/bin/qemu-system-x86_64"),
    "10.0": REPOSITORY / ".cache" / "qemu-10.0" / "bin" / "qemu-system-x86_64",
}


def require(version: str) -> str:
    """Return the path of a QEMU, or fail the test."""
    path = PATHS[version]
    if path.exists():
        return str(path)
    why = _MISSING.read_text(encoding="utf-8").strip() if _MISSING.exists() else "`make setup` brings it"
    pytest.fail(f"QEMU {version} is not at {path}: {why}", pytrace=False)


def installed() -> tuple[str, ...]:
    """Return the paths of those that are there."""
    return tuple(str(path) for path in PATHS.values() if path.exists())
