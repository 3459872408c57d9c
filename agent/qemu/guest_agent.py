"""The agent inside a guest (`qemu-ga`), on the host's end of its channel.

It knows no ids of requests and answers one after the other, so what an earlier client left is skipped first. Nothing that it says
is trusted further than a number in a range.

Source: docs/interop/qemu-ga-ref.rst, qga/qapi-schema.json of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Final

from agent.qemu.decoding import as_int, as_list, as_mapping
from common.errors import Unreachable, WrongState
from common.foreign_json import parse_json

CHANNEL: Final = "org.qemu.guest_agent.0"
_SENTINEL: Final = b"\xff"
_LONGEST_LINE_BYTES: Final = 64 * 1024
_MAX_ID: Final = 1 << 31
_MAX_NS: Final = 1 << 63
_LONGEST_REASON: Final = 200


class AgentAbsent(WrongState):
    """The guest has no channel for an agent, or nobody listens on its end."""

    default_reason = "GUEST_AGENT_ABSENT"


class AgentRefused(WrongState):
    """The agent answered with an error."""

    default_reason = "GUEST_AGENT_REFUSED"


class AgentGone(Unreachable):
    """The channel cannot be opened, was closed, or carries something else than answers."""

    default_reason = "GUEST_AGENT_GONE"


class GuestAgent:
    """One guest's agent; every call waits for as long as its caller lets it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def synchronise(self) -> None:
        """Skip what an earlier client left; returns when the agent has answered this one. Source: guest-sync-delimited."""
        number = secrets.randbelow(_MAX_ID)
        self._writer.write(_SENTINEL)
        await self._send("guest-sync-delimited", {"id": number})
        answer = None
        while answer != number:
            await self._until(_SENTINEL)
            answer = _decode(await self._until(b"\n")).get("return")

    async def get_time_ns(self) -> int:
        """Return the guest's wall clock, in ns since 1970, UTC, below 2^63."""
        time_ns = as_int(await self._execute("guest-get-time", {}), "guest-get-time")
        if not 0 <= time_ns < _MAX_NS:
            raise AgentGone("guest agent: guest-get-time: a time out of range")
        return time_ns

    async def find_address(self, mac: str) -> str:
        """Find an IPv4 address of a network card; empty without one."""
        answer = await self._execute("guest-network-get-interfaces", {})
        for interface in as_list(answer, "interfaces"):
            entry = as_mapping(interface, "interface")
            if str(entry.get("hardware-address")).lower() != mac.lower():
                continue
            for address in as_list(entry.get("ip-addresses", []), "ip-addresses"):
                found = as_mapping(address, "address").get("ip-address")
                if isinstance(found, str) and _is_ipv4(found):
                    return found
        return ""

    async def set_time_ns(self, at_ns: int) -> None:
        """Set the guest's wall clock, and its RTC by that."""
        await self._execute("guest-set-time", {"time": at_ns})

    async def _execute(self, command: str, arguments: dict[str, object]) -> object:
        await self._send(command, arguments)
        answer = _decode(await self._until(b"\n"))
        if "error" in answer:
            raise AgentRefused(f"{command}: {_reason(answer['error'])}", command=command)
        return answer.get("return")

    async def _send(self, command: str, arguments: dict[str, object]) -> None:
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        try:
            await self._writer.drain()
        except OSError as error:
            raise AgentGone(f"guest agent: {error.strerror or error}") from error

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self._reader.readuntil(end)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise AgentGone(f"guest agent: the channel carries no answer ({type(error).__name__})") from error


@asynccontextmanager
async def guest_agent(path: str) -> AsyncIterator[GuestAgent]:
    """Open the channel whose UNIX socket QEMU listens on, for one client at a time.

    Raises:
        AgentGone: it cannot be opened.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST_LINE_BYTES)
    except OSError as error:
        raise AgentGone(f"guest agent: {path}: {error.strerror or error}") from error
    try:
        yield GuestAgent(reader, writer)
    finally:
        writer.close()


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _reason(error: object) -> str:
    """Return a guest's own words, fit for a terminal."""
    told = as_mapping(error, "error").get("desc")
    text = told if isinstance(told, str) else "no reason given"
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_REASON])


def _decode(line: bytes) -> dict[str, object]:
    try:
        answer = parse_json(line)
    except ValueError as error:
        raise AgentGone("guest agent: the channel carries something else than JSON") from error
    if not isinstance(answer, dict):
        raise AgentGone("guest agent: the channel carries something else than answers")
    return answer
