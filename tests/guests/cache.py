"""Files that are built once and kept in .cache/guests, where test workers build at the same time."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "guests"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).chmod(0o644)
    Path(name).replace(path)


def run_tool(*command: str | Path) -> None:
    """Run a build tool; what it complains about goes to stderr.

    Raises:
        CalledProcessError: it failed.
        FileNotFoundError: it is not installed.
    """
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
