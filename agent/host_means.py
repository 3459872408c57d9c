"""What the kernel and the limits of this host allow a QEMU in a migration.

Each function gives the reason why not, for a person, or an empty text. Source: userfaultfd(2), the kernel's msg_zerocopy.rst,
capabilities(7), proc_pid_limits(5).
"""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.guest_user import GuestUser

_SYSCTL: Final = Path("/proc/sys/vm/unprivileged_userfaultfd")
_DEVICE: Final = Path("/dev/userfaultfd")
_IPC_LOCK_BIT: Final = 14
_USERFAULTFD_CALL: Final = 323  # arch/x86/entry/syscalls/syscall_64.tbl
_LIMIT_NAME: Final = "Max locked memory"
_KIB: Final = 1024
_SO_ZEROCOPY: Final = 60  # include/uapi/asm-generic/socket.h


def userfaultfd_obstacle(guests: GuestUser, *, opens_device: bool, sysctl: Path = _SYSCTL, device: Path = _DEVICE) -> str:
    """Say why a QEMU on this host cannot handle its guest's page faults, as the destination of a post-copy has to.

    Args:
        guests: whom QEMU runs as.
        opens_device: whether this QEMU knows the device, as 8.0 and newer do.
        sysctl: vm.unprivileged_userfaultfd.
        device: the other way for who is not root.
    """
    if not sysctl.exists():
        return "the kernel has no userfaultfd"
    if sysctl.read_text(encoding="ascii").strip() == "1" or (opens_device and _may_open(device, guests)):
        return ""
    if not guests.name and os.geteuid() == 0:
        return "" if _may_call() else "userfaultfd is forbidden to root here, as by a container's system call filter"
    return "userfaultfd is for root only: set vm.unprivileged_userfaultfd=1, or let QEMU's user open /dev/userfaultfd (QEMU 8)"


def _may_call() -> bool:
    """Try the system call, which there is no function for."""
    descriptor: int = ctypes.CDLL(None).syscall(_USERFAULTFD_CALL, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0


def _may_open(device: Path, guests: GuestUser) -> bool:
    if not guests.name:
        return os.access(device, os.R_OK | os.W_OK)
    try:
        facts = device.stat()
    except OSError:
        return False
    if facts.st_uid == guests.uid:
        return facts.st_mode & 0o600 == 0o600  # noqa: PLR2004 - as chmod writes it
    if facts.st_gid in {guests.gid, *guests.groups}:
        return facts.st_mode & 0o060 == 0o060  # noqa: PLR2004
    return facts.st_mode & 0o006 == 0o006  # noqa: PLR2004


def zero_copy_obstacle(process_id: int, memory_bytes: int) -> str:
    """Say why a running QEMU cannot send its guest's memory without a copy; pages in flight count as locked memory."""
    if not _kernel_has_zero_copy():
        return "the kernel has no MSG_ZEROCOPY for TCP"
    if has_capability(Path(f"/proc/{process_id}/status"), _IPC_LOCK_BIT):
        return ""
    limit_bytes = locked_memory_limit(Path(f"/proc/{process_id}/limits"))
    if limit_bytes is None or limit_bytes >= memory_bytes:
        return ""
    return (
        f"QEMU may lock {limit_bytes // _KIB} KiB and zero-copy can need all of the guest's {memory_bytes // _KIB} KiB: "
        "raise the limit (LimitMEMLOCK) that the guest is started with"
    )


def _kernel_has_zero_copy() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
        return True
    return False


def has_capability(status: Path, bit: int) -> bool:
    """Say whether a process has an effective capability, by its /proc/PID/status."""
    for line in _lines(status):
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def locked_memory_limit(limits: Path) -> int | None:
    """Read how many bytes a process may lock; None for no limit."""
    for line in _lines(limits):
        if line.startswith(_LIMIT_NAME):
            soft = line.removeprefix(_LIMIT_NAME).split()[0]
            return None if soft == "unlimited" else int(soft)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:  # the process has ended
        return []
