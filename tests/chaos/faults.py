"""Faults of a fleet, done at once by a thread and mended later: processes, paths, storage, the journal."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab.fleet import COORDINATOR, HOSTS, Fleet
from deploy.lab.network import TwoHosts
from deploy.lab.processes import processes_of
from tests.chaos.case import Case, Fault, Victim
from tests.e2e.stepped_clock import SteppedClock

STATE_MIB = 48
_FILLER = "filler"
# Set back by less than certificates are backdated by: one that is not valid yet is another matter.
_STEPS_S = {Fault.AHEAD: 600.0, Fault.BACK: -200.0}


@dataclass
class Place:
    """A fleet in a network of its own, whose servers keep their state on small file systems."""

    fleet: Fleet
    network: TwoHosts
    clock: SteppedClock

    def qemus(self, host: str) -> list[int]:
        """Find the QEMUs of a host."""
        servers = {process.pid for process in self.fleet.processes.values() if process.is_running}
        return [pid for pid in processes_of(self.fleet.directory / host) if pid not in servers and is_alive(pid)]

    def all_qemus(self) -> list[int]:
        """Find the QEMUs of both hosts."""
        return [pid for host in HOSTS for pid in self.qemus(host)]

    def host_of(self, pid: int) -> str:
        """Say on which host a QEMU is; empty when it has ended."""
        return next((host for host in HOSTS if pid in self.qemus(host)), "")


@contextmanager
def small_state(directory: Path) -> Iterator[None]:
    """Mount a small file system for the state of each server of a fleet; needs root."""
    places = [directory / name for name in (*HOSTS, COORDINATOR)]
    mounted: list[Path] = []
    try:
        for place in places:
            place.mkdir(mode=0o700)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_MIB}m,mode=0700", "tmpfs", place], check=True)
            mounted.append(place)
        yield
    finally:
        for place in mounted:
            subprocess.run(["umount", "--lazy", place], check=False)


@dataclass
class Injector:
    """Does what a case says, and mends it.

    Attributes:
        qemus: the QEMU of each side that a case may name, looked up when it happens.
        client: the process of `ferry migrate`, where it started the move.
        done_at_s: when it was done, on `time.monotonic()`.
        ended: the QEMUs that it ended.
    """

    case: Case
    place: Place
    journal: Path
    client: subprocess.Popen[bytes] | None = None
    done_at_s: float | None = None
    mended_at_s: float | None = None
    ended: list[int] = field(default_factory=list)
    _mends: list[Callable[[], None]] = field(default_factory=list)

    def act(self) -> None:
        """Do it, to all victims as fast as it goes."""
        self.done_at_s = time.monotonic()
        for victim in self.case.victims:
            self._hit(victim)

    def mend(self) -> None:
        """Undo it; a QEMU that was ended stays so."""
        while self._mends:
            self._mends.pop()()
        self.mended_at_s = time.monotonic()

    def _hit(self, victim: Victim) -> None:
        case, fleet = self.case, self.place.fleet
        if victim.is_network or victim is Victim.CLOCKS:
            self._disturb(victim)
            return
        match victim, case.fault:
            case (Victim.SOURCE_QEMU | Victim.DESTINATION_QEMU, fault):
                for pid in self.place.qemus(case.source if victim is Victim.SOURCE_QEMU else case.destination):
                    self._signal(pid, fault)
            case (Victim.CLIENT, fault):
                if self.client is not None and self.client.poll() is None:
                    self.client.send_signal(signal.SIGKILL if fault is Fault.KILL else signal.SIGTERM)
            case (_, Fault.FULL):
                filler = fleet.directory / self._home(victim) / _FILLER
                fill(filler)
                self._mends.append(lambda: filler.unlink(missing_ok=True))
            case (_, Fault.STOP):
                self._signal(fleet.pid(self._server(victim)), Fault.STOP)
            case (_, fault):
                name = self._server(victim)
                fleet.processes[name].send_signal(signal.SIGTERM if fault is Fault.TERMINATE else signal.SIGKILL)
                self._mends.append(lambda: fleet.restart(name))
                if fault is Fault.OLD_JOURNAL:
                    fleet.kill(name)
                    put_back(self.journal, fleet.directory / COORDINATOR)

    def _disturb(self, victim: Victim) -> None:
        network, clock = self.place.network, self.place.clock
        if victim is Victim.CLOCKS:
            clock.set_ahead(_STEPS_S[self.case.fault])
            self._mends.append(lambda: clock.set_ahead(0.0))
        elif victim is Victim.NETWORK:
            network.part()
            self._mends.append(network.rejoin)
        else:
            host = self.case.source if victim is Victim.SOURCE_HOST else self.case.destination
            network.silence(host)
            self._mends.append(lambda: network.heal(host))

    def _signal(self, pid: int, fault: Fault) -> None:
        if fault is Fault.STOP:
            os.kill(pid, signal.SIGSTOP)
            self._mends.append(lambda: _continue(pid))
        else:
            os.kill(pid, signal.SIGKILL)
            self.ended.append(pid)

    def _home(self, victim: Victim) -> str:
        match victim:
            case Victim.SOURCE_AGENT:
                return self.case.source
            case Victim.DESTINATION_AGENT:
                return self.case.destination
            case _:
                return COORDINATOR

    def _server(self, victim: Victim) -> str:
        source, destination = self.case.source[-1], self.case.destination[-1]
        match victim:
            case Victim.SOURCE_AGENT:
                return f"agent-{source}"
            case Victim.DESTINATION_AGENT:
                return f"agent-{destination}"
            case Victim.SOURCE_TUNNEL:
                return f"tunnel-{source}"
            case Victim.DESTINATION_TUNNEL:
                return f"tunnel-{destination}"
            case _:
                return COORDINATOR


def is_alive(pid: int) -> bool:
    """Say whether a process runs: a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def fill(path: Path) -> None:
    """Write until there is no room."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def copy_journal(state: Path, copy: Path) -> None:
    """Copy the journal of a coordinator that may be running, as a backup would."""
    with closing(sqlite3.connect(state / "journal.db")) as journal, closing(sqlite3.connect(copy)) as target:
        journal.backup(target)


def put_back(copy: Path, state: Path) -> None:
    """Replace the journal of a coordinator that does not run."""
    for path in state.glob("journal.db*"):
        path.unlink()
    (state / "journal.db").write_bytes(copy.read_bytes())


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
