"""What is on record of a job, so that the next agent can end what this one left half done."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from agent.saving.job import Kind
from common.codec import Unknown, decode, decode_what_can_be, encode_fields
from common.errors import FerryError
from common.records import MAX_RECORD_BYTES, find_record, parts_of, remove_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

RECORD_VERSION = 1
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job under way.

    Attributes:
        path: the file; of a save or dump it appears when it is complete.
        part_path: where a save or dump writes; empty for a restore.
        guest_runs: whether the guest ran before, or is to run after a restore.
        is_loaded: whether a restore had the guest complete: then it may have run.
    """

    id: str
    kind: Kind
    vm_uuid: UUID
    vm_name: str
    path: str
    part_path: str
    guest_runs: bool
    started_at_s: float
    is_loaded: bool = False
    unknown: Unknown = field(default_factory=Unknown, compare=False)


class JobRecords:
    """The jobs on record."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, record: JobRecord) -> None:
        """Write a job; durable on return."""
        write_record(self._path(record.id), kind="job", version=RECORD_VERSION, body=encode_fields(record))

    def remove(self, job_id: str) -> None:
        """Ensure that a job is not on record."""
        remove_record(self._path(job_id))

    def load(self) -> list[JobRecord]:
        """Read all; of one that cannot be read what is left of it, if that is enough to end the job, else it is left alone."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                body = find_record(path, kind="job", version=RECORD_VERSION)
                found += [] if body is None else [decode(JobRecord, body, where="job")]
            except FerryError as error:
                _log.error("job cannot be read", path=str(path), error=error.text)
                left = _left_of(path)
                found += [] if left is None else [left]
        return found

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.json"


def _left_of(path: Path) -> JobRecord | None:
    """Read what is left of a job, to undo it: a guest that was being saved runs on. None where it cannot be told what to undo."""
    try:
        content = path.read_bytes()[:MAX_RECORD_BYTES]
    except OSError:
        return None
    left = decode_what_can_be(JobRecord, parts_of(content, [one.name for one in fields(JobRecord)]))
    needed = {"kind", "vm_uuid", "path", "part_path"} | ({"is_loaded"} if left.get("kind") is Kind.RESTORE else set())
    if needed - left.keys():
        return None
    assumed = {"vm_name": str(left["vm_uuid"]), "guest_runs": True, "started_at_s": 0.0}
    return JobRecord(**{**assumed, **left, "id": path.stem})
