"""The Linux guest tells the truth: moved by raw QEMU, with nothing of Ferry between."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import raw
from tests.binaries import skip_without
from tests.guests import linux
from tests.guests.console import Console

pytestmark = [pytest.mark.linux, pytest.mark.qemu("7.2"), pytest.mark.timeout(60)]

_MIB = 1 << 20


@pytest.fixture(autouse=True)
def _kernel() -> None:
    if not linux.KERNEL.exists():
        pytest.skip("no kernel in .cache; `make setup` puts it there")


def _guest(directory: Path, *, binary: str = raw.DEFAULT_BINARY, machine: str = "pc-q35-7.2") -> raw.Guest:
    return raw.linux_guest(
        linux.KERNEL,
        linux.build(),
        linux.command_line(dirty_mib=64, rate_mib_s=20.0, period_ms=20.0),
        linux.MEMORY_KIB,
        directory / "console.log",
        machine=machine,
        binary=binary,
    )


@pytest.mark.parametrize("version", ["7.2", "10.0"])
async def test_a_busy_linux_guest_arrives_whole_and_its_counter_goes_on(version: str, tmp_path: Path) -> None:
    source, destination = _guest(tmp_path), _guest(tmp_path, binary=skip_without(version))

    with Console(tmp_path / "console.log") as console:
        async with (
            raw.start(source, tmp_path / "a") as first,
            raw.start(destination, tmp_path / "b", incoming=True) as second,
        ):
            await console.wait_ticks(10)
            options = raw.Options(bandwidth_bytes_s=100 * _MIB, downtime_limit_ms=100)
            figures = await raw.move(first, second, options)
            await console.wait_sweeps(2)

            assert figures.pass_count > 2
            console.assert_continuous()


async def test_the_linux_guest_obeys_the_power_button(tmp_path: Path) -> None:
    if not (linux.KERNEL.parent / "button.ko").exists():
        pytest.skip("no button.ko in .cache; `make setup` puts it there")

    with Console(tmp_path / "console.log") as console:
        async with raw.start(_guest(tmp_path), tmp_path / "a") as first:
            await console.wait_ticks(2)
            await first.qmp.execute("system_powerdown")
            event = await first.qmp.wait_event("SHUTDOWN", timeout_s=5)

            assert event.data["reason"] == "guest-shutdown"
