"""What speaks against an operation: refused at the first, or collected so that all of it can be told in one go.

    findings = Findings()            # or Findings(collects=True)
    with findings.check():
        require_something()          # raises FerryError

The same checks serve the operation itself and its plan, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from common.errors import Bug, FerryError


class Severity(Enum):
    """How much a finding matters."""

    BLOCKER = "blocker"
    WARNING = "warning"
    NOTE = "note"


class Risk(str):
    """A sentence on what may go wrong, with a stable UPPER_SNAKE word; to people and to records it is the sentence."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, text: str, code: str) -> Self:
        """Make one."""
        risk = super().__new__(cls, text)
        risk.code = code
        return risk


def warnings_of(side: str, texts: Iterable[str]) -> tuple[Finding, ...]:
    """Make findings of what would be told as warnings."""
    return tuple(Finding(text.code if isinstance(text, Risk) else "RISK", Severity.WARNING, side, str(text)) for text in texts)


def notes_of(side: str, code: str, texts: Iterable[str]) -> tuple[Finding, ...]:
    """Make findings of what is good to know."""
    return tuple(Finding(code, Severity.NOTE, side, text) for text in texts)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a plan found.

    Attributes:
        code: stable UPPER_SNAKE word; of a blocker the reason that the operation itself would be refused for.
        side: `source` or `destination`.
    """

    code: str
    severity: Severity
    side: str
    text: str


class Check:
    """One check; a mistake of Ferry's own is never collected."""

    def __init__(self, errors: list[FerryError] | None) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        """Keep what was refused, where it is collected."""
        if self._errors is None or not isinstance(error, FerryError) or isinstance(error, Bug):
            return False
        self._errors.append(error)
        return True


class Findings:
    """The blockers of one side, in the order in which they were found."""

    def __init__(self, *, collects: bool = False) -> None:
        self._collects = collects
        self.errors: list[FerryError] = []

    def check(self) -> Check:
        """Refuse, or collect, what is refused inside a `with` block."""
        return Check(self.errors if self._collects else None)

    def of(self, side: str) -> tuple[Finding, ...]:
        """Give what was collected as blockers of a side; the same one is told once."""
        found = (Finding(error.reason, Severity.BLOCKER, side, error.text) for error in self.errors)
        return tuple(dict.fromkeys(found))
