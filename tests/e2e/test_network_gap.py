"""How long a guest cannot be reached over its network, by its answers on the source's bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from deploy.lab.network import TwoHosts
from ferry.common.v1.migration_pb2 import MigrationOptions
from tests.e2e.guest import Guest, Plan
from tests.e2e.guest_network import ADDRESS, MAC, can_reach, guest_network, host_address, network_card
from tests.e2e.lab import Lab
from tests.e2e.move import State, Whole, wishes
from tests.e2e.test_guest_clock import BOOT_TIMEOUT_S, CHANNEL, behind_s, domain
from tests.e2e.waiting import until_equal
from tests.guests.console import Console

LONGEST_AFTER_S = 1.0
TRIES = 3
# Of a guest that this host has never spoken with.
MAC_OF_NOBODY, ADDRESS_OF_NOBODY = "52:54:00:12:34:58", "10.99.0.3"


@pytest.fixture(scope="module")
def _guests(network: TwoHosts) -> Iterator[None]:
    with guest_network(network), host_address(network, "host-a"):
        yield


async def start(lab: Lab, mac: str, devices: str = "", *, address: str = ADDRESS) -> Guest:
    uuid = uuid4()
    await lab.define("host-a", domain(lab, uuid, network_card(mac) + devices, words=f"ferry.address={address}"))
    await lab.start_vm("host-a", "linux")
    return await lab.listen(Guest("linux", uuid, Console(lab.directory / "serial.log"), lab.directory), boot_s=BOOT_TIMEOUT_S)


async def measured_move(lab: Lab, options: MigrationOptions) -> Whole:
    """Move the guest to host-b with a gap that was measured; again where a busy machine let it answer too late."""
    for _ in range(TRIES):
        outcome = await (await lab.start_move("linux", "host-b", options)).outcome(timeout_s=BOOT_TIMEOUT_S)
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        gap = outcome.progress.arrival.network_gap
        if gap.HasField("gap"):
            return outcome
        assert "has not answered" in gap.why_not
        await (await lab.start_move("linux", "host-a", options)).outcome(timeout_s=BOOT_TIMEOUT_S)
    raise AssertionError(f"not measured in {TRIES} moves")


@pytest.mark.linux
@pytest.mark.timeout(150)
@pytest.mark.usefixtures("_guests")
async def test_an_address_that_only_the_guests_agent_tells_will_do(lab_apart: Lab):
    guest = await start(lab_apart, MAC_OF_NOBODY, CHANNEL, address=ADDRESS_OF_NOBODY)
    await behind_s(lab_apart, "host-a")  # the agent is up

    await measured_move(
        lab_apart, wishes(plain=True, bandwidth_mib_s=64)
    )  # slow enough that the agent is asked before the guest has gone

    guest.assert_whole()


@pytest.mark.linux
@pytest.mark.timeout(150)
@pytest.mark.usefixtures("_guests")
@pytest.mark.parametrize("way", ["plain", "tunnel"])
async def test_the_gap_of_a_guest_that_is_on_the_network_is_told_beside_its_standstill(way, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await start(lab, MAC)
    await until_equal(lambda: asyncio.to_thread(can_reach, network, "host-a"), wanted=True)

    outcome = await measured_move(lab, wishes(plain=way == "plain", tunnel=way == "tunnel"))

    gap = outcome.progress.arrival.network_gap
    assert outcome.downtime.total.ToTimedelta() <= gap.gap.ToTimedelta()
    assert gap.gap.ToTimedelta() < outcome.downtime.total.ToTimedelta() + timedelta(seconds=LONGEST_AFTER_S)
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
