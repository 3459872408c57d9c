"""Where a display listens: the attributes `listen` and `socket` of `<graphics>`, and its `<listen>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm import rules
from agent.vm.options import RUN_DIR

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.:_-]{1,255}")
_KINDS: Final = {kind: kind for kind in ("address", "network", "socket", "none")}
_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """On a UNIX socket, else on an address, or nowhere when both are None."""

    address: str | None
    socket: str | None


def read_place(element: Element, default_socket: str) -> Place:
    """Read it; a socket without a path is `default_socket` in the VM's own directory."""
    address, socket = element.attribute("listen"), element.attribute("socket")
    is_none = False
    for listen in element.children("listen"):
        kind = listen.choice("type", _KINDS)
        own = listen.attribute("address")
        if kind == "network":
            listen.accept("network")
            if own is None:  # libvirt adds what it found for the network once the domain runs
                raise listen.not_carried(value="network without an address")
        if None not in (own, address) and own != address:
            raise listen.invalid(f"address {own!r}: {address!r} is given before")
        address = own or address
        if kind == "socket":
            socket = listen.attribute("socket") or socket or f"{RUN_DIR}/{default_socket}"
        is_none = is_none or kind == "none"
        listen.finish()
    if is_none:
        return Place(None, None)
    if socket is not None:
        with element.located():
            if not socket.startswith(RUN_DIR):
                rules.check_path(socket)
        return Place(None, socket)
    if not _ADDRESS.fullmatch(address or _LOOPBACK):
        raise element.invalid(f"listen address {str(address)[:60]!r}")
    return Place(address or _LOOPBACK, None)
