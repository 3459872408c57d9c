"""The agent's directory: where each record lies, and nothing of what it means.

    state_dir/
      vms/<uuid>/definition.json    what is to be started; only of persistent VMs
      vms/<uuid>/running.json       what runs: the running definition and its process
      vms/<uuid>/wishes.json        what was set beside the definition: autostart, tunables
      vms/<uuid>/live.json          what holds while it runs: its cgroup, whether the guest ran when last looked at
      vms/<uuid>/qemu.log           what QEMU said on stderr
      vms/<uuid>/guest.save         a saved guest that the next start brings back
      sessions/<migration id>.json  one half of a migration; `.unreadable` beside it: what could not be read and goes on
      markers/<name>.json           a file that lies, or was about to lie, beside an image
      olderdisks/<digest>.json      an image here of which another host has a newer copy
      jobs/<job id>.json            a save, restore or dump under way
      blockjobs/<job id>.json       a job on a disk under way
      statistics/<uuid>.json        the figures of a VM's last migrations; stays when the VM has left
      autostarted.json              the boot of the host in which marked VMs were started
      audit.jsonl                   who did what; see `common.rpc.auditing`
      audit-refused.jsonl           who was refused what
      cache/                        what was probed; may be deleted
      keys/                         one-time keys of transfers
      run/                          sockets, with short names for AF_UNIX

All directories are the agent's alone (0700), which is what guards the sockets in them. Where guests run as a user of their own
(`agent.guest_user`) it may pass through, and make sockets in `run`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from agent.guest_user import GuestUser
from common.errors import InvalidRequest
from common.records import (
    MAX_RECORD_BYTES,
    BrokenRecord,
    StagedRecord,
    find_record,
    get_record,
    remove_leftovers,
    remove_record,
    sync_directory,
    write_record,
)
from common.storage import storing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# struct sockaddr_un holds 108 bytes and ends with a NUL. Source: unix(7).
MAX_SOCKET_PATH_BYTES = 107
RECORD_VERSION = 1
MAX_STATISTICS_COUNT = 1000
# Suffix of a session record that could not be read, while its half goes on.
UNREADABLE = ".unreadable"
_AGENTS_OWN = GuestUser()
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_LONGEST_SOCKET_NAME = "0123456789ab.out.255"


class VmDirectory:
    """The records of one VM."""

    def __init__(self, path: Path, socket_path: Path, guests: GuestUser) -> None:
        self.guests = guests
        self.path = path
        self.qmp_path = socket_path
        self.run_dir = socket_path.with_suffix(".d")
        self.log_path = path / "qemu.log"
        self.saved_path = path / "guest.save"
        self.definition_path = path / "definition.json"
        self.running_path = path / "running.json"
        self.wishes_path = path / "wishes.json"
        self.live_path = path / "live.json"

    def content(self, path: Path) -> bytes:
        """Read what is in the file of a record, whatever that is; empty where it cannot be read at all."""
        try:
            return path.read_bytes()[:MAX_RECORD_BYTES]
        except OSError:
            return b""

    def find_definition(self) -> dict[str, object] | None:
        """Read the persistent definition, if there is one."""
        return find_record(self.definition_path, kind="definition", version=RECORD_VERSION)

    def save_definition(self, body: Mapping[str, object]) -> None:
        """Write the persistent definition."""
        self._ensure()
        write_record(self.definition_path, kind="definition", version=RECORD_VERSION, body=body)

    def remove_definition(self) -> None:
        """Ensure that the VM has no persistent definition, nor what goes with it."""
        remove_record(self.definition_path)
        remove_record(self.wishes_path)

    def find_running(self) -> dict[str, object] | None:
        """Read what the VM runs as, if it ran when that was written."""
        return find_record(self.running_path, kind="running", version=RECORD_VERSION)

    def save_running(self, body: Mapping[str, object]) -> None:
        """Write what the VM runs as."""
        self._ensure()
        write_record(self.running_path, kind="running", version=RECORD_VERSION, body=body)

    def remove_running(self) -> None:
        """Ensure that the VM is not on record as running."""
        remove_record(self.running_path)
        remove_record(self.live_path)
        self.qmp_path.unlink(missing_ok=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def find_wishes(self) -> dict[str, object] | None:
        """Read what was set beside the definition."""
        return find_record(self.wishes_path, kind="wishes", version=RECORD_VERSION)

    def save_wishes(self, body: Mapping[str, object]) -> None:
        """Write what was set beside the definition."""
        self._ensure()
        write_record(self.wishes_path, kind="wishes", version=RECORD_VERSION, body=body)

    def find_live(self) -> dict[str, object] | None:
        """Read what holds while the VM runs."""
        return find_record(self.live_path, kind="live", version=RECORD_VERSION)

    def save_live(self, body: Mapping[str, object]) -> None:
        """Write what holds while the VM runs."""
        self._ensure()
        write_record(self.live_path, kind="live", version=RECORD_VERSION, body=body)

    def remove(self) -> None:
        """Ensure that nothing of the VM is left, its log included."""
        self.remove_running()
        if self.path.exists():
            shutil.rmtree(self.path)
            sync_directory(self.path.parent)

    def _ensure(self) -> None:
        if not self.path.exists():
            self.path.mkdir(mode=0o700)
            sync_directory(self.path.parent)


class Store:
    """Everything that the agent remembers from one run to the next."""

    def __init__(self, state_dir: Path, *, run_dir: Path | None = None, guests: GuestUser = _AGENTS_OWN) -> None:
        """Make the directories and sweep what a crash left half-written.

        Raises:
            InvalidRequest: socket paths under `run_dir` would be longer than AF_UNIX allows.
        """
        self.guests = guests
        self.state_dir = state_dir.resolve()
        self.run_dir = (run_dir or self.state_dir / "run").resolve()
        self.cache_dir = self.state_dir / "cache"
        self.keys_dir = self.state_dir / "keys"
        self._vms_dir = self.state_dir / "vms"
        self.sessions_dir = self.state_dir / "sessions"
        self.jobs_dir = self.state_dir / "jobs"
        self.block_jobs_dir = self.state_dir / "blockjobs"
        self.markers_dir = self.state_dir / "markers"
        self._statistics_dir = self.state_dir / "statistics"
        self.older_disks_dir = self.state_dir / "olderdisks"
        self._autostarted_path = self.state_dir / "autostarted.json"
        _check_socket_path(self.run_dir / _LONGEST_SOCKET_NAME)
        for directory in (
            self.state_dir,
            self.run_dir,
            self.cache_dir,
            self.keys_dir,
            self._vms_dir,
            self.sessions_dir,
            self.jobs_dir,
            self.block_jobs_dir,
            self.markers_dir,
            self._statistics_dir,
            self.older_disks_dir,
        ):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.run_dir.chmod(0o700)
        self.keys_dir.chmod(0o700)
        guests.admit(self.state_dir, self.keys_dir, self._vms_dir)
        guests.let_make(self.run_dir)
        for directory in (*self._record_dirs(), *self._vms_dir.iterdir()):
            remove_leftovers(directory)

    def _record_dirs(self) -> tuple[Path, ...]:
        return (
            self.sessions_dir,
            self.jobs_dir,
            self.block_jobs_dir,
            self.markers_dir,
            self._statistics_dir,
            self.older_disks_dir,
        )

    def vm(self, uuid: UUID) -> VmDirectory:
        """Name the place of a VM; nothing is made or read."""
        return VmDirectory(self._vms_dir / str(uuid), self.socket_path(uuid, "qmp"), self.guests)

    def vm_uuids(self) -> Iterator[UUID]:
        """List the VMs that have a directory, in a stable order."""
        for path in sorted(self._vms_dir.iterdir()):
            try:
                uuid = UUID(path.name)
            except ValueError:
                continue  # not made by us
            if str(uuid) == path.name:
                yield uuid

    def socket_path(self, uuid: UUID, purpose: str) -> Path:
        """Name a socket of a VM.

        People choose UUIDs with equal beginnings, so the short name is made of a digest.
        """
        return self.run_dir / f"{hashlib.sha256(uuid.bytes).hexdigest()[:12]}.{purpose}"

    def session_socket_path(self, session_id: str, purpose: str) -> Path:
        """Name a socket of one half of a migration; of a digest, since callers choose ids with equal beginnings."""
        return self.run_dir / f"{hashlib.sha256(session_id.encode()).hexdigest()[:12]}.{purpose}"

    def find_autostarted_boot(self) -> str | None:
        """Read in which boot of the host marked VMs were last started."""
        record = find_record(self._autostarted_path, kind="autostarted", version=RECORD_VERSION)
        return None if record is None else str(record.get("boot_id"))

    def save_autostarted_boot(self, boot_id: str) -> None:
        """Write in which boot of the host marked VMs were started."""
        write_record(self._autostarted_path, kind="autostarted", version=RECORD_VERSION, body={"boot_id": boot_id})

    def find_session(self, session_id: str) -> dict[str, object] | None:
        """Read one half of a migration."""
        return find_record(self.session_path(session_id), kind="session", version=RECORD_VERSION)

    def save_session(self, session_id: str, body: Mapping[str, object]) -> None:
        """Write one half of a migration; it is durable on return."""
        write_record(self.session_path(session_id), kind="session", version=RECORD_VERSION, body=body)

    def stage_session(self, session_id: str, body: Mapping[str, object]) -> StagedRecord:
        """Write one half of a migration beside its place, for `commit` to put it there."""
        return StagedRecord(self.session_path(session_id), kind="session", version=RECORD_VERSION, body=body)

    def session_content(self, session_id: str) -> bytes:
        """Read what is in the file of a half of a migration, whatever that is; empty where it cannot be read at all."""
        try:
            return self.session_path(session_id).read_bytes()[:MAX_RECORD_BYTES]
        except OSError:
            return b""

    def set_session_aside(self, session_id: str) -> Path:
        """Keep a record that cannot be read beside its place, where another one is going to be; return where it is."""
        path = self.session_path(session_id)
        aside = path.with_suffix(UNREADABLE)
        with storing(aside):
            aside.unlink(missing_ok=True)
            aside.hardlink_to(path)
        return aside

    def forget_session_aside(self, session_id: str) -> None:
        """Ensure that no unreadable record of a half is kept."""
        remove_record(self.session_path(session_id).with_suffix(UNREADABLE))

    def claim_path(self, session_id: str) -> Path:
        """Name what a guardian writes of one half of a migration while its agent is away."""
        return self.session_path(session_id).with_suffix(".claim")

    def remove_session(self, session_id: str) -> None:
        """Ensure that a half of a migration is forgotten."""
        remove_record(self.session_path(session_id))

    def save_marker(self, path: Path) -> None:
        """Write that a file is going to be put beside an image; markers have names of their own."""
        write_record(self._marker_path(path), kind="marker", version=RECORD_VERSION, body={"path": str(path)})

    def remove_marker(self, path: Path) -> None:
        """Ensure that a file beside an image is forgotten, which is gone."""
        remove_record(self._marker_path(path))

    def markers(self) -> list[Path]:
        """List the files that may lie beside images; of records that cannot be read `ferry doctor` tells."""
        found = []
        for record in sorted(self.markers_dir.glob("*.json")):
            with suppress(BrokenRecord, KeyError):
                found.append(Path(str(get_record(record, kind="marker", version=RECORD_VERSION)["path"])))
        return found

    def find_statistics(self, uuid: UUID) -> dict[str, object] | None:
        """Read the figures of a VM's last migrations."""
        return find_record(self._statistics_dir / f"{uuid}.json", kind="statistics", version=RECORD_VERSION)

    def save_statistics(self, uuid: UUID, body: Mapping[str, object]) -> None:
        """Write the figures of a VM's last migrations; of too many VMs those that moved longest ago are forgotten."""
        write_record(self._statistics_dir / f"{uuid}.json", kind="statistics", version=RECORD_VERSION, body=body)
        paths = sorted(self._statistics_dir.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[:-MAX_STATISTICS_COUNT]:
            remove_record(path)

    def find_older_disk(self, key: str) -> dict[str, object] | None:
        """Read what is on record of an image of which another host has a newer copy.

        Raises:
            BrokenRecord: there is a record that cannot be read.
        """
        return find_record(self._older_disk_path(key), kind="older-disk", version=RECORD_VERSION)

    def save_older_disk(self, key: str, body: Mapping[str, object]) -> None:
        """Write that another host has, or is about to have, a newer copy of an image; it is durable on return."""
        write_record(self._older_disk_path(key), kind="older-disk", version=RECORD_VERSION, body=body)

    def remove_older_disk(self, key: str) -> None:
        """Ensure that an image counts as the newest."""
        remove_record(self._older_disk_path(key))

    def _older_disk_path(self, key: str) -> Path:
        return self.older_disks_dir / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.json"

    def statistics_uuids(self) -> list[UUID]:
        """List the VMs whose figures are kept."""
        found = []
        for path in sorted(self._statistics_dir.glob("*.json")):
            with suppress(ValueError):  # not made by us
                found.append(UUID(path.stem))
        return found

    def session_ids(self) -> list[str]:
        """List the halves of migrations on record, in a stable order."""
        return sorted(path.stem for path in self.sessions_dir.glob("*.json"))

    def _marker_path(self, path: Path) -> Path:
        return self.markers_dir / f"{path.name.removeprefix('.')}.json"

    def session_path(self, session_id: str) -> Path:
        """Name the file of a half of a migration."""
        if not _SESSION_ID.fullmatch(session_id):
            raise InvalidRequest(
                f"migration id {session_id[:80]!r}: 1 to 64 letters, digits and dashes are wanted",
                reason="MIGRATION_ID_INVALID",
            )
        return self.sessions_dir / f"{session_id}.json"


def _check_socket_path(path: Path) -> None:
    length = len(str(path).encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise InvalidRequest(
            f"directory {path.parent}: socket paths in it have {length} bytes, {MAX_SOCKET_PATH_BYTES} is the most; "
            "configure a shorter run directory",
            reason="RUN_DIRECTORY_TOO_LONG",
            path=path.parent,
            length_bytes=length,
        )
