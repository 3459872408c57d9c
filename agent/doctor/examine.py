"""What is in the QEMUs and on the disks of this host that no running work of Ferry owns. Looks, and changes nothing."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.blockjobs.begin import creation_id
from agent.blockjobs.block_job import BlockJobRecords, State
from agent.blockjobs.disks import commands_of, see_disks
from agent.blockjobs.sweep import is_ours
from agent.saving.record import JobRecords
from agent.store import UNREADABLE
from agent.vm.host_files import host_files
from agent.vm.jobs import Job
from agent.vm.options import strings_of
from agent.vm.unreadable import way_out
from common.errors import FerryError
from common.records import BrokenRecord, find_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent.blockjobs.block_jobs import BlockJobs
    from agent.store import Store
    from agent.vm.definition import Definition
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm
    from agent.vm.vm_records import Problem

_PART: Final = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_MARKER: Final = re.compile(r"\.ferry-[0-9a-f]{12}")
_MOVED: Final = re.compile(r"\.ferry-image-[0-9a-f]{12}")
# A migration is done with a marker, and puts an image in its place, long before.
_OLD_S: Final = 3600.0
# What owns all that is in a VM's QEMU.
_OWNERS: Final = frozenset({Job.MIGRATION_OUT, Job.MIGRATION_IN, Job.SAVE, Job.RESTORE, Job.START, Job.STOP})
_BY_QMP: Final = "end it where it was begun"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that no running work owns: what it is, and what to do, each in a sentence."""

    vm_name: str
    kind: str
    name: str
    text: str
    advice: str


async def examine(vms: Vms, store: Store, jobs: BlockJobs, roots: Sequence[Path]) -> list[Finding]:
    """Look at everything."""
    findings: list[Finding] = []
    for vm in vms.all():
        lock = vms.lock_of(vm)
        if vm.running is not None and (lock is None or lock.job not in _OWNERS):
            findings += await _look_into(vms, vm, jobs)
    findings += _undecided(jobs)
    findings += await asyncio.to_thread(lambda: [*_of_records(vms, store, jobs), *_of_files(vms, store, roots)])
    return findings


async def _look_into(vms: Vms, vm: Vm, jobs: BlockJobs) -> list[Finding]:
    findings: list[Finding] = []
    records = [job.record for job in jobs.all() if job.record.vm_uuid == vm.uuid]
    try:
        commands = commands_of(vms, vm)
        own_jobs = {name for record in records for name in (record.qemu_id, creation_id(record))}
        for job in await commands.query_jobs():
            if job.id not in own_jobs:
                text = f"job {job.id} ({job.type}, {job.status.value}) in QEMU was not begun by a work of Ferry that runs"
                advice = f"{_BY_QMP}: job-cancel, and job-dismiss when it is concluded"
                findings.append(_in_qemu(vm, "FOREIGN_JOB", job.id, text, advice))
        own_nodes = {name for record in records for name in record.nodes} | _named_nodes(vm.get_running().definition)
        for seen in await see_disks(vm, commands):
            if seen.chain is not None:
                own_nodes |= {*seen.chain.filters, *(name for one in seen.chain.layers for name in (one.node, one.file_node))}
        for node in (await commands.query_graph()).nodes:
            if not node.startswith("#") and node not in own_nodes:
                text = f"block node {node} is open in QEMU and no disk and no work of Ferry that runs uses it"
                findings.append(_in_qemu(vm, "FOREIGN_NODE", node, text, f"{_BY_QMP}: blockdev-del"))
        for export in await commands.query_exports():
            text = f"export {export} in QEMU was not made by a work of Ferry that runs"
            findings.append(_in_qemu(vm, "FOREIGN_EXPORT", export, text, f"{_BY_QMP}: block-export-del"))
        if await commands.has_nbd_server():
            text = "an NBD server listens in QEMU, which no work of Ferry that runs has started"
            findings.append(_in_qemu(vm, "NBD_SERVER", "nbd-server", text, f"{_BY_QMP}: nbd-server-stop"))
    except FerryError as error:
        advice = "see ferry vm show, and look again when its QEMU answers"
        findings.append(Finding(vm.name, "NOT_LOOKED_INTO", vm.name, f"its QEMU could not be looked into: {error.text}", advice))
    return findings


def _in_qemu(vm: Vm, kind: str, name: str, text: str, advice: str) -> Finding:
    """Tell of something in a QEMU; what has a name of ours is a left-over that the next agent removes."""
    if is_ours(name):
        advice = "it is of an earlier job of Ferry: start the agent of this host anew, which removes it"
    return Finding(vm.name, kind, name, text, advice)


def _named_nodes(definition: Definition) -> set[str]:
    names: set[str] = set()
    for option in definition.options:
        names |= {value for key, value in option.strings() if key.rpartition(".")[2] == "node-name"}
        names |= {value for key, value in strings_of(option.properties) if key.rpartition(".")[2] == "node-name"}
    return names


