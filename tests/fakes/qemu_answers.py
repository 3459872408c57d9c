"""What the fake QEMU answers to each command: recorded facts, or the model of its migration."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, cast

from agent.qemu.status import MigrationStatus, RunState
from tests import transcripts
from tests.fakes.qemu_migration import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.qemu_migration import FakeMigration

    Json = dict[str, object]

RECORDED = (
    "query-version",
    "query-name",
    "query-uuid",
    "query-machines",
    "query-cpu-definitions",
    "query-cpus-fast",
    "query-memory-size-summary",
)


class FakeAnswers:
    """Answers commands, or raises Refused.

    Attributes:
        refusals: texts to refuse commands with, by name.
        replies: what to answer to a command in place of the model, by name.
        properties: answers to `qom-get`, by property, in place of the recorded ones.
        parameters: the migration parameters.
        objects: the ids of objects that `object-add` made.
    """

    def __init__(self, version: str, migration: FakeMigration, emit: Callable[..., None]) -> None:
        self.refusals: dict[str, str] = {}
        self.replies: dict[str, object] = {}
        self.properties: dict[str, object] = {"share-rw": True}  # of the one image that is asked about
        self.objects: set[str] = set()
        self._version = version
        self._migration = migration
        self._emit = emit
        entries = cast("list[Json]", self._recorded("query-migrate-capabilities"))
        migration.capabilities = {str(entry["capability"]): entry["state"] is True for entry in entries}
        self.parameters = cast("Json", self._recorded("query-migrate-parameters"))
        self._commands: dict[str, Callable[[Json], object]] = {
            "query-status": self._query_status,
            "query-migrate": self._query_migrate,
            "query-migrate-capabilities": self._query_capabilities,
            "query-migrate-parameters": lambda _: self.parameters,
            "query-yank": lambda _: [{"type": "migration"}] if migration.has_channels else [],
            "qom-get": self._qom_get,
            "migrate-set-capabilities": self._set_capabilities,
            "migrate-set-parameters": self._set_parameters,
            "object-add": lambda arguments: self.objects.add(str(arguments["id"])),
            "object-del": self._object_del,
            "migrate": lambda arguments: migration.migrate(str(arguments["uri"])),
            "migrate-incoming": self._migrate_incoming,
            "migrate_cancel": lambda _: migration.migrate_cancel(),
            "migrate-continue": lambda _: migration.migrate_continue(),
            "cont": lambda _: migration.cont(),
            "stop": lambda _: migration.stop(),
            "yank": lambda _: migration.yank(),
            "block-export-add": self._block_export_add,
            "x-debug-query-block-graph": lambda _: self._recorded(f"x-debug-query-block-graph.{self._activity}"),
            "query-block": lambda _: self._recorded(f"query-block.{self._activity}"),
            "quit": lambda _: emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}),
            "system_powerdown": lambda _: emit("POWERDOWN"),
            "system_reset": lambda _: emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"}),
        }

        if version != "7.2":
            self._commands["blockdev-set-active"] = lambda _: migration.activate_images()

    @property
    def _activity(self) -> str:
        return "active" if self._migration.has_images else "inactive"

    def give(self, command: str, arguments: Json) -> object:
        """Do what the command says and return its reply."""
        if command in self.refusals:
            raise Refused(self.refusals[command])
        if command in self.replies:
            return deepcopy(self.replies[command])
        if command in RECORDED:
            return self._recorded(command)
        if command not in self._commands:
            raise Refused(f"The command {command} has not been found", "CommandNotFound")
        reply = self._commands[command](arguments)
        return {} if reply is None else reply

    def _query_status(self, _arguments: Json) -> Json:
        state = self._migration.run_state
        return {"status": state.value, "running": state is RunState.RUNNING}

    def _query_migrate(self, _arguments: Json) -> Json:
        migration = self._migration
        side = "destination" if migration.is_incoming else "source"
        name = f"query-migrate.{side}.{migration.status.value}"
        recording = transcripts.find(self._version, name) or {"return": {"status": migration.status.value}}
        reply = cast("Json", deepcopy(recording["return"]))
        reply.pop("socket-address", None)
        reply.pop("error-desc", None)
        if migration.is_incoming and migration.uri is not None and migration.status is not MigrationStatus.COMPLETED:
            reply["socket-address"] = [_socket_address(migration.uri)]
        if migration.status is MigrationStatus.FAILED and migration.error_desc is not None:
            reply["error-desc"] = migration.error_desc
        return reply

    def _query_capabilities(self, _arguments: Json) -> list[Json]:
        return [{"capability": name, "state": state} for name, state in self._migration.capabilities.items()]

    def _qom_get(self, arguments: Json) -> object:
        name = str(arguments["property"])
        return self.properties[name] if name in self.properties else self._recorded(f"qom-get.{name}")

    def _set_capabilities(self, arguments: Json) -> None:
        entries = cast("list[Json]", arguments["capabilities"])
        wanted = {str(entry["capability"]): entry["state"] is True for entry in entries}
        for name in wanted:
            if name not in self._migration.capabilities:
                raise Refused(f"Parameter 'capability' does not accept value '{name}'")
        if self._migration.is_moving:
            raise Refused("There's a migration process in progress")
        self._migration.capabilities |= wanted

    def _set_parameters(self, arguments: Json) -> None:
        for name in arguments:
            if name not in self.parameters:
                raise Refused(f"Parameter '{name}' is unexpected")
        self.parameters |= arguments
        self._migration.max_bandwidth = cast("int", self.parameters["max-bandwidth"])
        self._migration.go_on()

    def _block_export_add(self, _arguments: Json) -> None:
        if not self._migration.image_is_locked:
            self._migration.activate_images()
        raise Refused("NBD server not running")

    def _object_del(self, arguments: Json) -> None:
        identifier = str(arguments["id"])
        if identifier not in self.objects:
            raise Refused(f"object '{identifier}' not found")
        self.objects.discard(identifier)

    def _migrate_incoming(self, arguments: Json) -> None:
        if "exit-on-error" in arguments and self._version == "7.2":
            raise Refused("Parameter 'exit-on-error' is unexpected")
        exits_on_error = arguments.get("exit-on-error") is not False
        self._migration.migrate_incoming(str(arguments["uri"]), exits_on_error=exits_on_error)

    def _recorded(self, name: str) -> object:
        recording = transcripts.find(self._version, name)
        if recording is None:
            raise Refused(f"nothing recorded as {name}")
        return deepcopy(recording["return"])


def _socket_address(uri: str) -> Json:
    kind, _, place = uri.partition(":")
    if kind == "tcp":
        host, _, port = place.rpartition(":")
        return {"type": "inet", "host": host.strip("[]"), "port": port}
    return {"type": kind, "path": place}
