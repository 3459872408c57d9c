"""What is audited: every call that changes something, every refusal, and what a process starts by itself.

What was done and what was refused lie in files of their own: refusals, which anybody can cause, never push out what was done. Each
caller may be refused so often a minute; what is beyond that is counted, and the number is written when the minute is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from common.audit_log import AuditLog
from common.errors import FerryError
from common.rpc.audit import Audit, Call

LOCAL: Final = "local"
REFUSALS_A_MINUTE: Final = 60
WINDOW_S: Final = 60.0
_MOST_CALLERS: Final = 1000
_OK: Final = "OK"
_log = structlog.get_logger()


class Auditing:
    """Writes `audit.jsonl` and `audit-refused.jsonl`; a log that cannot be written hinders nothing and is told as an error."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._done = AuditLog(directory / "audit.jsonl")
        self._refused = AuditLog(directory / "audit-refused.jsonl")
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def interceptor(self, methods: frozenset[str]) -> Audit:
        """Make the interceptor that tells of calls; `methods` are those that change something."""
        return Audit(self.tell, methods)

    def tell(self, call: Call) -> None:
        """Write one call."""
        if call.result != _OK and not self._may_write(call.who):
            return
        self._write(
            self._done if call.result == _OK else self._refused,
            who=call.who,
            by=call.by,
            rpc=call.method,
            vm=call.vm,
            migration=call.migration,
            result=call.result,
            reason=call.reason,
            text=call.text,
        )

    def tell_own(self, what: str, vm: str, error: FerryError | None) -> None:
        """Write what this process did by itself, or why it could not."""
        failure = {} if error is None else {"reason": error.reason, "text": error.text}
        self._write(self._done, who=LOCAL, rpc=what, vm=vm, result=_OK if error is None else "FAILED", **failure)

    def _may_write(self, who: str) -> bool:
        """Count a refusal of a caller; say whether it is one of those that are written."""
        now_s = self._clock()
        began_s, count = self._windows.get(who, (now_s, 0))
        if now_s - began_s >= WINDOW_S:
            self._close(who)
            began_s, count = now_s, 0
        if len(self._windows) >= _MOST_CALLERS and who not in self._windows:
            self._close(next(iter(self._windows)))
        self._windows[who] = (began_s, count + 1)
        return count < REFUSALS_A_MINUTE

    def _close(self, who: str) -> None:
        _, count = self._windows.pop(who)
        if count > REFUSALS_A_MINUTE:
            text = f"{count - REFUSALS_A_MINUTE} more refusals of this caller within {WINDOW_S:g} s are not written one by one"
            self._write(self._refused, who=who, result="REFUSED", text=text)

    def _write(self, log: AuditLog, **facts: str) -> None:
        try:
            log.write(**facts)
        except OSError as error:
            _log.error("audit log cannot be written", error=str(error), **{name: fact[:80] for name, fact in facts.items()})
