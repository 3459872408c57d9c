"""Record what a real QEMU answers, for tests that must not depend on what we believe it answers.

    python -m tests.transcripts.record /usr/bin/qemu-system-x86_64 [record_blocks ..]

writes `tests/transcripts/VERSION/NAME.json`, each `{"execute": .., "arguments": .., "return" or "error": ..}`. The
guest has no kernel and little memory; every status of a migration is reached by a real one between two QEMUs.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.qemu.errors import QemuRefused
from agent.qemu.machine import decode_first_cpu_path
from agent.qemu.status import MigrationStatus, RunState
from tests.contract.real import real_qemu
from tests.fakes.network import LOOPBACK, black_hole, closed_port
from tests.fakes.relay import Relay
from tests.transcripts.record_activation import record_activation
from tests.transcripts.record_blocks import record_blocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from agent.qemu.commands import Qemu

REACH_TIMEOUT_S = 10.0
POLL_S = 0.002
SLOW_BYTES_PER_S = 4096
NO_LIMIT_BYTES_PER_S = 1 << 40
EXIT_ON_ERROR_SINCE = (9, 1)

FACTS = (
    "query-version",
    "query-name",
    "query-uuid",
    "query-machines",
    "query-cpu-definitions",
    "query-cpus-fast",
    "query-memory-size-summary",
    "query-migrate-capabilities",
    "query-migrate-parameters",
)


class Recorder:
    """Asks one version of QEMU and keeps its answers."""

    def __init__(self, binary: Path, directory: Path, *, is_new: bool) -> None:
        self.binary = binary
        self.is_new = is_new
        self._directory = directory

    async def keep(self, qemu: Qemu, name: str, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Ask, write the answer to NAME.json, and return it."""
        record: dict[str, object] = {"execute": command, "arguments": arguments or {}}
        reply: object = None
        try:
            reply = await qemu.monitor.execute(command, arguments)
            record["return"] = reply
        except QemuRefused as error:
            record["error"] = {"class": error.error_class, "desc": error.description}
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        text = re.sub(rf"{tempfile.gettempdir()}/ferry-record-\w+", "/run/ferry", text)
        (self._directory / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{self._directory.name} {name}")
        return reply

    async def keep_migration(self, qemu: Qemu, side: str, *statuses: MigrationStatus) -> MigrationStatus:
        """Wait for one of the statuses and keep `query-migrate` as it is then."""
        async with asyncio.timeout(REACH_TIMEOUT_S):
            while (status := (await qemu.query_migrate()).status) not in statuses:  # noqa: ASYNC110  (QEMU is polled)
                await asyncio.sleep(POLL_S)
        reply = await self.keep(qemu, f"query-migrate.{side}.{status.value}", "query-migrate")
        assert isinstance(reply, dict)
        assert reply.get("status", "none") == status.value
        return status


@asynccontextmanager
async def pair(
    recorder: Recorder, *, exit_on_error: bool | None = None, **capabilities: bool
) -> AsyncIterator[tuple[Qemu, Qemu, Relay, str]]:
    """Start a running source and a listening destination with a relay between; yields the source's URI too."""
    wanted = {"events": True, "return-path": True, "late-block-activate": True}
    wanted |= {name.replace("_", "-"): state for name, state in capabilities.items()}
    with tempfile.TemporaryDirectory(prefix="ferry-record-") as name:
        directory = Path(name)
        async with (
            real_qemu(recorder.binary) as source,
            real_qemu(recorder.binary, incoming=True) as destination,
            Relay(directory / "out", directory / "in") as relay,
        ):
            await source.cont()
            await source.set_capabilities(wanted)
            await destination.set_capabilities(wanted)
            await recorder.keep_migration(destination, "destination", MigrationStatus.NONE)
            await destination.migrate_incoming(f"unix:{directory / 'in'}", exit_on_error=exit_on_error)
            yield source, destination, relay, f"unix:{directory / 'out'}"


async def record_facts(recorder: Recorder) -> None:
    """Record what does not depend on a migration."""
    async with real_qemu(recorder.binary) as qemu:
        for command in FACTS:
            await recorder.keep(qemu, command, command)
        cpu = decode_first_cpu_path(await qemu.monitor.execute("query-cpus-fast"))
        for name in ("feature-words", "unavailable-features"):
            await recorder.keep(qemu, f"qom-get.{name}", "qom-get", {"path": cpu, "property": name})
        await recorder.keep(qemu, "qom-get.type", "qom-get", {"path": "/machine", "property": "type"})
        await recorder.keep(qemu, "query-status.prelaunch", "query-status")
        await recorder.keep_migration(qemu, "source", MigrationStatus.NONE)
        await qemu.cont()
        await recorder.keep(qemu, "query-status.running", "query-status")
        await qemu.stop()
        await recorder.keep(qemu, "query-status.paused", "query-status")
        await recorder.keep(qemu, "error.no-such-command", "x-no-such-command")
        await recorder.keep(qemu, "error.bad-uri", "migrate", {"uri": "nonsense"})
        await recorder.keep(qemu, "error.not-in-pre-switchover", "migrate-continue", {"state": "pre-switchover"})
        unknown = {"capabilities": [{"capability": "x-none", "state": True}]}
        await recorder.keep(qemu, "error.unknown-capability", "migrate-set-capabilities", unknown)
        await recorder.keep(qemu, "error.object-del", "object-del", {"id": "none"})


async def record_whole_move(recorder: Recorder) -> None:
    """Record a move that succeeds, held at every status on the way."""
    async with pair(recorder, pause_before_switchover=True) as (source, destination, relay, uri):
        await recorder.keep(destination, "query-status.inmigrate", "query-status")
        await recorder.keep_migration(destination, "destination", MigrationStatus.SETUP, MigrationStatus.NONE)
        await source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S})
        await source.migrate(uri)
        await recorder.keep_migration(source, "source", MigrationStatus.ACTIVE)
        await recorder.keep_migration(destination, "destination", MigrationStatus.ACTIVE)
        again = {"uri": uri}
        await recorder.keep(source, "error.migrate-again", "migrate", again)
        await source.set_parameters({"max-bandwidth": NO_LIMIT_BYTES_PER_S})
        await recorder.keep_migration(source, "source", MigrationStatus.PRE_SWITCHOVER)
        await recorder.keep(source, "query-status.finish-migrate", "query-status")
        await recorder.keep(source, "error.cont-in-pre-switchover", "cont")
        relay.hold_answers()
        await source.migrate_continue()
        await recorder.keep_migration(destination, "destination", MigrationStatus.COMPLETED)
        await recorder.keep_migration(source, "source", MigrationStatus.DEVICE)
        relay.release()
        await recorder.keep_migration(source, "source", MigrationStatus.COMPLETED)
        await recorder.keep(source, "query-status.postmigrate", "query-status")
        await recorder.keep(source, "error.migrate-from-postmigrate", "migrate", {"uri": uri})
        assert await destination.query_status() is RunState.PAUSED


