"""Telling how calls ended: who asked for what, of which VM, and what came of it.

An interceptor outside of the one that checks roles, so that it sees what was refused there too. It changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from common.rpc.acting import ordered_by
from common.rpc.peer import title

_KINDS: Final = ("unary_unary", "stream_unary", "stream_stream", "unary_stream")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that ended.

    Attributes:
        method: bare name, as `StartVm`.
        who: role and name of the caller's certificate, or `local` on plain text.
        by: for whom the caller acts, where it is a coordinator that says so; empty else.
        vm: name or UUID as the caller gave it, else as the answer has it; empty where it is about no VM.
        migration: id; empty where it is about none.
        result: gRPC code, as `OK` or `ABORTED`.
        reason: UPPER_SNAKE word of a refusal; empty for OK.
        text: why, in one line; empty for OK.
    """

    method: str
    who: str
    by: str
    vm: str
    migration: str
    result: str
    reason: str
    text: str


class Audit(grpc.aio.ServerInterceptor):
    """Tells of each call of the named methods, and of refused calls of all others.

    Args:
        tell: called once a call, when it has ended.
        methods: bare names of the methods that change something.
    """

    def __init__(self, tell: Callable[[Call], None], methods: Collection[str]) -> None:
        self._tell = tell
        self._methods = frozenset(methods)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Look at the end of a method's handler."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler
        kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
        work, name = getattr(handler, kind), method.rpartition("/")[2]

        async def single(request: Any, context: Any) -> Any:
            seen = _Seen(request, title(context), ordered_by(context))
            try:
                seen.answer = await work(seen.requests(), context)
                return seen.answer
            finally:
                self._note(name, seen, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            seen = _Seen(request, title(context), ordered_by(context))
            try:
                async with aclosing(work(seen.requests(), context)) as answers:
                    async for seen.answer in answers:
                        yield seen.answer
            finally:
                self._note(name, seen, context)

        return handler._replace(**{kind: stream if inspect.isasyncgenfunction(work) else single})

    def _note(self, name: str, seen: _Seen, context: Any) -> None:
        result = _code(context)
        is_refusal = result not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)
        if name in self._methods or is_refusal:
            reason, text = (_reason(context), str(context.details() or "")) if is_refusal else ("", "")
            self._tell(Call(name, seen.who, seen.by, seen.vm, seen.migration, result.name, reason, text))


class _Seen:
    """What of a call tells what it is about: its first request, and its last answer."""

    def __init__(self, request: Any, who: str, by: str) -> None:
        self.by = by
        self.who = who  # asked at the beginning: a stream may be found left when its call is freed, and gRPC's core crashes on that
        self._given = request
        self._request = None if hasattr(request, "__aiter__") else request
        self.answer: Any = None

    def requests(self) -> Any:
        """Pass the requests on; of a stream the first is looked at."""
        return self._given if self._request is not None else self._watched()

    async def _watched(self) -> AsyncIterator[Any]:
        async for request in self._given:
            self._request = self._request or request
            yield request

    @property
    def vm(self) -> str:
        """The VM that it was about."""
        request = self._request
        asked = getattr(request, "vm", "") or getattr(getattr(request, "opening", None), "vm", "")
        told = getattr(self.answer, "vm", None), getattr(self.answer, "migration", None)
        return str(asked or getattr(told[0], "name", "") or getattr(told[1], "vm_name", ""))

    @property
    def migration(self) -> str:
        """The migration that it was about."""
        request = getattr(self._request, "resume", self._request)
        return str(getattr(request, "migration_id", ""))


def _code(context: Any) -> grpc.StatusCode:
    """Return how a call ended; gRPC gives the number or the name of it, or nothing."""
    code = context.code() or grpc.StatusCode.OK
    return code if isinstance(code, grpc.StatusCode) else next(one for one in grpc.StatusCode if one.value[0] == code)


def _reason(context: Any) -> str:
    for key, value in context.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return "NOT_ALLOWED" if _code(context) is grpc.StatusCode.PERMISSION_DENIED else ""
