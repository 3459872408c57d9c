"""What the CPU of this host can do. Source: /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
_FLAG_LINES = frozenset({"flags", "Features"})  # x86 and Arm


def decode_flags(cpuinfo: str) -> frozenset[str]:
    """Find the flags that every CPU has; empty when the text names none."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    found = [frozenset(flags.split()) for name, _, flags in lines if name.strip() in _FLAG_LINES]
    return frozenset.intersection(*found) if found else frozenset()


def has_aes() -> bool:
    """Say whether the CPUs of this host have AES instructions, which make AES-GCM the fastest cipher."""
    return "aes" in decode_flags(CPUINFO.read_text(encoding="utf-8", errors="replace"))
