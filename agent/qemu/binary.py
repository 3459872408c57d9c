"""What a QEMU binary offers, learnt by starting it without a machine.

CPU models depend on the accelerator, so facts do too. They are kept for as long as the file is the same.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

from agent.qemu.abilities import query_abilities
from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuGone
from agent.qemu.identity import NoSuchProcess, ProcessIdentity
from agent.qemu.monitor import Monitor
from agent.qemu.mortal import dying_with_us
from common.errors import NotFound, WrongState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from agent.qemu.machine import CpuModel, MachineType, QemuVersion

Accelerator = Literal["kvm", "tcg"]

PROBE_TIMEOUT_S: Final = 20.0
_QUIT_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which file a path meant when it was looked at; another build of QEMU has another key."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileKey:
        """Look at the file, following links; works for /proc/PID/exe of a replaced binary too.

        Raises:
            NotFound: there is no such file.
        """
        try:
            facts = path.stat()
        except OSError as error:
            text = f"QEMU binary {path}: {error.strerror}"
            raise NotFound(text, reason="NO_SUCH_BINARY", path=path) from error
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)

    def __str__(self) -> str:
        """Render the key as a word that fits a file name."""
        return f"{self.device:x}-{self.inode:x}-{self.size_bytes:x}-{self.modified_ns:x}"


@dataclass(frozen=True, slots=True)
class BinaryFacts:
    """What one QEMU binary offers under one accelerator.

    Attributes:
        machines: by versioned name.
        cpu_models: by name.
        cpu_properties: the names that any model may have after it, features included.
        capabilities: the names of the migration capabilities it knows.
        abilities: what else of a migration it knows, too; see `agent.qemu.abilities`.
    """

    path: Path
    accelerator: Accelerator
    version: QemuVersion
    machines: Mapping[str, MachineType]
    cpu_models: Mapping[str, CpuModel]
    cpu_properties: frozenset[str]
    capabilities: frozenset[str]
    abilities: frozenset[str]

    def find_machine(self, name: str) -> MachineType | None:
        """Find a machine type by its name or its alias, such as `q35`."""
        if name in self.machines:
            return self.machines[name]
        return next((machine for machine in self.machines.values() if machine.alias == name), None)


class Binaries:
    """The facts of the binaries looked at so far."""

    def __init__(self) -> None:
        self._facts: dict[tuple[Path, FileKey, Accelerator], BinaryFacts] = {}
        self._lock = asyncio.Lock()

    async def get(self, path: Path, accelerator: Accelerator = "tcg") -> BinaryFacts:
        """Return what the binary offers; the first time it is started, for some 0.1 s.

        Raises:
            NotFound: there is no such file.
            WrongState: it does not start.
        """
        key = (path, FileKey.of(path), accelerator)
        async with self._lock:  # so that two askers start it once
            if key not in self._facts:
                self._facts[key] = await probe_binary(path, accelerator)
            return self._facts[key]


async def probe_binary(path: Path, accelerator: Accelerator = "tcg") -> BinaryFacts:
    """Start the binary without a machine and ask it what it offers.

    Raises:
        WrongState: it does not start, or not in time.
    """
    argv = [str(path), "-machine", f"none,accel={accelerator}"]
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S), short_lived(argv) as qemu:
            machines = await qemu.query_machines()
            models = await qemu.query_cpu_definitions()
            return BinaryFacts(
                path=path,
                accelerator=accelerator,
                version=await qemu.query_version(),
                machines={machine.name: machine for machine in machines},
                cpu_models={model.name: model for model in models},
                cpu_properties=frozenset(await qemu.query_cpu_properties()),
                capabilities=frozenset(await qemu.query_capabilities()),
                abilities=await query_abilities(qemu, with_compressions=True, with_tls=True),
            )
    except TimeoutError as error:
        raise WrongState(f"QEMU binary {path}: no answer in {PROBE_TIMEOUT_S} s", path=path) from error


@asynccontextmanager
async def short_lived(argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> AsyncIterator[Qemu]:
    """Run a QEMU that ends with the context; adds its monitor and leaves out everything by default.

    Args:
        argv: the binary and its options.
        pass_fds: descriptors of ours that the options name.

    Raises:
        WrongState: it does not start; the text has the last line of its stderr.
    """
    with _workplace() as place:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us(),
            *argv,
            *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-chardev", f"socket,id=qmp0,fd={place.listener.fileno()},server=on,wait=off"),
            *("-mon", "chardev=qmp0,mode=control"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=place.log_file,
            pass_fds=[place.listener.fileno(), *pass_fds],
            start_new_session=True,
        )
        place.listener.close()  # else connecting to a dead QEMU would hang
        try:
            async with Monitor(place.qmp, ProcessIdentity.of(process.pid), vm="none", connect_timeout_s=PROBE_TIMEOUT_S) as monitor:
                qemu = Qemu(monitor)
                yield qemu
                await qemu.quit()
                async with asyncio.timeout(_QUIT_TIMEOUT_S):
                    await process.wait()
        except (QemuGone, NoSuchProcess) as error:
            text = f"{argv[0]} does not start: {place.last_line()}"
            raise WrongState(text, reason="QEMU_START_FAILED") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@dataclass(frozen=True, slots=True)
class _Workplace:
    """What a short-lived QEMU needs on disk."""

    listener: socket.socket
    qmp: Path
    log: Path
    log_file: BinaryIO

    def last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


@contextmanager
def _workplace() -> Iterator[_Workplace]:
    # Not in TMPDIR, which may be longer than the path of a socket can be.
    with tempfile.TemporaryDirectory(prefix="ferry-qemu-", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        qmp = Path(directory, "qmp")
        log = Path(directory, "log")
        listener.bind(str(qmp))
        with log.open("wb") as log_file:
            yield _Workplace(listener, qmp, log, log_file)
