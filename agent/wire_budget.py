"""Protobuf of budgets and decisions to our types and back."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from agent.migration.budget import Budget, Policy, TimeoutAction
from agent.migration.convergence import Choice, Decision
from common.errors import InvalidRequest
from ferry.common.v1 import budget_pb2 as pb

_NS: Final = 1_000_000_000
_POLICIES: Final = {
    pb.POLICY_UNSPECIFIED: Policy.SAFE,
    pb.POLICY_SAFE: Policy.SAFE,
    pb.POLICY_FAST: Policy.FAST,
    pb.POLICY_MUST_FINISH: Policy.MUST_FINISH,
}
_ACTIONS: Final = {
    pb.TIMEOUT_ACTION_UNSPECIFIED: TimeoutAction.ABORT,
    pb.TIMEOUT_ACTION_ABORT: TimeoutAction.ABORT,
    pb.TIMEOUT_ACTION_PAUSE: TimeoutAction.PAUSE,
    pb.TIMEOUT_ACTION_POST_COPY: TimeoutAction.POST_COPY,
}
_CHOICES: Final = {choice: pb.Decision.Choice.Value(f"CHOICE_{choice.name}") for choice in Choice}


def budget(message: pb.Budget) -> Budget:
    """Decode what a transfer may cost.

    Raises:
        InvalidRequest: a value is unknown here or out of range, or two exclude each other.
    """
    if message.policy not in _POLICIES or message.on_timeout not in _ACTIONS:
        raise InvalidRequest(
            f"budget: policy {message.policy} or on_timeout {message.on_timeout} is unknown to this agent", reason="BUDGET_UNKNOWN"
        )
    return Budget(_POLICIES[message.policy], _seconds(message.max_duration), _ACTIONS[message.on_timeout])


def budget_message(value: Budget) -> pb.Budget:
    """Encode what a transfer may cost."""
    message = pb.Budget(
        policy=pb.Policy.Value(f"POLICY_{value.policy.name}"),
        on_timeout=pb.TimeoutAction.Value(f"TIMEOUT_ACTION_{value.on_timeout.name}"),
    )
    if value.max_duration_s:
        message.max_duration.CopyFrom(_duration(value.max_duration_s))
    return message


def decision_message(value: Decision) -> pb.Decision:
    """Encode a decision."""
    return pb.Decision(
        choice=_CHOICES[value.choice],
        at=_duration(value.at_s),
        pass_count=value.pass_count,
        remaining_bytes=value.remaining_bytes,
        bytes_per_second=value.bytes_per_second,
        needed_downtime=_duration(value.needed_s),
        downtime_limit=_duration(value.limit_s),
        is_timeout=value.is_timeout,
    )


def _seconds(message: Duration) -> float:
    return message.seconds + message.nanos / _NS


def _duration(span_s: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(span_s * _NS))
    return message
