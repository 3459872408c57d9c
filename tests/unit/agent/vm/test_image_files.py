"""Every file of an image is found as QEMU opens it, whatever its header says; the images are made by qemu-img."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent.vm.definition import Definition, Disk
from agent.vm.host_checks import check_below, check_files
from agent.vm.image_files import disk_files, files_of, named_below
from agent.vm.image_header import Role, references
from agent.vm.options import Option, keyval, of_json
from common.errors import FerryError, InvalidRequest, WrongState
from common.findings import Findings
from tests.unit.agent.vm.samples import domain, parse

DEFINITION = parse(domain())


def image(path: Path, *words: str, kind: str = "qcow2") -> Path:
    """Make an image with qemu-img."""
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *words, str(path), "1M"], check=True, cwd=path.parent)
    return path


def naming(path: Path, name: str, kind: str = "raw") -> Path:
    """Make a qcow2 image whose header names anything as its backing file."""
    image(path)
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", name, "-F", kind, str(path)], check=True)
    return path


def found(path: Path, image_format: str = "qcow2") -> list[tuple[str, str, Role]]:
    return [(file.path, file.format, file.role) for file in files_of(str(path), image_format)]


def with_options(*options: Option, disks: tuple[Disk, ...] = ()) -> Definition:
    return replace(DEFINITION, options=options, disks=disks)


def opening(path: Path, **more: object) -> tuple[Option, ...]:
    storage = of_json("blockdev", {"driver": "file", "node-name": "s", "filename": str(path)})
    return storage, of_json("blockdev", {"driver": "qcow2", "node-name": "f", "file": "s", **more})


def test_a_chain_is_followed_to_its_end_with_relative_names_from_their_image(tmp_path: Path):
    (tmp_path / "below").mkdir()
    base = image(tmp_path / "below" / "base.raw", kind="raw")
    middle = naming(tmp_path / "below" / "middle.qcow2", "base.raw")
    top = naming(tmp_path / "top.qcow2", "below/middle.qcow2", "qcow2")

    assert found(top) == [
        (str(top), "qcow2", Role.TOP),
        (str(middle), "qcow2", Role.BACKING),
        (str(base), "raw", Role.BACKING),
    ]


def test_a_raw_image_names_nothing_even_if_it_looks_like_another_format(tmp_path: Path):
    top = naming(tmp_path / "guest.raw", "/etc/shadow")

    assert found(top, "raw") == [(str(top), "raw", Role.TOP)]
    assert [path for path, *_ in found(top, "")] == [str(top), "/etc/shadow"]  # QEMU would guess qcow2


def test_an_external_data_file_belongs_to_the_image(tmp_path: Path):
    top = image(tmp_path / "a.qcow2", "-o", f"data_file={tmp_path}/a.data")

    assert found(top)[1:] == [(f"{tmp_path}/a.data", "raw", Role.DATA)]


def test_a_relative_data_file_depends_on_where_qemu_runs_and_is_no_path(tmp_path: Path):
    top = image(tmp_path / "a.qcow2", "-o", "data_file=a.data")

    assert found(top)[1:] == [("", "raw", Role.DATA)]


def test_extents_of_a_vmdk_belong_to_the_image(tmp_path: Path):
    top = image(tmp_path / "a.vmdk", "-o", "subformat=twoGbMaxExtentFlat", kind="vmdk")
    sparse = image(tmp_path / "b.vmdk", kind="vmdk")

    assert found(top, "vmdk")[1:] == [(f"{tmp_path}/a-f001.vmdk", "raw", Role.EXTENT)]
    assert found(top, "") == [(str(top), "", Role.TOP), *found(top, "vmdk")[1:]]
    assert found(sparse, "vmdk")[1:] == []


@pytest.mark.parametrize("kind", ["vmdk", "qed", "qcow"])
def test_backing_files_of_other_formats_are_found(kind: str, tmp_path: Path):
    base = image(tmp_path / "base.img", kind=kind)
    words = ("-b", str(base), "-F", kind)
    top = image(tmp_path / "top.img", *words, kind=kind)

    assert [path for path, *_ in found(top, kind)] == [str(top), str(base)]
    assert [path for path, *_ in found(top, "")] == [str(top), str(base)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("file:/srv/base", "/srv/base"),
        ('json:{"driver": "raw", "file": {"driver": "file", "filename": "/srv/base"}}', "/srv/base"),
        ('json:{"driver": "raw", "file.driver": "file", "file.filename": "/srv/base"}', "/srv/base"),
        ('json:{"driver": "file", "filename": "/srv/base"}', "/srv/base"),
        ('json:{"driver": "raw", "file": {"driver": "nbd", "host": "192.0.2.1"}}', ""),
        (
            'json:{"driver": "raw", "file": {"driver": "file", "filename": "/a"}, "backing": {"driver": "file", "filename": "/b"}}',
            "",
        ),
        ('json:{"file.filename": "/srv/base"}', ""),
        (f"json:{'[' * 900}", ""),
        ("nbd://192.0.2.1/x", ""),
        ("nbd:unix:/run/x", ""),
        ("host_device:/dev/sda", ""),
        ("fat:/etc", ""),
    ],
)
def test_names_are_taken_as_qemu_takes_them(name: str, path: str, tmp_path: Path):
    assert [file.path for file in files_of(str(naming(tmp_path / "a.qcow2", name)), "qcow2")][1:] == [path]


def test_what_a_definition_gives_itself_is_not_read_from_headers(tmp_path: Path):
    top = naming(tmp_path / "a.qcow2", "/etc/shadow")
    base = of_json("blockdev", {"driver": "file", "node-name": "b", "filename": "/srv/base"})

    assert named_below(with_options(*opening(top, backing=None))) == ()
    assert named_below(with_options(base, *opening(top, backing="b"))) == ()
    assert [file.path for file in named_below(with_options(*opening(top)))] == ["/etc/shadow"]


@pytest.mark.parametrize(
    "option",
    [
        lambda path: of_json("blockdev", {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": path}}),
        lambda path: keyval("blockdev", {"driver": "qcow2", "node-name": "n", "file.driver": "file", "file.filename": path}),
        lambda path: keyval("drive", {"file": path, "if": "none", "id": "d"}),
        lambda path: keyval("drive", {"file": path, "if": "none", "id": "d", "format": "qcow2"}),
        lambda path: of_json(
            "blockdev",
            {
                "driver": "throttle",
                "node-name": "t",
                "throttle-group": "g",
                "file": {"driver": "qcow2", "file": {"driver": "file", "filename": path}},
            },
        ),
        lambda path: of_json(
            "blockdev",
            {"driver": "quorum", "node-name": "q", "children": [{"driver": "qcow2", "file": {"driver": "file", "filename": path}}]},
        ),
    ],
)
def test_headers_are_read_wherever_a_definition_names_an_image(option, tmp_path: Path):
    top = naming(tmp_path / "a.qcow2", "/etc/shadow")

    assert [file.path for file in named_below(with_options(option(str(top))))] == ["/etc/shadow"]


def test_the_files_of_a_disk_are_listed_through_its_filter_and_its_own_backing_nodes(tmp_path: Path):
    lowest = image(tmp_path / "c.raw", kind="raw")
    middle = naming(tmp_path / "b.qcow2", str(lowest))
    top = image(tmp_path / "a.qcow2")
    options = (
        of_json("blockdev", {"driver": "file", "node-name": "bs", "filename": str(middle)}),
        of_json("blockdev", {"driver": "qcow2", "node-name": "bf", "file": "bs"}),
        *opening(top, backing="bf"),
        of_json("blockdev", {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "f"}),
    )
    definition = with_options(*options, disks=(Disk("vda", "t", "", is_shareable=False),))

    assert [file.path for file in disk_files(definition, "vda")] == [str(top), str(middle), str(lowest)]


def test_an_image_that_stands_on_itself_is_refused(tmp_path: Path):
    naming(tmp_path / "a.qcow2", "b.qcow2", "qcow2")
    naming(tmp_path / "b.qcow2", "a.qcow2", "qcow2")

    with pytest.raises(WrongState, match="stands on itself"):
        files_of(f"{tmp_path}/a.qcow2", "qcow2")


def test_a_pipe_is_not_waited_for_and_a_missing_file_names_nothing(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    assert references(f"{tmp_path}/pipe", "") == ()
    assert references(f"{tmp_path}/missing", "qcow2") == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head[:24],
        lambda head: head[:20] + struct.pack(">I", 63) + head[24:],
        lambda head: head[:8] + struct.pack(">QI", 1 << 20, 5000) + head[20:],
        lambda head: head[:112] + struct.pack(">II", 0x44415441, 0xFFFFFFFF) + head[120:],
        lambda head: head[:112] + struct.pack(">II", 0x1, 0) * 3000 + head[24112:],
    ],
)
def test_a_broken_header_is_refused_with_the_image_named(change, tmp_path: Path):
    path = image(tmp_path / "a.qcow2")
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(WrongState, match=r"a\.qcow2: its qcow2 header is broken"):
        references(str(path), "qcow2")


@pytest.mark.parametrize(
    "name", ["/etc/shadow", "nbd://192.0.2.1/x", "../outside.raw", json.dumps({"driver": "file"}).join(("json:", ""))]
)
def test_a_header_that_leads_outside_of_the_roots_is_refused_by_name(name: str, tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.raw").touch()
    top = naming(tmp_path / "root" / "a.qcow2", name)

    with pytest.raises(InvalidRequest, match=r"a\.qcow2: its header names") as caught:
        check_files(with_options(*opening(top)), [tmp_path / "root"], Findings())

    assert caught.value.reason == "PATH_OUTSIDE_ROOTS"


def test_without_roots_a_header_may_name_anything_that_is_there(tmp_path: Path):
    base = image(tmp_path / "base.raw", kind="raw")
    check_below(files_of(str(naming(tmp_path / "a.qcow2", str(base))), "qcow2")[1:], (), Findings())
    check_below(files_of(str(naming(tmp_path / "b.qcow2", "nbd://192.0.2.1/x")), "qcow2")[1:], (), Findings())

    with pytest.raises(FerryError, match="its backing file /nowhere/base does not exist on this host"):
        check_below(files_of(str(naming(tmp_path / "c.qcow2", "/nowhere/base")), "qcow2")[1:], (), Findings())
