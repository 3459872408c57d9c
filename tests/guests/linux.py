"""The Linux guest: a stock kernel and one static program that changes and checks its memory.

`linux_init.c` says what it does and prints. This module compiles it and packs the initrd. Needs
`gcc` with a static C library.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.guests.cache import CACHE, run_tool, write_whole

SOURCE = Path(__file__).with_name("linux_init.c")
KERNEL = Path(__file__).parents[2] / ".cache" / "kernel" / "vmlinuz"
MEMORY_KIB = 512 * 1024 + 8
"""512 MiB, and 8 KiB so that QEMU before 9.0 loses no page under TCG."""

GUEST_AGENT = KERNEL.with_name("qemu-ga")

_MODULES = ("button.ko", "evdev.ko")
_VIRTIO_MODULES = (
    "virtio.ko",
    "virtio_ring.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_console.ko",
    "failover.ko",
    "net_failover.ko",
    "virtio_net.ko",
)
_LIBRARY = re.compile(r"^\t(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_DIRECTORY = 0o040755
_PROGRAM = 0o100755
_LINK = 0o120777
_CHARACTER_DEVICE = 0o020600
_CONSOLE_DEVICE = (5, 1)


def build(modules: Path | None = KERNEL.parent, *, with_agent: bool = False) -> Path:
    """Make the initrd.

    Args:
        modules: a directory with the kernel's `button.ko` and `evdev.ko`. With both, the guest
            powers off when its ACPI power button is pressed; without, it does not hear it.
        with_agent: put `qemu-ga` in, with this machine's libraries, and the modules for virtio lines and cards.

    Returns:
        The initrd in the cache; the same path again while nothing changed.
    """
    archive = _entry("dev", _DIRECTORY) + _entry("proc", _DIRECTORY)
    archive += _entry("dev/console", _CHARACTER_DEVICE, device=_CONSOLE_DEVICE)
    archive += _entry("init", _PROGRAM, _compile())
    for name in _MODULES:
        if modules is not None and (modules / name).exists():
            archive += _entry(name, _PROGRAM, (modules / name).read_bytes())
    if with_agent:
        archive += b"".join(_agent_entries())
    archive += _entry("TRAILER!!!", 0)
    path = CACHE / f"linux-{hashlib.sha256(archive).hexdigest()[:16]}.cpio"
    if not path.exists():
        write_whole(path, archive)
    return path


def _agent_entries() -> Iterator[bytes]:
    for name in _VIRTIO_MODULES:
        yield _entry(name, _PROGRAM, (KERNEL.parent / name).read_bytes())
    yield _entry("qemu-ga", _PROGRAM, GUEST_AGENT.read_bytes())
    yield _entry("sbin", _DIRECTORY)
    yield _entry("sbin/hwclock", _LINK, b"/init")  # without one qemu-ga sets no clock at all
    listed = subprocess.run(("ldd", GUEST_AGENT), check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    libraries = [Path(path) for path in _LIBRARY.findall(listed)]
    directories = {parent for path in libraries for parent in path.parents if parent != Path("/")}
    for directory in sorted(directories, key=lambda path: len(path.parts)):
        yield _entry(str(directory)[1:], _DIRECTORY)
    for path in libraries:
        yield _entry(str(path)[1:], _PROGRAM, path.read_bytes())


def command_line(
    dirty_mib: int = 64,
    rate_mib_s: float = 4.0,
    period_ms: float = 100.0,
    *,
    verify_mib_s: float | None = None,
    seed: int = 1,
) -> str:
    """Return the kernel command line for a guest that is `rate_mib_s` busy.

    Args:
        dirty_mib: MiB of memory that carry the pattern.
        rate_mib_s: MiB rewritten each second, in page order.
        period_ms: time between two lines.
        verify_mib_s: MiB checked each second without writing; all of `dirty_mib` when None.
        seed: makes the pattern another one.
    """
    verify = dirty_mib if verify_mib_s is None else verify_mib_s
    return (
        "console=ttyS0 quiet panic=-1 mitigations=off"
        f" ferry.dirty_mib={dirty_mib} ferry.rate_mib_s={rate_mib_s}"
        f" ferry.verify_mib_s={verify} ferry.period_ms={period_ms} ferry.seed={seed}"
    )


def _compile() -> bytes:
    source = SOURCE.read_bytes()
    binary = CACHE / f"linux-init-{hashlib.sha256(source).hexdigest()[:16]}"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as scratch:
            compiled = Path(scratch, "init")
            run_tool("gcc", "-static", "-O2", "-s", "-Wall", "-Wextra", "-o", compiled, SOURCE)
            write_whole(binary, compiled.read_bytes())
    return binary.read_bytes()


def _entry(name: str, mode: int, content: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> bytes:
    """Return one file of a `newc` cpio archive.

    Source: kernel Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    inode = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)
