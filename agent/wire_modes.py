"""Modes of a migration and what became of the guest, protobuf to the agent's own types and back."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from agent.migration.arrival import Arrival, ClockSync, NetworkGap, Outcome
from agent.migration.modes import Modes, Persistence, SourceDefinition
from common.errors import InvalidRequest
from ferry.common.v1 import modes_pb2 as pb

_NS: Final = 1_000_000_000
_PERSISTENCES: Final = {
    pb.PERSISTENCE_UNSPECIFIED: Persistence.AS_ON_SOURCE,
    pb.PERSISTENCE_TRANSIENT: Persistence.TRANSIENT,
    pb.PERSISTENCE_PERSISTENT: Persistence.PERSISTENT,
}
_SOURCE_DEFINITIONS: Final = {
    pb.SOURCE_DEFINITION_UNSPECIFIED: SourceDefinition.FOLLOWS,
    pb.SOURCE_DEFINITION_KEEP: SourceDefinition.KEEP,
    pb.SOURCE_DEFINITION_UNDEFINE: SourceDefinition.UNDEFINE,
}
_PERSISTENCE_NUMBERS: Final = {value: number for number, value in _PERSISTENCES.items()}
_SOURCE_DEFINITION_NUMBERS: Final = {value: number for number, value in _SOURCE_DEFINITIONS.items()}
_OUTCOMES: Final = {
    Outcome.NOT_LOOKED_AT: pb.ClockSync.OUTCOME_UNSPECIFIED,
    Outcome.RIGHT: pb.ClockSync.OUTCOME_RIGHT,
    Outcome.SET: pb.ClockSync.OUTCOME_SET,
    Outcome.NO_AGENT: pb.ClockSync.OUTCOME_NO_AGENT,
    Outcome.FAILED: pb.ClockSync.OUTCOME_FAILED,
}


def modes(message: pb.Modes) -> Modes:
    """Decode what is wished beside the transfer itself.

    Raises:
        InvalidRequest: a value is unknown or out of range, or two exclude each other.
    """
    if message.persistence not in _PERSISTENCES or message.source_definition not in _SOURCE_DEFINITIONS:
        raise InvalidRequest(
            f"modes: persistence {message.persistence} or source_definition {message.source_definition} is unknown to this agent",
            reason="MODES_UNKNOWN",
        )
    return Modes(
        announce_round_count=message.announce_round_count if message.HasField("announce_round_count") else None,
        suspend=message.suspend,
        persistence=_PERSISTENCES[message.persistence],
        source_definition=_SOURCE_DEFINITIONS[message.source_definition],
        offline=message.offline,
        leave_clock=message.leave_clock,
    )


def modes_message(value: Modes) -> pb.Modes:
    """Encode what is wished beside the transfer itself."""
    return pb.Modes(
        announce_round_count=value.announce_round_count,
        suspend=value.suspend,
        persistence=_PERSISTENCE_NUMBERS[value.persistence],
        source_definition=_SOURCE_DEFINITION_NUMBERS[value.source_definition],
        offline=value.offline,
        leave_clock=value.leave_clock,
    )


def arrival_message(value: Arrival) -> pb.Arrival:
    """Encode what became of the guest at the destination."""
    return pb.Arrival(
        is_paused=value.is_paused,
        announce_round_count=value.announce_round_count,
        network_card_count=value.network_card_count,
        clock=_clock_message(value.clock),
    )


def _clock_message(value: ClockSync) -> pb.ClockSync:
    return pb.ClockSync(outcome=_OUTCOMES[value.outcome], behind=_duration(value.behind_s), error=value.error)


def network_gap_message(value: NetworkGap) -> pb.NetworkGap:
    """Encode how long the guest could not be reached."""
    return pb.NetworkGap(gap=None if value.gap_s is None else _duration(value.gap_s), why_not=value.why_not)


def _duration(span_s: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(span_s * _NS))
    return message
