"""A running guest is moved there and back, on every pair of QEMUs, by every way."""

from __future__ import annotations

from deploy.lab.fleet import HOSTS
from tests.e2e.binaries import emulator_of, machine_of, version_of
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Where
from tests.e2e.tables import cases, in_turn, one_each

# The first host's QEMU, the second's.
PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]
PAIRS_OF_11 = [("7.2", "11.1"), ("10.0", "11.1"), ("11.1", "11.1")]
BY = ("plain", "psk", "tunnel")
CHANNELS = (0, 4)


@cases(
    ("pair", "way", "multifd"),
    ([*PAIRS, *PAIRS_OF_11], BY, CHANNELS),
    [*in_turn(PAIRS, BY, CHANNELS), *one_each(PAIRS_OF_11, ("psk", "tunnel", "plain"), CHANNELS)],
)
async def test_a_busy_guest_is_moved_there_and_back_whole(pair, way, multifd, lab: Lab):
    versions = dict(zip(HOSTS, pair, strict=True))
    options = WAYS[way](multifd=multifd)
    guest = await lab.start_guest(plan=Plan(emulator=emulator_of(pair), machine=machine_of(pair), dirty_mib_s=8.0))

    for here, there in (HOSTS, reversed(HOSTS)):
        move = await lab.start_move(guest.name, there, options, source=here)
        outcome = await move.outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
        await guest.console.wait_sweeps(2)
        await lab.assert_only_on(there, guest)
        assert version_of(await lab.qemu_pid(there)) == versions[there]

    guest.assert_whole()
