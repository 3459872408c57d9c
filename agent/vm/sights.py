"""What one QEMU's events and run states mean in the life of its VM.

Pure: QMP in, sights out. QEMU says why it stops a guest before it says that it did: BLOCK_IO_ERROR and GUEST_PANICKED come before
their STOP. What changed while nobody listened is found by comparing run states, so the last one known is given at the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.qemu.endings import disk_error_of
from agent.qemu.status import RunState
from agent.vm.events import Happening, Reason

if TYPE_CHECKING:
    from agent.qemu.subscription import Event

AWAY: Final = "while no agent was watching"
_STOPPED_BY: Final = {
    RunState.IO_ERROR: Reason.IO_ERROR,
    RunState.GUEST_PANICKED: Reason.PANICKED,
    RunState.WATCHDOG: Reason.WATCHDOG,
}


@dataclass(frozen=True, slots=True)
class Sight:
    """Something that happened to a VM; `detail` is a sentence for people."""

    happening: Happening
    reason: Reason
    detail: str = ""


class Sights:
    """Looks at one QEMU; `is_running` is None until its run state is known."""

    def __init__(self, *, is_running: bool | None) -> None:
        self.is_running = is_running
        self._stop_reason: Reason | None = None
        self._stop_detail = ""

    def see(self, event: Event) -> Sight | None:
        """Look at an event. Source: qapi/run-state.json, qapi/block-core.json."""
        match event.name:
            case "STOP":
                return self._change(is_running=False)
            case "RESUME":
                return self._change(is_running=True)
            case "RESET":
                by_guest = event.data.get("guest") is True
                return Sight(Happening.RESET, Reason.GUEST if by_guest else Reason.HOST, str(event.data.get("reason", "")))
            case "BLOCK_IO_ERROR" if (error := disk_error_of(event)) is not None and error.stops:
                self._expect_stop(Reason.IO_ERROR, error.named())
            case "WATCHDOG" if event.data.get("action") == "pause":
                self._expect_stop(Reason.WATCHDOG, "")
            case "GUEST_PANICKED":
                if event.data.get("action") == "pause":
                    self._expect_stop(Reason.PANICKED, "")
                return Sight(Happening.CRASHED, Reason.PANICKED, f"the guest panicked; QEMU does: {event.data.get('action', '')}")
        return None

    def see_state(self, state: RunState) -> Sight | None:
        """Look at the answer to `query-status`; tells what was missed."""
        if self.is_running is None:
            self.is_running = state is RunState.RUNNING
            return None
        if state in _STOPPED_BY:
            self._expect_stop(_STOPPED_BY[state], AWAY)
        return self._change(is_running=state is RunState.RUNNING, detail=AWAY)

    def _expect_stop(self, reason: Reason, detail: str) -> None:
        self._stop_reason, self._stop_detail = reason, detail

    def _change(self, *, is_running: bool, detail: str = "") -> Sight | None:
        was_running, self.is_running = self.is_running, is_running
        reason, why = self._stop_reason, self._stop_detail
        self._stop_reason, self._stop_detail = None, ""
        if was_running is None or was_running is is_running:
            return None
        if is_running:
            return Sight(Happening.RESUMED, Reason.UNPAUSED, detail)
        return Sight(Happening.SUSPENDED, reason or Reason.PAUSED, why or detail)
