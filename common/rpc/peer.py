"""Who is at the other end of a call, by its certificate: by the one SPIFFE URI in it, and by no other name.

Source: grpc_security_constants.h, GRPC_PEER_URI_PROPERTY_NAME: the URIs among the subject's alternative names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from common.identity import SPIFFE_PREFIX, Role


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller; `role` is None on plain text, which is loopback, and of a certificate that has no URI of a role, or two."""

    role: Role | None
    name: str
    address: str


def peer(context: Any) -> Peer:
    """Read the caller's certificate off a servicer context."""
    names: Collection[bytes] = context.auth_context().get("peer_uri", ())
    ours = [name.decode(errors="replace") for name in names if name.startswith(SPIFFE_PREFIX.encode())]
    if len(ours) == 1:
        role, _, holder = ours[0].removeprefix(SPIFFE_PREFIX).partition("/")
        if role in {one.value for one in Role} and holder:
            return Peer(Role(role), holder, context.peer())
    return Peer(None, "", context.peer())


def is_host(holder: str, host: str) -> bool:
    """Say whether the name in a certificate is that of a host, one of the two with its domain perhaps."""
    return holder == host or (holder.partition(".")[0] == host.partition(".")[0] and "." not in min(holder, host, key=len))


def title(context: Any) -> str:
    """Name a caller for people: role and name of its certificate, or `local` on plain text."""
    caller = peer(context)
    return "local" if caller.role is None else f"{caller.role.value} {caller.name}"
