"""Marks on images of which another host has a newer copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.store import Store
from agent.vm.definition import Definition
from agent.vm.older_disks import OlderDisk, OlderDisks, inode_of, key_of
from common.errors import WrongState
from tests.unit.agent.vm.samples import domain, parse


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "web.qcow2"
    path.write_bytes(b"old")
    return path


def older(image: Path, migration_id: str = "abc", *, is_kept_there: bool = True) -> OlderDisk:
    return OlderDisk(
        "vda", str(image), key_of(str(image)), inode_of(str(image)), "host-b", "/fast/web.qcow2", "web", is_kept_there, migration_id
    )


def vm_on(image: Path, name: str = "web") -> Definition:
    disk = f'<disk type="file"><driver name="qemu" type="qcow2"/><source file="{image}"/><target dev="vda" bus="virtio"/></disk>'
    return parse(domain(devices=disk, name=name))


def test_a_marked_image_is_refused_by_host_path_and_command_for_whoever_names_it(tmp_path: Path, image: Path):
    OlderDisks(Store(tmp_path / "state")).mark([older(image)])

    with pytest.raises(WrongState) as caught:
        OlderDisks(Store(tmp_path / "state")).check(vm_on(image, "another"))

    assert caught.value.reason == "DISK_OLDER"
    for word in (str(image), "/fast/web.qcow2", "ferry vm start web --host host-b", "--force"):
        assert word in caught.value.text


def test_an_image_behind_a_link_is_the_same_image(tmp_path: Path, image: Path):
    disks = OlderDisks(Store(tmp_path / "state"))
    disks.mark([older(image)])
    link = tmp_path / "link.qcow2"
    link.symlink_to(image)

    assert disks.of(vm_on(link))


def test_no_start_command_is_advised_where_no_host_keeps_the_definition(tmp_path: Path, image: Path):
    disks = OlderDisks(Store(tmp_path / "state"))
    disks.mark([older(image, is_kept_there=False)])

    with pytest.raises(WrongState) as caught:
        disks.check(vm_on(image))

    assert "ferry vm start" not in caught.value.text


def test_a_migration_takes_back_its_own_marks_alone(tmp_path: Path, image: Path):
    disks = OlderDisks(Store(tmp_path / "state"))
    other = tmp_path / "db.qcow2"
    other.write_bytes(b"old")
    disks.mark([older(image, "abc"), older(other, "def")])

    disks.forget_migration("abc")

    disks.check(vm_on(image))
    assert disks.of(vm_on(other))


def test_a_guest_that_writes_to_an_image_makes_it_the_newest(tmp_path: Path, image: Path):
    disks = OlderDisks(Store(tmp_path / "state"))
    disks.mark([older(image)])

    disks.forget(vm_on(image))

    disks.check(vm_on(image))


def test_another_file_in_the_place_of_a_marked_one_is_not_marked_and_the_mark_is_swept(tmp_path: Path, image: Path):
    store = Store(tmp_path / "state")
    disks = OlderDisks(store)
    disks.mark([older(image)])
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"new")
    fresh.rename(image)

    disks.check(vm_on(image))
    disks.sweep()

    assert not list(store.older_disks_dir.iterdir())


def test_a_mark_that_cannot_be_read_holds_its_image_back(tmp_path: Path, image: Path):
    store = Store(tmp_path / "state")
    disks = OlderDisks(store)
    disks.mark([older(image)])
    next(store.older_disks_dir.glob("*.json")).write_text("{", encoding="utf-8")

    disks.sweep()
    disks.forget_migration("abc")

    with pytest.raises(WrongState) as caught:
        disks.check(vm_on(image))
    assert caught.value.reason == "RECORD_BROKEN"
