"""What is on record of a job, so that the next agent can end what this one left half done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from agent.saving.job import Kind
from common.codec import Unknown, decode, encode_fields
from common.errors import FerryError
from common.records import find_record, remove_record, write_record

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
        """Read all; one that cannot be read is left alone and told in the log."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                body = find_record(path, kind="job", version=RECORD_VERSION)
                found += [] if body is None else [decode(JobRecord, body, where="job")]
            except FerryError as error:
                _log.error("job cannot be read", path=str(path), error=error.text)
        return found

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.json"
