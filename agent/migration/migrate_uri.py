"""The forms of `migrate_uri`, and where a destination's QEMU listens.

Accepted: `tcp:host`, `tcp:host:port`, `tcp://host:port`, `tcp://host`; IPv6 addresses stand in brackets.
A host that is, or resolves to, a loopback address is refused unless both agents share one network.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from common.errors import InvalidRequest, WrongState

_FORMS = "tcp:host, tcp:host:port and tcp://host:port are possible, IPv6 addresses in brackets"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^\[\]:/,\s]+)(?::(?P<port>[^:/]*))?/?")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?\.?")
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Target:
    """A host and, if one was named, a port."""

    host: str
    port: int | None

    @property
    def bracketed(self) -> str:
        """The host as it stands in a URI."""
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports that QEMU may choose from, both ends included."""

    first: int
    last: int


def parse_migrate_uri(text: str) -> Target:
    """Read a `migrate_uri`.

    Raises:
        InvalidRequest: wrong scheme, form, or port; the text shows what was given.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme != "tcp":
        raise _malformed(text, f"scheme {scheme!r} is not tcp" if colon else "it has no scheme")
    match = _HOST_PORT.fullmatch(rest.removeprefix("//"))
    if match is None:
        raise _malformed(text, "it has no host" if not rest.strip("/") else "host and port cannot be told apart")
    host = match["host"].strip("[]")
    if match["host"].startswith("["):
        _check_ipv6(text, host)
    elif not _HOST_NAME.fullmatch(host):
        raise _malformed(text, f"{host!r} is not a host name")
    return Target(host, _parse_port(text, match["port"]))


def _check_ipv6(text: str, host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise _malformed(text, f"[{host}] is not an IPv6 address") from error


def _parse_port(text: str, port: str | None) -> int | None:
    if port is None:
        return None
    if not (port.isascii() and port.isdecimal()):
        raise _malformed(text, f"port {port!r} is not a number")
    number = int(port)
    if not 1 <= number <= MAX_PORT:
        raise InvalidRequest(
            f"migrate-uri {text}: port {number} is out of range; 1 to {MAX_PORT} are possible",
            reason="PORT_OUT_OF_RANGE",
            port=number,
        )
    return number


def _malformed(text: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"migrate-uri {text[:200]}: {what}; {_FORMS}", reason="MIGRATE_URI_INVALID", migrate_uri=text[:200])


def resolve(host: str) -> tuple[str, ...]:
    """Return the addresses of a host name, or the address itself; blocks while the resolver works.

    Raises:
        InvalidRequest: the name does not resolve on this host.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(
            f"migration address {host}: does not resolve on this host: {error}", reason="HOST_UNKNOWN", host=host
        ) from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def refuse_loopback(host: str, addresses: tuple[str, ...], *, peer_is_this_host: bool) -> None:
    """Refuse an address that means another machine to the source than to us.

    Raises:
        InvalidRequest: the host is, or resolves to, a loopback address and the source is elsewhere.
    """
    looped = [address for address in addresses if ipaddress.ip_address(address.partition("%")[0]).is_loopback]
    if looped and not peer_is_this_host:
        resolved = "" if looped == [host] else f" resolves to {looped[0]}, which"
        raise InvalidRequest(
            f"migration address {host}{resolved} is a loopback address: the source would connect to itself; "
            "name an address of this host that the source can reach, by --migrate-uri or migration_address",
            reason="ADDRESS_IS_LOOPBACK",
            host=host,
            address=looped[0],
        )


def check_port_free(address: str, port: int) -> None:
    """Refuse a port that something listens on, and an address that is another host's; binds for a moment and never listens.

    Port 0 stands for any free one.

    Raises:
        WrongState: the port is taken.
        InvalidRequest: the address is not one of this host.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except PermissionError as error:
            raise WrongState(f"port {port} of {address}: {error.strerror}", reason="PORT_NOT_ALLOWED", port=port) from error
        except OSError as error:
            if error.errno == 99:  # noqa: PLR2004 - EADDRNOTAVAIL
                raise InvalidRequest(
                    f"migration address {address} is not an address of this host",
                    reason="ADDRESS_NOT_HERE",
                    address=address,
                ) from error
            raise WrongState(
                f"port {port} of {address} is taken on this host; name another or leave the port out",
                reason="PORT_TAKEN",
                port=port,
            ) from error


def listen_uri(address: str, port: int | None, pool: PortRange) -> str:
    """Return the URI for `migrate-incoming`: one port, or the first free one of the pool."""
    host = f"[{address}]" if ":" in address else address
    if port is not None:
        return f"tcp:{host}:{port}"
    return f"tcp:{host}:{pool.first},to={pool.last}"
