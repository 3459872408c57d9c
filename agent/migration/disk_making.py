"""Images that a destination makes with qemu-img for disks that are copied to it, since its QEMU starts with them.

They are put into their place, and removed again, by `agent.blockjobs.images`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.blockjobs.images import MadeFile
from common.errors import WrongState
from common.storage import NO_SPACE, find_failure

if TYPE_CHECKING:
    from agent.migration.order import DiskFacts

TOOL: Final = "qemu-img"
CREATE_TIMEOUT_S: Final = 60.0
_PREFIX: Final = ".ferry-image-"


def plan_image(path: str) -> MadeFile:
    """Choose where the file of an image is made."""
    place = Path(path)
    return MadeFile(path, str(place.with_name(f"{_PREFIX}{secrets.token_hex(6)}")))


async def create(facts: DiskFacts, path: str, *, with_backing: bool) -> None:
    """Write an image like the source's, empty, into a file that is there, as an external data file of it is already.

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
    await run_tool([*words, "--", path, str(facts.virtual_size_bytes)], f"disk {facts.disk}")


def create_empty(image: MadeFile, what: str) -> MadeFile:
    """Make the file, empty and nobody else's to read, where it is made; return it with what tells it from any other.

    Raises:
        WrongState: its directory does not take it.
    """
    try:
        Path(image.part_path).touch(mode=0o600, exist_ok=False)
        found = Path(image.part_path).stat()
    except OSError as error:
        failure = find_failure(error)
        reason = "FILE_FAILED" if failure is None else failure.reason
        raise WrongState(f"{what}: {image.path} cannot be made: {error.strerror}", reason=reason, path=image.path) from error
    return MadeFile(image.path, image.part_path, found.st_dev, found.st_ino)


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
        reason = NO_SPACE if os.strerror(errno.ENOSPC) in text else "QEMU_IMG_FAILED"
        raise WrongState(f"{what}: {TOOL} {words[1]}: {text}", reason=reason)
    return said


def _escape(value: str) -> str:
    return value.replace(",", ",,")
