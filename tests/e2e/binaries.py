"""The QEMUs of the end-to-end tests; a missing one fails the test that asks for it, and says how to get it.

Two hosts of a fleet share one file system. Where a guest is to have another QEMU on each, it names one path, as it would
on real hosts: a script that starts the one or the other, by the host that it is started on.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TypeAlias

from deploy.lab.fleet import HOSTS, PROGRAMS
from tests.binaries import BINARIES as PATHS
from tests.binaries import CACHE, require

__all__ = ["OWN", "PATHS", "Pair", "emulator_of", "installed", "machine_of", "nameable", "require", "version_of"]

Pair: TypeAlias = tuple[str, str]
"""The QEMU of host-a, and that of host-b."""
OWN: Pair = ("7.2", "10.0")
"""What guests have that name no QEMU."""

_SCRIPT = """\
#!/bin/sh
case "$PATH" in
*/{host}/{programs}:*) exec "{first}" "$@" ;;
*) exec "{second}" "$@" ;;
esac
"""
_MACHINE = "pc-q35-{}"


def installed() -> tuple[str, ...]:
    """Return the paths of those that are there."""
    return tuple(str(path) for path in PATHS.values() if path.exists())


def nameable() -> tuple[str, ...]:
    """Return the paths that a guest may name on a fleet: each QEMU that is there, and each pair of two."""
    here = [version for version, path in PATHS.items() if path.exists()]
    return (*installed(), *(_script(pair) for pair in itertools.permutations(here, 2)))


def emulator_of(pair: Pair) -> str:
    """Return the path that a guest names to have these QEMUs, empty for the hosts' own, or fail the test."""
    paths = [require(version) for version in pair]
    if pair == OWN:
        return ""
    return paths[0] if pair[0] == pair[1] else _script(pair)


def machine_of(pair: Pair) -> str:
    """Return the newest machine type that both QEMUs have."""
    return _MACHINE.format(min(pair, key=lambda version: [int(part) for part in version.split(".")]))


def version_of(pid: int) -> str:
    """Return which QEMU a process is."""
    program = str(Path(f"/proc/{pid}/exe").readlink())
    return next((version for version in PATHS if f"/qemu-{version}/" in program), "7.2")


def _script(pair: Pair) -> str:
    first, second = (PATHS[version] for version in pair)
    path = CACHE / "emulators" / f"qemu-{'-'.join(pair)}"
    text = _SCRIPT.format(host=HOSTS[0], programs=PROGRAMS, first=first, second=second)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}")  # another worker may write it too
        scratch.write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        scratch.replace(path)
    return str(path)
