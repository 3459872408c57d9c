"""Post-copy, protobuf to the agent's own types and back."""

from __future__ import annotations

from typing import Final

from agent.migration.post_copy import PostCopy, When
from common.errors import InvalidRequest
from ferry.common.v1 import post_copy_pb2 as pb

_WHENS: Final = {
    pb.PostCopy.WHEN_UNSPECIFIED: When.NEVER,
    pb.PostCopy.WHEN_NEVER: When.NEVER,
    pb.PostCopy.WHEN_ALLOWED: When.ALLOWED,
    pb.PostCopy.WHEN_IMMEDIATELY: When.IMMEDIATELY,
    pb.PostCopy.WHEN_AFTER_FIRST_PASS: When.AFTER_FIRST_PASS,
}


def post_copy(message: pb.PostCopy) -> PostCopy:
    """Decode what the user wishes of post-copy.

    Raises:
        InvalidRequest: a value is unknown or out of range.
    """
    if message.when not in _WHENS:
        raise InvalidRequest(f"post_copy.when {message.when} is unknown; 0 to {max(_WHENS)} are known", reason="POSTCOPY_UNKNOWN")
    return PostCopy(_WHENS[message.when], message.bandwidth_bytes_per_second, message.preempt)


def post_copy_message(value: PostCopy) -> pb.PostCopy:
    """Encode what the user wishes of post-copy."""
    when = next(number for number, known in _WHENS.items() if known is value.when and number)
    return pb.PostCopy(when=when, bandwidth_bytes_per_second=value.bandwidth_bytes_per_second, preempt=value.preempt)
