"""Somebody else connects to the port that a destination's QEMU listens on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab, now_s
from tests.e2e.move import wishes
from tests.e2e.steps import Steps, steps
from tests.e2e.tables import cases, in_turn

GAP_LIMIT_S = 2.3
VERSIONS = ("7.2", "10.0")
CHANNELS = (0, 4)
WORDS = {"silent": b"", "half-a-handshake": b"\x16\x03\x01", "rubbish": b"GET / HTTP/1.0\r\n\r\n"}


@asynccontextmanager
async def stranger(by_hand: Steps, words: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """Connect to the destination's port, say something or nothing, and stay."""
    _, host, port = by_hand.prepared.endpoint.uri.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(words)
        yield reader
    finally:
        writer.close()


@cases(("version", "words", "multifd"), (VERSIONS, tuple(WORDS), CHANNELS), in_turn(VERSIONS, tuple(WORDS), CHANNELS))
async def test_a_stranger_at_an_encrypted_port_does_not_stop_the_move(version, words, multifd, lab: Lab):
    guest = await lab.start_guest(plan=Plan(emulator=require(version)))
    by_hand = Steps(lab, wishes(multifd=multifd))
    await by_hand.begin_and_prepare()
    since_s = now_s()

    async with stranger(by_hand, WORDS[words]):
        half = await by_hand.perform()
        assert half.phase == "HandedOver", half.error
        await by_hand.finish_and_confirm()

    await guest.console.wait_sweeps(1)
    guest.assert_no_gap(GAP_LIMIT_S, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_strangers_that_come_again_and_again_do_not_stop_the_move(lab: Lab):
    guest = await lab.start_guest()
    by_hand = Steps(lab)
    await by_hand.begin_and_prepare()
    since_s = now_s()

    async def come_again() -> None:
        with suppress(ConnectionRefusedError):  # QEMU has loaded the guest and listens no more
            while True:
                with suppress(ConnectionResetError):
                    async with stranger(by_hand) as reader:
                        await reader.read()  # until cut

    async with asyncio.TaskGroup() as group:
        coming = group.create_task(come_again())
        half = await by_hand.perform()
        coming.cancel()

    assert half.phase == "HandedOver", half.error
    await by_hand.finish_and_confirm()

    await guest.console.wait_sweeps(1)
    guest.assert_no_gap(GAP_LIMIT_S, since_s)
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


@pytest.mark.parametrize("words", ["silent", "rubbish"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stranger_at_a_plain_port_makes_the_move_fail_and_the_guest_stays(version, words, lab: Lab):
    guest = await lab.start_guest(plan=Plan(emulator=require(version)))
    async with steps(lab, wishes(plain=True)) as by_hand:
        await by_hand.begin_and_prepare()
        since_s = now_s()

        async with stranger(by_hand, WORDS[words]):
            half = await by_hand.perform()

        assert half.phase == "Kept"
        assert half.error_reason
        assert "host-b" in half.error
        assert "stranger" in half.error
        guest.assert_no_gap(GAP_LIMIT_S, since_s)
    await lab.assert_only_on("host-a", guest)
    guest.assert_whole()
