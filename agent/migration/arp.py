"""ARP on the wire, as much as is needed to ask a guest whether it can be reached. Pure.

Source: RFC 826; RFC 5227, 2.1.1, probes without an address of the sender's own; RFC 1122, 2.3.2.1, requests to one receiver.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

ETHERTYPE: Final = 0x0806
REQUEST: Final = 1
REPLY: Final = 2
_FRAME: Final = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERNET: Final = 1
_IPV4: Final = 0x0800
_NOBODY: Final = bytes(6)


@dataclass(frozen=True, slots=True)
class Arp:
    """What a frame says of its sender."""

    operation: int
    sender_mac: bytes
    sender_address: str


def parse_arp(frame: bytes) -> Arp | None:
    """Read a frame; None when it is no ARP of IPv4 over Ethernet, or tells no address."""
    if len(frame) < _FRAME.size:
        return None
    (_, _, ethertype, hardware, protocol, hardware_size, protocol_size, operation, mac, address, _, _) = _FRAME.unpack_from(frame)
    if (ethertype, hardware, protocol, hardware_size, protocol_size) != (ETHERTYPE, _ETHERNET, _IPV4, len(mac), len(address)):
        return None
    return Arp(operation, mac, socket.inet_ntoa(address)) if any(address) else None


def probe(from_mac: bytes, to_mac: bytes, address: str) -> bytes:
    """Make a request to one card whether it has an address; it is answered like any other, and nobody learns anything by it."""
    asked = socket.inet_aton(address)
    sizes = (len(from_mac), len(asked))
    return _FRAME.pack(to_mac, from_mac, ETHERTYPE, _ETHERNET, _IPV4, *sizes, REQUEST, from_mac, bytes(len(asked)), _NOBODY, asked)


def find_neighbour(table: str, mac: str) -> str:
    """Find the address of a card in the kernel's table of neighbours; empty without one. Source: proc(5), /proc/net/arp."""
    rows = (line.split() for line in table.splitlines()[1:])
    return next((row[0] for row in rows if len(row) > 3 and row[3].lower() == mac.lower()), "")  # noqa: PLR2004 - HW address
