"""Both machines together, with the two QEMUs as they really behave: every reachable world has at most one running guest.

The world is the two phases, what each QEMU is, and whether the token was given. QEMU's moves (send, complete, fail, die) and the
agents' events may come in any order; the search visits every world there is, not only short histories.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration.machine import Cause, InvalidTransition

CAUSE = Cause("x", "X")


class Qemu(Enum):
    """What a QEMU is, seen from outside."""

    ABSENT = auto()
    RUNS = auto()  # the guest's vCPUs run
    WAITS = auto()  # source: pre-switchover; destination: listens
    SENDS = auto()  # source: device
    HOLDS = auto()  # source: postmigrate; destination: completed and paused
    GONE = auto()


@dataclass(frozen=True, slots=True)
class World:
    """Everything that decides who may run the guest."""

    source: out.Phase
    destination: inc.Phase
    source_qemu: Qemu
    destination_qemu: Qemu
    token_given: bool = False


START = World(out.Begun(), inc.Reserved(), Qemu.RUNS, Qemu.WAITS)


def _outgoing(world: World, event: out.Event) -> Iterator[World]:
    try:
        after = out.step(world.source, event)
    except InvalidTransition:
        return
    changed = replace(world, source=after.phase)
    for effect in after.effects:
        if isinstance(effect, do.ContinueMigration) and changed.source_qemu is Qemu.WAITS:
            changed = replace(changed, source_qemu=Qemu.SENDS)
        if isinstance(effect, do.RequestResume):
            changed = replace(changed, token_given=True)
        if isinstance(effect, do.EnsureGuestRestored) and changed.source_qemu is Qemu.HOLDS:
            changed = replace(changed, source_qemu=Qemu.RUNS)
        if isinstance(effect, do.EnsureHuskEnded):
            changed = replace(changed, source_qemu=Qemu.GONE)
    yield changed


def _incoming(world: World, event: inc.Event) -> Iterator[World]:
    try:
        after = inc.step(world.destination, event)
    except InvalidTransition:
        return
    changed = replace(world, destination=after.phase)
    for effect in after.effects:
        if isinstance(effect, inc.EnsureGuestRuns) and changed.destination_qemu is Qemu.HOLDS:
            changed = replace(changed, destination_qemu=Qemu.RUNS)
        if isinstance(effect, inc.EnsureUndone):
            changed = replace(changed, destination_qemu=Qemu.GONE)
    yield changed


def successors(world: World) -> Iterator[World]:
    """Yield every world that one move leads to."""
    yield from _qemus_move(world)
    for outgoing in _source_may_see(world):
        yield from _outgoing(world, outgoing)
    for incoming in _destination_may_see(world):
        yield from _incoming(world, incoming)


def _qemus_move(world: World) -> Iterator[World]:
    source, destination = world.source_qemu, world.destination_qemu
    sending = isinstance(world.source, out.Connecting | out.Transferring | out.Switching | out.Cancelling)
    if source is Qemu.RUNS and isinstance(world.source, out.Connecting | out.Transferring):
        yield replace(world, source_qemu=Qemu.WAITS)
    if source is Qemu.SENDS and destination is Qemu.WAITS:
        yield replace(world, destination_qemu=Qemu.HOLDS)
    if source is Qemu.SENDS and destination is Qemu.HOLDS:
        yield replace(world, source_qemu=Qemu.HOLDS)  # acknowledged
    if source in {Qemu.WAITS, Qemu.SENDS} and sending:
        yield replace(world, source_qemu=Qemu.RUNS)  # the channel broke or was cancelled: QEMU goes on by itself
    yield replace(world, source_qemu=Qemu.GONE)
    yield replace(world, destination_qemu=Qemu.GONE)


def _source_may_see(world: World) -> Iterator[out.Event]:
    yield from (out.PerformRequested(), out.CancelRequested(CAUSE), out.PauseRequested())
    match world.source_qemu:
        case Qemu.RUNS:
            yield from (out.QemuActive(), out.GuestRestored())
            if not isinstance(world.source, out.Begun):
                yield out.QemuGaveUp(CAUSE)
        case Qemu.WAITS:
            yield out.QemuAtSwitchover()
        case Qemu.HOLDS:
            yield out.QemuCompleted()
        case Qemu.GONE:
            yield from (out.QemuExited(CAUSE), out.QemuExited(CAUSE, was_watched=False), out.HuskEnded())
    if isinstance(world.destination, inc.Running | inc.Finished):
        yield from (out.ResumeAnswered(), out.ConfirmRequested())
    if isinstance(world.destination, inc.Abandoned):
        yield out.DestinationNeverRan(CAUSE)


def _destination_may_see(world: World) -> Iterator[inc.Event]:
    yield from (inc.QemuListening(), inc.AbandonRequested(CAUSE), inc.FinishRequested())
    match world.destination_qemu:
        case Qemu.WAITS:
            yield inc.QemuActive()
        case Qemu.HOLDS:
            yield inc.QemuLoaded()
        case Qemu.RUNS:
            yield inc.GuestRuns()
        case Qemu.GONE:
            yield from (inc.QemuExited(CAUSE), inc.Undone())
    if world.token_given:
        yield inc.ResumeRequested()


def every_world() -> set[World]:
    """Return all worlds that can be reached from the start."""
    seen = {START}
    queue = [START]
    while queue:
        for world in successors(queue.pop()):
            if world not in seen:
                seen.add(world)
                queue.append(world)
    return seen


def test_no_reachable_world_has_the_guest_running_on_both_hosts():
    worlds = every_world()

    assert len(worlds) > 300
    assert not [w for w in worlds if w.source_qemu is Qemu.RUNS and w.destination_qemu is Qemu.RUNS]


def test_no_reachable_world_gives_the_guest_up_on_both_sides_while_a_whole_copy_exists():
    for world in every_world():
        if isinstance(world.source, out.Retired):
            assert isinstance(world.destination, inc.Running | inc.Finished | inc.Lost)
        if isinstance(world.source, out.Kept):
            assert world.destination_qemu is not Qemu.RUNS
