"""Both machines with the two QEMUs as they really behave, as one graph of worlds.

A world is the two phases, what each QEMU is, and what decides who may run the guest. What may come next is split by who does it:
QEMUs and agents by themselves, faults, users, the coordinator. Messages come late, twice or never: what may come may also not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import outgoing_steps
from agent.migration.machine import Cause, InvalidTransition

CAUSE = Cause("x", "X")


class Qemu(Enum):
    """What a QEMU is, seen from outside."""

    RUNS = auto()  # the guest's vCPUs run
    WAITS = auto()  # source: pre-switchover; destination: listens
    SENDS = auto()  # source: device
    HALVING = auto()  # source: says that it is in post-copy, and sends the devices
    FORGOT = auto()  # source: its post-copy broke before the devices were sent, and it says nothing of it (10.0)
    HALF = auto()  # source: sends the rest of the memory; destination: has the guest without it, stopped
    RUNS_HALF = auto()  # destination: runs the guest while its memory comes
    HOLDS = auto()  # source: postmigrate; destination: completed and paused
    GONE = auto()


RUNNING = (Qemu.RUNS, Qemu.RUNS_HALF)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that decides who may run the guest.

    Attributes:
        may_come_halved: whether post-copy is allowed.
        token_given: whether the source has given its token away.
        has_run_there: whether the guest has run at the destination.
        is_finishing: whether an operator told the destination to finish by itself.
    """

    source: out.Phase
    destination: inc.Phase
    source_qemu: Qemu
    destination_qemu: Qemu
    may_come_halved: bool = False
    token_given: bool = False
    has_run_there: bool = False
    is_finishing: bool = False

    @property
    def runs_twice(self) -> bool:
        """Whether two copies of the guest run."""
        return self.source_qemu is Qemu.RUNS and self.destination_qemu in RUNNING


@dataclass(frozen=True, slots=True)
class Reachable:
    """Who is there for good: an agent that is not never comes back."""

    source: bool = True
    destination: bool = True
    coordinator: bool = False


STARTS = tuple(
    World(out.Begun(), inc.Reserved(), Qemu.RUNS, Qemu.WAITS, may_come_halved=may_come_halved) for may_come_halved in (False, True)
)
Successors = Callable[[World], Iterable[World]]


def at_source(world: World, event: out.Event) -> Iterator[World]:
    """Let the source's half answer, and its QEMU do what it is told; nothing where the event has no meaning."""
    try:
        after = outgoing_steps.step(world.source, event)
    except InvalidTransition:
        return
    changed = replace(world, source=after.phase)
    for effect in after.effects:
        match effect:
            case do.ContinueMigration() if changed.source_qemu is Qemu.WAITS:
                if isinstance(changed.source, out.Crossing):
                    yield replace(changed, source_qemu=Qemu.HALVING)
                changed = replace(changed, source_qemu=Qemu.SENDS)
            case do.StopGuest() if isinstance(changed.source, out.Sent | out.Following | out.Broken):
                changed = replace(changed, source_qemu=Qemu.HOLDS)
            case do.EnsureLostEnded() | do.EnsureHuskEnded():
                changed = replace(changed, source_qemu=Qemu.GONE)
            case do.RequestResume():
                changed = replace(changed, token_given=True)
            case do.EnsureGuestRestored() if changed.source_qemu is Qemu.HOLDS:
                changed = replace(changed, source_qemu=Qemu.RUNS)
            case _:
                pass
    yield changed


def at_destination(world: World, event: inc.Event) -> Iterator[World]:
    """Let the destination's half answer, and its QEMU do what it is told; `cont` may be refused and is repeated."""
    try:
        after = inc.step(world.destination, event)
    except InvalidTransition:
        return
    changed = replace(world, destination=after.phase)
    for effect in after.effects:
        match effect:
            case inc.EnsureGuestRuns():
                yield from _continued(changed)
            case inc.EnsureUndone():
                changed = replace(changed, destination_qemu=Qemu.GONE)
            case inc.EnsureFinished():
                changed = replace(changed, is_finishing=True)
            case _:
                pass
    yield changed


