"""The error of a command line that cannot be meant."""

from __future__ import annotations

from common.errors import InvalidRequest


class Misused(InvalidRequest):
    """Options that contradict each other, or are out of range."""

    default_reason = "USAGE"
