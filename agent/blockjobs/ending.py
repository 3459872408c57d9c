"""The last part of a job: what QEMU says of the disk is what the definitions say, and nothing else of the job is left.

Each step may be run again: the next agent does when this one ends in between. Nothing is taken from the events alone; whether the
disk went over is asked of QEMU.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent.blockjobs import images
from agent.blockjobs.access import reopen
from agent.blockjobs.begin import creation_id
from agent.blockjobs.block_job import Kind, State, Wish
from agent.blockjobs.chain import Chain, Layer, is_same, read_chain
from agent.blockjobs.definitions import find_disk, follow, known_images
from agent.blockjobs.disks import find_drive
from agent.qemu.block_status import JobStatus
from agent.qemu.errors import QemuRefused
from agent.vm.disk_change import save_definitions
from common.errors import Expired, WrongState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.blockjobs.block_job import BlockJobRecord, Place
    from agent.qemu.block_commands import BlockCommands
    from agent.vm.definition import Definition
    from agent.vm.vm import Vm

STOP_TIMEOUT_S: Final = 60.0
_ASK_INTERVAL_S: Final = 0.02
_ENDING: Final = frozenset({JobStatus.WAITING, JobStatus.PENDING, JobStatus.ABORTING, JobStatus.NULL})
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a job.

    Attributes:
        path: the image that the guest writes to now.
        after: a sentence about the disk, the file and the definitions; may be empty.
    """

    state: State
    path: str
    after: str


async def end_in_qemu(vm: Vm, record: BlockJobRecord, commands: BlockCommands) -> Ended:
    """End a job in a QEMU that runs; `record.outcome` is empty where nobody saw how QEMU's job ended.

    Raises:
        FerryError, OSError: it is not ended yet; it may be tried again.
    """
    await _dismiss(commands, record)
    chain = await _chain_of(commands, record)
    state = State(record.outcome) if record.outcome else _guess(record, went_over=_is_on(chain, record.after))
    after = "" if _is_on(chain, record.before) else _save(vm, record, chain.layers)
    await _remove_nodes(commands, record, chain)
    await _close_base(vm, commands, record, chain)
    after = " ".join(filter(None, (after, _settle_file(record, chain, state))))
    return Ended(state, chain.top.path, after)


def end_without_qemu(vm: Vm | None, record: BlockJobRecord) -> Ended:
    """End a job whose QEMU is gone."""
    before = record.paths[0]
    is_done = record.outcome == State.COMPLETED.value
    # Of a snapshot the new image is right in any case: where the guest never was on it, it shows what is below.
    if (is_done and (record.wish is Wish.PIVOT or not record.kind.pivots)) or (
        record.kind is Kind.SNAPSHOT and record.wish is Wish.PIVOT
    ):
        _save(vm, record, _layers(record.after))
        return Ended(State.COMPLETED, record.after[0].path, "")
    if record.kind is Kind.COPY and is_done:
        return Ended(State.COMPLETED, before, f"{record.file} is a copy of it")
    if record.kind.pivots and record.wish is Wish.PIVOT and not record.outcome:
        text = (
            f"QEMU ended while the disk went over from {before} to {record.after[0].path} and nobody saw on which it was: "
            "the image that was written to last is right"
        )
        if vm is None or vm.persistent is None:
            return Ended(State.FAILED, before, f"{text}; both were left as they are")
        disk = f"{record.vm_name} {record.disk}"
        text = f"{text}; ferry block pivot {disk} takes the new one, ferry block abort {disk} the old one"
        return Ended(State.UNDECIDED, before, text)
    if record.made is not None:
        images.discard(record.made)
    removed = f"{record.file} was removed" if record.made is not None else ""
    if record.kind in (Kind.PULL, Kind.COMMIT):
        # The guest saw the same through both chains; which one stands in the images is found by whoever opens them.
        removed = "its images may be left as they were or shortened; both are whole"
    return Ended(State.FAILED, before, removed)


def decide(vm: Vm, record: BlockJobRecord, *, takes_new: bool) -> Ended:
    """End a job that was left undecided, as a user says; no file is removed."""
    if takes_new:
        after = _save(vm, record, _layers(record.after))
        return Ended(State.COMPLETED, record.after[0].path, after)
    return Ended(State.CANCELLED, record.paths[0], f"the disk stays on {record.paths[0]}; {record.after[0].path} was left as it is")


async def _dismiss(commands: BlockCommands, record: BlockJobRecord) -> None:
    """Leave no job of ours in QEMU: one whose beginning was not answered may run, and is aborted."""
    ours = (record.qemu_id, creation_id(record))
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while left := [job for job in await commands.query_jobs() if job.id in ours]:
                for job in left:
                    if job.status is JobStatus.CONCLUDED:
                        await commands.dismiss_job(job.id)
                    elif job.id == record.qemu_id and job.status not in _ENDING:
                        await commands.abort_job(job.id)
                await asyncio.sleep(_ASK_INTERVAL_S)
    except TimeoutError as error:
        raise Expired(f"{record.named()}: QEMU has not ended the job in {STOP_TIMEOUT_S:.0f} s") from error


