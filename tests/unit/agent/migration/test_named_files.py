"""What a guest uses and what does not go along with it is the same on both hosts, or is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.migration.disk_wishes import Mode
from agent.migration.named_files import Comparison, prove_files
from agent.vm.definition import Definition
from agent.vm.disk_images import placed
from agent.vm.domain.parse import parse_domain
from common.errors import FerryError
from common.findings import Findings, Risk


def image(path: Path, kind: str = "raw", *words: str, content: bytes = b"") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *words, str(path), "1M"], check=True)
    if content:
        with path.open("r+b") as file:
            file.write(content)
    return path


def disk(path: Path, kind: str = "raw", inside: str = "") -> str:
    return f"""<disk type='file' device='disk'><driver name='qemu' type='{kind}'/><source file='{path}'/>
        <target dev='vda' bus='virtio'/>{inside}</disk>"""


def guest(devices: str = "", os_words: str = "", beside: str = "") -> Definition:
    xml = f"""<domain type='qemu'><name>web</name><memory>65536</memory><os><type machine='q35'>hvm</type>{os_words}</os>
        {beside}<devices>{devices}</devices></domain>"""
    return parse_domain(xml.encode(), "web.xml")


def compare(  # noqa: PLR0913 -- what a case may say
    there: Definition,
    here: Definition,
    *,
    force: bool = False,
    pid: int | None = None,
    copied: tuple[str, ...] = (),
    mode: Mode = Mode.FULL,
) -> tuple[str, ...]:
    comparison = Comparison(prove_files(there, pid), {}, "host-a", "host-b", force)
    return comparison.check(here, copied, mode, Findings())


def refusal(there: Definition, here: Definition, **how: object) -> tuple[str, str]:
    with pytest.raises(FerryError) as caught:
        compare(there, here, **how)  # type: ignore[arg-type]
    return caught.value.reason, caught.value.text


def test_a_read_only_disk_on_an_equal_file_is_taken(tmp_path: Path):
    first = image(tmp_path / "a.iso", content=b"one")
    shutil.copy(first, tmp_path / "b.iso")
    definition = guest(disk(first, inside="<readonly/>"))

    assert compare(definition, placed(definition, "vda", f"{tmp_path}/b.iso")) == ()


def test_a_read_only_disk_on_another_file_is_refused_and_taken_on_the_users_word(tmp_path: Path):
    definition = guest(disk(image(tmp_path / "a.iso", content=b"one"), inside="<readonly/>"))
    here = placed(definition, "vda", str(image(tmp_path / "b.iso", content=b"two")))

    reason, text = refusal(definition, here)
    [risk] = compare(definition, here, force=True)

    assert reason == "DISK_NOT_PROVED"
    assert "b.iso on host-b is the image that the guest uses on host-a is not proved: its content differs" in text
    assert isinstance(risk, Risk)
    assert risk.code == "DISK_NOT_PROVED"


def test_what_a_read_only_disk_stands_on_counts_too(tmp_path: Path):
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).mkdir()
        image(tmp_path / name / "base.raw", content=content)
        image(tmp_path / name / "top.qcow2", "qcow2", "-b", "base.raw", "-F", "raw")
    definition = guest(disk(tmp_path / "a" / "top.qcow2", "qcow2", "<readonly/>"))

    reason, text = refusal(definition, placed(definition, "vda", f"{tmp_path}/b/top.qcow2"))

    assert reason == "DISK_NOT_PROVED"
    assert "b/base.raw" in text


@pytest.mark.parametrize("force", [False, True])
def test_another_image_below_a_disk_that_the_guest_writes_to_is_never_taken(force: bool, tmp_path: Path):  # noqa: FBT001
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).mkdir()
        image(tmp_path / name / "base.raw", content=content)
        image(tmp_path / name / "top.qcow2", "qcow2", "-b", "base.raw", "-F", "raw")
    definition = guest(disk(tmp_path / "a" / "top.qcow2", "qcow2"))

    reason, text = refusal(definition, placed(definition, "vda", f"{tmp_path}/b/top.qcow2"), force=force)

    assert reason == "DISK_NOT_SHARED"
    assert "it stands on" in text


def test_a_disk_that_is_copied_in_full_stands_on_nothing(tmp_path: Path):
    base = image(tmp_path / "base.raw")
    definition = guest(disk(image(tmp_path / "top.qcow2", "qcow2", "-b", str(base), "-F", "raw"), "qcow2"))

    assert compare(definition, placed(definition, "vda", f"{tmp_path}/new.qcow2"), copied=("vda",)) == ()


def test_a_file_that_was_exchanged_under_a_running_guest_is_no_proof(tmp_path: Path):
    path = image(tmp_path / "a.iso", content=b"one")
    definition = guest(disk(path, inside="<readonly/>"))
    with path.open("rb"):
        assert compare(definition, definition, pid=os.getpid()) == ()
        path.rename(tmp_path / "old.iso")
        image(path, content=b"two")

        reason, text = refusal(definition, definition, pid=os.getpid())

    assert reason == "DISK_NOT_PROVED"
    assert "another file lies there by now than the one that its QEMU has open" in text


def test_an_agent_that_tells_nothing_of_a_read_only_disk_proves_nothing(tmp_path: Path):
    definition = guest(disk(image(tmp_path / "a.iso"), inside="<readonly/>"))

    with pytest.raises(FerryError, match="the agent of host-a tells nothing of it") as caught:
        Comparison((), {}, "host-a", "host-b", force=False).check(definition, (), Mode.FULL, Findings())

    assert caught.value.reason == "DISK_NOT_PROVED"


def test_another_kernel_is_a_warning_that_says_when_the_guest_gets_it(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")

    [risk] = compare(guest(os_words=f"<kernel>{tmp_path}/a</kernel>"), guest(os_words=f"<kernel>{tmp_path}/b</kernel>"))

    assert "kernel:" in risk
    assert "its content differs; the guest gets this one at its next reset" in risk
    assert isinstance(risk, Risk)
    assert risk.code == "FILE_DIFFERS"


def test_a_file_that_a_guest_may_read_at_any_time_has_to_be_the_same(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    there, here = (
        guest(beside=f"<sysinfo type='fwcfg'><entry name='opt/x' file='{tmp_path}/{name}'/></sysinfo>") for name in ("a", "b")
    )

    reason, text = refusal(there, here)

    assert reason == "FILE_NOT_PROVED"
    assert "fw_cfg opt/x" in text
    assert len(compare(there, here, force=True)) == 1
