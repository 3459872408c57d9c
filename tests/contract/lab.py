"""The two kinds of QEMU that must behave alike, behind one interface: real ones and fakes."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.qemu.commands import Qemu
from agent.qemu.identity import ProcessIdentity
from agent.qemu.machine import Endpoint
from agent.qemu.monitor import Monitor
from tests.binaries import BINARIES
from tests.contract.real import real_qemu
from tests.fakes.network import black_hole
from tests.fakes.qemu import FakeQemu
from tests.fakes.qemu_network import FakeNetwork
from tests.fakes.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

PSK = "m:" + "5a" * 32 + "\n"


class Wire(Protocol):
    """A relay between a source and a destination."""

    def hold_answers(self) -> None: ...
    def release(self) -> None: ...
    def cut(self) -> None: ...


class Lab(Protocol):
    """Makes QEMUs of one version, with a guest that runs unless it waits for a source."""

    version: str

    def qemu(self, *, is_incoming: bool = False) -> AbstractAsyncContextManager[Qemu]: ...
    def wire(self, source_uri: str, destination_uri: str) -> AbstractAsyncContextManager[Wire]: ...
    def unix_uri(self) -> str: ...
    def black_hole(self) -> AbstractAsyncContextManager[str]: ...
    def blocked(self, qemu: Qemu) -> AbstractAsyncContextManager[None]: ...
    def kill(self, qemu: Qemu) -> None: ...


class FakeLab:
    """Fakes in this process."""

    def __init__(self, version: str, directory: Path) -> None:
        self.version = version
        self._directory = directory
        self._numbers = count()
        self._network = FakeNetwork()
        self._fakes: dict[Path, FakeQemu] = {}

    @asynccontextmanager
    async def qemu(self, *, is_incoming: bool = False) -> AsyncIterator[Qemu]:
        path = self._directory / f"qmp{next(self._numbers)}"
        async with FakeQemu(path, version=self.version, network=self._network, is_incoming=is_incoming) as fake:
            self._fakes[path] = fake
            async with Monitor(path, fake.process, vm="fake") as monitor:
                yield Qemu(monitor)

    @asynccontextmanager
    async def wire(self, source_uri: str, destination_uri: str) -> AsyncIterator[Wire]:
        yield self._network.link(source_uri, destination_uri)

    def unix_uri(self) -> str:
        return f"unix:/fake/{next(self._numbers)}"

    @asynccontextmanager
    async def black_hole(self) -> AsyncIterator[str]:
        uri = "tcp:192.0.2.1:49152"
        self._network.black_holes.add(uri)
        yield uri

    @asynccontextmanager
    async def blocked(self, qemu: Qemu) -> AsyncIterator[None]:
        fake = self._fakes[qemu.monitor.path]
        fake.mute()
        yield
        fake.unmute()

    def kill(self, qemu: Qemu) -> None:
        self._fakes[qemu.monitor.path].die()


class RealLab:
    """Real QEMUs without a kernel."""

    def __init__(self, version: str, directory: Path) -> None:
        self.version = version
        self._directory = directory
        self._numbers = count()

    @asynccontextmanager
    async def qemu(self, *, is_incoming: bool = False) -> AsyncIterator[Qemu]:
        async with real_qemu(BINARIES[self.version], incoming=is_incoming) as qemu:
            if not is_incoming:
                await qemu.cont()
            yield qemu

    @asynccontextmanager
    async def wire(self, source_uri: str, destination_uri: str) -> AsyncIterator[Wire]:
        async with Relay(_path(source_uri), _path(destination_uri)) as relay:
            yield relay

    def unix_uri(self) -> str:
        return f"unix:{self._directory / str(next(self._numbers))}"

    @asynccontextmanager
    async def black_hole(self) -> AsyncIterator[str]:
        with black_hole() as (host, port):
            yield f"tcp:{host}:{port}"

    @asynccontextmanager
    async def blocked(self, qemu: Qemu) -> AsyncIterator[None]:
        """Let QEMU's main loop wait for a TLS handshake that nobody answers."""
        uri = self.unix_uri()
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        (self._directory / "keys.psk").write_text(PSK, encoding="ascii")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)  # of the hello, after which QEMU only waits
            await accepted.put(writer)

        server = await asyncio.start_unix_server(serve, uri.removeprefix("unix:"))
        await qemu.add_psk("block", self._directory, Endpoint.CLIENT, "m")
        await qemu.set_parameters({"tls-creds": "block"})
        await qemu.migrate(uri)
        writer = await accepted.get()
        try:
            yield
        finally:
            writer.close()
            server.close()

    def kill(self, qemu: Qemu) -> None:
        process = qemu.monitor.process
        assert isinstance(process, ProcessIdentity)
        assert process.send_signal(signal.SIGKILL)


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("unix:"))
