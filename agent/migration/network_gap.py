"""How long a guest could not be reached over its network, apart from how long its vCPUs stood still.

From the guest's STOP to its first answer to a request that takes the way of ordinary packets: sent to its card alone, through the
source's bridge, so that it arrives only once the network has learnt where the guest is. Nothing is asked before the guest runs at
the destination, so a hand-over is not delayed by it; and the end of a move waits for the answer for a second at most.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.migration.arp import ETHERTYPE, REPLY, find_neighbour, parse_arp, probe
from agent.migration.arrival import NetworkGap
from agent.migration.clocks import now_s
from agent.vm.definition import Definition

if TYPE_CHECKING:
    from agent.migration.source import SourceSession

PROBE_INTERVAL_S: Final = 0.01
PATIENCE_S: Final = 1.0
_FRAME_BYTES: Final = 128
_NET: Final = Path("/sys/class/net")
_NEIGHBOURS: Final = Path("/proc/self/net/arp")


@dataclass(frozen=True, slots=True)
class Card:
    """A guest's network card that is on a bridge of the host."""

    bridge: str
    mac: str

    @property
    def mac_bytes(self) -> bytes:
        """The six bytes of the address."""
        return bytes.fromhex(self.mac.replace(":", ""))


def find_card(definition: Definition) -> Card | None:
    """Find the first network card of a guest that is on a bridge."""
    macs = {device.get("netdev"): device.get("mac") for device in definition.find("device") if device.get("netdev")}
    for tap in definition.taps:
        bridge = tap.bridge or _bridge_of(tap.device)
        if bridge and macs.get(tap.netdev):
            return Card(bridge, macs[tap.netdev])
    return None


class NetworkGapWatch:
    """Measures the gap of one source session."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._address = ""
        self._answered_at_s: float | None = None
        self._answered = asyncio.Event()
        self._is_over = asyncio.Event()
        self._is_over.set()

    async def wait(self) -> None:
        """Return when it was measured, or cannot be any more, or was not begun."""
        await self._is_over.wait()

    async def run(self, definition: Definition) -> None:
        """Measure, once the guest runs at the destination, and tell the session."""
        self._is_over.clear()
        try:
            card = find_card(definition)
            if card is not None and not self._session.facts.stays_paused:
                self._tell(await self._measure(card))
        finally:
            self._is_over.set()

    def _tell(self, gap: NetworkGap) -> None:
        self._session.update(arrival=replace(self._session.facts.arrival, network_gap=gap))

    async def _measure(self, card: Card) -> NetworkGap:
        try:
            wire = _open(card.bridge)
        except OSError as error:
            return NetworkGap(why_not=f"bridge {card.bridge} cannot be listened on: {error.strerror}")
        with closing(wire):
            listener = asyncio.get_running_loop()
            listener.add_reader(wire, self._hear, wire, card)
            try:
                return await self._ask(wire, card)
            except OSError as error:
                return NetworkGap(why_not=f"bridge {card.bridge}: {error.strerror}")
            finally:
                listener.remove_reader(wire)

    def _hear(self, wire: socket.socket, card: Card) -> None:
        try:
            heard = parse_arp(wire.recv(_FRAME_BYTES))
        except OSError:  # the bridge went down; the next probe tells
            return
        if heard is not None and heard.sender_mac == card.mac_bytes:
            self._address = heard.sender_address
            if heard.operation == REPLY and self._session.facts.guest_ran and self._answered_at_s is None:
                self._answered_at_s = now_s()
                self._answered.set()

    async def _ask(self, wire: socket.socket, card: Card) -> NetworkGap:
        session = self._session
        while not session.facts.guest_ran:
            await session.wait_change()
        address = self._address or find_neighbour(await asyncio.to_thread(_NEIGHBOURS.read_text), card.mac)
        if not address:
            return NetworkGap(why_not=f"the address of card {card.mac} is not known on bridge {card.bridge}")
        frame = probe(wire.getsockname()[4], card.mac_bytes, address)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not self._answered.is_set():
                    wire.send(frame)
                    await self._wait_a_moment()
        except TimeoutError:
            return NetworkGap(why_not=f"{address} has not answered on bridge {card.bridge} in {PATIENCE_S:g} s")
        stopped_at_s = session.facts.timeline.stopped_at_s
        if stopped_at_s is None or self._answered_at_s is None:
            return NetworkGap(why_not="when the guest stopped is not known")
        return NetworkGap(max(self._answered_at_s - stopped_at_s, 0.0))

    async def _wait_a_moment(self) -> None:
        try:
            async with asyncio.timeout(PROBE_INTERVAL_S):
                await self._answered.wait()
        except TimeoutError:
            return


def _open(bridge: str) -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETHERTYPE))
    try:
        wire.bind((bridge, ETHERTYPE))
    except BaseException:
        wire.close()
        raise
    return wire


def _bridge_of(device: str | None) -> str:
    master = _NET / (device or "-") / "master"
    return master.resolve().name if master.is_symlink() else ""