async def _chain_of(commands: BlockCommands, record: BlockJobRecord) -> Chain:
    drives, graph = await commands.query_drives(), await commands.query_graph()
    nodes = (record.node, *(place.node for place in (*record.before, *record.after)))
    for node in nodes:
        drive = find_drive(drives, record.device, node)
        chain = None if drive is None else read_chain(drive, graph)
        if chain is not None:
            return chain
    raise WrongState(f"{record.named()}: QEMU has no such drive any more", reason="DISK_UNKNOWN")


def _is_on(chain: Chain, places: Sequence[Place]) -> bool:
    return len(chain.layers) == len(places) and all(
        is_same(path, place.path) for path, place in zip(chain.paths, places, strict=True)
    )


def _guess(record: BlockJobRecord, *, went_over: bool) -> State:
    if went_over:
        return State.COMPLETED
    return State.CANCELLED if record.wish is Wish.ABORT else State.FAILED


def _save(vm: Vm | None, record: BlockJobRecord, layers: Sequence[Layer]) -> str:
    """Let both definitions follow the disk; say what could not."""
    if vm is None:
        return ""
    said: list[str] = []
    running = None if vm.running is None else _follow(vm.running.definition, record, layers)
    persistent = vm.persistent
    if persistent is not None:
        try:
            persistent = _follow_stored(persistent, record, layers)
        except WrongState as error:
            persistent = None
            said.append(f"the stored definition was not changed: {error.text};")
    save_definitions(vm, running, persistent)
    return " ".join(said)


def _follow_stored(definition: Definition, record: BlockJobRecord, layers: Sequence[Layer]) -> Definition:
    disk = find_disk(definition, record.disk)
    if disk is None:
        raise WrongState(f"it has no disk {record.disk}")
    top = known_images(definition, disk)[1][0].path
    if not is_same(top, record.paths[0]) and not is_same(top, layers[0].path):
        raise WrongState(f"its disk {record.disk} is on {top}")
    return _follow(definition, record, layers)


def _follow(definition: Definition, record: BlockJobRecord, layers: Sequence[Layer]) -> Definition:
    return follow(
        definition,
        record.disk,
        record.paths,
        layers,
        new_name=record.qemu_id,
        same=is_same,
        is_device=images.is_device,
    )


async def _remove_nodes(commands: BlockCommands, record: BlockJobRecord, chain: Chain) -> None:
    """Close what nothing uses any more: an open file keeps its lock."""
    kept = {chain.root, *chain.filters, *(name for layer in chain.layers for name in (layer.node, layer.file_node))}
    ours = [*record.nodes, *(name for place in record.before for name in (place.node, place.file_node))]
    for name in ours:
        if not name or name.startswith("#") or name in kept:
            continue
        graph = await commands.query_graph()
        if name not in graph.nodes or graph.is_used(name):
            continue
        try:
            await commands.remove_node(name)
        except QemuRefused as error:
            _log.warning("block node not closed", vm=record.vm_name, node=name, error=error.text)


async def _close_base(vm: Vm, commands: BlockCommands, record: BlockJobRecord, chain: Chain) -> None:
    """Open what a commit has written to for reading alone, as it was, unless the guest writes to it now."""
    if record.kind not in (Kind.COMMIT, Kind.ACTIVE_COMMIT):
        return
    base = next((place for place, layer in enumerate(chain.layers) if is_same(layer.path, record.file)), 0)
    for layer in chain.layers[max(base - 1, 1) : base + 1]:
        try:
            await reopen(commands, vm.get_running().definition, layer.node, is_read_only=True)
        except QemuRefused as error:
            _log.warning("image stays open for writing", vm=record.vm_name, node=layer.node, error=error.text)


def _settle_file(record: BlockJobRecord, chain: Chain, state: State) -> str:
    """Remove the file that a job made, unless the disk is on it or it is a whole copy."""
    if any(is_same(path, record.file) for path in chain.paths):
        return ""
    if record.kind is Kind.COPY and state is State.COMPLETED:
        return f"{record.file} is a copy of the disk as it was at the end"
    if record.made is None:
        return ""
    images.discard(record.made)
    is_left = record.kind in (Kind.COPY, Kind.SNAPSHOT) and Path(record.file).exists()
    return "" if is_left else f"the guest stays on {chain.top.path}, {record.file} was removed"


def _layers(places: Sequence[Place]) -> tuple[Layer, ...]:
    return tuple(Layer(place.path, place.format, place.node, place.file_node, 0, 0) for place in places)
