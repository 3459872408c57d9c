"""Fetches a Linux kernel for the test guest, its modules for a power button, virtio lines and cards, and a guest agent.

The packages are unpacked and never installed. Makes, in .cache/kernel/: vmlinuz, the modules and qemu-ga.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from deploy.setup.errors import SetupFailed
from deploy.setup.private_apt import PrivateApt

CACHE = Path(__file__).parents[2] / ".cache"
MODULES = (
    "button.ko",
    "evdev.ko",
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


def fetch_kernel(apt: PrivateApt, directory: Path) -> str:
    """Make the files and return the version of the kernel.

    Raises:
        SetupFailed: the kernel is not to be had.
    """
    package = apt.dependency("linux-image-cloud-amd64", r"linux-image-\d\S*-cloud-amd64(?:-unsigned)?")
    scratch = directory / "unpacked"
    shutil.rmtree(scratch, ignore_errors=True)
    apt.unpack([package, "qemu-guest-agent"], scratch)
    _move(_only(scratch, "vmlinuz-*"), directory / "vmlinuz")
    for name in MODULES:
        _move(_only(scratch, name), directory / name)
    _move(_only(scratch, "sbin/qemu-ga"), directory / "qemu-ga")
    shutil.rmtree(scratch)
    return package.removeprefix("linux-image-")


def _only(root: Path, pattern: str) -> Path:
    found = list(root.rglob(pattern))
    if len(found) != 1:
        raise SetupFailed(f"kernel package: {len(found)} files named {pattern}, wanted 1")
    return found[0]


def _move(source: Path, target: Path) -> None:
    source.replace(target)
    target.chmod(0o644)


def main() -> None:
    """Make the kernel of this tree."""
    directory = CACHE / "kernel"
    apt = PrivateApt(CACHE / "apt")
    try:
        apt.update()
        version = fetch_kernel(apt, directory)
    except SetupFailed as error:
        sys.exit(f"setup: no kernel for the test guest: {error}")
    (directory / ".ready").touch()
    print(f"setup: kernel {version} for the test guest")


if __name__ == "__main__":
    main()
