"""Disks of every shape are copied as what they are, or refused with the reason; what is copied is told beforehand."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from common.errors import FerryError
from ferry.common.v1 import disks_pb2 as disks_pb
from tests.e2e.disk_guest import Disk, DiskPlan, leave, start_disk_guest
from tests.e2e.disk_moves import allocated_bytes, copied_to, places
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import State, wishes
from tests.e2e.refusals import assert_refused
from tests.e2e.test_plan import ferry
from tests.guests.disk import Area

MIB = 1 << 20
QUIET = Area(slot_count=64, write_mib_s=0.1, verify_mib_s=0.1)


def make_image(path: Path, kind: str, *words: str) -> Path:
    subprocess.run(("qemu-img", "create", "-q", "-f", kind, *words[:-1], path, *words[-1:]), check=True)
    return path


def write(path: Path, kind: str, *commands: str) -> None:
    """Write to an image with commands of qemu-io."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(("qemu-io", "-f", kind, *words, path), check=True, stdout=subprocess.DEVNULL)


def copy_sparse(source: Path, path: Path) -> None:
    subprocess.run(("cp", "--sparse=always", source, path), check=True)


def info(path: Path, kind: str) -> dict[str, Any]:
    words = ("qemu-img", "info", "-U", "--output=json", "-f", kind, path)
    found: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return found


def image_disk(path: Path, kind: str, inside: str = "", *, cdrom: bool = False) -> str:
    source = "dev" if path.is_block_device() else "file"
    device, target, bus = ("cdrom", "sda", "sata") if cdrom else ("disk", "vdb", "virtio")
    return f"""<disk type="{"block" if source == "dev" else "file"}" device="{device}"><driver name="qemu" type="{kind}"/>
        <source {source}="{path}"/><target dev="{target}" bus="{bus}"/>{inside}</disk>"""


def wish(**paths: Path) -> disks_pb.DiskWishes:
    return disks_pb.DiskWishes(destination_paths={disk: str(path) for disk, path in paths.items()})


