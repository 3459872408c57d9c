"""`ferry vm argv` prints what would be run, without an agent."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.binaries import BINARIES
from tests.unit.agent.vm.samples import FULL, domain

if TYPE_CHECKING:
    from pathlib import Path


def run(path: Path, xml: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command on a file."""
    file = path / "vm.xml"
    file.write_text(xml, encoding="utf-8")
    words = [sys.executable, "-m", "coordinator.cli", "vm", "argv", str(file), *options]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={"HOME": str(path), "PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize("version", BINARIES)
def test_the_command_line_is_that_of_the_emulator_asked(tmp_path: Path, version: str) -> None:
    ended = run(tmp_path, domain(machine="q35"), "--qemu", str(BINARIES[version]), "-o", "json")

    words = json.loads(ended.stdout)["argv"]
    assert ended.returncode == 0
    assert words[0] == str(BINARIES[version])
    assert words[words.index("-machine") + 1].startswith(f"pc-q35-{version},")


def test_for_people_each_option_has_a_line_that_a_shell_reads(tmp_path: Path) -> None:
    ended = run(tmp_path, FULL.replace("machine='q35'", "machine='q35'").replace("Nehalem", "qemu64"))

    assert ended.returncode == 0
    assert "  -append 'console=ttyS0 a,b=c' \\\n" in ended.stdout


def test_a_refused_element_is_named_with_exit_code_3(tmp_path: Path) -> None:
    ended = run(tmp_path, domain(inside="\n<blkiotune/>"))

    assert ended.returncode == 3
    assert ended.stdout == ""
    assert "vm.xml:2: /domain/blkiotune is not carried" in ended.stderr


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (domain(machine="pc-q35-99.0"), "vm.xml:1: /domain/os/type: machine type pc-q35-99.0 is unknown"),
        (domain(inside="<vcpu>1000</vcpu>"), "/domain/vcpu: 1000 vCPUs are wanted"),
        (domain(inside="<cpu><model>Abacus</model></cpu>"), "/domain/cpu/model: CPU model Abacus is unknown"),
        (
            domain(inside="<cpu><model>qemu64</model>\n<feature name='pae'/>\n<feature name='sse_99'/></cpu>"),
            "vm.xml:3: /domain/cpu/feature[2]: CPU feature sse-99 is unknown",
        ),
    ],
)
def test_what_this_qemu_has_not_is_named_where_it_is_asked_for(tmp_path: Path, xml: str, said: str) -> None:
    ended = run(tmp_path, xml)

    assert ended.returncode == 3
    assert said in ended.stderr


@pytest.mark.parametrize(("xml", "said"), [("<domain", "broken XML"), ("", "broken XML")])
def test_what_is_no_matter_of_an_element_ends_with_exit_code_1(tmp_path: Path, xml: str, said: str) -> None:
    ended = run(tmp_path, xml)

    assert ended.returncode == 1
    assert said in ended.stderr


def test_a_missing_emulator_is_named(tmp_path: Path) -> None:
    ended = run(tmp_path, domain(), "--qemu", "/nowhere/qemu")

    assert ended.returncode == 1
    assert "/nowhere/qemu: no such program" in ended.stderr
