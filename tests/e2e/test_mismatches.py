"""Two ends that do not fit: another key, encryption on one side, another guest; each fails in words, and the guest runs on."""

from __future__ import annotations

import pytest

from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.steps import steps


async def assert_it_can_be_tried_again(lab: Lab) -> None:
    again = await (await lab.start_move()).outcome()
    assert again.state == State.STATE_SUCCEEDED, again.error


@pytest.mark.parametrize("multifd", [0, 2])
async def test_another_key_at_the_destination_fails_the_handshake(multifd, lab: Lab):
    guest = await lab.start_guest()
    async with steps(lab, wishes(multifd=multifd)) as by_hand:
        await by_hand.begin_and_prepare()
        (key,) = (lab.fleet.directory / "host-b" / "keys").glob("*/keys.psk")
        key.write_text(f"ferry:{'00' * 32}\n")

        half = await by_hand.perform()

    assert half.phase == "Kept"
    assert half.error
    await lab.assert_only_on("host-a", guest)
    await assert_it_can_be_tried_again(lab)
    guest.assert_whole()


@pytest.mark.parametrize("encrypted", ["source", "destination"])
async def test_encryption_on_one_side_alone_fails_the_move(encrypted, lab: Lab):
    guest = await lab.start_guest()
    async with steps(lab, wishes(plain=encrypted != "source")) as by_hand:
        await by_hand.begin()
        by_hand.options = wishes(plain=encrypted == "source")
        by_hand.begun.source.known.append("tls-creds-psk")
        prepared = await by_hand.prepare()
        if encrypted == "source":
            prepared.endpoint.psk_key, prepared.endpoint.psk_identity = "11" * 32, "ferry"

        half = await by_hand.perform()

    assert half.phase == "Kept"
    assert half.error
    await lab.assert_only_on("host-a", guest)
    await assert_it_can_be_tried_again(lab)
    guest.assert_whole()


async def test_another_uuid_at_the_destination_is_refused_before_anything_starts(lab: Lab):
    guest = await lab.start_guest()
    other = domain(Plan(), lab.directory)

    await assert_refused(lab, guest, "GUEST_ABI_DIFFERS", str(guest.uuid), options=wishes(destination_xml=other))
