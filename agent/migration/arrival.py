"""What became of the guest at the destination, as it is told afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.qemu.commands import Qemu
from agent.qemu.decoding import find_int
from agent.vm.definition import Definition


class Outcome(Enum):
    """What became of the guest's clock."""

    NOT_LOOKED_AT = "not-looked-at"
    RIGHT = "right"
    SET = "set"
    NO_AGENT = "no-agent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ClockSync:
    """What became of the guest's clock.

    Attributes:
        behind_s: how far behind this host's clock it was; negative: ahead.
        error: why it failed; empty else.
    """

    outcome: Outcome = Outcome.NOT_LOOKED_AT
    behind_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class NetworkGap:
    """How long the guest could not be reached over its network.

    Attributes:
        gap_s: from its STOP to its first answer; None when it was not measured.
        why_not: why it was not; empty else.
    """

    gap_s: float | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of the guest at the destination.

    Attributes:
        is_paused: it stays paused, by wish or because its user had paused it.
        announce_round_count: how often QEMU tells the network where the guest is.
        network_card_count: for how many network cards.
        network_gap: measured at the source; None of a guest without a card on a bridge.
    """

    is_paused: bool = False
    announce_round_count: int = 0
    network_card_count: int = 0
    clock: ClockSync = ClockSync()
    network_gap: NetworkGap | None = None


async def announce_round_count(qemu: Qemu) -> int:
    """Ask how often QEMU tells the network where a guest is that has come. Source: qapi/net.json, AnnounceParameters."""
    return find_int(await qemu.query_parameters(), "announce-rounds") or 0


def network_card_count(definition: Definition) -> int:
    """Count the network cards that are connected to something."""
    return sum(1 for device in definition.find("device") if device.get("netdev"))
