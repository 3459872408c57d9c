"""Asking a guest whether it can be reached: frames, neighbours, and the card that is asked."""

from __future__ import annotations

import pytest

from agent.migration.arp import ETHERTYPE, REQUEST, Arp, find_neighbour, parse_arp, probe
from agent.migration.network_gap import Card, find_card
from tests.unit.agent.vm.samples import domain, parse

OURS, GUESTS = bytes.fromhex("0a0000000001"), bytes.fromhex("525400123456")
MAC = "52:54:00:12:34:56"
# The guest's reply to a probe.
REPLY = bytes.fromhex("0a0000000001525400123456080600010800060400025254001234560a6300020a000000000100000000")
TABLE = """\
IP address       HW type     Flags       HW address            Mask     Device
10.99.0.9        0x1         0x2         52:54:00:00:00:09     *        guests0
10.99.0.2        0x1         0x2         52:54:00:12:34:56     *        guests0
"""
ON_BRIDGE = "<interface type='bridge'><source bridge='{}'/><mac address='{}'/><model type='virtio'/></interface>"


def test_a_reply_tells_whose_address_it_is():
    assert parse_arp(REPLY) == Arp(2, GUESTS, "10.99.0.2")


@pytest.mark.parametrize(
    "frame",
    [b"", REPLY[:41], REPLY[:12] + b"\x08\x00" + REPLY[14:], REPLY[:28] + bytes(4) + REPLY[32:], REPLY[:18] + b"\x08" + REPLY[19:]],
)
def test_what_tells_no_address_is_passed_over(frame: bytes):
    assert parse_arp(frame) is None


def test_a_probe_goes_to_one_card_and_tells_no_address_of_ours():
    frame = probe(OURS, GUESTS, "10.99.0.2")

    assert (frame[:6], frame[6:12], frame[12:14], frame[20:22]) == (
        GUESTS,
        OURS,
        ETHERTYPE.to_bytes(2),
        REQUEST.to_bytes(2),
    )
    assert (frame[28:32], frame[38:42]) == (bytes(4), bytes([10, 99, 0, 2]))
    assert parse_arp(frame) is None


def test_the_kernels_table_knows_addresses_by_card():
    assert find_neighbour(TABLE, MAC.upper()) == "10.99.0.2"
    assert not find_neighbour(TABLE, "52:54:00:00:00:01")
    assert not find_neighbour("", MAC)


def test_the_first_card_on_a_bridge_is_asked():
    user = "<interface type='user'><model type='virtio'/></interface>"
    cards = [user, ON_BRIDGE.format("br7", MAC), ON_BRIDGE.format("br8", "52:54:00:00:00:01")]

    assert find_card(parse(domain(devices="".join(cards)))) == Card("br7", MAC)
    assert Card("br7", MAC).mac_bytes == GUESTS


def test_a_guest_without_a_bridge_is_not_asked():
    assert find_card(parse(domain(devices="<interface type='user'><model type='virtio'/></interface>"))) is None
    assert find_card(parse(domain())) is None