def _undecided(jobs: BlockJobs) -> Iterator[Finding]:
    for job in jobs.all():
        if job.state is State.UNDECIDED:
            name = f"{job.record.vm_name} {job.record.disk}"
            advice = f"ferry block pivot {name} takes the new image, ferry block abort {name} the old one"
            yield Finding(job.record.vm_name, "UNDECIDED_DISK", job.record.disk, job.error, advice)


def _of_records(vms: Vms, store: Store, jobs: BlockJobs) -> Iterator[Finding]:
    yield from _of_older_disks(vms)
    for unread in vms.unreadable():
        for problem in unread.problems:
            yield Finding(unread.name, "BROKEN_RECORD", str(problem.path), problem.text, unread.way_out)
    for vm in vms.all():
        for problem in vm.problems:
            yield Finding(vm.name, "BROKEN_RECORD", str(problem.path), problem.text, _advice_of(vm, problem))
    active = {job.id for job in jobs.all()}
    for path in sorted(store.sessions_dir.glob(f"*{UNREADABLE}")):
        text = (
            f"the record of migration {path.stem} could not be read and was put aside; its half here goes on by what was left of it"
        )
        advice = f"ferry migration show {path.stem} tells how it is and which command ends it; the file goes with its end"
        yield Finding("", "BROKEN_RECORD", str(path), text, advice)
    kinds = (
        (store.jobs_dir, "job"),
        (store.block_jobs_dir, "block-job"),
        (store.sessions_dir, "session"),
        (store.markers_dir, "marker"),
    )
    for directory, kind in kinds:
        for path in sorted(directory.glob("*.json")):
            try:
                find_record(path, kind=kind, version=1)
            except BrokenRecord as error:
                yield _broken(path, error.text)
                continue
            if kind == "block-job" and path.stem not in active:
                text = f"the block job on record in {path} could not be ended"
                yield Finding("", "UNFINISHED_JOB", str(path), text, "start the agent of this host anew, which tries again")


def _of_older_disks(vms: Vms) -> Iterator[Finding]:
    """Name the VMs that could be started here with disks that are newer elsewhere."""
    for vm in vms.all():
        if vm.running is None and vm.persistent is not None:
            try:
                found = vms.older_disks.of(vm.persistent)
            except FerryError as error:
                yield Finding(vm.name, "BROKEN_RECORD", vm.name, error.text, "ferry vm start --force starts it all the same")
                continue
            for disk in found:
                yield Finding(vm.name, "OLDER_DISK", disk.disk, disk.text, disk.advice)


def _advice_of(vm: Vm, problem: Problem) -> str:
    if problem.path == vm.directory.definition_path:
        return way_out(vm.name)
    if problem.path == vm.directory.wishes_path:
        return (
            f"set it again: ferry vm autostart {vm.name}, or ferry vm autostart {vm.name} --off; "
            "ferry vm start --force, if its guest was not moved away"
        )
    return f"what runs is taken from what is left; the next start writes {problem.path} anew"


def _broken(path: Path, text: str) -> Finding:
    return Finding("", "BROKEN_RECORD", str(path), text, f"restore {path} from a backup, or move it away and start the agent anew")


def _of_files(vms: Vms, store: Store, roots: Sequence[Path]) -> Iterator[Finding]:
    owned = {record.part_path for record in JobRecords(store.jobs_dir).load()}
    owned |= {record.made.part_path for record in BlockJobRecords(store.block_jobs_dir).load() if record.made is not None}
    marked = {str(path) for path in store.markers()}
    for path in _files_in({*roots, *(directory for vm in vms.all() for directory in _directories(vm))}):
        if _PART.fullmatch(path.name) and str(path) not in owned:
            text = f"{path} was begun by a save, dump or copy that is not running on this host"
            yield Finding(
                "", "PARTIAL_FILE", str(path), text, "remove it, unless another host that shares the directory is writing it"
            )
        elif _MOVED.fullmatch(path.name) and _is_old(path):
            text = f"{path} was begun as the image of a guest that was to come"
            yield Finding("", "PARTIAL_FILE", str(path), text, "remove it, if no guest is on its way to this host")
        elif _MARKER.fullmatch(path.name) and str(path) not in marked and _is_old(path):
            text = f"{path} is the marker of a migration that is over"
            yield Finding("", "MARKER_FILE", str(path), text, "remove it")


def _directories(vm: Vm) -> set[Path]:
    definitions = [one for one in (vm.persistent, None if vm.running is None else vm.running.definition) if one is not None]
    return {Path(file.path).parent for definition in definitions for file in host_files(definition) if file.path.startswith("/")}


def _files_in(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in sorted(directories):
        try:
            yield from sorted(directory.glob(".*"))
        except OSError:
            continue


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _OLD_S
    except OSError:
        return False
