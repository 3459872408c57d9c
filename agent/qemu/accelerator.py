"""Which accelerator really works here, found by running a guest under it.

A /dev/kvm that opens proves nothing: there are hosts where it does and every guest hangs or aborts. What was found is
kept on disk for as long as it can hold: for this binary, CPU model, kernel and boot.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent.qemu.binary import Accelerator, FileKey
from agent.qemu.mortal import dying_with_us
from agent.qemu.probe_rom import EXIT_CODE, EXIT_PORT, build_rom
from common.records import BrokenRecord, find_record, write_record
from common.storage import StorageFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE_TIMEOUT_S: Final = 3.0
KVM: Final = Path("/dev/kvm")
_CPU_LIMIT_S: Final = 10
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_RECORD_KIND: Final = "accelerator-probe"
_RECORD_VERSION: Final = 1

_log = structlog.get_logger()


async def probe(binary: Path, cpu_model: str, directory: Path, *, kvm: Path = KVM, prefix: tuple[str, ...] = ()) -> Accelerator:
    """Return `kvm` when a guest with this CPU model runs to its end under it, else `tcg`.

    Takes up to 3.1 s the first time, then well under a millisecond.

    Args:
        binary: the QEMU to use.
        cpu_model: as in QEMU's `-cpu`.
        directory: where findings are kept; must exist.
        kvm: the device without which there is nothing to try.
        prefix: what goes before the command line, as it does for guests.

    Raises:
        NotFound: there is no such binary.
    """
    if not os.access(kvm, os.R_OK | os.W_OK):
        return "tcg"
    validity = f"{_validity(binary, cpu_model)} {' '.join(prefix)}".rstrip()
    path = directory / f"accelerator-{FileKey.of(binary)}.json"
    known = _find_known(path)
    if validity not in known:
        started_s = time.monotonic()
        works = await runs_under("kvm", binary, cpu_model, prefix=prefix)
        known = {word: value for word, value in known.items() if word.startswith(_host())} | {validity: works}
        with suppress(StorageFailed):  # then it is tried again next time
            write_record(path, kind=_RECORD_KIND, version=_RECORD_VERSION, body=known)
        _log.info("kvm probed", binary=str(binary), cpu=cpu_model, works=works, took_s=time.monotonic() - started_s)
    return "kvm" if known[validity] else "tcg"


async def runs_under(
    accelerator: Accelerator, binary: Path, cpu_model: str, *, timeout_s: float = PROBE_TIMEOUT_S, prefix: tuple[str, ...] = ()
) -> bool:
    """Say whether the probe guest runs to its end in time."""
    with _rom_file() as rom:
        process = await asyncio.create_subprocess_exec(
            *prefix,  # first: a change of user forgets with whom to die
            *dying_with_us(),
            str(binary),
            *("-accel", accelerator),
            *("-cpu", cpu_model),
            *("-machine", "pc"),
            *("-m", "64M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-bios", f"/proc/self/fd/{rom}"),
            *("-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(rom,),
        )
        # A guest that spins shall not outlive an agent that is killed here; one of another user dies with us in any case.
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (_CPU_LIMIT_S, _CPU_LIMIT_S))
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait() == EXIT_CODE
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@contextmanager
def _rom_file() -> Iterator[int]:
    """Hold a file that nothing is left of, even when we are killed."""
    with os.fdopen(os.memfd_create("probe-rom"), "wb") as file:
        file.write(build_rom())
        file.flush()
        yield file.fileno()


def _host() -> str:
    boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    return f"{platform.release()} {boot_id} "


def _validity(binary: Path, cpu_model: str) -> str:
    return f"{_host()}{FileKey.of(binary)} {cpu_model}"


def _find_known(path: Path) -> dict[str, bool]:
    try:
        body = find_record(path, kind=_RECORD_KIND, version=_RECORD_VERSION) or {}
    except BrokenRecord as error:
        _log.warning("accelerator record ignored", error=error.text)
        return {}
    return {word: value for word, value in body.items() if isinstance(value, bool)}