def _continued(world: World) -> Iterator[World]:
    if world.destination_qemu is Qemu.HOLDS:
        yield replace(world, destination_qemu=Qemu.RUNS, has_run_there=True)
    if world.destination_qemu is Qemu.HALF:
        yield replace(world, destination_qemu=Qemu.RUNS_HALF, has_run_there=True)


# by themselves


def by_themselves(world: World, reachable: Reachable) -> Iterator[World]:
    """Yield what comes without a fault, a user and the coordinator."""
    yield from _qemus(world, reachable)
    yield from _guardians(world, reachable)
    if reachable.source:
        for event in _seen_at_source(world, destination_answers=reachable.destination):
            yield from at_source(world, event)
        if world.source_qemu is Qemu.WAITS and not (reachable.destination and isinstance(world.source, _BEFORE)):
            yield from at_source(world, out.CancelRequested(CAUSE))  # it stands still for too long
    if reachable.destination:
        for told in _seen_at_destination(world):
            yield from at_destination(world, told)
        if isinstance(world.destination, inc.Resuming | inc.Entering):
            yield from _continued(world)
    if reachable.source and reachable.destination:
        for event in told_to_source(world):
            yield from at_source(world, event)
        if isinstance(world.source, out.Sent | out.Following | out.Broken):
            yield from at_destination(world, inc.ResumeRequested())


def _qemus(world: World, reachable: Reachable) -> Iterator[World]:  # noqa: C901 - one line a pair
    source, destination = world.source_qemu, world.destination_qemu
    if source is Qemu.RUNS and isinstance(world.source, _BEFORE) and destination is not Qemu.GONE:
        yield replace(world, source_qemu=Qemu.WAITS)
    match source, destination:
        case Qemu.HALVING, Qemu.WAITS:
            yield replace(world, source_qemu=Qemu.HALF, destination_qemu=Qemu.HALF)
        case Qemu.HALF, Qemu.HALF:
            yield replace(world, source_qemu=Qemu.HOLDS, destination_qemu=Qemu.HOLDS)
        case Qemu.HALF, Qemu.RUNS_HALF:
            yield replace(world, source_qemu=Qemu.HOLDS, destination_qemu=Qemu.RUNS)
        case Qemu.SENDS, Qemu.WAITS:
            yield replace(world, destination_qemu=Qemu.HOLDS)
        case Qemu.SENDS, Qemu.HOLDS:
            yield replace(world, source_qemu=Qemu.HOLDS)  # acknowledged
        case ((Qemu.RUNS | Qemu.HOLDS | Qemu.GONE), Qemu.WAITS) if world.token_given:
            yield replace(world, destination_qemu=Qemu.GONE)  # what it was sent broke off
        case ((Qemu.SENDS | Qemu.HALVING), Qemu.GONE):
            yield replace(world, source_qemu=Qemu.RUNS)
        case ((Qemu.WAITS | Qemu.SENDS), _) if reachable.source and isinstance(world.source, out.Cancelling):
            yield replace(world, source_qemu=Qemu.RUNS)
        case ((Qemu.HALVING | Qemu.HALF | Qemu.FORGOT), _) if reachable.source and isinstance(world.source, out.Refused):
            yield replace(world, source_qemu=Qemu.RUNS)  # EnsureGivenBack: 10.0 goes on by itself or by a debugger,
            yield replace(world, source_qemu=Qemu.HOLDS)  # 7.2 waits for a `cont`
        case _:
            pass


_BEFORE = out.Connecting | out.Transferring | out.Leaving
_GUARDED = _BEFORE | out.Settling | out.Switching | out.Crossing | out.Following | out.Broken | out.Sent | out.Cancelling


