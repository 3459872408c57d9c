"""What an operator decides about the VMs of a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_QEMU = "qemu-system-x86_64"
# Where distributions put QEMU, as domain XML of other hosts names it.
DEFAULT_EMULATORS = (
    "/usr/bin/qemu-system-x86_64",
    "/usr/bin/kvm",
    "/usr/bin/qemu-kvm",
    "/usr/libexec/qemu-kvm",
    "/usr/local/bin/qemu-system-x86_64",
)


@dataclass(frozen=True, slots=True)
class VmSettings:
    """Choices of the operator.

    Attributes:
        qemu: name or path of the QEMU for definitions that name none.
        emulators: absolute paths that a definition may name.
        roots: directories that paths of definitions have to lie in; none means anywhere.
        memory_margin_kib: what has to stay free beside a guest that comes in.
        cgroup_root: directory of the cgroup file system that groups of guests are made in; None finds it.
        start_timeout_s: how long a new QEMU may take to answer.
    """

    qemu: str = DEFAULT_QEMU
    emulators: tuple[str, ...] = DEFAULT_EMULATORS
    roots: tuple[Path, ...] = ()
    memory_margin_kib: int = 64 * 1024
    start_timeout_s: float = 15.0
    cgroup_root: Path | None = None
