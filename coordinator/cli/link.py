"""Connections of one command: to the coordinator, and to the agents that it names.

A request that changes something is sent only over a connection that stands, so "could not connect" means that nothing
was changed. If the answer to one is lost it is repeated with the same `request_id`.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from common.certificate import check_identity
from common.errors import Expired, FerryError, InvalidRequest, NotFound, Unreachable
from common.identity import Identity
from common.rpc.channel import open_channel
from common.rpc.status import calls_to
from ferry.agent.v1 import agent_service_pb2_grpc as agent_rpc
from ferry.coordinator.v1 import coordinator_service_pb2 as pb
from ferry.coordinator.v1 import coordinator_service_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from fractions import Fraction
    from types import TracebackType

    from coordinator.cli.options import Settings

CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 30.0
_REPEATS_S = (0.3, 1.0, 2.0)
# The first attempt to connect may take this long, with its handshake. Source: gRPC's connection-backoff.md.
_OPTIONS = (("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT_S * 1000)),)
_DEFAULT_PKI = Path(".config/ferry/pki")

_Stub = TypeVar("_Stub")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Undecided(Unreachable):
    """A change was asked for, and whether it was made is not known."""

    default_reason = "ANSWER_LOST"


class Peer(Generic[_Stub]):
    """One server, called by its name in errors."""

    def __init__(self, title: str, channel: grpc.aio.Channel, stub: _Stub) -> None:
        self.title = title
        self.stub = stub
        self.channel = channel

    async def read(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> _Response:
        """Ask something that changes nothing.

        Raises:
            FerryError: what the server answers, or Unreachable.
        """
        with calls_to(self.title):
            return await method(request, timeout=timeout_s)

    async def change(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> _Response:
        """Ask for a change; `request` carries a `request_id`, so that it can be repeated.

        Raises:
            Unreachable: no connection; nothing was sent.
            Undecided: it was sent, and no answer came, or the server itself does not know.
            FerryError: what the server answers.
        """
        if not await self._is_connected():
            return await self.read(method, request, timeout_s=CONNECT_TIMEOUT_S)
        for pause_s in _REPEATS_S:
            try:
                return await self.read(method, request, timeout_s=timeout_s)
            except Unreachable as error:
                if self.has_answered(error):
                    raise Undecided(error.text, reason=error.reason, **error.facts) from error
                await asyncio.sleep(pause_s)
        try:
            return await self.read(method, request, timeout_s=timeout_s)
        except (Unreachable, Expired) as error:
            raise Undecided(error.text, reason=error.reason, **error.facts) from error

    def has_answered(self, error: FerryError) -> bool:
        """Tell whether an error is this server's word, and not the lack of it."""
        return error.facts.get("peer") != self.title

    async def follow(
        self, method: grpc.aio.UnaryStreamMultiCallable[_Request, _Response], request: _Request
    ) -> AsyncIterator[_Response]:
        """Yield what a stream sends, until it ends.

        Raises:
            FerryError: what the server answers, or Unreachable.
        """
        with calls_to(self.title):
            async for response in method(request):
                yield response

    async def _is_connected(self) -> bool:
        """Wait until the connection stands or has failed once."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                state = self.channel.get_state(try_to_connect=True)
                while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return state is grpc.ChannelConnectivity.READY


Coordinator = Peer[rpc.CoordinatorServiceStub]


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent of one host."""

    host: str
    address: str
    peer: Peer[agent_rpc.AgentServiceStub]

    @property
    def stub(self) -> agent_rpc.AgentServiceStub:
        """The methods of the agent."""
        return self.peer.stub


class Link:
    """The connections of one command; opened when first used, closed on exit."""

    def __init__(self, settings: Settings) -> None:
        self._address = settings.coordinator
        self._identity = find_identity(settings.pki)
        self._stack = AsyncExitStack()
        self._coordinator: Coordinator | None = None

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections; where there was none the certificate is looked at, which could be the reason.

        Raises:
            WrongState: the certificate is broken or has expired.
        """
        await self._stack.aclose()
        if isinstance(error, Unreachable) and self._identity is not None:
            check_identity(self._identity)

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator."""
        if self._coordinator is None:
            channel = self._open(self._address)
            self._coordinator = Peer(f"coordinator at {self._address}", channel, rpc.CoordinatorServiceStub(channel))
        return self._coordinator

    async def hosts(self) -> tuple[pb.Host, ...]:
        """Ask the coordinator for the fleet."""
        response = await self.coordinator.read(self.coordinator.stub.ListHosts, pb.ListHostsRequest())
        return tuple(response.hosts)

    async def agent(self, host: str) -> Agent:
        """Find the agent of a host by the host's name, or take an address as it is.

        Raises:
            NotFound: the fleet has no such host.
        """
        if ":" in host:
            return self.agent_at(host, host)
        hosts = await self.hosts()
        for candidate in hosts:
            if candidate.name == host:
                return self.agent_at(host, candidate.agent_address)
        known = ", ".join(candidate.name for candidate in hosts) or "none"
        raise NotFound(f"host {host!r} is not in the fleet; known hosts: {known}", reason="HOST_UNKNOWN", host=host)

    def agent_at(self, host: str, address: str) -> Agent:
        """Take the agent at an address."""
        channel = self._open(address)
        title = f"agent at {address}" if host == address else f"agent of {host} at {address}"
        return Agent(host, address, Peer(title, channel, agent_rpc.AgentServiceStub(channel)))

    def _open(self, address: str) -> grpc.aio.Channel:
        channel = open_channel(address, self._identity, options=_OPTIONS)
        self._stack.push_async_callback(channel.close)
        return channel


def find_identity(pki: str | None) -> Identity | None:
    """Choose the certificate of this user; None means plain text.

    Raises:
        InvalidRequest: the named directory is not there or lacks a file.
    """
    if pki == "none":
        return None
    if pki is None:
        default = Path.home() / _DEFAULT_PKI
        if not default.is_dir():
            return None
        directory = default
    else:
        directory = Path(pki).expanduser()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        if not (directory / name).is_file():
            raise InvalidRequest(
                f"{directory / name} is not there: --pki names a directory with ca.pem, cert.pem and key.pem "
                "(ferry pki issue makes one)",
                reason="PKI_MISSING",
            )
    return Identity.in_directory(directory)


def new_request_id() -> str:
    """Make an id that makes a repeated request harmless."""
    return str(uuid.uuid4())


def duration_message(duration_s: Fraction) -> Duration:
    """Turn seconds into a Duration."""
    message = Duration()
    message.FromTimedelta(timedelta(microseconds=round(duration_s * 1_000_000)))
    return message
