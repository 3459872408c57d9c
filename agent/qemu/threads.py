"""Whether a QEMU that does not answer has work of its own, or waits for somebody else.

A thread that has work and gets no CPU looks as one that runs, so this tells an overloaded host from a silent peer.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

# Runs or wants to, or waits for a disk. Source: proc_pid_stat(5).
_AT_WORK: Final = frozenset({"R", "D"})
# What QEMU calls the threads of vCPUs with `-name debug-threads=on`; they run the guest while QEMU itself waits.
_VCPU_PREFIX: Final = "CPU "


def is_working(pid: int) -> bool:
    """Say whether QEMU's main thread, or another that runs no vCPU, has work now; False of a process that is gone.

    Where QEMU was started without names for its threads only the main thread can be told from vCPUs.
    """
    threads = _threads(pid)
    has_names = any(name.startswith(_VCPU_PREFIX) for name, _ in threads.values())
    return any(
        state in _AT_WORK
        for thread, (name, state) in threads.items()
        if thread == pid or (has_names and not name.startswith(_VCPU_PREFIX))
    )


def _threads(pid: int) -> dict[int, tuple[str, str]]:
    """Read the name and the state of each thread."""
    found: dict[int, tuple[str, str]] = {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                name, _, rest = (entry / "stat").read_text(encoding="utf-8", errors="replace").partition(" (")[2].rpartition(") ")
                found[int(entry.name)] = (name, rest[:1])
    return found
