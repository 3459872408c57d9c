"""Bringing a guest back from a file, every byte of which is checked before QEMU is started."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from agent.saving.save_file import Header, read_header, verify
from agent.saving.transfer import MAPPED_RAM, read_guest, run_on
from agent.vm.definition import Definition
from agent.vm.image_activation import activate_images
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.saving.work import Work
    from agent.vm.lifecycle import Vms


@dataclass(frozen=True, slots=True)
class Saved:
    """A file as its header describes it."""

    path: Path
    header: Header
    definition: Definition

    @property
    def is_mapped_ram(self) -> bool:
        """Whether only a QEMU with mapped-ram can read it."""
        return self.header.guest.format == MAPPED_RAM


def look(path: Path) -> Saved:
    """Read the header of a file.

    Raises:
        InvalidRequest: it is not a file of ours, damaged, or its definition is none that this agent takes.
        WrongState: it cannot be read.
    """
    with _open(path) as file:
        header = read_header(file, path)
    return Saved(path, header, Definition.from_record(header.guest.definition))


async def restore(vms: Vms, work: Work, saved: Saved, *, on_loaded: Callable[[], None], guest_runs: bool) -> None:
    """Check the file, start QEMU and load the guest; then it runs, or stands still.

    `on_loaded` is called once the guest is complete here, before it runs.

    Raises:
        FerryError, OSError: it failed or was cancelled; the caller ends the QEMU. The file is as it was.
    """
    work.at_step("checking")
    with _open(saved.path) as file:
        if await asyncio.to_thread(verify, file, saved.path, work.watcher()) != saved.header:
            raise InvalidRequest(f"{saved.path} was changed while it was read", reason="SAVE_FILE_CHANGED", path=saved.path)
        await vms.start_restoring(work.lock, saved.definition)
        work.at_step("loading")
        work.progress(0, saved.header.contents_bytes)
        qemu = vms.qemu(vms.get(str(saved.definition.uuid)))
        await read_guest(qemu, work, file, is_mapped_ram=saved.is_mapped_ram)
    await activate_images(qemu, work.job.vm_name)  # QEMU itself would load it all the same and refuse to let it run
    on_loaded()
    vms.keep_here(work.lock)
    if guest_runs:
        await run_on(qemu)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path.exists() and not path.is_file():
        raise InvalidRequest(f"{path} is not a file", reason="SAVE_FILE_FOREIGN", path=path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise WrongState(f"{path}: {error.strerror}", reason="FILE_UNREADABLE", path=path) from error
    with file:
        yield file
