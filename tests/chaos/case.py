"""What happens in one round, drawn from a seed: which move, which fault, on whom, and when. Pure.

The same seed and number give the same case; what the processes make of it depends on timing as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

BATCH_ROUNDS = 20
_NEAR_S = 0.06
_NEAR_SHARE = 0.85
_SOMEWHEN_S = 2.5


class Kind(StrEnum):
    """How the guest moves."""

    PLAIN = "plain"
    ENCRYPTED = "encrypted"
    MULTIFD = "multifd"
    TUNNEL = "tunnel"
    POSTCOPY = "postcopy"
    POSTCOPY_TUNNEL = "postcopy-tunnel"
    DISKS = "disks"
    DISKS_TUNNEL = "disks-tunnel"
    POSTCOPY_DISKS = "postcopy-disks"

    @property
    def is_postcopy(self) -> bool:
        """Whether the guest goes before all of its memory."""
        return self in (Kind.POSTCOPY, Kind.POSTCOPY_TUNNEL, Kind.POSTCOPY_DISKS)

    @property
    def has_disks(self) -> bool:
        """Whether a disk is copied."""
        return self in (Kind.DISKS, Kind.DISKS_TUNNEL, Kind.POSTCOPY_DISKS)

    @property
    def is_tunnelled(self) -> bool:
        """Whether it goes through the tunnels."""
        return self in (Kind.TUNNEL, Kind.POSTCOPY_TUNNEL, Kind.DISKS_TUNNEL)


class Victim(StrEnum):
    """What a fault happens to."""

    SOURCE_AGENT = "source agent"
    DESTINATION_AGENT = "destination agent"
    SOURCE_TUNNEL = "source tunnel"
    DESTINATION_TUNNEL = "destination tunnel"
    COORDINATOR = "coordinator"
    CLIENT = "client"
    SOURCE_QEMU = "source QEMU"
    DESTINATION_QEMU = "destination QEMU"
    NETWORK = "network between the hosts"
    SOURCE_HOST = "network of the source"
    DESTINATION_HOST = "network of the destination"
    CLOCKS = "wall clock of every server"

    @property
    def is_qemu(self) -> bool:
        """Whether the guest may end with it."""
        return self in (Victim.SOURCE_QEMU, Victim.DESTINATION_QEMU)

    @property
    def is_network(self) -> bool:
        """Whether it is a path, not a process."""
        return self in (Victim.NETWORK, Victim.SOURCE_HOST, Victim.DESTINATION_HOST)


class Fault(StrEnum):
    """What happens to it."""

    KILL = "killed"
    TERMINATE = "asked to end"
    STOP = "stopped and continued"
    DROP = "dropped"
    FULL = "storage full"
    OLD_JOURNAL = "killed, older journal put back"
    AHEAD = "set ahead by 600 s and back"
    BACK = "set back by 200 s and ahead"


@dataclass(frozen=True, slots=True)
class Moment:
    """When the fault happens.

    Attributes:
        side: whose phase is waited for, `source` or `destination`; empty for none.
        phase: the name under which the side's record has it.
        after_s: how long after that phase was seen, or after the start where no phase is waited for.
    """

    side: str
    phase: str
    after_s: float

    def __str__(self) -> str:
        where = f"{self.side} {self.phase}" if self.side else "start"
        return f"{where} + {self.after_s * 1000:.0f} ms"


@dataclass(frozen=True, slots=True)
class Case:
    """One round.

    Attributes:
        seed, number: what it was drawn from.
        kind: how the guest moves.
        versions: the QEMU of host-a and of host-b.
        source: where the guest is at the start.
        victims: whom it happens to, all at the same moment.
        fault: what happens.
        moment: when.
        lasts_s: until it is mended: restarted, continued, let through, made room for.
        bandwidth_mib_s: limit of the transfer; 0 for none.
        by_command: whether `ferry migrate` starts the move, else a client of the API.
    """

    seed: int
    number: int
    kind: Kind
    versions: tuple[str, str]
    source: str
    victims: tuple[Victim, ...]
    fault: Fault
    moment: Moment
    lasts_s: float
    bandwidth_mib_s: float
    by_command: bool

    @property
    def destination(self) -> str:
        """Where the guest is to go."""
        return "host-b" if self.source == "host-a" else "host-a"

    def __str__(self) -> str:
        pair = self.versions if self.source == "host-a" else self.versions[::-1]
        return (
            f"{self.kind} {'->'.join(pair)}: {' and '.join(self.victims)} {self.fault}"
            f" at {self.moment} for {self.lasts_s * 1000:.0f} ms"
        )


_V, _F = Victim, Fault
_PROCESSES = (_V.SOURCE_AGENT, _V.DESTINATION_AGENT, _V.COORDINATOR)
_FAULTS: tuple[tuple[float, tuple[Victim, ...], tuple[Fault, ...]], ...] = (
    *((4.0, (victim,), (_F.KILL, _F.KILL, _F.STOP, _F.TERMINATE)) for victim in _PROCESSES),
    *((3.0, (victim,), (_F.KILL,)) for victim in (_V.SOURCE_QEMU, _V.DESTINATION_QEMU)),
    *((1.0, (victim,), (_F.STOP,)) for victim in (_V.SOURCE_QEMU, _V.DESTINATION_QEMU)),
    *((2.0, (victim,), (_F.DROP,)) for victim in (_V.NETWORK, _V.SOURCE_HOST, _V.DESTINATION_HOST)),
    *((1.0, (victim,), (_F.FULL,)) for victim in _PROCESSES),
    (1.0, (_V.CLIENT,), (_F.KILL, _F.TERMINATE)),
    (1.5, (_V.CLOCKS,), (_F.AHEAD, _F.BACK)),
    (1.5, (_V.COORDINATOR,), (_F.OLD_JOURNAL,)),
    (1.5, (_V.SOURCE_AGENT, _V.DESTINATION_AGENT), (_F.KILL, _F.STOP)),
    (1.5, (_V.SOURCE_AGENT, _V.COORDINATOR), (_F.KILL,)),
    (1.5, (_V.DESTINATION_AGENT, _V.COORDINATOR), (_F.KILL,)),
    (1.0, _PROCESSES, (_F.KILL,)),
    (1.5, (_V.DESTINATION_AGENT, _V.DESTINATION_QEMU), (_F.KILL,)),
    (1.5, (_V.SOURCE_AGENT, _V.SOURCE_QEMU), (_F.KILL,)),
    (1.5, (_V.COORDINATOR, _V.DESTINATION_QEMU), (_F.KILL,)),
    (1.0, (_V.SOURCE_QEMU, _V.DESTINATION_QEMU), (_F.KILL,)),
)
_TUNNEL_FAULTS: tuple[tuple[float, tuple[Victim, ...], tuple[Fault, ...]], ...] = (
    (5.0, (_V.SOURCE_TUNNEL,), (_F.KILL, _F.STOP)),
    (5.0, (_V.DESTINATION_TUNNEL,), (_F.KILL, _F.STOP)),
    (1.5, (_V.DESTINATION_TUNNEL, _V.DESTINATION_AGENT), (_F.KILL,)),
)
_PRECOPY_PHASES = (
    ("source", "Begun"),
    ("source", "Connecting"),
    ("source", "Transferring"),
    ("source", "Switching"),
    ("source", "Switching"),
    ("source", "Sent"),
    ("source", "HandedOver"),
    ("source", "Retiring"),
    ("destination", "Reserved"),
    ("destination", "Listening"),
    ("destination", "Loading"),
    ("destination", "Loaded"),
    ("destination", "Resuming"),
    ("destination", "Running"),
)
_POSTCOPY_PHASES = (
    ("source", "Transferring"),
    ("source", "Leaving"),
    ("source", "Crossing"),
    ("source", "Crossing"),
    ("source", "Following"),
    ("source", "Following"),
    ("source", "HandedOver"),
    ("destination", "Loading"),
    ("destination", "Arrived"),
    ("destination", "Entering"),
    ("destination", "Filling"),
    ("destination", "Running"),
)
_DISK_PHASES = (("source", "Mirroring"), ("source", "Mirroring"), ("source", "Settling"), ("source", "Settling"))
_VERSIONS = (
    ("7.2", "10.0"),
    ("7.2", "10.0"),
    ("7.2", "7.2"),
    ("10.0", "10.0"),
    ("7.2", "11.1"),
    ("11.1", "10.0"),
    ("11.1", "11.1"),
)
_KINDS = ((Kind.PLAIN, 1.0), (Kind.ENCRYPTED, 3.0), (Kind.MULTIFD, 1.0), (Kind.TUNNEL, 2.0), (Kind.POSTCOPY, 2.0))
_MORE_KINDS = ((Kind.POSTCOPY_TUNNEL, 2.0), (Kind.DISKS, 2.0), (Kind.DISKS_TUNNEL, 1.0), (Kind.POSTCOPY_DISKS, 1.0))


def draw(seed: int, number: int, installed: tuple[str, ...] = ("7.2", "10.0", "11.1")) -> Case:
    """Draw a round; those of a batch of `BATCH_ROUNDS` share the QEMUs, so that they can share a fleet.

    Args:
        seed: of the whole run.
        number: of the round.
        installed: versions of QEMU that are there.
    """
    rng = random.Random(f"{seed}:{number}")
    kinds, weights = zip(*_KINDS, *_MORE_KINDS, strict=True)
    [kind] = rng.choices(kinds, weights)
    faults = (*_FAULTS, *(_TUNNEL_FAULTS if kind.is_tunnelled else ()))
    [(_, victims, possible)] = rng.choices(faults, [weight for weight, _, _ in faults])
    fault = rng.choice(possible)
    return Case(
        seed=seed,
        number=number,
        kind=kind,
        versions=_draw_versions(seed, number, installed),
        source=rng.choice(("host-a", "host-b")),
        victims=victims,
        fault=fault,
        moment=_draw_moment(rng, kind, victims),
        lasts_s=_draw_span(rng, fault),
        bandwidth_mib_s=16 if kind.is_postcopy else rng.choice((0, 0, 16)),
        by_command=Victim.CLIENT in victims or rng.random() < 0.1,
    )


def _draw_versions(seed: int, number: int, installed: tuple[str, ...]) -> tuple[str, str]:
    possible = [pair for pair in _VERSIONS if set(pair) <= set(installed)]
    return random.Random(f"{seed}:batch:{number // BATCH_ROUNDS}").choice(possible)


def _draw_moment(rng: random.Random, kind: Kind, victims: tuple[Victim, ...]) -> Moment:
    if rng.random() > _NEAR_SHARE:
        return Moment("", "", rng.uniform(0, _SOMEWHEN_S))
    phases: tuple[tuple[str, str], ...] = _POSTCOPY_PHASES if kind.is_postcopy else _PRECOPY_PHASES
    if kind.has_disks:
        phases = (*phases, *_DISK_PHASES)
    if Victim.DESTINATION_QEMU in victims:
        phases = tuple(one for one in phases if one != ("source", "Begun"))
    side, phase = rng.choice(phases)
    return Moment(side, phase, rng.uniform(0, _NEAR_S))


def _draw_span(rng: random.Random, fault: Fault) -> float:
    """Draw how long it lasts: mostly short, sometimes longer than every time limit of a hand-over."""
    if fault is Fault.OLD_JOURNAL:
        return rng.uniform(0.1, 1.0)
    [(least_s, most_s)] = rng.choices(((0.05, 1.0), (1.0, 4.0), (4.0, 15.0)), (5.0, 3.0, 2.0))
    return rng.uniform(least_s, most_s)
