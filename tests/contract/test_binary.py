"""What is learnt from a QEMU binary by starting it, for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.qemu.accelerator import runs_under
from agent.qemu.binary import Binaries, FileKey, probe_binary
from common.errors import NotFound, WrongState


async def test_a_binary_tells_its_machines_models_and_capabilities(binary: Path, version: str):
    facts = await probe_binary(binary)

    assert str(facts.version).startswith(f"{version}.")
    machine = facts.find_machine("q35")
    assert machine is not None
    assert machine.name == f"pc-q35-{version}"
    assert facts.find_machine("pc-q35-7.2") is facts.machines["pc-q35-7.2"]
    assert facts.find_machine("pc-q35-99.0") is None
    assert not facts.cpu_models["qemu64"].unavailable_features
    assert "pause-before-switchover" in facts.capabilities


async def test_facts_are_learnt_once(binary: Path):
    binaries = Binaries()

    first = await binaries.get(binary)

    assert await binaries.get(binary) is first


async def test_the_probe_guest_runs_to_its_end_without_kvm(binary: Path):
    assert await runs_under("tcg", binary, "qemu64")


async def test_a_cpu_model_that_does_not_exist_runs_nothing(binary: Path):
    assert not await runs_under("tcg", binary, "no-such-cpu")


async def test_a_program_that_is_no_qemu_is_refused_with_its_own_words(tmp_path: Path):
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho no machine here >&2\nexit 1\n", encoding="ascii")
    program.chmod(0o700)

    with pytest.raises(WrongState, match="does not start: no machine here"):
        await probe_binary(program)


def test_a_binary_that_is_not_there_is_not_found():
    with pytest.raises(NotFound, match="No such file"):
        FileKey.of(Path("/none/qemu"))
