"""QEMUs that a person starts, without Ferry: the tick guest under whatever command line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from qemu.qmp import QMPClient

from common.rpc.status import calls_to
from ferry.agent.v1 import adoption_pb2 as pb
from tests.e2e.guest import Guest
from tests.e2e.lab import Lab
from tests.e2e.waiting import until
from tests.guests import tick
from tests.guests.console import Console

MEGABYTES = 4
ODD_NAME = "a,b=c é'\".img"
MEMORY = f"{tick.memory_kib(MEGABYTES)}k"


@dataclass(frozen=True, slots=True)
class ByHand:
    """A QEMU started by hand in `directory`: its image is `tick.img`, also named ODD_NAME, its console `serial.log`."""

    lab: Lab
    directory: Path
    socket_name: str = "q.sock"

    @property
    def socket(self) -> Path:
        """Its QMP socket."""
        return self.directory / self.socket_name

    async def ask(self, *commands: tuple[str, dict[str, object]]) -> list[object]:
        """Give QMP commands, as the person who has the socket."""
        client = QMPClient("person")
        async with asyncio.timeout(10):
            await client.connect(str(self.socket))
            try:
                return [await client.execute(command, arguments) for command, arguments in commands]
            finally:
                with suppress(Exception):
                    await client.disconnect()

    async def adopt(self, host: str, *, name: str = "web", dry_run: bool = False) -> pb.AdoptVmResponse:
        """Let a host's agent take it over."""
        request = pb.AdoptVmRequest(request_id=str(uuid4()), qmp_path=str(self.socket), name=name, dry_run=dry_run)
        with calls_to(f"the agent of {host}"):
            return await self.lab.agents[host].AdoptVm(request)

    async def guest(self, uuid: str, name: str = "web") -> Guest:
        """Follow its guest."""
        return await self.lab.listen(Guest(name, UUID(uuid), Console(self.directory / "serial.log"), self.directory))


@asynccontextmanager
async def by_hand(lab: Lab, binary: str, *arguments: str, argv0: str = "") -> AsyncIterator[ByHand]:
    """Start a QEMU in the lab's directory, which `{dir}` stands for, and wait until it listens; kill what is left at the end."""
    image = tick.build(MEGABYTES, 2.0, verify_mib_s=16.0, directory=lab.directory)
    image.rename(lab.directory / "tick.img")
    (lab.directory / ODD_NAME).hardlink_to(lab.directory / "tick.img")
    async with another_by_hand(ByHand(lab, lab.directory), binary, *arguments, argv0=argv0) as hand:
        yield hand


@asynccontextmanager
async def another_by_hand(hand: ByHand, binary: str, *arguments: str, argv0: str = "") -> AsyncIterator[ByHand]:
    """Start one more QEMU in the same directory."""
    words = [word.replace("{dir}", str(hand.directory)) for word in arguments]
    process = _start(hand, [argv0 or binary, *words], binary)
    try:
        await until(lambda: _listens(hand.socket) or process.poll() not in (None, 0), "a QEMU that listens")
        assert process.poll() in (None, 0), (hand.directory / "stderr.log").read_text()
        yield hand
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((hand.directory / "pid").read_text()), signal.SIGKILL)


def _start(hand: ByHand, argv: Sequence[str], binary: str) -> subprocess.Popen[bytes]:
    with (hand.directory / "stderr.log").open("wb") as log:
        return subprocess.Popen(
            argv,
            executable=binary,
            cwd=hand.directory,
            env={**os.environ, "PWD": str(hand.directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _listens(path: Path) -> bool:
    """Say whether somebody listens; a socket file may be there before."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False
