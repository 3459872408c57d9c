"""The accelerator is chosen by what a guest did, and what was found is kept."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from agent.qemu import accelerator
from agent.qemu.probe_rom import EXIT_CODE, ROM_BYTES, build_rom

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kvm(tmp_path: Path) -> Path:
    """A device node that opens, as /dev/kvm does where it does not work either."""
    device = tmp_path / "kvm"
    device.touch()
    return device


def a_binary(directory: Path, exit_code: int) -> Path:
    """Make a "QEMU" that counts its starts and exits at once."""
    binary = directory / f"qemu{exit_code}"
    script = f"#!/bin/sh\necho start >> {directory}/starts\nexit {exit_code}\n"
    binary.write_text(script, encoding="ascii")
    binary.chmod(stat.S_IRWXU)
    return binary


def starts(directory: Path) -> int:
    return len((directory / "starts").read_text(encoding="ascii").splitlines())


def test_the_rom_starts_at_the_reset_vector_and_fills_64_kib():
    rom = build_rom()

    assert len(rom) == ROM_BYTES
    assert rom[0xFFF0:0xFFF5] == b"\xea\x00\x00\x00\xf0"


async def test_an_accelerator_that_runs_the_guest_is_used_and_tried_once(tmp_path, kvm):
    binary = a_binary(tmp_path, EXIT_CODE)

    found = [await accelerator.probe(binary, "host", tmp_path, kvm=kvm) for _ in range(3)]

    assert found == ["kvm"] * 3
    assert starts(tmp_path) == 1


async def test_one_that_aborts_is_not_used_and_not_tried_again(tmp_path, kvm):
    binary = a_binary(tmp_path, 134)

    found = [await accelerator.probe(binary, "host", tmp_path, kvm=kvm) for _ in range(3)]

    assert found == ["tcg"] * 3
    assert starts(tmp_path) == 1


async def test_another_cpu_model_or_another_build_is_tried_anew(tmp_path, kvm):
    binary = a_binary(tmp_path, 134)
    await accelerator.probe(binary, "host", tmp_path, kvm=kvm)

    await accelerator.probe(binary, "max", tmp_path, kvm=kvm)
    os.utime(binary, ns=(1, 1))
    await accelerator.probe(binary, "host", tmp_path, kvm=kvm)

    assert starts(tmp_path) == 3


async def test_without_the_device_nothing_is_tried(tmp_path):
    binary = a_binary(tmp_path, EXIT_CODE)

    assert await accelerator.probe(binary, "host", tmp_path, kvm=tmp_path / "none") == "tcg"
    assert not (tmp_path / "starts").exists()


async def test_a_record_that_cannot_be_read_is_no_obstacle(tmp_path, kvm):
    binary = a_binary(tmp_path, EXIT_CODE)
    await accelerator.probe(binary, "host", tmp_path, kvm=kvm)
    (record,) = tmp_path.glob("accelerator-*.json")
    record.write_text("rubbish", encoding="ascii")

    assert await accelerator.probe(binary, "host", tmp_path, kvm=kvm) == "kvm"


async def test_a_guest_that_hangs_is_ended_in_time(tmp_path):
    binary = tmp_path / "hangs"
    binary.write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(60)\n", encoding="ascii")
    binary.chmod(stat.S_IRWXU)

    assert not await accelerator.runs_under("kvm", binary, "host", timeout_s=0.05)
