"""What we refuse together is what QEMU refuses together, each pair tried on real ones."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent.migration.means import AutoConverge, Compression, Means, refuse_conflicts
from agent.migration.order import MAX_CHANNEL_COUNT, Options
from agent.migration.qemu_setup import apply_settings
from agent.qemu.abilities import obeys_level, query_abilities
from agent.qemu.errors import QemuRefused
from common.errors import InvalidRequest
from tests.contract.real import real_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.commands import Qemu

CAPABILITIES: Final = ("multifd", "xbzrle", "auto-converge", "zero-copy-send", "dirty-limit", "switchover-ack", "validate-uuid")
PARAMETERS: Final[dict[str, dict[str, object]]] = {
    "compression": {"multifd-compression": "zstd"},
    "tls": {"tls-creds": "none-yet"},
}
# What QEMU takes and we refuse: without effect, or not what it says.
STRICTER: Final = {"7.2": {frozenset({"multifd", "xbzrle"})}, "10.0": set[frozenset[str]]()}
KVM_ONLY: Final = "dirty-limit"  # refused here whatever it is with, since these run under TCG


async def _takes(qemu: Qemu, wished: frozenset[str]) -> bool:
    """Try a set of wishes on a QEMU as a migration would apply it."""
    known = await qemu.query_capabilities()
    await qemu.set_capabilities(dict.fromkeys(known, False))
    await qemu.set_parameters({"multifd-compression": "none", "tls-creds": ""})
    for name in wished & PARAMETERS.keys():
        await qemu.set_parameters(PARAMETERS[name])
    try:
        await qemu.set_capabilities(dict.fromkeys(("return-path", *(wished - PARAMETERS.keys())), True))
    except QemuRefused:
        return False
    return True


def _we_take(wished: frozenset[str]) -> bool:
    try:
        refuse_conflicts(wished)
    except InvalidRequest:
        return False
    return True


async def test_each_pair_of_means_is_refused_by_us_exactly_if_qemu_refuses_it(binary: Path, version: str):
    stricter = set()
    async with real_qemu(binary) as qemu:
        known = {*await qemu.query_capabilities(), *PARAMETERS} - {KVM_ONLY}
        names = [name for name in (*CAPABILITIES, *PARAMETERS) if name in known]
        for count in (1, 2, 3):
            for wished in map(frozenset, itertools.combinations(names, count)):
                if await _takes(qemu, wished):
                    if not _we_take(wished):
                        stricter.add(wished)
                else:
                    assert not _we_take(wished), sorted(wished)

    without_channels = {
        wished for wished in stricter if "compression" in wished and "multifd" not in wished
    }  # QEMU would not compress
    assert all(any(pair <= wished for pair in STRICTER[version]) for wished in stricter - without_channels)


async def test_auto_converge_and_dirty_limit_exclude_each_other(binary: Path, version: str):
    if version == "7.2":
        pytest.skip("QEMU 7.2 has no dirty-limit")
    async with real_qemu(binary) as qemu:
        with pytest.raises(QemuRefused, match="conflicts with auto-converge"):
            await qemu.set_capabilities({"auto-converge": True, "dirty-limit": True})
    assert not _we_take(frozenset({"auto-converge", "dirty-limit"}))


LEAST: Final = (
    Means(compression=Compression.ZLIB),
    Means(compression=Compression.ZSTD),
    Means(xbzrle_cache_bytes=4096),
    Means(auto_converge=AutoConverge(1, 1, 1)),
)
MOST: Final = (
    Means(xbzrle_cache_bytes=1 << 40),
    Means(auto_converge=AutoConverge(99, 99, 99)),
)


@pytest.mark.parametrize("means", [*LEAST, *MOST], ids=str)
async def test_qemu_takes_the_least_and_the_most_that_we_allow(means: Means, binary: Path):
    async with real_qemu(binary) as qemu:
        await qemu.set_parameters(means.parameters())

        found = await qemu.query_parameters()

    assert {name: found[name] for name in means.parameters()} == means.parameters()


@pytest.mark.parametrize(("parameter", "least", "most"), [("multifd-zlib-level", 0, 9), ("multifd-zstd-level", 0, 20)])
async def test_levels_are_obeyed_but_by_old_versions(parameter: str, least: int, most: int, binary: Path, version: str):
    async with real_qemu(binary) as qemu:
        for level in (least, most):
            assert await obeys_level(qemu, parameter, level) is (version != "7.2")
        if version != "7.2":
            with pytest.raises(QemuRefused):
                await qemu.set_parameters({parameter: most + 1})


BEYOND: Final[list[dict[str, object]]] = [
    {"xbzrle-cache-size": 2048},
    {"xbzrle-cache-size": 5000},
    {"cpu-throttle-initial": 0},
    {"cpu-throttle-initial": 100},
    {"cpu-throttle-increment": 100},
    {"max-cpu-throttle": 100},
    {"max-cpu-throttle": 30, "cpu-throttle-initial": 31},
    {"multifd-channels": MAX_CHANNEL_COUNT + 1},
]


@pytest.mark.parametrize("parameters", BEYOND, ids=str)
async def test_qemu_refuses_what_lies_beyond(parameters: dict[str, Any], binary: Path):
    async with real_qemu(binary) as qemu:
        with pytest.raises(QemuRefused):
            await qemu.set_parameters(parameters)


async def test_a_running_qemu_tells_what_it_can_do(binary: Path, version: str):
    async with real_qemu(binary) as qemu:
        little = await query_abilities(qemu, with_compressions=False, with_tls=False)
        much = await query_abilities(qemu, with_compressions=True, with_tls=True)

    assert {"multifd", "xbzrle", "validate-uuid", "zero-copy-send", "xbzrle-cache-size"} <= little
    assert ("switchover-ack" in little) is (version != "7.2")
    assert ("avail-switchover-bandwidth" in little) is (version != "7.2")
    assert much - little == {f"multifd-compression={name}" for name in ("none", "zlib", "zstd")} | {"tls-creds-psk"}


async def test_settings_of_an_earlier_migration_do_not_stay(binary: Path):
    earlier = Means(switchover_bandwidth_bytes_per_second=1 << 20)

    async with real_qemu(binary) as qemu:
        await apply_settings(qemu, Options(plain=True, multifd_channel_count=2, means=Means(zero_copy=True)), ())
        await apply_settings(qemu, Options(plain=True, multifd_channel_count=2, means=Means(compression=Compression.ZSTD)), ())
        if "avail-switchover-bandwidth" in await qemu.query_parameters():
            await apply_settings(qemu, Options(plain=True, means=earlier), ("validate-uuid",))
            await apply_settings(qemu, Options(plain=True), ())
            assert (await qemu.query_parameters())["avail-switchover-bandwidth"] == 0
        assert not (await qemu.query_capabilities())["validate-uuid"]
