"""Halves of migrations as agents tell them."""

from __future__ import annotations

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.wire_phases import STATES
from coordinator.halves import Half, HalfState, Location

SOURCE_PHASES = {phase.__name__: phase for phase in out.Phase.__args__}
DESTINATION_PHASES = {phase.__name__: phase for phase in inc.Phase.__args__}


def source_half(phase: str, *, error: str = "") -> Half:
    """Make the half of a source in a phase of its machine."""
    return _half(SOURCE_PHASES[phase], is_final=phase in {final.__name__ for final in out.FINAL}, error=error)


def destination_half(phase: str, *, error: str = "") -> Half:
    """Make the half of a destination in a phase of its machine."""
    return _half(DESTINATION_PHASES[phase], is_final=phase in {final.__name__ for final in inc.FINAL}, error=error)


def _half(phase: type, *, is_final: bool, error: str) -> Half:
    state, location = STATES[phase]
    return Half(
        state=HalfState(state),
        phase=phase.__name__,
        status="",
        location=Location(location),
        is_final=is_final,
        error=error,
        error_reason="QEMU_FAILED" if error else "",
        vm_name="web",
        vm_uuid="0f1e",
        guest_ran=False,
        waiting_for="",
        resume_token=b"",
        keep_paused=False,
        options=b"",
        progress=b"",
        downtime=b"",
        phases=(),
        warnings=(),
    )
