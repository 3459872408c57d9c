"""Wishes out of range, and secrets that do not show."""

from __future__ import annotations

import pytest

from agent.migration.modes import Modes
from agent.migration.order import Endpoint, HostIdentity, Options, Transport
from common.errors import InvalidRequest


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"multifd_channel_count": -1}, "-1 channels"),
        ({"multifd_channel_count": 256}, "256 channels"),
        ({"bandwidth_bytes_per_second": -1}, "-1 bytes per second"),
        ({"max_downtime_s": 0.0}, "0 s"),
        ({"max_downtime_s": 2000.1}, "2000.1 s"),
        ({"transport": Transport.TUNNEL, "plain": True}, "plain and tunnel"),
        ({"transport": Transport.TUNNEL, "migrate_uri": "tcp:x"}, "tcp:x and tunnel"),
        ({"modes": Modes(offline=True), "pause": True}, "pause and offline"),
        ({"modes": Modes(offline=True), "transport": Transport.TUNNEL}, "tunnel and offline"),
        ({"modes": Modes(offline=True), "multifd_channel_count": 2}, "multifd and offline"),
    ],
)
def test_a_wish_out_of_range_is_refused_with_its_value(wish: dict[str, object], told: str):
    with pytest.raises(InvalidRequest, match=told):
        Options(**wish)  # type: ignore[arg-type]


def test_a_direct_move_is_encrypted_by_qemu_unless_plain_is_wished():
    assert Options().is_psk
    assert not Options(plain=True).is_psk
    assert not Options(transport=Transport.TUNNEL).is_psk


def test_multifd_adds_its_channels_to_the_main_one():
    assert Options().channel_count == 1
    assert Options(multifd_channel_count=4).channel_count == 5


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"uri": "tcp:h:1", "tunnel_token": "t"},
        {"uri": "exec:cat"},
        {"uri": "tcp:h:1", "psk_key": "abc"},
        {"uri": "tcp:h:1", "psk_key": "Z" * 64},
    ],
)
def test_an_endpoint_that_is_none_is_refused(fields: dict[str, str]):
    with pytest.raises(InvalidRequest):
        Endpoint(**fields)  # type: ignore[arg-type]  # strings only


def test_an_endpoint_shows_no_secret():
    shown = repr(Endpoint(uri="tcp:h:1", psk_key="ab" * 32)) + repr(Endpoint(tunnel_token="hush", tunnel_address="h:1"))

    assert "abab" not in shown
    assert "hush" not in shown


def test_hosts_share_a_network_only_with_the_same_kernel_and_namespace():
    here = HostIdentity("a", "boot", 1, cpu_has_aes=True)

    assert here.is_same_network(HostIdentity("b", "boot", 1, cpu_has_aes=False))
    assert not here.is_same_network(HostIdentity("a", "boot", 2, cpu_has_aes=True))
    assert not here.is_same_network(HostIdentity("a", "other", 1, cpu_has_aes=True))
