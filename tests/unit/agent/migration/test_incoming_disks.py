"""What a destination checks before it makes images for disks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.blockjobs.images import MadeFile, put_in_place
from agent.migration.disk_making import create, create_empty, plan_image
from agent.migration.disk_wishes import DiskPlace, DiskWishes, Which
from agent.migration.incoming_disks import IncomingDisks
from agent.migration.order import DiskFacts, DiskMarker, HostIdentity, Options, SourceFacts
from agent.migration.surroundings import Surroundings
from agent.vm.paths import confine
from common.errors import FerryError
from common.findings import Findings
from tests.unit.agent.vm.test_disk_images import BLOCK, definition

HERE = HostIdentity(name="host-b", boot_id="two", network_namespace_inode=1, cpu_has_aes=True)
SOURCE = replace(HERE, name="host-a", boot_id="one")
MIB = 1 << 20


def disk(target: str, path: Path) -> str:
    return f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='{target}'/></disk>"


def facts(target: str, path: Path | str, **more: Any) -> DiskFacts:
    return DiskFacts(target, str(path), format="qcow2", virtual_size_bytes=MIB, **more)


def incoming(
    wishes: DiskWishes, *disks: DiskFacts, markers: tuple[DiskMarker, ...] = (), force: bool = False, source: HostIdentity = SOURCE
) -> IncomingDisks:
    premises = SimpleNamespace(check_place=lambda path: confine(path, ()), check_image=lambda *_: None)
    around = SimpleNamespace(identity=HERE, vms=SimpleNamespace(premises=premises))
    described = SourceFacts(host=source, qemu_version="10.0.2", machine="q35", cpu_words=(), disk_markers=markers, disks=disks)
    return IncomingDisks(cast("Surroundings", around), Options(disks=wishes, force=force), described)


def check(disks: IncomingDisks, *of: str) -> None:
    asyncio.run(disks.check(definition(*of), Findings()))


def unknown(target: str, path: Path) -> DiskMarker:
    """Tell of an image beside which the source could put nothing."""
    return DiskMarker(target, str(path), "", "", source_path=str(path))


def made(path: Path) -> MadeFile:
    """Make an image, where it is made."""
    image = create_empty(plan_image(str(path)), "disk vda")
    asyncio.run(create(facts("vda", path), image.part_path, with_backing=False))
    return image


ALL = DiskWishes(which=Which.ALL)
OVER = DiskWishes(which=Which.ALL, reuse=True)


@pytest.mark.parametrize("wishes", [DiskWishes(), ALL, OVER, DiskWishes(reuse=True)])
def test_nothing_is_written_over_that_may_be_the_guests_own_disk(wishes: DiskWishes, tmp_path: Path):
    path = tmp_path / "a.qcow2"
    path.touch()
    disks = incoming(wishes, facts("vda", path), markers=(unknown("vda", path),))

    with pytest.raises(FerryError, match="cannot be proved") as caught:
        check(disks, disk("vda", path))

    assert caught.value.reason == "DISK_NOT_PROVED"
    assert "remove it" not in caught.value.text


def test_what_may_be_the_guests_own_disk_is_written_over_on_the_users_word(tmp_path: Path):
    path = tmp_path / "a.qcow2"
    put_in_place(made(path))
    disks = incoming(OVER, facts("vda", path), markers=(unknown("vda", path),), force=True)

    check(disks, disk("vda", path))

    assert disks.copied == ("vda",)


def test_block_devices_of_two_kernels_may_be_one():
    device = next((path for path in Path("/dev").glob("*") if path.is_block_device()), None)
    if device is None:
        pytest.skip("no block device here")
    marker = DiskMarker("vdc", str(device), "", "", device.stat().st_rdev + 1, str(device))
    there = replace(facts("vdc", device), format="raw")
    guest = BLOCK.replace("/dev/sdx", str(device))

    with pytest.raises(FerryError, match="cannot be proved"):
        check(incoming(OVER, there, markers=(marker,)), guest)
    with pytest.raises(FerryError) as caught:  # one kernel tells its devices apart
        check(incoming(OVER, there, markers=(marker,), source=HERE), guest)
    assert "cannot be proved" not in caught.value.text


@pytest.mark.parametrize("option", ["backing_file=secret", "preallocation=full", "data_file=x", "compat=1.1,encrypt.format=luks"])
def test_options_of_an_image_that_no_source_of_ours_names_are_refused(option: str, tmp_path: Path):
    path = tmp_path / "a.qcow2"

    with pytest.raises(FerryError, match="not understood"):
        check(incoming(ALL, facts("vda", path, create_options=(option,))), disk("vda", path))


def test_two_disks_in_one_place_are_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = tmp_path / "a.qcow2", tmp_path / "link" / "a.qcow2"

    with pytest.raises(FerryError, match=r"vda and vdb.*--dest-path vdb") as caught:
        check(incoming(ALL, facts("vda", first), facts("vdb", second)), disk("vda", first), disk("vdb", second))

    assert caught.value.reason == "PLACE_TAKEN_TWICE"


def test_a_stored_definition_with_other_disks_is_no_mistake_of_ours(tmp_path: Path):
    wishes = DiskWishes(places=(DiskPlace("vdb", "/x"),))
    disks = incoming(wishes, facts("vda", tmp_path / "a"))
    stored = definition(disk("vdb", tmp_path / "b"))

    assert disks.adapt(stored, definition(disk("vda", tmp_path / "a"))) == stored


def test_a_new_image_is_nobody_elses_to_read(tmp_path: Path):
    image = made(tmp_path / "a.qcow2")

    found = Path(image.part_path).stat()
    assert found.st_mode & 0o777 == 0o600
    assert (found.st_dev, found.st_ino) == (image.device, image.inode)
