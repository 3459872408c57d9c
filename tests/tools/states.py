"""Write docs/states.md from the machines themselves: every phase, what it means, and where each event leads.

`python -m tests.tools.states` writes it, `--check` only compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.migration import incoming, outgoing, outgoing_steps
from agent.migration.machine import Cause, InvalidTransition, Step

TARGET = Path(__file__).parents[2] / "docs" / "states.md"
_CAUSE = Cause("why", "WHY")


def text() -> str:
    """Return the whole page."""
    parts = [
        "# States of a migration",
        "",
        "Generated from agent/migration/outgoing_steps.py and incoming.py by `make docs`; do not edit.",
        "",
        _machine("Source", outgoing_steps.step, outgoing.Begun(), outgoing.Phase.__args__, outgoing.Event.__args__),
        _machine("Destination", incoming.step, incoming.Reserved(), incoming.Phase.__args__, incoming.Event.__args__),
    ]
    return "\n".join(parts)


def _machine(
    title: str, step: Callable[[Any, Any], Step[Any, Any]], start: object, phases: tuple[type, ...], events: tuple[type, ...]
) -> str:
    lines = [f"## {title}", "", f"Begins in `{type(start).__name__}`.", "", "| phase | meaning |", "| --- | --- |"]
    lines += [f"| `{phase.__name__}` | {_first_line(phase)} |" for phase in phases]
    lines += ["", "| phase | event | leads to | and does |", "| --- | --- | --- | --- |"]
    for phase in phases:
        for variant, note in _variants(phase):
            for event in events:
                for made, event_note in _event_variants(event):
                    lines += _row(step, (variant, note), (made, event_note))
    lines += ["", "```mermaid", "stateDiagram-v2", f"    [*] --> {type(start).__name__}", *_arrows(step, phases, events), "```", ""]
    return "\n".join(lines)


def _row(step: Callable[[Any, Any], Step[Any, Any]], noted: tuple[object, str], told: tuple[object, str]) -> list[str]:
    (phase, note), (event, event_note) = noted, told
    try:
        after = step(phase, event)
    except InvalidTransition:
        return []
    effects = ", ".join(f"`{type(effect).__name__}`" for effect in after.effects)
    return [
        f"| `{type(phase).__name__}`{note} | `{type(event).__name__}`{event_note} | `{type(after.phase).__name__}` | {effects} |"
    ]


def _arrows(step: Callable[[Any, Any], Step[Any, Any]], phases: tuple[type, ...], events: tuple[type, ...]) -> list[str]:
    arrows: dict[tuple[str, str], list[str]] = {}
    for phase in phases:
        for variant, _ in _variants(phase):
            for made, _ in (one for event in events for one in _event_variants(event)):
                try:
                    after = step(variant, made).phase
                except InvalidTransition:
                    continue
                names = arrows.setdefault((phase.__name__, type(after).__name__), [])
                if type(made).__name__ not in names:
                    names.append(type(made).__name__)
    return [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items() if before != after]


def _variants(phase: type) -> list[tuple[object, str]]:
    """Make the phase with each value of its flags that matters."""
    if phase is outgoing.Sent:
        return [(outgoing.Sent(), ""), (outgoing.Sent(qemu_is_gone=True), ", QEMU is gone")]
    if phase is outgoing.Cancelling:
        return [(outgoing.Cancelling(_CAUSE), ""), (outgoing.Cancelling(_CAUSE, was_switching=True), ", was switching")]
    if phase in {outgoing.Following, outgoing.Broken}:
        return [(phase(), ""), (phase(is_resumed=True), ", resumed")]
    return [(_make(phase), "")]


def _event_variants(event: type) -> list[tuple[object, str]]:
    """Make the event with each value of its flags that matters."""
    if event is incoming.AbandonRequested:
        return [(_make(event), ""), (incoming.AbandonRequested(_CAUSE, source_has_ended=True), ", source has ended")]
    if event is incoming.QemuExited:
        return [(_make(event), ""), (incoming.QemuExited(_CAUSE, by_guest=True), ", the guest ended it")]
    return [(_make(event), "")]


def _make(kind: type) -> object:
    return kind(_CAUSE) if "cause" in getattr(kind, "__dataclass_fields__", {}) else kind()


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def main() -> None:
    """Write the page, or with `--check` exit with 1 when it is out of date."""
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text() else "docs/states.md is out of date: run `make docs`")
    TARGET.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
