"""What users set on a VM beside its definition, and what holds while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.cgroup.group import Version
from common.codec import Unknown, decode, encode_fields


@dataclass(frozen=True, slots=True)
class Tunables:
    """Numbers that can be changed while a guest runs; None leaves the host's default."""

    cpu_shares: int | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """Kept as long as the definition.

    Attributes:
        moved_to: the host that its guest was moved to while the definition stayed; empty without.
    """

    autostart: bool = False
    tunables: Tunables = Tunables()
    moved_to: str = ""
    unknown: Unknown = field(default_factory=Unknown, compare=False)

    def to_record(self) -> dict[str, object]:
        """Turn into a JSON object that `from_record` takes."""
        return encode_fields(self)

    @classmethod
    def from_record(cls, record: dict[str, object] | None) -> Wishes:
        """Build from what `to_record` gave; without a record nothing was wished.

        Raises:
            InvalidRequest: it is not such a record.
        """
        return cls() if record is None else decode(cls, record, where="wishes")


@dataclass(frozen=True, slots=True)
class Live:
    """Kept as long as QEMU runs.

    Attributes:
        is_running: whether the guest ran when an agent last looked; None before the first look.
        cpu_shares: as the kernel has them; None without a group.
        cgroup: the interface that they are of.
        group: directory of the cgroup that was made for this QEMU.
    """

    is_running: bool | None = None
    cpu_shares: int | None = None
    cgroup: Version | None = None
    group: Path | None = None
    unknown: Unknown = field(default_factory=Unknown, compare=False)

    def to_record(self) -> dict[str, object]:
        """Turn into a JSON object that `from_record` takes."""
        return encode_fields(self)

    @classmethod
    def from_record(cls, record: dict[str, object] | None) -> Live:
        """Build from what `to_record` gave; without a record nothing is known.

        Raises:
            InvalidRequest: it is not such a record.
        """
        return cls() if record is None else decode(cls, record, where="live")
