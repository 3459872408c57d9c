"""Requests that are no message of their type: refused like others, after the caller was looked at.

gRPC itself ends such a call before any interceptor sees it, as UNKNOWN and with a traceback on stderr. So its deserialiser hands on
what cannot be read, and who serves the call refuses it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from common.errors import InvalidRequest


class Malformed(InvalidRequest):
    """What came is no message of the type that the call takes."""

    default_reason = "REQUEST_MALFORMED"


class _Unread:
    """What came instead of a message."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


def lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Make a deserialiser that fails later: see `understood`."""

    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except (DecodeError, ValueError, RecursionError):
            return _Unread(len(content))

    return read


def understood(request: Any) -> Any:
    """Pass a request on, or the requests of a stream one by one.

    Raises:
        Malformed: it is none; of a stream where it comes.
    """
    if isinstance(request, _Unread):
        raise Malformed(f"the request is {request.size_bytes} bytes that are no message of its type")
    return _each(request) if hasattr(request, "__aiter__") else request


async def _each(requests: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield understood(request)
