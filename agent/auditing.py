"""What of the agent is audited: every call that changes something, every refusal, and what the agent starts by itself."""

from __future__ import annotations

from typing import Final

import structlog

from agent.audit_log import AuditLog
from agent.vm.vm import Vm
from common.errors import FerryError
from common.rpc.audit import Audit, Call

READERS: Final = frozenset(
    {"GetHost", "ListSpans", "GetVm", "ListVms", "WatchEvents", "ListEvents", "GetMigration", "ListMigrations"}
    | {"WatchMigration", "WaitMigration", "ReportChannels", "PingMigration"}
)
LOCAL: Final = "local"
_log = structlog.get_logger()


class Auditing:
    """Writes the audit log; a log that cannot be written hinders nothing and is told as an error."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    def interceptor(self, methods: frozenset[str]) -> Audit:
        """Make the interceptor that tells of calls; `methods` are all methods of the service."""
        return Audit(self.tell, methods - READERS)

    def tell(self, call: Call) -> None:
        """Write one call."""
        self._write(
            who=call.who,
            rpc=call.method,
            vm=call.vm,
            migration=call.migration,
            result=call.result,
            reason=call.reason,
            text=call.text,
        )

    def tell_autostart(self, vm: Vm, error: FerryError | None) -> None:
        """Write that a VM was started with its host, or why it was not."""
        failure = {} if error is None else {"reason": error.reason, "text": error.text}
        self._write(who=LOCAL, rpc="autostart", vm=vm.name, result="OK" if error is None else "FAILED", **failure)

    def _write(self, **facts: str) -> None:
        try:
            self._log.write(**facts)
        except OSError as error:
            _log.error("audit log cannot be written", error=str(error), **facts)