async def record_cancel(recorder: Recorder) -> None:
    """Record a move that is cancelled; the query rides behind the cancel to catch `cancelling`."""
    async with pair(recorder) as (source, _, _, uri):
        await source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S})
        await source.migrate(uri)
        await recorder.keep_migration(source, "source", MigrationStatus.ACTIVE)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(source.migrate_cancel())
            tasks.create_task(recorder.keep(source, "query-migrate.source.cancelling", "query-migrate"))
        await recorder.keep_migration(source, "source", MigrationStatus.CANCELLED)


async def record_no_connection(recorder: Recorder) -> None:
    """Record a destination that refuses, and one whose network drops our SYN."""
    async with real_qemu(recorder.binary) as source:
        await source.cont()
        await source.migrate(f"tcp:{LOOPBACK}:{closed_port()}")
        await recorder.keep_migration(source, "source", MigrationStatus.FAILED)
        with black_hole() as (host, port):
            await source.migrate(f"tcp:{host}:{port}")
            await recorder.keep_migration(source, "source", MigrationStatus.SETUP)
            await source.migrate_cancel()
            await recorder.keep_migration(source, "source", MigrationStatus.CANCELLING, MigrationStatus.CANCELLED)


async def record_listening(recorder: Recorder) -> None:
    """Record a destination that waits on TCP, by IPv4 and by IPv6."""
    for name, host in (("ipv4", "127.0.0.1"), ("ipv6", "[::1]")):
        async with real_qemu(recorder.binary, incoming=True) as destination:
            await destination.migrate_incoming(f"tcp:{host}:0")
            await recorder.keep(destination, f"query-migrate.destination.listening-{name}", "query-migrate")


