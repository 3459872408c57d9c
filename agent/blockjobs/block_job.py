"""A job on a disk: as it is shown, and as it is on record, so that the next agent can end what this one left half done."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from agent.blockjobs.images import MadeFile
from common.codec import Unknown, decode, decode_what_can_be, encode_fields
from common.errors import FerryError
from common.records import MAX_RECORD_BYTES, find_record, parts_of, remove_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

RECORD_VERSION: Final = 1
# What our jobs and nodes are called in QEMU: the prefix, and the beginning of the job's id.
PREFIX: Final = "ferry-"
_ID_LENGTH: Final = 12
_log = structlog.get_logger()


class Kind(Enum):
    """What a job does; an active commit takes the uppermost image down."""

    COPY = "copy"
    PULL = "pull"
    COMMIT = "commit"
    ACTIVE_COMMIT = "active-commit"
    SNAPSHOT = "snapshot"

    @property
    def pivots(self) -> bool:
        """Whether it becomes ready, and the disk goes over to what it has written."""
        return self in (Kind.COPY, Kind.ACTIVE_COMMIT)


class State(Enum):
    """Where a job stands; the last three are final.

    UNDECIDED: QEMU ended while the disk went over and nobody saw on which image; a user says which is right.
    """

    ACTIVE = "active"
    READY = "ready"
    UNDECIDED = "undecided"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


class Wish(Enum):
    """How the job is to end; NONE leaves that open."""

    NONE = "none"
    PIVOT = "pivot"
    ABORT = "abort"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Place:
    """An image of the disk before or after the job; as `chain.Layer`."""

    path: str
    format: str
    node: str
    file_node: str


@dataclass(frozen=True, slots=True)
class BlockJobRecord:
    """One job under way.

    Attributes:
        device: id of the device in front of the disk.
        node: the disk's node where the device has no id.
        file: what a copy or a snapshot writes, or the image that gets a commit or that a pull goes down to; empty for all the way.
        before, after: the disk's images when it began, and when it has done what it was asked for; the uppermost first.
        made: the file that we make; None where there was one.
        pivots_when_ready: whether nobody has to ask for the pivot.
        wish: what was asked for last; on record before QEMU is told.
        outcome: how it ended, a State, once that was seen; empty before. QEMU's job is dismissed after that.
        error: QEMU's text.
        losses: what the disk has no more when the job is done, a sentence each.
    """

    id: str
    kind: Kind
    vm_uuid: UUID
    vm_name: str
    disk: str
    device: str
    node: str
    file: str
    before: tuple[Place, ...]
    after: tuple[Place, ...]
    made: MadeFile | None
    started_at_s: float
    bandwidth_bytes_per_second: int = 0
    pivots_when_ready: bool = False
    wish: Wish = Wish.NONE
    outcome: str = ""
    error: str = ""
    losses: tuple[str, ...] = ()
    unknown: Unknown = field(default_factory=Unknown, compare=False)

    @property
    def qemu_id(self) -> str:
        """Id of the job in QEMU, and name of the node that it makes; so a retry cannot collide."""
        return qemu_id(self.id)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that it makes, the uppermost first."""
        return (self.qemu_id, f"{self.qemu_id}-f")

    @property
    def paths(self) -> tuple[str, ...]:
        """The disk's images when it began."""
        return tuple(place.path for place in self.before)

    def named(self) -> str:
        """Name it in a sentence."""
        return f"the {self.kind.value} of disk {self.disk} of VM {self.vm_name}"


def qemu_id(job_id: str) -> str:
    """Name a job and its node in QEMU, which takes 31 characters for a node."""
    return f"{PREFIX}{job_id.replace('-', '')[:_ID_LENGTH]}"


@dataclass(frozen=True, slots=True)
class BlockJob:
    """A job as it is shown.

    Attributes:
        path: the image that the guest writes to.
        status: QEMU's word.
        total_bytes, processed_bytes: QEMU's count, which grows with what the guest writes; 0 while not known.
        error: why it failed or was cancelled, and what became of the disk; `reason` is the word for programs.
    """

    record: BlockJobRecord
    path: str
    state: State = State.ACTIVE
    status: str = ""
    total_bytes: int = 0
    processed_bytes: int = 0
    ended_at_s: float | None = None
    error: str = ""
    reason: str = ""

    @property
    def id(self) -> str:
        """Id, chosen by the agent."""
        return self.record.id

    @property
    def is_over(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """A job whose record cannot be read.

    Attributes:
        vm_uuid, disk: None and empty where they cannot be told.
    """

    id: str
    path: Path
    vm_uuid: UUID | None
    disk: str


class BlockJobRecords:
    """The jobs on record."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, record: BlockJobRecord) -> None:
        """Write a job; durable on return."""
        write_record(self._path(record.id), kind="block-job", version=RECORD_VERSION, body=encode_fields(record))

    def remove(self, job_id: str) -> None:
        """Ensure that a job is not on record."""
        remove_record(self._path(job_id))

    def load(self) -> list[BlockJobRecord]:
        """Read all; one that cannot be read is left alone and told in the log."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                body = find_record(path, kind="block-job", version=RECORD_VERSION)
                found += [] if body is None else [decode(BlockJobRecord, body, where="block job")]
            except FerryError as error:
                _log.error("block job cannot be read", path=str(path), error=error.text)
        return found

    def unreadable(self) -> list[UnreadableJob]:
        """List the jobs whose records cannot be read, as far as anything is left of them."""
        found = []
        known = {record.id for record in self.load()}
        for path in sorted(self._directory.glob("*.json")):
            if path.stem not in known:
                try:
                    content = path.read_bytes()[:MAX_RECORD_BYTES]
                except OSError:
                    content = b""
                left = decode_what_can_be(BlockJobRecord, parts_of(content, [one.name for one in fields(BlockJobRecord)]))
                found.append(UnreadableJob(path.stem, path, left.get("vm_uuid"), left.get("disk", "")))
        return found

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{job_id}.json"
