"""Images that a destination makes for disks that are copied to it, and the removal of exactly those.

An image is made under a name that nobody else has, noted with its inode, and only then put into its place, where nothing may be.
So whatever happens in between, what is removed later is known to be ours.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.migration.order import DiskFacts

TOOL: Final = "qemu-img"
CREATE_TIMEOUT_S: Final = 60.0
_PREFIX: Final = ".ferry-image-"


@dataclass(frozen=True, slots=True)
class MadeImage:
    """A file of an image that was made, or is about to be.

    Attributes:
        part: where it is made.
        inode, device: of the file; 0 before it is known.
    """

    path: str
    part: str
    inode: int = 0
    device: int = 0


def plan_image(path: str) -> MadeImage:
    """Choose where the file of an image is made."""
    place = Path(path)
    return MadeImage(path, str(place.with_name(f"{_PREFIX}{secrets.token_hex(6)}")))


async def create(facts: DiskFacts, image: MadeImage, *, with_backing: bool) -> None:
    """Make an image like the source's, empty, where it is made; an external data file of it is there already.

    Raises:
        WrongState: qemu-img is missing, or refuses.
    """
    options = list(facts.create_options)
    if facts.data_path:
        options.append(f"data_file={_escape(facts.data_path)}")
    words = [TOOL, "create", "-q", "-f", facts.format]
    if with_backing and facts.backing_path:
        words += ["-b", facts.backing_path, "-F", facts.backing_format]
    for option in options:
        words += ["-o", option]
    await run_tool([*words, "--", image.part, str(facts.virtual_size_bytes)], f"disk {facts.disk}")


def create_empty(image: MadeImage, what: str) -> None:
    """Make an empty file where it is made.

    Raises:
        WrongState: its directory does not take it.
    """
    try:
        Path(image.part).touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise WrongState(f"{what}: {image.path} cannot be made: {error.strerror}", reason="FILE_FAILED", path=image.path) from error


def identified(image: MadeImage) -> MadeImage:
    """Return the image with what tells its file from any other."""
    found = Path(image.part).stat()
    return MadeImage(image.path, image.part, found.st_ino, found.st_dev)


def put_in_place(image: MadeImage) -> None:
    """Put a file that was made and noted into its place.

    Raises:
        WrongState: something is there by now.
    """
    try:
        os.link(image.part, image.path)
    except FileExistsError as error:
        raise WrongState(f"{image.path} has appeared meanwhile", reason="FILE_EXISTS", path=image.path) from error
    except OSError as error:
        raise WrongState(f"{image.path} cannot be made: {error.strerror}", reason="FILE_FAILED", path=image.path) from error
    Path(image.part).unlink()


def remove_images(images: Iterable[MadeImage]) -> None:
    """Ensure that what was made is gone, and nothing else."""
    for image in images:
        with suppress(OSError):
            Path(image.part).unlink(missing_ok=True)
        with suppress(OSError):
            found = Path(image.path).lstat()
            if image.inode and (found.st_ino, found.st_dev) == (image.inode, image.device):
                Path(image.path).unlink()


async def run_tool(words: list[str], what: str) -> bytes:
    """Run qemu-img; return what it says on stdout.

    Raises:
        WrongState: it is missing, refuses, or does not end; the text has its own words.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise WrongState(f"{what}: this host has no {TOOL}; install qemu-utils", reason="QEMU_IMG_MISSING") from error
    try:
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            said, complaint = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        if isinstance(error, TimeoutError):
            raise WrongState(f"{what}: {TOOL} did not end in {CREATE_TIMEOUT_S:g} s", reason="QEMU_IMG_FAILED") from error
        raise
    if process.returncode:
        words_of_tool = complaint.decode(errors="replace").strip().splitlines()
        text = words_of_tool[-1].removeprefix(f"{TOOL}: ") if words_of_tool else f"exit status {process.returncode}"
        raise WrongState(f"{what}: {TOOL} {words[1]}: {text}", reason="QEMU_IMG_FAILED")
    return said


def _escape(value: str) -> str:
    return value.replace(",", ",,")