async def record_failed_load(recorder: Recorder) -> None:
    """Record a transfer that breaks; a destination new enough can be told to stay and say so."""
    exit_on_error = False if recorder.is_new else None
    async with pair(recorder, exit_on_error=exit_on_error) as (source, destination, relay, uri):
        await source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S})
        await source.migrate(uri)
        await recorder.keep_migration(source, "source", MigrationStatus.ACTIVE)
        relay.cut()
        await recorder.keep_migration(source, "source", MigrationStatus.FAILED)
        if recorder.is_new:
            await recorder.keep_migration(destination, "destination", MigrationStatus.FAILED)


async def record_postcopy(recorder: Recorder) -> None:
    """Record post-copy, its interruption and its recovery."""
    async with pair(recorder, postcopy_ram=True) as (source, destination, relay, uri):
        await source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S, "max-postcopy-bandwidth": SLOW_BYTES_PER_S})
        await source.migrate(uri)
        await recorder.keep_migration(source, "source", MigrationStatus.ACTIVE)
        await source.monitor.execute("migrate-start-postcopy")
        await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_ACTIVE)
        await recorder.keep_migration(destination, "destination", MigrationStatus.POSTCOPY_ACTIVE)
        relay.cut()
        await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_PAUSED)
        await recorder.keep_migration(destination, "destination", MigrationStatus.POSTCOPY_PAUSED)
        with tempfile.TemporaryDirectory(prefix="ferry-record-") as name:
            await record_recovery(recorder, source, destination, Path(name))


async def record_recovery(recorder: Recorder, source: Qemu, destination: Qemu, directory: Path) -> None:
    """Record a paused post-copy that connects again, with the destination's answers held back."""
    async with Relay(directory / "out", directory / "in") as relay:
        relay.hold_answers()
        await destination.monitor.execute_oob("migrate-recover", {"uri": f"unix:{directory / 'in'}"})
        await source.monitor.execute("migrate", {"uri": f"unix:{directory / 'out'}", "resume": True})
        await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_RECOVER)
        await recorder.keep_migration(destination, "destination", MigrationStatus.POSTCOPY_RECOVER)
        relay.release()
        await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_ACTIVE)
        relay.cut()
        await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_PAUSED)
        if recorder.is_new:
            with black_hole() as (host, port):
                await source.monitor.execute("migrate", {"uri": f"tcp:{host}:{port}", "resume": True})
                await recorder.keep_migration(source, "source", MigrationStatus.POSTCOPY_RECOVER_SETUP)


async def record_figures(recorder: Recorder) -> None:
    """Record the figures of means that are not always used."""
    for name, capabilities in (("multifd", {"multifd": True}), ("xbzrle", {"xbzrle": True})):
        async with pair(recorder, **capabilities) as (source, _, _, uri):
            await source.set_parameters({"max-bandwidth": NO_LIMIT_BYTES_PER_S})
            await source.migrate(uri)
            await reach(source, MigrationStatus.COMPLETED)
            await recorder.keep(source, f"query-migrate-{name}.source", "query-migrate")
    async with pair(recorder, postcopy_ram=True, postcopy_blocktime=True) as (source, destination, _, uri):
        await source.set_parameters({"max-bandwidth": SLOW_BYTES_PER_S})
        await source.migrate(uri)
        await reach(source, MigrationStatus.ACTIVE)
        await source.monitor.execute("migrate-start-postcopy")
        await reach(source, MigrationStatus.COMPLETED)
        await reach(destination, MigrationStatus.COMPLETED)
        await recorder.keep(source, "query-migrate-postcopy.source", "query-migrate")
        await recorder.keep(destination, "query-migrate-postcopy.destination", "query-migrate")


async def reach(qemu: Qemu, status: MigrationStatus) -> None:
    """Wait for a status of a migration."""
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while (await qemu.query_migrate()).status is not status:  # noqa: ASYNC110  (QEMU is polled)
            await asyncio.sleep(POLL_S)


async def main(binary: Path, wanted: list[str]) -> None:
    """Record everything of one QEMU, or only what is wanted, by the names of the functions."""
    async with real_qemu(binary) as qemu:
        version = await qemu.query_version()
    directory = Path(__file__).parent / f"{version.major}.{version.minor}"
    directory.mkdir(exist_ok=True)
    recorder = Recorder(binary, directory, is_new=(version.major, version.minor) >= EXIT_ON_ERROR_SINCE)
    for record in (
        record_facts,
        record_whole_move,
        record_cancel,
        record_no_connection,
        record_listening,
        record_failed_load,
        record_postcopy,
        record_figures,
        record_blocks,
        record_activation,
    ):
        if not wanted or record.__name__ in wanted:
            await record(recorder)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
