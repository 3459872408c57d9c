"""Reading what is on record of a VM, also where part of it cannot be read: what a record stands for stays taken.

A definition that cannot be read is none that could be started; what runs is found by its process, which works in the VM's own
directory and has its launch token in its environment.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from agent.vm.definition import Accelerator, Definition
from agent.vm.process import argv_of, find_in
from agent.vm.running import Running, read_boot_id
from agent.vm.wishes import Live, Wishes
from common.codec import decode_what_can_be
from common.errors import FerryError, WrongState
from common.records import find_text, parts_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from agent.qemu.identity import ProcessIdentity
    from agent.store import VmDirectory

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    """A record of a VM that cannot be read."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class VmRecords:
    """What is on record of a VM.

    Attributes:
        persistent, running: None where there is none, or it cannot be read.
        has_unread_definition: whether there is a definition that cannot be read.
        has_unread_wishes: whether it cannot be told where its guest was moved to.
        process: a QEMU of it that was found although what runs cannot be told.
        name: as far as any of them tells; empty otherwise.
    """

    persistent: Definition | None = None
    running: Running | None = None
    wishes: Wishes = field(default_factory=Wishes)
    live: Live = field(default_factory=Live)
    problems: tuple[Problem, ...] = ()
    has_unread_definition: bool = False
    has_unread_wishes: bool = False
    process: ProcessIdentity | None = None
    name: str = ""


def read_vm(directory: VmDirectory, uuid: UUID) -> VmRecords:
    """Read all of them; one that cannot be read is left as it is, and told."""
    problems: list[Problem] = []

    def read(path: Path, work: Callable[[], Any]) -> Any:  # noqa: ANN401 -- what the record is of
        try:
            return work()
        except FerryError as error:
            _log.error("vm record cannot be read", uuid=str(uuid), path=str(path), error=error.text)
            problems.append(Problem(path, error.text))
            return None

    persistent = read(directory.definition_path, lambda: _definition(directory, uuid))
    has_unread_definition = bool(problems)
    running = read(directory.running_path, lambda: _running(directory, uuid))
    process = None
    if running is None and any(one.path == directory.running_path for one in problems):
        running, process, is_ended = _find_running(directory, persistent)
        if is_ended:
            problems = [one for one in problems if one.path != directory.running_path]
            directory.remove_running()
    wishes = read(directory.wishes_path, lambda: Wishes.from_record(directory.find_wishes()))
    live = read(directory.live_path, lambda: Live.from_record(directory.find_live()))
    return VmRecords(
        persistent=persistent,
        running=running,
        wishes=wishes or Wishes(),
        live=live or Live(),
        problems=tuple(one for one in problems if one.path != directory.live_path),
        has_unread_definition=has_unread_definition,
        has_unread_wishes=wishes is None,
        process=process,
        name=_name(directory, persistent, running),
    )


def _definition(directory: VmDirectory, uuid: UUID) -> Definition | None:
    record = directory.find_definition()
    return None if record is None else _checked(Definition.from_record(record), uuid)


def _running(directory: VmDirectory, uuid: UUID) -> Running | None:
    record = directory.find_running()
    if record is None:
        return None
    running = Running.from_record(record)
    _checked(running.definition, uuid)
    return running


def _checked(definition: Definition, uuid: UUID) -> Definition:
    if definition.uuid != uuid:
        raise WrongState(f"directory {uuid} holds records of VM {definition.uuid}", reason="RECORD_BROKEN")
    return definition


def _find_running(directory: VmDirectory, persistent: Definition | None) -> tuple[Running | None, ProcessIdentity | None, bool]:
    """Find what runs where its record cannot be read: what is to be known of it, its process, and whether it has ended."""
    content = directory.content(directory.running_path)
    parts = parts_of(content, list(Running.__dataclass_fields__))
    known = decode_what_can_be(Running, parts)
    process: ProcessIdentity | None = known.get("process")
    token = str(known.get("token", ""))
    if process is None or known.get("boot_id") != read_boot_id() or not process.is_alive():
        found = find_in(directory.run_dir)
        if found is None:  # of one that was adopted nothing else would tell
            is_ours = parts.get("qmp_path", "") is None
            return None, None, is_ours or known.get("boot_id", read_boot_id()) != read_boot_id()
        process, token = found
    definition = _definition_of(parts.get("definition")) or persistent
    argv = argv_of(process)
    if definition is None:
        return None, process, False
    accelerator = definition.accelerator or _accelerator(argv)
    running = Running(
        definition=replace(definition, accelerator=accelerator),
        argv=known.get("argv") or argv,
        token=token,
        boot_id=read_boot_id(),
        process=process,
        log_offset_bytes=known.get("log_offset_bytes", 0),
        migration_id=known.get("migration_id"),
        started_at_s=known.get("started_at_s", time.time()),
        qmp_path=known.get("qmp_path"),
    )
    return running, process, False


def _definition_of(record: object) -> Definition | None:
    try:
        return Definition.from_record(record)
    except FerryError:
        return None


def _accelerator(argv: tuple[str, ...]) -> Accelerator:
    words = dict(itertools.pairwise(argv))
    return Accelerator.KVM if words.get("-accel", "").startswith(Accelerator.KVM.value) else Accelerator.TCG


def _name(directory: VmDirectory, persistent: Definition | None, running: Running | None) -> str:
    for definition in (None if running is None else running.definition, persistent):
        if definition is not None:
            return definition.name
    for path in (directory.running_path, directory.definition_path):
        name = find_text(directory.content(path), "name")
        if name:
            return name
    return ""
