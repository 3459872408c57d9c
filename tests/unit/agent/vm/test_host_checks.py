"""What is missing on a host is found before QEMU is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.vm.host_checks import check_files, check_huge_pages, check_memory, find_emulator, read_memory_kib
from agent.vm.paths import confine
from agent.vm.settings import VmSettings
from common.errors import InvalidRequest, WrongState
from common.findings import Findings
from tests.unit.agent.vm.samples import domain, parse


def disk(path: Path) -> str:
    """Write a disk."""
    return f"<disk type='file'><source file='{path}'/><target dev='vda'/></disk>"


def test_without_roots_any_absolute_path_is_fine(tmp_path: Path) -> None:
    assert confine(str(tmp_path / "a.img"), ()) == tmp_path / "a.img"


def test_a_path_in_a_root_is_fine_and_one_outside_is_refused(tmp_path: Path) -> None:
    confine(str(tmp_path / "images" / "a.img"), [tmp_path / "images"])

    with pytest.raises(InvalidRequest, match="outside of the configured directories"):
        confine(str(tmp_path / "images2" / "a.img"), [tmp_path / "images"])


def test_a_link_cannot_lead_out_of_a_root(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to("/etc")

    with pytest.raises(InvalidRequest) as raised:
        confine(str(tmp_path / "images" / "link" / "shadow"), [tmp_path / "images"])

    assert raised.value.reason == "PATH_OUTSIDE_ROOTS"


@pytest.mark.parametrize("path", ["", "a", "./a", "-a", "//a", "/a/../b", "/a\0b", "/a\nb", "/a/"])
def test_a_path_that_is_not_absolute_and_plain_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        confine(path, ())


def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    definition = parse(domain(devices=disk(tmp_path / "a.img")))

    with pytest.raises(WrongState, match=r"disk vda: .*a\.img does not exist") as raised:
        check_files(definition, (), Findings())

    assert raised.value.reason == "FILE_MISSING"


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    xml = domain().replace("</os>", f"<kernel>{tmp_path}/vmlinuz</kernel></os>")

    with pytest.raises(WrongState, match=r"kernel: .*vmlinuz does not exist"):
        check_files(parse(xml), (), Findings())


def test_a_directory_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(WrongState, match="not a regular file"):
        check_files(parse(domain(devices=disk(tmp_path))), (), Findings())


def test_a_serial_line_needs_its_directory(tmp_path: Path) -> None:
    line = f"<serial type='file'><source path='{tmp_path}/no/serial.log'/></serial>"

    with pytest.raises(WrongState, match=r"serial0: directory .*/no does not exist"):
        check_files(parse(domain(devices=line)), (), Findings())


def test_files_that_are_there_pass(tmp_path: Path) -> None:
    (tmp_path / "a.img").touch()

    check_files(parse(domain(devices=disk(tmp_path / "a.img"))), [tmp_path], Findings())


def test_files_outside_of_the_roots_are_refused_though_they_exist(tmp_path: Path) -> None:
    (tmp_path / "a.img").touch()

    with pytest.raises(InvalidRequest, match="outside"):
        check_files(parse(domain(devices=disk(tmp_path / "a.img"))), [tmp_path / "images"], Findings())


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    definition = replace(parse(domain()), memory_kib=1 << 39, current_memory_kib=1 << 39)

    with pytest.raises(WrongState, match=f"{1 << 39} KiB of memory") as raised:
        check_memory(definition, 1024)

    assert raised.value.reason == "NOT_ENOUGH_MEMORY"


def test_a_small_guest_finds_room() -> None:
    check_memory(parse(domain()), 0)

    available_kib, total_kib = read_memory_kib()
    assert 0 < available_kib <= total_kib


def test_the_hosts_own_qemu_is_found_by_name_or_path() -> None:
    definition = parse(domain())

    assert find_emulator(definition, VmSettings(qemu="sh")).is_absolute()
    assert find_emulator(definition, VmSettings(qemu="/bin/sh")) == Path("/bin/sh")
    with pytest.raises(WrongState, match="no such program"):
        find_emulator(definition, VmSettings(qemu="no-such-qemu"))


def test_a_definition_cannot_name_just_any_program() -> None:
    definition = parse(domain(devices="<emulator>/bin/sh</emulator>"))

    with pytest.raises(InvalidRequest, match="not among the allowed ones"):
        find_emulator(definition, VmSettings())
    assert find_emulator(definition, VmSettings(emulators=("/bin/sh",))) == Path("/bin/sh")


def test_an_allowed_emulator_has_to_be_there() -> None:
    definition = parse(domain(devices="<emulator>/no/qemu</emulator>"))

    with pytest.raises(WrongState, match="no such program here"):
        find_emulator(definition, VmSettings(emulators=("/no/qemu",)))


HUGE = "<memoryBacking><hugepages><page size='2' unit='M'/></hugepages></memoryBacking>"
MOUNTED = "none /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "free", "words"),
    [("proc /proc proc rw 0 0\n", 0, "not mounted"), (MOUNTED, 0, r"0 are free.*nr_hugepages"), (MOUNTED, 1 << 20, "")],
)
def test_huge_pages_that_are_missing_are_told_before_qemu_says_that_memory_is(
    mounts: str, free: int, words: str, tmp_path: Path
) -> None:
    definition = parse(domain().replace("<os>", f"{HUGE}<os>"))
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "hugepages-2048kB").mkdir()
    (tmp_path / "hugepages-2048kB" / "free_hugepages").write_text(f"{free}\n")

    if not words:
        check_huge_pages(definition, tmp_path / "mounts", tmp_path)
        return
    with pytest.raises(WrongState, match=words) as raised:
        check_huge_pages(definition, tmp_path / "mounts", tmp_path)

    assert raised.value.reason == "HUGE_PAGES_MISSING"
