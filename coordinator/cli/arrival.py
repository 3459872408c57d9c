"""What became of a guest at its destination, in words.

Pure: messages in, words out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.cli.plain import seconds
from coordinator.cli.units import format_duration
from ferry.common.v1 import modes_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ferry.common.v1 import migration_pb2 as common

_PERSISTENCES = {pb.PERSISTENCE_TRANSIENT: "transient", pb.PERSISTENCE_PERSISTENT: "persistent"}
_SOURCE_DEFINITIONS = {pb.SOURCE_DEFINITION_KEEP: "kept on the source", pb.SOURCE_DEFINITION_UNDEFINE: "removed from the source"}


def modes_words(modes: pb.Modes) -> list[str]:
    """Name what was wished beside the transfer itself."""
    words = [_PERSISTENCES.get(modes.persistence, ""), _SOURCE_DEFINITIONS.get(modes.source_definition, "")]
    if modes.suspend:
        words.append("suspended at the end")
    return [word for word in words if word]


def arrival_rows(progress: common.Progress) -> Iterator[tuple[str, str]]:
    """Tell what became of the guest."""
    if not progress.HasField("arrival"):
        return
    arrival = progress.arrival
    yield "announced", _announced(arrival)
    if arrival.HasField("network_gap"):
        gap = arrival.network_gap
        yield "network gap", format_duration(seconds(gap.gap)) if gap.HasField("gap") else f"not measured: {gap.why_not}"
    if clock := _clock(arrival.clock):
        yield "guest's clock", clock


def how_to_resume(vm: str, host: str) -> str:
    """Say how a paused guest goes on."""
    return f"{vm} is paused on {host}; let it go on: ferry vm resume {vm} --host {host}"


def _announced(arrival: pb.Arrival) -> str:
    if not arrival.network_card_count:
        return "no: the guest has no network card"
    if not arrival.announce_round_count:
        return "no: 0 rounds were wished"
    cards = "card" if arrival.network_card_count == 1 else "cards"
    when = ", once it goes on" if arrival.is_paused else ""
    rounds = "round" if arrival.announce_round_count == 1 else "rounds"
    return f"{arrival.announce_round_count} {rounds} for {arrival.network_card_count} network {cards}{when}"


def _clock(clock: pb.ClockSync) -> str:
    behind_s = seconds(clock.behind)
    match clock.outcome:
        case pb.ClockSync.OUTCOME_RIGHT:
            word = "ahead" if behind_s < 0 else "behind"
            return f"{format_duration(abs(behind_s))} {word}, left as it was"
        case pb.ClockSync.OUTCOME_SET:
            return f"was {format_duration(behind_s)} behind, set by the guest's agent"
        case pb.ClockSync.OUTCOME_NO_AGENT:
            return "not looked at: no guest agent answers"
        case pb.ClockSync.OUTCOME_FAILED:
            return f"not set: {clock.error}"
        case _:
            return ""