def _guardians(world: World, reachable: Reachable) -> Iterator[World]:
    """Yield what guardians do while their agents are away, by what QEMU says and not by the phase that the agent was in."""
    if isinstance(world.source, _GUARDED):
        if world.source_qemu is Qemu.WAITS:
            yield replace(world, source_qemu=Qemu.RUNS)
        if world.source_qemu in {Qemu.HOLDS, Qemu.HALVING, Qemu.HALF} and reachable.destination:
            said = out.QemuCompleted() if world.source_qemu is Qemu.HOLDS else out.QemuInPostCopy()
            for known in at_source(world, said) if reachable.source else (world,):  # which the agent learns before anything else
                yield from at_destination(replace(known, token_given=True), inc.ResumeRequested())
    may_be_claimed = isinstance(world.source, out.Sent) and isinstance(
        world.destination, inc.Listening | inc.Loading | inc.Loaded | inc.Resuming
    )
    if may_be_claimed and reachable.source and world.destination_qemu is Qemu.HOLDS:
        learnt = inc.Resuming() if reachable.destination else world.destination  # which its agent learns before anything else
        yield replace(world, destination=learnt, destination_qemu=Qemu.RUNS, has_run_there=True)


def _seen_at_source(world: World, *, destination_answers: bool) -> Iterator[out.Event]:  # noqa: C901 - one line a QEMU
    yield from (out.MirrorsReady(), out.MirrorsSettled(destination_answers=destination_answers))
    match world.source_qemu:
        case Qemu.RUNS:
            yield from (out.QemuActive(), out.GuestRestored())
            if world.destination_qemu is Qemu.GONE or not isinstance(world.source, out.Begun | out.Mirroring | _BEFORE):
                yield out.QemuGaveUp(CAUSE)
        case Qemu.WAITS:
            for has_mirrors in (False, True):
                yield out.QemuAtSwitchover(has_mirrors=has_mirrors, destination_answers=destination_answers)
        case Qemu.HALVING:
            yield from (out.QemuInPostCopy(), out.QemuLinkLost(), out.StoodStillTooLong())
        case Qemu.FORGOT:
            yield from (out.QemuForgot(CAUSE), out.StoodStillTooLong())
        case Qemu.HALF:
            yield from (out.QemuInPostCopy(), out.QemuLinkLost())
        case Qemu.HOLDS if isinstance(world.source, out.Refused):
            yield out.QemuGaveUp(CAUSE)
        case Qemu.HOLDS:
            yield out.QemuCompleted()
        case Qemu.GONE:
            yield from (out.QemuExited(CAUSE), out.QemuExited(CAUSE, was_watched=False), out.HuskEnded())
        case _:
            pass


def told_to_source(world: World) -> Iterator[out.Event]:
    """Yield what the destination's agent answers or proves to the source's."""
    match world.destination:
        case inc.Filling() | inc.Running() | inc.Finished():
            yield out.ResumeAnswered()
        case inc.Lost(is_kept=is_kept):
            yield out.DestinationLost(CAUSE, is_kept)
        case inc.Abandoned():
            yield out.DestinationNeverRan(CAUSE)
        case _:
            pass
    if isinstance(world.destination, inc.Undoing | inc.Abandoned) and isinstance(
        world.source, out.Mirroring | _BEFORE | out.Settling | out.Switching
    ):
        yield out.CancelRequested(CAUSE)


def _seen_at_destination(world: World) -> Iterator[inc.Event]:
    never_ran = not world.has_run_there
    yield inc.QemuListening()
    if isinstance(world.destination, inc.KeepingDefinition):
        yield from (inc.DefinitionKept(), inc.DefinitionKept(is_kept=False))
    if world.is_finishing:
        yield inc.FinishRequested()
    match world.destination_qemu:
        case Qemu.WAITS:
            yield inc.QemuActive()
        case Qemu.HALF:
            yield inc.GuestArrived()
        case Qemu.RUNS_HALF:
            yield from (inc.GuestArrived(), inc.GuestRuns())
        case Qemu.HOLDS:
            yield inc.QemuLoaded()
        case Qemu.RUNS:
            yield from (inc.GuestRuns(), inc.QemuLoaded())
        case Qemu.GONE:
            yield from (inc.QemuExited(CAUSE), inc.QemuExited(CAUSE, by_guest=True), inc.QemuExited(CAUSE, never_ran=never_ran))
            yield from (inc.Undone(), inc.Undone(never_ran=never_ran))
        case _:
            pass


