"""The network learns where a guest is that has moved: QEMU's own announcements, heard on the other host's bridge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.lab.network import TwoHosts
from ferry.agent.v1 import control_pb2
from ferry.common.v1 import modes_pb2 as modes_pb
from tests.e2e.guest import Plan
from tests.e2e.guest_network import announcements, guest_network, network_card
from tests.e2e.lab import PAUSED, Lab
from tests.e2e.move import State, wishes
from tests.e2e.waiting import until

QEMUS_ROUNDS = 5
WITH_CARD = Plan(inside=network_card())


@pytest.fixture(scope="module")
def _guests(network: TwoHosts) -> Iterator[None]:
    with guest_network(network):
        yield


@pytest.mark.usefixtures("_guests")
@pytest.mark.parametrize(("wished", "count"), [(None, QEMUS_ROUNDS), (1, 1), (8, 8), (0, 0)])
async def test_a_guest_that_has_moved_is_announced_as_often_as_wished(wished, count, lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=WITH_CARD)
    options = wishes(modes=modes_pb.Modes(announce_round_count=wished))

    with announcements(network, "host-a", lab.directory) as told:
        outcome = await (await lab.start_move(options=options)).outcome()
        await until(lambda: len(told.of()) >= count, f"{count} announcements, not {told.of()}")
        await guest.console.wait_sweeps(4)  # more would come within a second
        announced = told.of()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert len(announced) == count
    arrival = outcome.progress.arrival
    assert (arrival.announce_round_count, arrival.network_card_count) == (count, 1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.usefixtures("_guests")
async def test_a_guest_that_stays_paused_is_announced_when_it_goes_on(lab_apart: Lab, network: TwoHosts):
    lab = lab_apart
    guest = await lab.start_guest(plan=WITH_CARD)

    with announcements(network, "host-a", lab.directory) as told:
        outcome = await (await lab.start_move(options=wishes(modes=modes_pb.Modes(suspend=True)))).outcome()
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert (await lab.vms("host-b"))[guest.name] == PAUSED
        await guest.wait_silent(1.5)
        assert not told.of()

        await lab.agents["host-b"].ResumeVm(control_pb2.ResumeVmRequest(vm=guest.name))
        await until(lambda: len(told.of()) == QEMUS_ROUNDS, f"{QEMUS_ROUNDS} announcements")

    assert outcome.progress.arrival.is_paused
    await guest.console.wait_sweeps(1)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()
