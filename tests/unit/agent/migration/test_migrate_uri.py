"""The forms of `migrate_uri` and the rule for loopback addresses."""

from __future__ import annotations

import socket

import pytest

from agent.migration.migrate_uri import PortRange, Target, check_port_free, listen_uri, parse_migrate_uri, refuse_loopback, resolve
from common.errors import InvalidRequest, WrongState


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp:host-b", "host-b", None),
        ("tcp:host-b:49152", "host-b", 49152),
        ("tcp://host-b:1", "host-b", 1),
        ("tcp://host-b", "host-b", None),
        ("tcp://host-b:65535/", "host-b", 65535),
        ("tcp:192.0.2.7:49152", "192.0.2.7", 49152),
        ("tcp:[2001:db8::7]:49152", "2001:db8::7", 49152),
        ("tcp://[::1]", "::1", None),
    ],
)
def test_the_accepted_forms_name_host_and_port(text: str, host: str, port: int | None):
    assert parse_migrate_uri(text) == Target(host, port)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("host-b", "no scheme"),
        ("", "no scheme"),
        ("rdma:host-b:1", "scheme 'rdma' is not tcp"),
        ("unix:/run/x", "scheme 'unix' is not tcp"),
        ("exec:cat", "scheme 'exec' is not tcp"),
        ("tcp:", "no host"),
        ("tcp://", "no host"),
        ("tcp::49152", "told apart"),
        ("tcp:host-b:", "port '' is not a number"),
        ("tcp:host-b:abc", "port 'abc' is not a number"),
        ("tcp:host-b:\uff11", "is not a number"),
        ("tcp:2001:db8::7:49152", "told apart"),
        ("tcp:[2001:db8::7:49152", "told apart"),
        ("tcp:[1.2.3.4]:5", "not an IPv6 address"),
        ("tcp:host b:1", "told apart"),
        ("tcp:-host:1", "not a host name"),
        ("tcp:host-b:1,to=9", "is not a number"),
        ("tcp:host-b,server:1", "told apart"),
    ],
)
def test_a_malformed_uri_is_refused_with_what_is_wrong(text: str, told: str):
    with pytest.raises(InvalidRequest, match=told):
        parse_migrate_uri(text)


@pytest.mark.parametrize("port", ["0", "65536", "99999999"])
def test_a_port_out_of_range_is_refused_with_the_range(port: str):
    with pytest.raises(InvalidRequest, match="1 to 65535") as refused:
        parse_migrate_uri(f"tcp:host-b:{port}")

    assert refused.value.reason == "PORT_OUT_OF_RANGE"


def test_a_name_that_resolves_to_loopback_is_refused_for_another_host():
    with pytest.raises(InvalidRequest, match=r"localhost resolves to 127\.0\.0\.1") as refused:
        refuse_loopback("localhost", ("127.0.0.1",), peer_is_this_host=False)

    assert refused.value.reason == "ADDRESS_IS_LOOPBACK"


def test_loopback_is_fine_between_agents_that_share_a_network():
    refuse_loopback("localhost", ("127.0.0.1", "::1"), peer_is_this_host=True)


def test_an_address_of_the_network_is_fine_for_another_host():
    refuse_loopback("192.0.2.7", ("192.0.2.7",), peer_is_this_host=False)


def test_a_name_that_does_not_resolve_is_refused_by_name():
    with pytest.raises(InvalidRequest, match=r"no-such-host\.invalid"):
        resolve("no-such-host.invalid")


def test_a_taken_port_is_refused_and_a_free_one_is_not():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(WrongState, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            check_port_free("127.0.0.1", port)

    check_port_free("127.0.0.1", port)


def test_an_address_of_another_host_is_refused():
    with pytest.raises(InvalidRequest, match=r"192\.0\.2\.7 is not an address of this host"):
        check_port_free("192.0.2.7", 49152)


def test_the_pool_is_given_to_qemu_which_takes_the_first_free_port():
    assert listen_uri("127.0.0.1", None, PortRange(49152, 49215)) == "tcp:127.0.0.1:49152,to=49215"
    assert listen_uri("::1", 49200, PortRange(49152, 49215)) == "tcp:[::1]:49200"
