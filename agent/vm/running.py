"""The record of a VM that runs: all that a new agent needs to find it again.

It is written before QEMU is started, without a process, and again with it. An agent that dies in between leaves a
token by which the next one finds the process.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent.qemu.identity import ProcessIdentity
from agent.vm.definition import Accelerator, Definition
from common.codec import BadRecord, Unknown, decode, encode_fields
from common.errors import Bug

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Running:
    """What runs for a VM.

    Attributes:
        definition: the running definition: pinned, with the accelerator in use.
        token: marks the process; see `process.find_launched`.
        boot_id: the boot of the host, in which a pid means something.
        process: None until QEMU was started.
        migration_id: the migration that brings the guest in, until it is here for good; None otherwise.
        started_at_s: wall clock of the host.
        qmp_path: QMP socket of an adopted QEMU; None for one that the agent started, whose socket is in its directory.
    """

    definition: Definition
    argv: tuple[str, ...]
    token: str
    boot_id: str
    process: ProcessIdentity | None
    log_offset_bytes: int
    migration_id: str | None
    started_at_s: float
    qmp_path: Path | None = None
    unknown: Unknown = field(default_factory=Unknown, compare=False)

    @property
    def accelerator(self) -> Accelerator:
        """The accelerator in use."""
        if self.definition.accelerator is None:
            raise Bug("a running definition without an accelerator")
        return self.definition.accelerator

    def to_record(self) -> dict[str, object]:
        """Turn into a JSON object that `from_record` takes."""
        return {**encode_fields(self), "definition": self.definition.to_record()}

    @classmethod
    def from_record(cls, record: dict[str, object]) -> Running:
        """Build from what `to_record` gave.

        Raises:
            InvalidRequest: it is not such a record.
        """
        definition = Definition.from_record(record.get("definition"))
        if definition.accelerator is None:
            raise BadRecord("running: a definition without an accelerator")
        return decode(cls, {**record, "definition": encode_fields(definition)}, where="running")


def read_boot_id() -> str:
    """Read what names this boot of the host. Source: random(4)."""
    return _BOOT_ID_PATH.read_text(encoding="ascii").strip()


def adopted(definition: Definition, argv: tuple[str, ...], process: ProcessIdentity, qmp_path: Path) -> Running:
    """Describe a QEMU that somebody else started; when that was does not matter to anyone, so it is now."""
    return Running(
        definition=definition,
        argv=argv,
        token=secrets.token_hex(16),
        boot_id=read_boot_id(),
        process=process,
        log_offset_bytes=0,
        migration_id=None,
        started_at_s=time.time(),
        qmp_path=qmp_path,
    )
