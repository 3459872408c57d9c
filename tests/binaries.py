"""The QEMUs that tests run: the installed one, and those that `make setup` fetches beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".cache"
BINARIES = {
    "7.2": Path("/usr/bin/qemu-system-x86_64"),
    **{version: CACHE / f"qemu-{version}" / "bin" / "qemu-system-x86_64" for version in ("10.0", "11.1")},
}
MOSTLY_OLDER = [pytest.param(version, marks=[pytest.mark.matrix] if version == "11.1" else []) for version in BINARIES]
"""For what depends little on the version: `make test` leaves the newest to `make matrix`."""


def why_missing(version: str) -> str:
    """Say why a QEMU is not here; empty when it is."""
    path = BINARIES[version]
    if path.exists():
        return ""
    missing = CACHE / f"qemu-{version}" / "missing"
    why = missing.read_text(encoding="utf-8").strip() if missing.exists() else "`make setup` brings it"
    return f"QEMU {version} is not at {path}: {why}"


def require(version: str) -> str:
    """Return the path of a QEMU, or fail the test."""
    if why := why_missing(version):
        pytest.fail(why, pytrace=False)
    return str(BINARIES[version])


def skip_without(version: str) -> str:
    """Return the path of a QEMU, or skip the test."""
    if why := why_missing(version):
        pytest.skip(why)
    return str(BINARIES[version])
