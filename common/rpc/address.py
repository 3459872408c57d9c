"""Addresses of services: `host:port`, `[ipv6]:port`, `unix:/path`."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

from common.errors import InvalidRequest

MAX_PORT = 65535
_ADDRESS: Final = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:\[\]]+)):(?P<port>[0-9]{1,5})", re.ASCII)


def split_address(address: str) -> tuple[str, int]:
    """Return host, without brackets, and port.

    Raises:
        InvalidRequest: it is not `host:port`.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > MAX_PORT:
        raise InvalidRequest(
            f"address {address!r}: host:port is wanted, IPv6 in brackets", reason="ADDRESS_INVALID", address=address
        )
    return found["ipv6"] or found["host"], int(found["port"])


def check_plain_text_allowed(address: str) -> None:
    """Refuse plain text to anywhere but this host.

    Raises:
        InvalidRequest: the address is not a loopback one.
    """
    if address.startswith("unix:"):
        return
    host, _ = split_address(address)
    try:
        resolved = [ipaddress.ip_address(host)]
    except ValueError:
        resolved = _resolve(host)
    if not resolved or not all(one.is_loopback for one in resolved):
        raise InvalidRequest(
            f"address {address}: plain text is for loopback only; give certificates (--pki, or pki in the config file)",
            reason="PLAIN_TEXT_NOT_LOOPBACK",
            address=address,
        )


def _resolve(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in socket.getaddrinfo(host, None)]
    except (OSError, ValueError, UnicodeError):
        return []
