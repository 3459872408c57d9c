"""What a guardian leaves for its agent: that it has given the guest away, or has let it go on here; written before it does.

An agent that was away has to learn it before it says anything of the guest: a record of its own does not tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.guardian.charge import Charge
from common.clock import boot_s
from common.codec import decode, encode_fields
from common.records import find_record, write_record

_KIND: Final = "claim"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Note:
    """A guest that a guardian has given away, or has let go on here.

    Attributes:
        at_s: when, on the clock of `common.clock.boot_s`.
        status: what QEMU's migration was then.
        keep_paused: whether it was to stay paused.
    """

    at_s: float
    status: str
    keep_paused: bool


def write_note(charge: Charge, status: str, *, keep_paused: bool) -> None:
    """Write it, durably."""
    write_record(Path(charge.note_path), kind=_KIND, version=_VERSION, body=encode_fields(Note(boot_s(), status, keep_paused)))


def find_note(path: Path) -> Note | None:
    """Read it, if there is one.

    Raises:
        BrokenRecord: it cannot be read.
    """
    body = find_record(path, kind=_KIND, version=_VERSION)
    return None if body is None else decode(Note, body)
