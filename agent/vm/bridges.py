"""Whether this host has the bridges that a VM's network cards are on, and whether these carry the guest's largest frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.vm.links import find_mtu, has_ports, is_bridge
from common.errors import WrongState
from common.findings import Risk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.vm.definition import Definition, Tap
    from common.findings import Findings

_REASON: Final = "BRIDGE_MTU_SMALLER"


@dataclass(frozen=True, slots=True)
class CardMtu:
    """The largest frames of a network card on its host.

    Attributes:
        netdev: the id of the back end.
        mtu: of the bridge, or device, behind it.
    """

    netdev: str
    mtu: int


def wanted_mtu(definition: Definition, netdev: str) -> int | None:
    """Return the MTU that a card tells its guest (`<mtu>`); None where it tells none."""
    for device in definition.find("device"):
        mtu = device.get("host_mtu")
        if device.get("netdev") == netdev and mtu:
            return int(mtu)
    return None


def card_mtus(definition: Definition) -> tuple[CardMtu, ...]:
    """Tell the MTU of each card's bridge or device on this host, as far as it is known."""
    found = ((tap.netdev, find_mtu(tap.bridge or tap.device or "")) for tap in definition.taps if tap.bridge or tap.device)
    return tuple(CardMtu(netdev, mtu) for netdev, mtu in found if mtu is not None)


def check_bridges(definition: Definition, findings: Findings) -> None:
    """Require that the bridges of a definition are here.

    Raises:
        WrongState: one is missing, or is no bridge, unless `findings` collects that.
    """
    for tap in definition.taps:
        with findings.check():
            _check_bridge(tap)


def check_mtus(definition: Definition, elsewhere: Iterable[CardMtu], *, force: bool, host: str) -> tuple[str, ...]:
    """Compare the MTU of bridges here with what the guest was told, and with the source's bridges; return what is risked.

    Raises:
        WrongState: the guest was told of a larger one than the bridge carries, and nothing is forced.
    """
    risks = []
    there = {card.netdev: card.mtu for card in elsewhere}
    for tap in definition.taps:
        here = None if tap.bridge is None else find_mtu(tap.bridge)
        if tap.bridge is None or here is None or not has_ports(tap.bridge):  # a bridge without ports follows its first one
            continue
        wanted = wanted_mtu(definition, tap.netdev)
        if wanted is not None and wanted > here:
            text = (
                f"bridge {tap.bridge} on {host} has an MTU of {here}, and the guest's card {_card(definition, tap)} one of {wanted}"
            )
            if not force:
                raise WrongState(f"{text}: larger frames get lost; raise it there, or --force", reason=_REASON, bridge=tap.bridge)
            risks.append(Risk(f"{text}: larger frames get lost", _REASON))
        elif wanted is None and there.get(tap.netdev, 0) > here:
            text = f"bridge {tap.bridge} on {host} has an MTU of {here}, and on the source it is {there[tap.netdev]}"
            risks.append(Risk(f"{text}: if the guest sends frames larger than {here} bytes, they get lost", _REASON))
    return tuple(risks)


def _check_bridge(tap: Tap) -> None:
    if tap.bridge is None:
        return
    if find_mtu(tap.bridge) is None:
        raise WrongState(f"bridge {tap.bridge} does not exist on this host", reason="BRIDGE_MISSING", bridge=tap.bridge)
    if not is_bridge(tap.bridge):
        raise WrongState(f"{tap.bridge} is not a bridge on this host", reason="NOT_A_BRIDGE", bridge=tap.bridge)


def _card(definition: Definition, tap: Tap) -> str:
    return next((device.get("id") or "" for device in definition.find("device") if device.get("netdev") == tap.netdev), tap.netdev)
