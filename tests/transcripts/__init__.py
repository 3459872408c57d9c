"""Replies of real QEMUs, recorded by `python -m tests.transcripts.record`."""

from __future__ import annotations

import json
from pathlib import Path

VERSIONS = ("7.2", "10.0", "11.1")
_ROOT = Path(__file__).parent


def load(version: str, name: str) -> dict[str, object]:
    """Return a recording: `execute`, `arguments`, and `return` or `error`."""
    recording = json.loads((_ROOT / version / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(recording, dict)
    return recording


def find(version: str, name: str) -> dict[str, object] | None:
    """Find a recording; None when this version was never seen so."""
    return load(version, name) if (_ROOT / version / f"{name}.json").exists() else None


def names(version: str, pattern: str) -> list[str]:
    """List the recordings of a version whose names match a glob pattern."""
    return sorted(path.stem for path in (_ROOT / version).glob(f"{pattern}.json"))
