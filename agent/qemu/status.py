"""QEMU's own states and its report about a migration. We observe them, so an unknown value is no error.

Source: qapi/migration.json (`MigrationStatus`, `MigrationInfo`), qapi/run-state.json (`RunState`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.qemu.decoding import as_list, as_mapping, find_int, find_str, get_float, get_int, get_str
from agent.qemu.errors import NotUnderstood
from agent.qemu.figures import Figures, decode_figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.subscription import Event


_MIB = 1 << 20
_PORT_DIGITS = 5


class MigrationStatus(Enum):
    """QEMU's status of a migration, on either side."""

    NONE = "none"
    SETUP = "setup"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    POSTCOPY_DEVICE = "postcopy-device"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILING = "failing"
    FAILED = "failed"
    COLO = "colo"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """Whether QEMU leaves this status only for a new migration."""
        return self in _FINAL


_FINAL = frozenset({MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED})


class RunState(Enum):
    """QEMU's run state; the vCPUs run in RUNNING only."""

    DEBUG = "debug"
    INMIGRATE = "inmigrate"
    INTERNAL_ERROR = "internal-error"
    IO_ERROR = "io-error"
    PAUSED = "paused"
    POSTMIGRATE = "postmigrate"
    PRELAUNCH = "prelaunch"
    FINISH_MIGRATE = "finish-migrate"
    RESTORE_VM = "restore-vm"
    RUNNING = "running"
    SAVE_VM = "save-vm"
    SHUTDOWN = "shutdown"
    SUSPENDED = "suspended"
    WATCHDOG = "watchdog"
    GUEST_PANICKED = "guest-panicked"
    COLO = "colo"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RamReport:
    """Guest memory on its way. Byte counts are of this migration so far.

    Attributes:
        dirty_pages_rate: pages a second, 0 before the first pass has ended.
        normal_count: whole pages sent, `duplicate_count`: pages of one repeated byte.
    """

    total_bytes: int
    transferred_bytes: int
    remaining_bytes: int
    normal_count: int
    duplicate_count: int
    page_size_bytes: int
    dirty_pages_rate: int
    dirty_sync_count: int
    mbps: float


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where a destination listens; `host` is a path for UNIX sockets, whose port is 0."""

    type: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """The answer to `query-migrate`; what QEMU left out is None or empty.

    Attributes:
        status_text: QEMU's own word, which an unknown status keeps.
        downtime_ms: how long the guest stood still, once `completed`, by the source.
        listening: the sockets of a destination that waits for its source.
        blocked_reasons: what in this guest QEMU cannot migrate, in its own sentences.
        syncs_by_time: whether the bitmap of changed pages is read several times a second, and not once a pass: so does a QEMU that
            tells what remains of all (11.1), while memory is on its way.
    """

    status: MigrationStatus
    status_text: str
    ram: RamReport | None
    total_time_ms: int | None
    setup_time_ms: int | None
    downtime_ms: int | None
    expected_downtime_ms: int | None
    cpu_throttle_percentage: int | None
    error_desc: str | None
    listening: tuple[SocketAddress, ...]
    blocked_reasons: tuple[str, ...]
    figures: Figures
    syncs_by_time: bool = False

    @property
    def port(self) -> int | None:
        """The first TCP port that a destination listens on."""
        return next((address.port for address in self.listening if address.type == "inet"), None)


def decode_migration_status(text: str) -> MigrationStatus:
    """Find the status QEMU means; UNKNOWN for one that is not in our list."""
    try:
        return MigrationStatus(text)
    except ValueError:
        return MigrationStatus.UNKNOWN


def migration_status_of(event: Event) -> MigrationStatus | None:
    """Find the status that an event reports; None when it is no `MIGRATION` event."""
    if event.name != "MIGRATION":
        return None
    return decode_migration_status(str(event.data.get("status")))


def decode_run_state(reply: object) -> RunState:
    """Decode the answer to `query-status`; UNKNOWN for a state that is not in our list."""
    text = get_str(as_mapping(reply, "query-status"), "status")
    try:
        return RunState(text)
    except ValueError:
        return RunState.UNKNOWN


def decode_migration(reply: object) -> MigrationReport:
    """Decode the answer to `query-migrate`, which is empty when there never was a migration."""
    mapping = as_mapping(reply, "query-migrate")
    text = find_str(mapping, "status") or MigrationStatus.NONE.value
    return MigrationReport(
        status=decode_migration_status(text),
        status_text=text,
        ram=_ram(as_mapping(mapping["ram"], "ram")) if "ram" in mapping else None,
        total_time_ms=find_int(mapping, "total-time"),
        setup_time_ms=find_int(mapping, "setup-time"),
        downtime_ms=find_int(mapping, "downtime"),
        expected_downtime_ms=find_int(mapping, "expected-downtime"),
        cpu_throttle_percentage=find_int(mapping, "cpu-throttle-percentage"),
        error_desc=find_str(mapping, "error-desc"),
        listening=_listening(mapping.get("socket-address", [])),
        blocked_reasons=tuple(str(reason) for reason in as_list(mapping.get("blocked-reasons", []), "blocked-reasons")),
        figures=decode_figures(mapping),
        syncs_by_time="remaining" in mapping,
    )


def _ram(ram: Mapping[str, object]) -> RamReport:
    return RamReport(
        total_bytes=get_int(ram, "total"),
        transferred_bytes=get_int(ram, "transferred"),
        remaining_bytes=get_int(ram, "remaining"),
        normal_count=get_int(ram, "normal"),
        duplicate_count=get_int(ram, "duplicate"),
        page_size_bytes=get_int(ram, "page-size"),
        dirty_pages_rate=get_int(ram, "dirty-pages-rate"),
        dirty_sync_count=get_int(ram, "dirty-sync-count"),
        mbps=get_float(ram, "mbps"),
    )


def _listening(value: object) -> tuple[SocketAddress, ...]:
    return tuple(_socket_address(as_mapping(address, "socket-address")) for address in as_list(value, "socket-address"))


def _socket_address(address: Mapping[str, object]) -> SocketAddress:
    kind = get_str(address, "type")
    if kind == "inet":
        port = get_str(address, "port")
        if not (port.isascii() and port.isdecimal() and len(port) <= _PORT_DIGITS):
            raise NotUnderstood(f"QEMU's reply: port {port!r:.80} is no number")
        return SocketAddress(kind, get_str(address, "host"), int(port))
    return SocketAddress(kind, find_str(address, "path") or find_str(address, "str") or "", 0)


def decode_dirty_rate(reply: object) -> int | None:
    """Decode the answer to `query-dirty-rate`, in bytes per second; None while it is not measured yet.

    Source: qapi/migration.json, DirtyRateInfo; `dirty-rate` is in MiB per second.
    """
    report = as_mapping(reply, "query-dirty-rate")
    rate = find_int(report, "dirty-rate")
    return None if get_str(report, "status") != "measured" or rate is None else rate * _MIB
