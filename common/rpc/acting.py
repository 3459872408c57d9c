"""For whom a process acts: the coordinator says in each of its calls whose order it carries out.

It travels in gRPC metadata and is believed of a coordinator alone, whose certificate vouches for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from grpc.aio import ClientCallDetails, Metadata

from common.identity import Role
from common.rpc.peer import peer

KEY: Final = "ferry-ordered-by"
_MOST_CHARACTERS: Final = 120
_ordered_by: ContextVar[str] = ContextVar("ordered_by", default="")


@contextmanager
def acting_for(who: str) -> Iterator[None]:
    """Say in calls made inside, and in tasks begun inside, who has ordered them."""
    token = _ordered_by.set(who)
    try:
        yield
    finally:
        _ordered_by.reset(token)


def ordered_by(context: Any) -> str:
    """Return for whom the coordinator calls; empty for all others, and where it does not say."""
    if peer(context).role is not Role.COORDINATOR:
        return ""
    found = next((value for key, value in context.invocation_metadata() or () if key == KEY), "")
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_CHARACTERS])


def with_order(details: ClientCallDetails) -> ClientCallDetails:
    """Return the details of a call with who has ordered it."""
    who = _ordered_by.get()
    if not who:
        return details
    metadata = Metadata(*(details.metadata or ()))
    metadata[KEY] = who.encode("ascii", "replace").decode()
    return ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)
