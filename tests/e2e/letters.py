"""A tick guest that does by itself what a letter tells it, on either host: power off, reboot, panic, write to its disk."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab

PC = "pc-i440fx-7.2"
POWER_OFF, RESET, PANIC, WRITE = "o", "r", "p", "w"
_LINE = '<serial type="unix"><target port="1"/></serial>'
_PANIC = '<panic model="isa"/>'
_SMALL_MIB = 2
_DISK_BYTES = 2 << 20
_PAGE_BYTES = 4096


def obedient(plan: Plan, **changes: object) -> Plan:
    """Give a guest the line on which it takes letters, and a device to tell of a panic."""
    return replace(plan, inside=_LINE + _PANIC, **changes)  # type: ignore[arg-type]  # replace() checks the names


async def tell(lab: Lab, host: str, letter: str, name: str = "web") -> None:
    """Send a guest a letter, on the host where it runs."""
    path = (await lab.vm(host, name)).files["serial1"]
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(letter.encode())


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a file system that has no room for what the guest writes; needs root."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_MIB}m", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
        directory.rmdir()


def lengthen(image: Path) -> None:
    """Let the image end in a hole, for the sector that the guest writes."""
    with image.open("r+b") as file:
        file.truncate(_DISK_BYTES)


@contextmanager
def on_small_disk(lab: Lab, plan: Plan) -> Iterator[Path]:
    """Let the lab put the guest's image where there is room for it, but not for the sector that it writes."""
    with small_disk(lab.directory / "small") as directory:
        (directory / "serial.log").symlink_to(lab.directory / "serial.log")
        lab.directory = directory
        domain(plan, directory)
        lengthen(next(directory.glob("*.img")))
        yield directory


def fill(directory: Path) -> None:
    """Take all the room that there is."""
    with (directory / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(_PAGE_BYTES))


def empty(directory: Path) -> None:
    """Make room again."""
    (directory / "filler").unlink()
