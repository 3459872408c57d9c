"""The tick guest tells the truth: moved by raw QEMU, with nothing of Ferry between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench import raw
from tests.binaries import skip_without
from tests.guests import tick
from tests.guests.console import Console

pytestmark = pytest.mark.qemu("7.2")

_MIB = 1 << 20
_MANY_PASSES = raw.Options(bandwidth_bytes_s=40 * _MIB, downtime_limit_ms=50)


@dataclass(frozen=True, slots=True)
class _Pair:
    source: raw.RawQemu
    destination: raw.RawQemu
    console: Console


@asynccontextmanager
async def _pair(
    directory: Path,
    image: Path,
    memory_kib: int,
    *,
    machine: str = "pc-q35-7.2",
    versions: tuple[str, str] = ("7.2", "7.2"),
) -> AsyncIterator[_Pair]:
    """Start a ticking source and a destination that waits for it."""
    binaries = [skip_without(version) for version in versions]
    log = directory / "console.log"
    source, destination = (raw.tick_guest(image, memory_kib, log, machine=machine, binary=binary) for binary in binaries)
    with Console(log) as console:
        async with (
            raw.start(source, directory / "source") as first,
            raw.start(destination, directory / "destination", incoming=True) as second,
        ):
            await console.wait_ticks(5)
            yield _Pair(first, second, console)


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
@pytest.mark.parametrize("versions", [("7.2", "7.2"), ("7.2", "10.0"), ("10.0", "7.2"), ("10.0", "10.0")], ids="-".join)
async def test_a_busy_guest_arrives_whole_and_its_counter_goes_on(versions: tuple[str, str], machine: str, tmp_path: Path) -> None:
    image = tick.build(16, dirty_mib_s=30.0, directory=tmp_path)

    async with _pair(tmp_path, image, tick.memory_kib(16), machine=machine, versions=versions) as pair:
        figures = await raw.move(pair.source, pair.destination, _MANY_PASSES)
        await pair.console.wait_sweeps(2)

        assert figures.pass_count > 2
        pair.console.assert_continuous()
        assert pair.console.max_gap_s(figures.stopped_at_s) < figures.downtime_s + 0.5


@pytest.mark.parametrize(
    "options",
    [
        raw.Options(),
        raw.Options(is_unix=True),
        raw.Options(is_encrypted=True),
        raw.Options(channel_count=4),
        raw.Options(channel_count=4, is_encrypted=True),
    ],
    ids=["plain", "unix", "psk", "multifd", "multifd-psk"],
)
async def test_a_guest_arrives_whole_over_each_kind_of_channel(options: raw.Options, tmp_path: Path) -> None:
    image = tick.build(16, directory=tmp_path)

    async with _pair(tmp_path, image, tick.memory_kib(16)) as pair:
        figures = await raw.move(pair.source, pair.destination, options)
        await pair.console.wait_sweeps(2)

        assert figures.transferred_bytes > 16 * _MIB
        pair.console.assert_continuous()


async def test_pages_that_qemu_loses_are_reported(tmp_path: Path) -> None:
    """QEMU 7.2 under TCG loses pages when memory is a multiple of 256 KiB: the check can fail."""
    image = tick.build(16, dirty_mib_s=30.0, wide_tlb=True, directory=tmp_path)

    async with _pair(tmp_path, image, tick.memory_kib(16) - 8) as pair:
        await raw.move(pair.source, pair.destination, _MANY_PASSES)
        await pair.console.wait_sweeps(2)

        with pytest.raises(AssertionError, match="BAD page"):
            pair.console.assert_continuous()


async def test_a_second_running_copy_is_reported(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    first, second = (raw.tick_guest(tick.build(1, directory=tmp_path / name), tick.memory_kib(1), log) for name in ("a", "b"))

    with Console(log) as console:
        async with raw.start(first, tmp_path / "a"), raw.start(second, tmp_path / "b"):
            await console.wait_ticks(20)

    with pytest.raises(AssertionError, match="line"):
        console.assert_continuous()


async def test_a_reset_is_reported(tmp_path: Path) -> None:
    image = tick.build(1, directory=tmp_path)

    async with _pair(tmp_path, image, tick.memory_kib(1)) as pair:
        await pair.source.qmp.execute("system_reset")
        await pair.console.wait_ticks(20)

        with pytest.raises(AssertionError, match="ferry tick: 1 MiB"):
            pair.console.assert_continuous()


async def test_the_guest_obeys_the_power_button(tmp_path: Path) -> None:
    image = tick.build(1, directory=tmp_path)

    async with _pair(tmp_path, image, tick.memory_kib(1)) as pair:
        await pair.source.qmp.execute("system_powerdown")
        event = await pair.source.qmp.wait_event("SHUTDOWN", timeout_s=5)

        assert event.data["reason"] == "guest-shutdown"


async def test_too_little_memory_is_said_by_the_guest(tmp_path: Path) -> None:
    image = tick.build(64, directory=tmp_path)

    with Console(tmp_path / "console.log") as console:
        guest = raw.tick_guest(image, tick.memory_kib(16), tmp_path / "console.log")
        async with raw.start(guest, tmp_path / "source"):
            with pytest.raises(TimeoutError, match="BAD memory: room for MiB 31"):
                await console.wait_ticks(timeout_s=2)
