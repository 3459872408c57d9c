"""Whether two hosts see the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.migration.order import DiskMarker, HostIdentity
from agent.migration.shared_disks import (
    check_caches,
    check_marker,
    find_strays,
    paths_of,
    remove_markers,
    unless_lost,
    write_markers,
)
from agent.store import Store
from agent.vm.definition import Definition
from agent.vm.domain.parse import parse_domain
from common.errors import WrongState
from common.storage import StorageFailed

HERE = HostIdentity(name="host-a", boot_id="one", network_namespace_inode=1, cpu_has_aes=True)
ELSEWHERE = replace(HERE, name="host-b", boot_id="two")


def _definition(image: Path, driver: str = "") -> Definition:
    return parse_domain(
        f"""<domain type='kvm'><name>web</name><memory>65536</memory><os><type machine='q35'>hvm</type></os><devices>
        <disk type='file'><driver name='qemu' type='raw' {driver}/><source file='{image}'/><target dev='vda'/></disk>
        </devices></domain>""".encode(),
        "web.xml",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    return directory


def test_a_marker_is_found_and_removed(store: Store, images: Path):
    markers, risks = write_markers(_definition(images / "web.raw"), store, force=False)

    [marker] = markers
    assert check_marker(marker, HERE, ELSEWHERE, force=False) == risks == ()
    remove_markers(paths_of(markers), store)
    assert not list(images.iterdir())
    assert not store.markers()


def test_markers_go_when_what_is_to_remove_them_is_not_made(store: Store, images: Path):
    markers, _ = write_markers(_definition(images / "web.img"), store, force=False)
    [path] = map(Path, paths_of(markers))
    assert path.exists()

    with pytest.raises(KeyError), unless_lost(markers, store):
        raise KeyError

    assert not path.exists()
    assert store.markers() == []


def test_a_marker_that_cannot_be_put_on_record_is_not_made(store: Store, images: Path):
    (store.state_dir / "markers").rmdir()

    with pytest.raises(StorageFailed):
        write_markers(_definition(images / "web.raw"), store, force=False)
    assert not list(images.iterdir())


def test_a_marker_is_a_stray_for_the_next_agent_unless_a_migration_removes_it(store: Store, images: Path):
    markers, _ = write_markers(_definition(images / "web.raw"), store, force=False)
    next_store = Store(store.state_dir, run_dir=store.run_dir)

    strays = find_strays(next_store, ())

    assert strays == paths_of(markers)
    assert find_strays(next_store, paths_of(markers)) == ()


def test_a_marker_that_cannot_be_removed_stays_on_record(store: Store, images: Path):
    path = images / ".ferry-1"
    path.mkdir()  # no file, so it cannot be unlinked
    store.save_marker(path)

    remove_markers((str(path),), store)

    assert store.markers() == [path]


@pytest.mark.parametrize("force", [False, True])
def test_another_directory_is_refused_whatever_the_user_says(store: Store, images: Path, *, force: bool):
    markers, _ = write_markers(_definition(images / "web.raw"), store, force=False)
    (images / "other").mkdir()
    moved = replace(markers[0], image_path=str(images / "other/web.raw"))

    with pytest.raises(WrongState, match="is not the file that host-a uses"):
        check_marker(moved, HERE, ELSEWHERE, force=force)


def test_a_directory_that_cannot_be_written_to_is_a_risk(store: Store):
    definition = _definition(Path("/proc/web.raw"))

    with pytest.raises(WrongState, match=r"disk vda.*/proc.*--force"):
        write_markers(definition, store, force=False)
    markers, risks = write_markers(definition, store, force=True)
    assert markers == ()
    assert not store.markers()
    assert "cannot be checked" in risks[0]


def test_a_block_device_is_known_by_its_number_on_one_host_only():
    marker = DiskMarker("vda", "/dev/null", "", "", 1234)

    with pytest.raises(WrongState, match=r"/dev/null.*cannot be proved; --force"):
        check_marker(marker, HERE, HERE, force=False)
    with pytest.raises(WrongState, match="cannot be proved"):
        check_marker(marker, HERE, ELSEWHERE, force=False)
    assert "cannot be proved" in check_marker(marker, HERE, ELSEWHERE, force=True)[0]


def test_a_cache_that_is_never_flushed_is_a_risk_between_kernels(tmp_path: Path):
    definition = _definition(tmp_path / "web.raw", "cache='unsafe'")

    assert check_caches(definition, HERE, HERE, force=False) == ()
    assert check_caches(_definition(tmp_path / "web.raw", "cache='writeback'"), HERE, ELSEWHERE, force=False) == ()
    with pytest.raises(WrongState, match=r"disk vda.*cache mode unsafe.*--force"):
        check_caches(definition, HERE, ELSEWHERE, force=False)
    assert len(check_caches(definition, HERE, ELSEWHERE, force=True)) == 1
