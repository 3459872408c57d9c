"""How long a guest cannot be reached over its network, by its answers on the source's bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest

from deploy.lab.network import TwoHosts
from tests.e2e.guest import Guest, Plan
from tests.e2e.guest_network import ADDRESS, MAC, can_reach, guest_network, host_address, network_card
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.test_guest_clock import BOOT_TIMEOUT_S, domain
from tests.e2e.waiting import until_equal
from tests.guests.console import Console

LONGEST_GAP_S = 1.0


@pytest.fixture(scope="module")
def _guests(network: TwoHosts) -> Iterator[None]:
    with guest_network(network), host_address(network, "host-a"):
        yield


@pytest.mark.linux
@pytest.mark.timeout(150)
@pytest.mark.usefixtures("_guests")
@pytest.mark.parametrize("way", ["psk", "tunnel"])
async def test_the_gap_of_a_guest_that_is_on_the_network_is_told_beside_its_standstill(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    uuid = uuid4()
    await lab.define("host-a", domain(lab, uuid, network_card(), words=f"ferry.address={ADDRESS}"))
    await lab.start_vm("host-a", "linux")
    guest = await lab.listen(Guest("linux", uuid, Console(lab.directory / "serial.log"), lab.directory), boot_s=BOOT_TIMEOUT_S)
    await until_equal(lambda: asyncio.to_thread(can_reach, network, "host-a"), wanted=True)

    outcome = await (await lab.start_move("linux", "host-b", wishes(tunnel=way == "tunnel"))).outcome(timeout_s=BOOT_TIMEOUT_S)

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    gap = outcome.progress.arrival.network_gap
    assert gap.HasField("gap"), gap.why_not
    assert outcome.downtime.total.ToTimedelta() <= gap.gap.ToTimedelta()
    assert gap.gap.ToTimedelta().total_seconds() < LONGEST_GAP_S
    assert outcome.progress.arrival.announce_round_count
    assert await asyncio.to_thread(can_reach, network, "host-a")
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.usefixtures("_guests")
async def test_the_gap_of_a_guest_that_nobody_has_heard_of_is_not_measured(lab_apart: Lab):
    lab = lab_apart
    guest = await lab.start_guest(plan=Plan(inside=network_card(MAC.replace("56", "57"))))

    outcome = await (await lab.start_move()).outcome()

    assert "52:54:00:12:34:57 is not known" in outcome.progress.arrival.network_gap.why_not
    await lab.assert_only_on("host-b", guest)


async def test_a_guest_without_a_card_has_no_gap(lab: Lab):
    guest = await lab.start_guest()

    outcome = await (await lab.start_move()).outcome()

    assert not outcome.progress.arrival.HasField("network_gap")
    await lab.assert_only_on("host-b", guest)
