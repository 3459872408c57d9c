"""A running guest is moved there and back, on every pair of QEMUs, by every way."""

from __future__ import annotations

from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State, Where
from tests.e2e.tables import cases, in_turn

# The first host's QEMU, the second's. Where they differ the hosts' own are used, which are 7.2 on host-a and 10.0 on host-b.
PAIRS = [("7.2", "7.2"), ("10.0", "10.0"), ("7.2", "10.0"), ("10.0", "7.2")]


BY = ("plain", "psk", "tunnel")
CHANNELS = (0, 4)


@cases(("pair", "way", "multifd"), (PAIRS, BY, CHANNELS), in_turn(PAIRS, BY, CHANNELS))
async def test_a_busy_guest_is_moved_there_and_back_whole(pair, way, multifd, lab: Lab):
    first, second = ("host-b", "host-a") if pair == ("10.0", "7.2") else ("host-a", "host-b")
    emulator = require(pair[0]) if pair[0] == pair[1] else ""
    binaries = dict(zip((first, second), map(require, pair), strict=True))
    machine = "pc-q35-10.0" if pair == ("10.0", "10.0") else "pc-q35-7.2"
    options = WAYS[way](multifd=multifd)
    guest = await lab.start_guest(first, Plan(emulator=emulator, machine=machine, dirty_mib_s=8.0))

    for here, there in ((first, second), (second, first)):
        move = await lab.start_move(guest.name, there, options, source=here)
        outcome = await move.outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        assert outcome.guest_location == Where.GUEST_LOCATION_DESTINATION
        await guest.console.wait_sweeps(2)
        await lab.assert_only_on(there, guest)
        assert (await lab.vm(there, guest.name)).argv[0] == binaries[there]

    guest.assert_whole()
