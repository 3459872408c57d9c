"""Means of RAM migration: what is refused, what QEMU is told, what both sides have to be able to do."""

from __future__ import annotations

import pytest

from agent import wire
from agent.migration.abilities import needs
from agent.migration.means import AutoConverge, Compression, Means
from agent.migration.means_check import OPTIONAL, Ability, agree, require
from agent.migration.order import Options, Role, Transport
from agent.migration.qemu_setup import capabilities, parameters
from common.codec import decode, encode
from common.errors import FerryError, InvalidRequest, WrongState

EVERYTHING = Means(
    compression=Compression.ZSTD,
    compression_level=20,
    auto_converge=AutoConverge(initial=30, increment=5, most=90),
    switchover_bandwidth_bytes_per_second=1 << 30,
)
OLD = Ability(Role.SOURCE, "host-a", "7.2.22", frozenset({"multifd", "validate-uuid"}))
NEW = Ability(
    Role.DESTINATION, "host-b", "10.0.2", frozenset({"multifd", "switchover-ack", "validate-uuid"}), {"multifd": "it rains"}
)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"compression": Compression.ZLIB, "compression_level": 10}, "compression-level of zlib: 10 is out of range; 0 to 9"),
        ({"compression": Compression.ZSTD, "compression_level": -1}, "0 to 20"),
        ({"compression": Compression.QPL, "compression_level": 1}, "qpl has no levels; zlib, zstd, qatzip have"),
        ({"xbzrle_cache_bytes": 2048}, "xbzrle-cache: 2048 bytes is out of range; 4096 to"),
        ({"xbzrle_cache_bytes": 5000}, "5000 bytes; a power of two"),
        ({"xbzrle_cache_bytes": -4096}, "xbzrle-cache: -4096"),
        ({"switchover_bandwidth_bytes_per_second": 5}, "switchover-bandwidth: 5 bytes per second"),
        ({"dirty_limit_bytes_per_second": 1000}, "dirty-limit: 1000 bytes per second"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(fields, words):
    with pytest.raises(InvalidRequest, match=words):
        Means(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"initial": 0}, "throttle-initial: 0 percent is out of range; 1 to 99"),
        ({"increment": 100}, "throttle-increment: 100"),
        ({"initial": 50, "most": 40}, "throttle-max: 40 .* 50 to 99"),
    ],
)
def test_a_throttle_out_of_range_is_refused_by_name(fields, words):
    with pytest.raises(InvalidRequest, match=words):
        AutoConverge(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"multifd_channel_count": 2, "means": Means(xbzrle_cache_bytes=4096)}, "multifd and xbzrle exclude each other"),
        ({"means": Means(compression=Compression.ZSTD)}, "compression needs multifd channels"),
        ({"plain": True, "means": Means(zero_copy=True)}, "zero-copy needs multifd channels"),
        ({"multifd_channel_count": 2, "means": Means(zero_copy=True)}, "encryption and zero-copy exclude each other"),
        (
            {"transport": Transport.TUNNEL, "multifd_channel_count": 2, "means": Means(zero_copy=True)},
            "tunnel and zero-copy exclude each other",
        ),
        (
            {"plain": True, "multifd_channel_count": 2, "means": Means(zero_copy=True, compression=Compression.ZLIB)},
            "compression and zero-copy exclude each other",
        ),
        (
            {"means": Means(auto_converge=AutoConverge(), dirty_limit_bytes_per_second=1 << 20)},
            "auto-converge and dirty-limit exclude each other",
        ),
    ],
)
def test_wishes_that_qemu_would_refuse_together_are_refused(fields, words):
    with pytest.raises(InvalidRequest, match=words) as caught:
        Options(**fields)

    assert caught.value.reason == "OPTIONS_CONFLICT"


def test_qemu_is_told_each_means_by_its_own_name():
    options = Options(multifd_channel_count=4, means=EVERYTHING)

    told = parameters(options)

    assert (told["multifd-compression"], told["multifd-zstd-level"]) == ("zstd", 20)
    assert [told[name] for name in ("cpu-throttle-initial", "cpu-throttle-increment", "max-cpu-throttle")] == [30, 5, 90]
    assert options.means.optional_parameters() == {"avail-switchover-bandwidth": 1 << 30}
    assert {"multifd", "auto-converge", "switchover-ack"} <= set(capabilities(options, ("switchover-ack",)))
    assert {"multifd-compression=zstd", "avail-switchover-bandwidth", "tls-creds-psk", "return-path"} <= set(needs(options))


def test_a_dirty_limit_is_told_in_mib_per_second_and_a_cache_in_bytes():
    assert Means(dirty_limit_bytes_per_second=3 << 20).parameters()["vcpu-dirty-limit"] == 3
    assert Means(xbzrle_cache_bytes=1 << 23).parameters()["xbzrle-cache-size"] == 1 << 23


def test_without_a_wish_nothing_is_compressed_and_nothing_more_is_needed():
    assert Means().needs() == ()
    assert Means().parameters() == {"multifd-compression": "none"}


@pytest.mark.parametrize(
    "means", [Means(), EVERYTHING, Means(xbzrle_cache_bytes=4096), Means(zero_copy=True), Means(auto_converge=AutoConverge())]
)
def test_means_come_back_from_a_message_and_from_a_record(means):
    options = Options(plain=True, multifd_channel_count=0 if means.xbzrle_cache_bytes else 2, means=means)

    assert wire.options(wire.options_message(options)) == options
    assert decode(Options, encode(options)) == options


def test_a_compression_that_only_a_newer_client_knows_is_refused():
    message = wire.options_message(Options())
    message.means.compression = 99  # type: ignore[assignment]  # as such a client would

    with pytest.raises(InvalidRequest, match=r"compression 99 is unknown"):
        wire.options(message)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("switchover-ack", OLD, "switchover-ack cannot be used: on the source host-a QEMU 7.2.22 does not know it"),
        ("multifd", NEW, "multifd cannot be used: on the destination host-b it rains"),
    ],
)
def test_what_a_side_lacks_is_refused_with_its_name_and_why(name, side, words):
    with pytest.raises(WrongState) as caught:
        require(name, OLD, NEW)

    error: FerryError = caught.value
    assert error.text == words
    assert error.reason == "CAPABILITY_MISSING"
    assert (error.facts["side"], error.facts["host"], error.facts["capability"]) == (side.side.value, side.host, name)


def test_what_both_have_is_agreed_upon():
    require("validate-uuid", OLD, NEW)

    assert agree(OPTIONAL, OLD, NEW) == ("validate-uuid",)
    assert agree(OPTIONAL, NEW) == ("validate-uuid", "switchover-ack")
