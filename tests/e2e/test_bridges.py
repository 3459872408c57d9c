"""A guest's card is on a bridge of each host: no move changes a bridge, and a plan tells what the destination's lacks."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deploy.lab.fleet import HOSTS
from deploy.lab.network import TwoHosts
from ferry.common.v1.migration_pb2 import MigrationOptions
from tests.e2e.guest import Plan, domain
from tests.e2e.guest_network import BRIDGE, guest_network, network_card
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes

LARGE, USUAL = 9000, 1500
CABLE = "cable0"


@pytest.fixture(scope="module", autouse=True)
def _guests(network: TwoHosts) -> Iterator[None]:
    with guest_network(network):
        for host in HOSTS:
            set_mtu(network, host, LARGE)
        yield


def set_mtu(network: TwoHosts, host: str, mtu: int) -> None:
    """Give a host's end of the cable, and so its bridge, another MTU."""
    inside(network, host, "ip", "link", "set", CABLE, "mtu", str(mtu))


def inside(network: TwoHosts, host: str, *command: str) -> str:
    """Run a command on a host."""
    done = subprocess.run((*network.prefix(host), *command), check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout


def bridge(network: TwoHosts, host: str) -> tuple[str, int]:
    """Tell the address and the MTU of a host's bridge."""
    (found,) = json.loads(inside(network, host, "ip", "-json", "link", "show", "dev", BRIDGE))
    return found["address"], found["mtu"]


@contextmanager
def of_mtu(network: TwoHosts, host: str, mtu: int) -> Iterator[None]:
    """Let a host's bridge have another MTU."""
    set_mtu(network, host, mtu)
    try:
        yield
    finally:
        set_mtu(network, host, LARGE)


@contextmanager
def without_bridge(network: TwoHosts, host: str) -> Iterator[None]:
    """Let a host have its bridge under another name."""
    inside(network, host, "ip", "link", "set", BRIDGE, "down")
    inside(network, host, "ip", "link", "set", BRIDGE, "name", "other0")
    try:
        yield
    finally:
        inside(network, host, "ip", "link", "set", "other0", "name", BRIDGE)
        inside(network, host, "ip", "link", "set", BRIDGE, "up")


async def refusal(lab: Lab, options: MigrationOptions | None = None) -> str:
    """Try a move that is refused; return the word for the reason."""
    outcome = await (await lab.start_move(options=options)).outcome()
    assert outcome.state == State.STATE_FAILED
    return outcome.error_reason


async def test_starts_and_moves_leave_bridges_as_they_are(lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    before = {host: bridge(network, host) for host in HOSTS}
    guest = await lab.start_guest(plan=Plan(inside=network_card()))
    seen = [{host: bridge(network, host) for host in HOSTS}]

    for there in ("host-b", "host-a"):
        outcome = await (await lab.start_move(to=there)).outcome()
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await lab.assert_only_on(there, guest)
        seen.append({host: bridge(network, host) for host in HOSTS})

    assert all(mtu == LARGE for _, mtu in before.values())
    assert seen == [before] * 3
    assert f"mtu {LARGE}" in inside(network, "host-a", "ip", "-o", "link", "show", "type", "tun")
    guest.assert_whole()


async def test_a_destination_without_the_bridge_or_with_a_smaller_one_is_told(lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=Plan(inside=network_card()))
    changed = domain(Plan(inside=network_card().replace(BRIDGE, CABLE)), lab.directory, uuid=guest.uuid)

    assert await refusal(lab, wishes(destination_xml=changed)) == "NOT_A_BRIDGE"
    with without_bridge(network, "host-b"):
        assert await refusal(lab) == "BRIDGE_MISSING"
        done = await asyncio.to_thread(lab.fleet.ferry, "plan", "web", "--to", "host-b", "-o", "json")
    assert ("BRIDGE_MISSING", "BLOCKER") in {(one["code"], one["severity"]) for one in json.loads(done.stdout)["findings"]}
    with of_mtu(network, "host-b", USUAL):
        outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert any("has an MTU of 1500, and on the source it is 9000" in warning for warning in outcome.warnings)
    guest.assert_whole()


async def test_a_card_that_told_its_guest_a_large_mtu_wants_a_bridge_that_carries_it(lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=Plan(inside=network_card().replace("<model", f'<mtu size="{LARGE}"/><model')))

    with of_mtu(network, "host-b", USUAL):
        assert await refusal(lab) == "BRIDGE_MTU_SMALLER"
        forced = wishes()
        forced.force = True
        outcome = await (await lab.start_move(options=forced)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert any("has an MTU of 1500" in warning for warning in outcome.warnings)
    guest.assert_whole()
