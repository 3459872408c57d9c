"""Names the machine that a benchmark ran on, without telling whose it is."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil

_MIB = 1 << 20


def describe(binary: str) -> dict[str, str]:
    """Say what the figures depend on, by name."""
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total // _MIB} MiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "QEMU": version.splitlines()[0].removeprefix("QEMU emulator version "),
        "accelerator": "tcg",
        "Python": platform.python_version(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
