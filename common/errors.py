"""The errors that Ferry reports to people and to programs.

    FerryError
    |- InvalidRequest   never right; nothing was changed
    |- NotFound         no such VM, host, migration
    |- WrongState       right, but not in this state; nothing was changed
    |- Busy             another operation holds the thing
    |- Unreachable      a peer or QEMU is gone; the operation may have happened
    |- Expired          we stopped waiting; the work goes on
    `- Bug              ours

The category decides the gRPC code, in `common.rpc.status` and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar


class FerryError(Exception):
    """An expected failure, told in one line.

    Args:
        text: lower case, no full stop, names the thing, its value and what would be right.
        reason: stable UPPER_SNAKE word for programs.
        facts: each number and name of the text, for programs.
    """

    default_reason: ClassVar[str] = "ERROR"

    def __init__(self, text: str, *, reason: str | None = None, **facts: object) -> None:
        super().__init__(text)
        self.text = text
        self.reason = reason or self.default_reason
        self.facts = {name: str(value) for name, value in facts.items()}


class InvalidRequest(FerryError):
    """The request can never succeed as it stands; nothing was changed."""

    default_reason = "INVALID_REQUEST"


class NotFound(FerryError):
    """The named thing does not exist."""

    default_reason = "NOT_FOUND"


class WrongState(FerryError):
    """The request is right, but not now or not here; nothing was changed."""

    default_reason = "WRONG_STATE"


class Busy(FerryError):
    """Another operation holds the thing; try again later."""

    default_reason = "BUSY"


class Unreachable(FerryError):
    """A peer or QEMU did not answer; the operation may have happened."""

    default_reason = "UNREACHABLE"


class Expired(FerryError):
    """The wait ended before the work did; the work goes on."""

    default_reason = "EXPIRED"


class Bug(FerryError):
    """A mistake of Ferry's own."""

    default_reason = "BUG"
