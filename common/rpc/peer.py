"""Who is at the other end of a call, by its certificate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from common.identity import SPIFFE_PREFIX, Role


@dataclass(frozen=True, slots=True)
class Peer:
    """A caller; `role` is None on plain text, which is loopback."""

    role: Role | None
    name: str
    address: str


def peer(context: Any) -> Peer:
    """Read the caller's certificate off a servicer context."""
    names: Collection[bytes] = context.auth_context().get("x509_subject_alternative_name", ())
    for name in names:
        text = name.decode(errors="replace")
        if text.startswith(SPIFFE_PREFIX):
            role, _, holder = text.removeprefix(SPIFFE_PREFIX).partition("/")
            if role in {one.value for one in Role}:
                return Peer(Role(role), holder, context.peer())
    return Peer(None, "", context.peer())


def title(context: Any) -> str:
    """Name a caller for people: role and name of its certificate, or `local` on plain text."""
    caller = peer(context)
    return "local" if caller.role is None else f"{caller.role.value} {caller.name}"