# what others do


def faults(world: World) -> Iterator[World]:
    """Yield what may break."""
    may_fail = isinstance(world.source, _BEFORE | out.Settling | out.Switching | out.Crossing | out.Cancelling)
    if world.source_qemu is Qemu.HALVING or (world.source_qemu in {Qemu.WAITS, Qemu.SENDS} and may_fail):
        yield replace(world, source_qemu=Qemu.RUNS)  # the channel broke: QEMU goes on by itself
    if world.source_qemu is Qemu.HALVING and isinstance(world.source, out.Crossing):  # before the devices
        yield replace(world, source_qemu=Qemu.FORGOT)
    if world.source_qemu is Qemu.RUNS and not isinstance(world.source, out.Begun):
        yield from at_source(world, out.QemuGaveUp(CAUSE))
    yield replace(world, source_qemu=Qemu.GONE)
    yield replace(world, destination_qemu=Qemu.GONE)


def users(world: World) -> Iterator[World]:
    """Yield what users may ask for, at any time; what is meant for later with a condition is not among it."""
    for event in (out.CancelRequested(CAUSE), out.PauseRequested(), out.UnpauseRequested(), out.ReleaseRequested(CAUSE)):
        yield from at_source(world, event)
    if world.may_come_halved:
        yield from at_source(world, out.PostCopyRequested())
    yield from at_destination(world, inc.ReleaseRequested(CAUSE, may_come_halved=world.may_come_halved))


def coordinators(world: World) -> Iterator[World]:
    """Yield what some coordinator, present or past, may have asked for."""
    if not isinstance(world.destination, inc.Reserved):
        for event in (out.PerformRequested(), out.PerformRequested(has_disks=True)):
            yield from at_source(world, event)
    for told in asked_of_destination(world):
        yield from at_destination(world, told)
    if isinstance(world.destination, inc.Running | inc.Finished):
        yield from at_source(world, out.ConfirmRequested())
    if world.token_given:
        yield from at_destination(world, inc.ResumeRequested())


def asked_of_destination(world: World) -> Iterator[inc.Event]:
    """Yield what a coordinator may ask the destination's agent for."""
    yield from (inc.FinishRequested(), inc.AbandonRequested(CAUSE, may_come_halved=world.may_come_halved))
    is_taken = isinstance(world.destination, inc.Entering | inc.Filling)
    if isinstance(world.source, out.Lost) or (isinstance(world.source, out.Kept) and not is_taken):
        yield inc.AbandonRequested(CAUSE, source_has_ended=True)


def successors(world: World) -> Iterator[World]:
    """Yield every world that comes next, whoever does it."""
    yield from by_themselves(world, Reachable())
    yield from faults(world)
    yield from users(world)
    yield from coordinators(world)


def closure(starts: Iterable[World], successors_of: Successors) -> set[World]:
    """Return all worlds that can be reached."""
    seen = set(starts)
    queue = list(seen)
    while queue:
        for world in successors_of(queue.pop()):
            if world not in seen:
                seen.add(world)
                queue.append(world)
    return seen


def leading_to(worlds: Iterable[World], successors_of: Successors, is_wanted: Callable[[World], bool]) -> set[World]:
    """Return those of `worlds`, a closure, from which one that is wanted can be reached."""
    before: dict[World, list[World]] = {}
    queue = []
    for world in worlds:
        for after in successors_of(world):
            before.setdefault(after, []).append(world)
        if is_wanted(world):
            queue.append(world)
    found = set(queue)
    while queue:
        for world in before.get(queue.pop(), ()):
            if world not in found:
                found.add(world)
                queue.append(world)
    return found


@cache
def every_world() -> frozenset[World]:
    """Return all worlds that can be reached from the start."""
    return frozenset(closure(STARTS, successors))