def assert_equal(first: Path, second: Path, kind: str, second_kind: str = "") -> None:
    words = ("qemu-img", "compare", "-U", "-f", kind, "-F", second_kind or kind, first, second)
    compared = subprocess.run(words, check=False, capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout


@contextmanager
def loop_device(image: Path, *words: str) -> Iterator[Path]:
    """Make a block device of an image while the context is open."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    found = subprocess.run(("losetup", "--find", "--show", *words, image), check=True, capture_output=True, text=True)
    device = Path(found.stdout.strip())
    try:
        yield device
    finally:
        with suppress(subprocess.CalledProcessError):
            subprocess.run(("losetup", "--detach", device), check=True)


async def move_data_disk(lab: Lab, disk: str, disks: disks_pb.DiskWishes, *, force: bool = False) -> None:
    """Move a guest that has this disk beside its own and leaves it alone, and stop it there; `force` starts an older disk."""
    guest = await lab.start_guest(plan=Plan(inside=disk), force=force)
    outcome = await (await lab.start_move(options=wishes(disks=disks))).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await guest.console.wait_sweeps(1)
    await lab.stop_vm("host-b", guest.name)


async def test_sixteen_disks_are_copied_at_once(lab: Lab):
    areas = Area(slot_count=32, write_mib_s=0.2, verify_mib_s=0.2)
    kinds = ("qcow2", "raw")
    disks = tuple(Disk(size_mib=8 + index, kind=kinds[index % 2], area=areas) for index in range(15))
    guest = await start_disk_guest(lab, DiskPlan(disks=disks))

    outcome = await (await lab.start_move(options=wishes(disks=copied_to(guest)))).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert len(outcome.progress.disks) == 15
    await guest.console.wait_written(5, disk=15)
    await leave(lab, guest, "host-b")
    for target, path in places(guest).items():
        guest.assert_disk(target, path, is_final=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raw", ("1T",)),
        ("qcow2", ("-o", "cluster_size=2M", "1T")),
        ("qcow2", ("-o", "compat=0.10,cluster_size=4096", "70M")),
        ("qcow2", ("-o", "extended_l2=on,lazy_refcounts=on,refcount_bits=64,compression_type=zstd", "64M")),
        ("raw", ("1049088",)),
    ],
    ids=["raw-1TiB", "qcow2-1TiB", "qcow2-old", "qcow2-features", "raw-odd"],
)
async def test_an_image_is_like_its_original_and_as_sparse(kind, words, lab: Lab):
    source = make_image(lab.directory / f"a.{kind}", kind, *words)
    copy = lab.directory / f"b.{kind}"
    write(source, kind, "write -P 5 64k 512k")

    await move_data_disk(lab, image_disk(source, kind), wish(vdb=copy))

    first, second = info(source, kind), info(copy, kind)
    for key in ("virtual-size", "cluster-size", "format-specific"):
        assert first.get(key) == second.get(key)
    assert allocated_bytes(copy) <= 1.1 * allocated_bytes(source) + MIB
    if first["virtual-size"] < 1 << 30:  # comparing a TiB takes a while
        assert_equal(source, copy, kind)


async def test_an_external_data_file_goes_along(lab: Lab):
    data = lab.directory / "a.data"
    source = make_image(lab.directory / "a.qcow2", "qcow2", "-o", f"data_file={data},data_file_raw=on", "32M")
    write(source, "qcow2", "write -P 5 1M 1M")
    copy = lab.directory / "b.qcow2"

    await move_data_disk(lab, image_disk(source, "qcow2"), wish(vdb=copy))

    assert_equal(source, copy, "qcow2")
    assert_equal(data, Path(f"{copy}.data"), "raw")


async def test_a_deep_chain_becomes_one_image_or_keeps_what_is_shared(lab: Lab):
    images = [make_image(lab.directory / "0.qcow2", "qcow2", "16M")]
    for depth in range(1, 12):
        below = images[-1]
        images.append(make_image(lab.directory / f"{depth}.qcow2", "qcow2", "-b", str(below), "-F", "qcow2", "16M"))
        write(images[-1], "qcow2", f"write -P {depth} {depth}M 64k")
    full, top = lab.directory / "full.qcow2", lab.directory / "top.qcow2"

    await move_data_disk(lab, image_disk(images[-1], "qcow2"), wish(vdb=full))
    assert "backing-filename" not in info(full, "qcow2")
    assert_equal(images[-1], full, "qcow2")
    await lab.undefine("host-b", "web")

    only_top = wish(vdb=top)
    only_top.mode = disks_pb.DiskWishes.MODE_TOP
    await move_data_disk(lab, image_disk(images[-1], "qcow2"), only_top, force=True)
    assert info(top, "qcow2")["backing-filename"] == str(images[-2])
    assert_equal(images[-1], top, "qcow2")
    assert allocated_bytes(top) <= allocated_bytes(images[-1]) + MIB // 2


@pytest.mark.parametrize("stands_on", ["", "base.qcow2"], ids=["alone", "on-another"])
async def test_what_was_in_a_reused_image_does_not_show_through_a_copy_of_the_top(stands_on, lab: Lab):
    base = make_image(lab.directory / "base.qcow2", "qcow2", "16M")
    write(base, "qcow2", "write -P 7 8M 1M")
    below = ("-b", str(base), "-F", "qcow2") if stands_on else ()
    source, copy = (make_image(lab.directory / f"{name}.qcow2", "qcow2", *below, "16M") for name in "ab")
    write(source, "qcow2", "write -P 8 4M 1M")
    write(copy, "qcow2", "write -P 9 12M 1M")
    disks = wish(vdb=copy)
    disks.mode, disks.reuse = disks_pb.DiskWishes.MODE_TOP, True

    await move_data_disk(lab, image_disk(source, "qcow2"), disks)

    assert_equal(source, copy, "qcow2")
    assert info(copy, "qcow2").get("backing-filename", "") == (str(base) if stands_on else "")


@pytest.mark.root
@pytest.mark.parametrize("sector_bytes", [512, 4096])
async def test_a_disk_on_a_block_device_is_copied_to_one_or_to_a_file(sector_bytes, lab: Lab):
    first, second = (make_image(lab.directory / f"{name}.img", "raw", "16M") for name in "ab")
    write(first, "raw", "write -P 5 1M 1M")
    sizes = f'<blockio logical_block_size="{sector_bytes}" physical_block_size="{sector_bytes}"/>'
    words = ("--sector-size", str(sector_bytes))
    with loop_device(first, *words) as here, loop_device(second, *words) as there:
        disks = wish(vdb=there)
        disks.reuse = True
        disks.which, disks.names[:] = disks_pb.DiskWishes.WHICH_NAMED, ["vdb"]
        await move_data_disk(lab, image_disk(here, "raw", sizes), disks)
        assert_equal(first, second, "raw")
        await lab.undefine("host-b", "web")

        copy = lab.directory / "c.raw"
        disks = wish(vdb=copy)
        disks.which, disks.names[:] = disks_pb.DiskWishes.WHICH_NAMED, ["vdb"]
        await move_data_disk(lab, image_disk(here, "raw", sizes), disks, force=True)
        assert_equal(first, copy, "raw")
        assert allocated_bytes(copy) < 3 * MIB


@pytest.mark.parametrize(
    ("inside", "device", "text"),
    [("<readonly/>", "disk", "read-only"), ("<shareable/>", "disk", "shareable"), ("", "cdrom", "read-only")],
    ids=["read-only", "shareable", "cdrom"],
)
async def test_a_disk_that_is_not_to_be_copied_is_refused_when_named_and_left_alone_else(inside, device, text, lab: Lab):
    source = make_image(lab.directory / "a.raw", "raw", "1M")
    is_cdrom = device == "cdrom"
    target = "sda" if is_cdrom else "vdb"
    guest = await lab.start_guest(plan=Plan(inside=image_disk(source, "raw", inside, cdrom=is_cdrom)))

    named = disks_pb.DiskWishes(
        which=disks_pb.DiskWishes.WHICH_NAMED, names=[target], destination_paths={target: str(lab.directory / "b.raw")}
    )
    refused = await (await lab.start_move(options=wishes(disks=named))).outcome()

    assert (refused.state, refused.error_reason) == (State.STATE_FAILED, "DISK_NOT_COPYABLE")
    assert text in refused.error
    assert not (lab.directory / "b.raw").exists()
    outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert not outcome.progress.disks
    await lab.assert_only_on("host-b", guest)


@pytest.mark.parametrize("device", ["cdrom", pytest.param("disk", marks=pytest.mark.matrix)])
async def test_another_image_under_a_read_only_disk_is_refused_and_an_equal_one_is_taken(device, lab: Lab):
    source = make_image(lab.directory / "a.raw", "raw", "64M")
    write(source, "raw", "write -P 5 0 2M", "write -P 6 40M 64k")
    target = "sda" if device == "cdrom" else "vdb"
    inside = image_disk(source, "raw", "<readonly/>", cdrom=device == "cdrom")
    guest = await lab.start_guest(plan=Plan(inside=inside))
    equal, other, longer = (lab.directory / name for name in ("equal.raw", "other.raw", "longer.raw"))
    for path in (equal, other, longer):
        copy_sparse(source, path)
    write(other, "raw", "write -P 7 40M 64k")  # its beginning and its size are equal
    os.truncate(longer, 65 << 20)

    for path, why in ((other, "its content differs"), (longer, "68157440 bytes here and 67108864 there")):
        options = wishes(disks=wish(**{target: path}))
        await assert_refused(lab, guest, "DISK_NOT_PROVED", f"disk {target}", str(path), why, "--dest-path", options=options)
    outcome = await (await lab.start_move(options=wishes(disks=wish(**{target: equal})))).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    forced = wishes(disks=wish(**{target: other}))
    forced.force = True
    outcome = await (await lab.start_move(guest.name, "host-a", forced, source="host-b")).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    assert any("its content differs" in warning for warning in outcome.warnings), (outcome.error, list(outcome.warnings))


@pytest.mark.parametrize(
    ("disks", "reason", "words"),
    [
        ({"names": ["vdz"], "which": disks_pb.DiskWishes.WHICH_NAMED}, "DISK_UNKNOWN", ("vdz", "vda, vdb")),
        ({"destination_paths": {"vdz": "/x"}}, "DISK_UNKNOWN", ("vdz", "vda, vdb")),
        ({"which": disks_pb.DiskWishes.WHICH_ALL}, "DISK_SHARED", ("vda", "--dest-path")),
        ({"destination_paths": {"vdb": "/nowhere/at/all.qcow2"}}, "FILE_MISSING", ("vdb", "/nowhere/at")),
        ({"destination_paths": {"vdb": "/proc/x.qcow2"}}, "NOT_ENOUGH_SPACE", ("vdb", "/proc")),
        ({"destination_paths": {"vdb": "THERE"}}, "FILE_EXISTS", ("vdb", "--reuse")),
        ({"destination_paths": {"vdb": "THERE"}, "reuse": True}, "DISK_SIZE_DIFFERS", ("vdb", "1048576", "8388608")),
        ({"destination_paths": {"vdb": "relative.qcow2"}}, "PATH_INVALID", ("relative.qcow2",)),
        ({"bandwidth_bytes_per_second": 12}, "BANDWIDTH_OUT_OF_RANGE", ("12", "65536")),
    ],
)
async def test_wishes_that_cannot_be_are_refused_and_nothing_is_left(disks, reason, words, lab: Lab):
    make_image(lab.directory / "there.qcow2", "qcow2", "1M")
    guest = await lab.start_guest(plan=Plan(inside=image_disk(make_image(lab.directory / "a.qcow2", "qcow2", "8M"), "qcow2")))
    paths = {
        disk: path.replace("THERE", str(lab.directory / "there.qcow2")) for disk, path in disks.get("destination_paths", {}).items()
    }
    before = sorted(lab.directory.iterdir())

    try:
        move = await lab.start_move(options=wishes(disks=disks_pb.DiskWishes(**{**disks, "destination_paths": paths})))
        outcome = await move.outcome()
        found, text = outcome.error_reason, outcome.error
    except FerryError as error:
        found, text = error.reason, error.text

    assert found == reason, text
    for word in words:
        assert word in text
    await lab.assert_only_on("host-a", guest)
    assert sorted(lab.directory.iterdir()) == before


async def test_a_plan_tells_which_disks_are_going_to_be_copied(lab: Lab):
    source = make_image(lab.directory / "a.qcow2", "qcow2", "8M")
    write(source, "qcow2", "write -P 5 1M 1M")
    copy = lab.directory / "b.qcow2"
    guest = await lab.start_guest(plan=Plan(inside=image_disk(source, "qcow2")))

    code, said, told = await ferry(lab, "plan", "web", "--to", "host-b", "--dest-path", f"vdb={copy}")

    assert code == 0, told
    assert re.search(rf"DISK_COPIED disk vdb is going to be copied to {copy}, 1\.\d MiB of it", " ".join(said.split())), said
    assert not copy.exists()
    await lab.assert_only_on("host-a", guest)
