"""QEMU's commands, each as a typed method.

Replies are decoded strictly where we rely on them and leniently elsewhere. Every method raises QemuRefused when QEMU
says no, and QemuSilent or QemuGone when the outcome is unknown; a docstring tells what else matters. A command's
reply proves only that QEMU took it: what came of it is told by events and queries.

Source: the QAPI schemas of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from agent.qemu.block_commands import BlockCommands
from agent.qemu.decoding import as_list, as_mapping, as_str, find_str, get_str
from agent.qemu.errors import QemuGone
from agent.qemu.machine import (
    Chardev,
    CpuModel,
    Endpoint,
    FeatureWord,
    MachineType,
    MemorySize,
    QemuVersion,
    decode_capabilities,
    decode_chardevs,
    decode_cpu_models,
    decode_feature_words,
    decode_first_cpu_path,
    decode_machines,
    decode_memory_size,
    decode_names,
    decode_property_names,
    decode_version,
)
from agent.qemu.status import (
    MigrationReport,
    MigrationStatus,
    RunState,
    decode_dirty_rate,
    decode_migration,
    decode_run_state,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.qemu.monitor import Monitor

# Of each GiB; QEMU's own choice of 512 finds nothing in a small guest that writes little.
_DIRTY_SAMPLE_PAGES_A_GIB = 4096
_log = structlog.get_logger()


class Qemu:
    """One QEMU, by its commands."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.block = BlockCommands(monitor)

    # What it is

    async def query_version(self) -> QemuVersion:
        """Return QEMU's version."""
        return decode_version(await self._execute("query-version"))

    async def query_name(self) -> str | None:
        """Return the name given by `-name`, or None."""
        return find_str(as_mapping(await self._execute("query-name"), "query-name"), "name")

    async def query_uuid(self) -> str:
        """Return the guest's UUID; all zeros when none was set."""
        return get_str(as_mapping(await self._execute("query-uuid"), "query-uuid"), "UUID")

    async def query_machines(self) -> tuple[MachineType, ...]:
        """Return the machine types that this QEMU offers."""
        return decode_machines(await self._execute("query-machines"))

    async def query_cpu_definitions(self) -> tuple[CpuModel, ...]:
        """Return the CPU models, as they are under this accelerator and machine."""
        return decode_cpu_models(await self._execute("query-cpu-definitions"))

    async def query_cpu_properties(self) -> tuple[str, ...]:
        """Return what may be said after a CPU model: its features and how QEMU treats them.

        Source: qapi/qom.json, `qom-list-properties`; the model `max` has all that any other has.
        """
        return decode_property_names(await self._execute("qom-list-properties", {"typename": "max-x86_64-cpu"}))

    async def machine_type(self) -> str:
        """Return the versioned machine type that runs, such as `pc-q35-7.2`."""
        arguments = {"path": "/machine", "property": "type"}
        return as_str(await self._execute("qom-get", arguments), "type").removesuffix("-machine")

    async def feature_words(self) -> Mapping[FeatureWord, int]:
        """Return the CPUID bits that vCPU 0 shows the guest; migration does not compare them."""
        return decode_feature_words(await self._cpu_property("feature-words"))

    async def unavailable_features(self) -> tuple[str, ...]:
        """Return what the CPU model wants and vCPU 0 lacks; should be empty."""
        return decode_names(await self._cpu_property("unavailable-features"), "unavailable-features")

    async def shares_writes(self, device: str) -> bool:
        """Say whether a device, by its QOM path, lets others write to its image (`share-rw`)."""
        return await self._execute("qom-get", {"path": device, "property": "share-rw"}) is True

    async def query_memory_size(self) -> MemorySize:
        """Return the guest's memory."""
        return decode_memory_size(await self._execute("query-memory-size-summary"))

    async def query_chardevs(self) -> Mapping[str, Chardev]:
        """Return what stands behind the guest's lines, by the names of the chardevs."""
        return decode_chardevs(await self._execute("query-chardev"))

    # How it runs

    async def query_status(self) -> RunState:
        """Return the run state."""
        reply = await self._execute("query-status")
        state = decode_run_state(reply)
        if state is RunState.UNKNOWN:
            _log.warning("qemu run state unknown", vm=self.monitor.vm, reply=reply)
        return state

    async def cont(self) -> None:
        """Let the guest run. The proof is RESUME or RUNNING, never the reply.

        On a destination only in `completed` with PAUSED; earlier it arms an automatic start.
        """
        await self._execute("cont")

    async def stop(self) -> None:
        """Stop the vCPUs. On a destination that still loads it disarms an earlier cont()."""
        await self._execute("stop")

    async def quit(self) -> None:
        """End QEMU; also returns when it ended before it answered, or had ended already."""
        with suppress(QemuGone):
            await self._execute("quit")

    async def system_powerdown(self) -> None:
        """Press the guest's power button."""
        await self._execute("system_powerdown")

    async def system_reset(self) -> None:
        """Reset the guest."""
        await self._execute("system_reset")

    # Migration

    async def query_migrate(self) -> MigrationReport:
        """Return what QEMU says about its migration, on either side."""
        reply = await self._execute("query-migrate")
        report = decode_migration(reply)
        if report.status is MigrationStatus.UNKNOWN:
            _log.warning("qemu migration status unknown", vm=self.monitor.vm, status=report.status_text)
        return report

    async def calc_dirty_rate(self, seconds: int) -> None:
        """Start to measure how fast the guest writes, by pages picked at random; one measurement at a time."""
        await self._execute("calc-dirty-rate", {"calc-time": seconds, "sample-pages": _DIRTY_SAMPLE_PAGES_A_GIB})

    async def query_dirty_rate(self) -> int | None:
        """Return what the last measurement came to, in bytes of distinct pages a second; None while it goes on."""
        return decode_dirty_rate(await self._execute("query-dirty-rate"))

    async def set_capabilities(self, capabilities: Mapping[str, bool]) -> None:
        """Set migration capabilities; one that is refused leaves all as they were. Before listening or sending."""
        entries = [{"capability": name, "state": state} for name, state in capabilities.items()]
        await self._execute("migrate-set-capabilities", {"capabilities": entries})

    async def query_capabilities(self) -> Mapping[str, bool]:
        """Return every migration capability that this QEMU knows, with its state."""
        return decode_capabilities(await self._execute("query-migrate-capabilities"))

    async def set_parameters(self, parameters: Mapping[str, object]) -> None:
        """Set migration parameters, by QEMU's names; also while a migration is active."""
        await self._execute("migrate-set-parameters", parameters)

    async def query_parameters(self) -> Mapping[str, object]:
        """Return the migration parameters, by QEMU's names."""
        return as_mapping(await self._execute("query-migrate-parameters"), "query-migrate-parameters")

    async def migrate(self, uri: str) -> None:
        """Start to send the guest. Returns before the connection is tried."""
        await self._execute("migrate", {"uri": uri})

    async def migrate_again(self, uri: str) -> None:
        """Go on with a post-copy whose connection was lost. Returns before the connection is tried."""
        await self._execute("migrate", {"uri": uri, "resume": True})

    async def migrate_start_postcopy(self) -> None:
        """Ask for post-copy; only `postcopy-active` tells that it is, since the last pass may be quicker."""
        await self._execute("migrate-start-postcopy")

    async def migrate_recover(self, uri: str) -> None:
        """Let a destination whose connection was lost listen anew, out of band: its main loop may wait for a page."""
        await self.monitor.execute_oob("migrate-recover", {"uri": uri})

    async def migrate_pause(self) -> None:
        """Give the connection of a post-copy up, out of band; either side, in `postcopy-active`."""
        await self.monitor.execute_oob("migrate-pause")

    async def migrate_incoming(self, uri: str, *, exit_on_error: bool | None = None) -> None:
        """Listen for a source; works once in the life of a QEMU.

        Args:
            uri: as for migrate(); `tcp:HOST:0` takes a free port, which query_migrate() tells.
            exit_on_error: False keeps QEMU after a failed load, to be asked why; None where it may be older than 9.1.
        """
        arguments: dict[str, object] = {"uri": uri}
        if exit_on_error is not None:
            arguments["exit-on-error"] = exit_on_error
        await self._execute("migrate-incoming", arguments)

    async def migrate_cancel(self) -> None:
        """Ask the source to give up; without effect where nothing is sent. Only its status tells what came of it."""
        await self._execute("migrate_cancel")

    async def migrate_continue(self) -> None:
        """Let the source leave `pre-switchover` and serialise its devices.

        Returns when QEMU accepts the command; the end arrives as a MIGRATION event.
        """
        await self._execute("migrate-continue", {"state": MigrationStatus.PRE_SWITCHOVER.value})

    async def add_psk(
        self, identifier: str, directory: Path, endpoint: Endpoint, username: str, priority: str | None = None
    ) -> None:
        """Create the TLS credentials object `identifier` from `directory`/keys.psk.

        A client reads the file now, a server at every handshake.

        Args:
            identifier: the object's id, to be given as parameter `tls-creds`.
            directory: must be readable by QEMU.
            endpoint: SERVER on the destination.
            username: the key's name in the file; used by a client.
            priority: a GnuTLS priority string; the client's order of ciphers counts.
        """
        arguments: dict[str, object] = {
            "qom-type": "tls-creds-psk",
            "id": identifier,
            "endpoint": endpoint.value,
            "dir": str(directory),
        }
        if endpoint is Endpoint.CLIENT:
            arguments["username"] = username
        if priority is not None:
            arguments["priority"] = priority
        await self._execute("object-add", arguments)

    async def object_del(self, identifier: str) -> None:
        """Remove an object; QEMU does not check whether it is still referred to."""
        await self._execute("object-del", {"id": identifier})

    async def yank_migration(self) -> None:
        """Break the migration's connections, out of band: also while QEMU's main loop is stuck in sending."""
        await self.monitor.execute_oob("yank", {"instances": [{"type": "migration"}]})

    async def has_migration_channels(self) -> bool:
        """Say, out of band, whether QEMU still holds channels of a migration, or waits for a connect().

        QEMU 10.0 tells `cancelled` before that, and refuses a new migrate() until it is over.
        """
        instances = as_list(await self.monitor.execute_oob("query-yank"), "query-yank")
        return any(get_str(as_mapping(instance, "yank instance"), "type") == "migration" for instance in instances)

    async def _cpu_property(self, name: str) -> object:
        path = decode_first_cpu_path(await self._execute("query-cpus-fast"))
        return await self._execute("qom-get", {"path": path, "property": name})

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        return await self.monitor.execute(command, arguments)
