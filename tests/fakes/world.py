"""Both halves of a migration without any QEMU: the agents' own machines, and a script of what the two QEMUs do.

The machines are the real ones, so a fake agent refuses what a real one refuses.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from agent.migration import incoming as inc
from agent.migration import outgoing as out
from agent.migration import outgoing_effects as do
from agent.migration import outgoing_steps
from agent.migration.advice import Side, for_destination, for_source
from agent.migration.machine import Cause, InvalidTransition
from agent.migration.record import find_cause
from agent.wire_phases import MAY_TELL_TOKEN, STATES, advice_messages
from common.errors import FerryError, NotFound, WrongState
from ferry.agent.v1 import migration_pb2 as pb
from ferry.common.v1 import migration_pb2 as common_pb

TOKEN = bytes(range(200, 232))
KEY = "ab" * 32
TUNNEL_TOKEN = "tunnel-token-of-a-test"
TIMEOUT_S = 10.0
_RESULTS: dict[type, inc.Event] = {
    inc.EnsureGuestRuns: inc.GuestRuns(),
    inc.EnsureUndone: inc.Undone(),
    inc.EnsureDefinitionKept: inc.DefinitionKept(),
    inc.EnsureFinished: inc.FinishRequested(),
}
_MEANS_NOTHING = "the guest is not where this makes sense"

AnyPhase: TypeAlias = inc.Phase | out.Phase
AnyEvent: TypeAlias = inc.Event | out.Event


class Outcome(Enum):
    """What becomes of a transfer once it is told to begin."""

    HANDED_OVER = auto()  # the destination runs the guest and the source knows
    SENT = auto()  # the source cannot deliver Resume
    GAVE_UP = auto()  # QEMU reports a failure
    GOES_ON = auto()  # memory is sent for ever
    SOURCE_ENDS_AT_THE_END = auto()  # the source's QEMU ends unwatched while the destination has all of the guest
    SOURCE_ENDS = auto()  # the source's QEMU ends while the destination loads


@dataclass
class Lost:
    """The call is done and its answer is lost."""


@dataclass
class World:
    """Both halves, and what was called in which order.

    Attributes:
        outcome: what becomes of the transfer.
        error: why QEMU gives up, or ended.
        has_vm: hosts that know the VM, and whether it runs there.
        faults: by host and method, what goes wrong with the next calls, once each.
        holds_before, holds_after: methods that wait for their event before they act, or before they answer.
        spans: what the agents answer when asked for spans.
        migration_id: of the halves.
        peers: by host, whom its half names as the other one.
        unattended_s: by host, for how long nobody has asked about its half, as told.
        progress: numbers that a host's agent tells.
        was_double: whether the guest ever ran on both hosts.
    """

    outcome: Outcome = Outcome.HANDED_OVER
    error: str = "the link broke"
    has_vm: dict[str, bool] = field(default_factory=lambda: {"host-a": True})
    faults: dict[tuple[str, str], list[FerryError | Lost]] = field(default_factory=lambda: defaultdict(list))
    holds_before: dict[str, asyncio.Event] = field(default_factory=dict)
    holds_after: dict[str, asyncio.Event] = field(default_factory=dict)
    spans: bytes = b""
    progress: dict[str, common_pb.Progress] = field(default_factory=dict)
    migration_id: str = "m"
    peers: dict[str, str] = field(default_factory=lambda: {"host-a": "host-b", "host-b": "host-a"})
    unattended_s: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    phases: dict[str, AnyPhase] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    requests: list[object] = field(default_factory=list)
    was_double: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    # what tests look at

    @property
    def names(self) -> dict[str, str]:
        """Name of each host's phase."""
        return {host: type(phase).__name__ for host, phase in self.phases.items()}

    @property
    def changes(self) -> list[tuple[str, str]]:
        """The calls that change something."""
        return [call for call in self.calls if call[1] not in {"Get", "GetHost", "GetVm", "List", "Watch"}]

    def runs_on(self) -> set[str]:
        """Name the hosts on which the guest may run."""
        source, destination = self.phases.get("host-a"), self.phases.get("host-b")
        in_post_copy = out.Crossing | out.Following | out.Broken
        is_given = isinstance(
            source, out.Switching | in_post_copy | out.Sent | out.HandedOver | out.Retiring | out.Retired | out.Lost
        )
        is_taken = isinstance(destination, inc.Entering | inc.Filling | inc.Resuming | inc.Running | inc.Finished)
        return (set() if is_given else {"host-a"}) | ({"host-b"} if is_taken else set())

    async def wait_called(self, method: str, count: int = 1) -> None:
        """Return once a method was called so often on either host."""
        async with asyncio.timeout(TIMEOUT_S):
            while [call[1] for call in self.calls].count(method) < count:
                await self.changed.wait()

    # what happens

    def note(self, host: str, method: str) -> None:
        """Remember a call."""
        self.calls.append((host, method))
        self._wake()

    def check_epoch(self, host: str, epoch: int) -> None:
        """Refuse an older coordinator than one that has spoken before."""
        if epoch < self.epochs.get(host, 0):
            raise WrongState(f"epoch {epoch} is older than {self.epochs[host]}", reason="EPOCH_STALE")
        self.epochs[host] = epoch

    def request(self, host: str, event: AnyEvent, reason: str) -> None:
        """Let a half answer a wish."""
        try:
            self.apply(host, event)
        except InvalidTransition as error:
            raise WrongState(f"{_MEANS_NOTHING}: {error}", reason=reason) from error

    def apply(self, host: str, event: AnyEvent) -> None:
        """Let a half answer an event, and do what it wants."""
        phase = self.get(host)
        if isinstance(phase, out.Phase.__args__):
            sent = outgoing_steps.step(phase, event)  # type: ignore[arg-type]  # an event of the other half means nothing
            self._put(host, sent.phase)
            for effect in sent.effects:
                self._do_at_source(host, effect)
        else:
            taken = inc.step(phase, event)  # type: ignore[arg-type]
            self._put(host, taken.phase)
            for wish in taken.effects:
                self.apply(host, _RESULTS[type(wish)])

    def complete(self, outcome: Outcome) -> None:
        """Let both QEMUs end a transfer that goes on."""
        self.outcome = outcome
        self.apply("host-a", out.QemuAtSwitchover())
        self.apply("host-b", inc.QemuLoaded())
        self.apply("host-a", out.QemuCompleted())

    def go_into_post_copy(self) -> None:
        """Let a transfer that goes on become post-copy: the guest runs at the destination, memory follows."""
        self.outcome = Outcome.HANDED_OVER
        self.apply("host-a", out.PostCopyRequested())
        self.apply("host-a", out.QemuAtSwitchover())
        self.apply("host-b", inc.GuestArrived())
        self.apply("host-a", out.QemuInPostCopy())

    def get(self, host: str) -> AnyPhase:
        """Return a half."""
        if host not in self.phases:
            raise NotFound(f"migration is unknown to {host}", reason="MIGRATION_UNKNOWN")
        return self.phases[host]

    def begin(self, host: str, phase: AnyPhase) -> None:
        """Add a half."""
        self._put(host, phase)

    def half(self, host: str) -> pb.Migration:
        """Tell of a half, as an agent would."""
        phase = self.get(host)
        state, location = STATES[type(phase)]
        cause = find_cause(phase)
        if isinstance(phase, out.Kept | inc.Abandoned) and cause is not None and cause.by_wish:
            state = pb.Migration.STATE_CANCELLED
        return pb.Migration(
            id=self.migration_id,
            role=pb.Migration.ROLE_SOURCE if isinstance(phase, out.Phase.__args__) else pb.Migration.ROLE_DESTINATION,
            peer=self.peers.get(host, ""),
            vm_name="web",
            vm_uuid="0f1e",
            phase=type(phase).__name__,
            state=state,
            guest_location=location,
            is_final=isinstance(phase, (*out.FINAL, *inc.FINAL)),
            error="" if cause is None else cause.text,
            error_reason="" if cause is None else cause.reason,
            resume_token=TOKEN if isinstance(phase, MAY_TELL_TOKEN) else b"",
            progress=self.progress.get(host),
            epoch=self.epochs.get(host, 0),
            advice=self._advice(host, phase),
            is_definition_kept=isinstance(phase, inc.Lost) and phase.is_kept,
        )

    def _advice(self, host: str, phase: AnyPhase) -> list[pb.Advice]:
        is_source = isinstance(phase, out.Phase.__args__)
        advised = for_source(phase) if is_source else for_destination(phase, may_come_halved=False)  # type: ignore[arg-type]
        peer = "host-b" if host == "host-a" else "host-a"
        return advice_messages(Side("m", host, peer, is_source=is_source), advised)

    def _put(self, host: str, phase: AnyPhase) -> None:
        self.phases[host] = phase
        self.was_double = self.was_double or len(self.runs_on()) > 1
        self._wake()

    def _wake(self) -> None:
        seen, self.changed = self.changed, asyncio.Event()
        seen.set()

    def _do_at_source(self, host: str, effect: do.Effect) -> None:
        match effect:
            case do.StartTransfer():
                self._transfer(host)
            case do.FreeGuest():
                self.apply(host, out.QemuGaveUp(Cause("cancelled", "CANCELLED", by_wish=True)))
            case do.EnsureGuestRestored():
                self.apply(host, out.GuestRestored())
            case do.EnsureHuskEnded() | do.EnsureLostEnded():
                self.apply(host, out.HuskEnded())
            case do.RequestResume() if self.outcome is Outcome.HANDED_OVER:
                self.apply("host-b", inc.ResumeRequested())
                self.apply(host, out.ResumeAnswered())
            case _:
                pass

    def _transfer(self, host: str) -> None:
        self.apply(host, out.QemuActive())
        self.apply("host-b", inc.QemuActive())
        cause = Cause(self.error, "QEMU_FAILED")
        match self.outcome:
            case Outcome.GAVE_UP:
                self.apply(host, out.QemuGaveUp(cause))
            case Outcome.SOURCE_ENDS:
                self.apply(host, out.QemuExited(cause))
            case Outcome.SOURCE_ENDS_AT_THE_END:
                self.apply(host, out.QemuAtSwitchover())
                self.apply("host-b", inc.QemuLoaded())
                self.apply(host, out.QemuExited(cause, was_watched=False))
            case Outcome.SENT | Outcome.HANDED_OVER:
                self.complete(self.outcome)
            case Outcome.GOES_ON:
                pass
