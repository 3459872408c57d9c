"""Whether a QEMU that does not answer has work of its own, or waits for somebody else.

A thread that has work and gets no CPU looks as one that runs, so this tells an overloaded host from a silent peer.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Runs or wants to, or waits for a disk. Source: proc_pid_stat(5).
_AT_WORK: Final = frozenset({"R", "D"})
# What QEMU calls the threads of vCPUs with `-name debug-threads=on`; they run the guest while QEMU itself waits.
_VCPU_PREFIX: Final = "CPU "


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread, at the moment of looking."""

    name: str
    state: str
    is_main: bool


def find_threads(pid: int) -> tuple[Thread, ...]:
    """Look at the threads of a process; there are none of one that is gone."""
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                name, _, rest = (entry / "stat").read_text(encoding="utf-8", errors="replace").partition(" (")[2].rpartition(") ")
                found.append(Thread(name, rest[:1], is_main=entry.name == str(pid)))
    return tuple(found)


def is_working(threads: tuple[Thread, ...]) -> bool:
    """Say whether QEMU's main thread, or another that runs no vCPU, has work.

    Where QEMU was started without names for its threads only the main thread can be told from vCPUs.
    """
    has_names = any(thread.name.startswith(_VCPU_PREFIX) for thread in threads)
    return any(
        thread.state in _AT_WORK and (thread.is_main or (has_names and not thread.name.startswith(_VCPU_PREFIX)))
        for thread in threads
    )
