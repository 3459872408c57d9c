"""Whether two hosts see the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.migration.order import DiskMarker, HostIdentity
from agent.migration.shared_disks import check_caches, check_markers, remove_markers, write_markers
from agent.vm.definition import Definition
from agent.vm.domain.parse import parse_domain
from common.errors import WrongState

HERE = HostIdentity(name="host-a", boot_id="one", network_namespace_inode=1, cpu_has_aes=True)
ELSEWHERE = replace(HERE, name="host-b", boot_id="two")


def _definition(image: Path, driver: str = "") -> Definition:
    return parse_domain(
        f"""<domain type='kvm'><name>web</name><memory>65536</memory><os><type machine='q35'>hvm</type></os><devices>
        <disk type='file'><driver name='qemu' type='raw' {driver}/><source file='{image}'/><target dev='vda'/></disk>
        </devices></domain>""".encode(),
        "web.xml",
    )


def test_a_marker_is_found_and_removed(tmp_path: Path):
    markers, risks = write_markers(_definition(tmp_path / "web.raw"), force=False)

    assert check_markers(markers, HERE, ELSEWHERE, force=False) == risks == ()
    remove_markers(tuple(marker.marker_path for marker in markers))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_another_directory_is_refused_whatever_the_user_says(tmp_path: Path, *, force: bool):
    markers, _ = write_markers(_definition(tmp_path / "web.raw"), force=False)
    (tmp_path / "other").mkdir()
    moved = tuple(replace(marker, image_path=str(tmp_path / "other/web.raw")) for marker in markers)

    with pytest.raises(WrongState, match="is not the file that host-a uses"):
        check_markers(moved, HERE, ELSEWHERE, force=force)


def test_a_directory_that_cannot_be_written_to_is_a_risk():
    definition = _definition(Path("/proc/web.raw"))

    with pytest.raises(WrongState, match=r"disk vda.*/proc.*--force"):
        write_markers(definition, force=False)
    markers, risks = write_markers(definition, force=True)
    assert markers == ()
    assert "cannot be checked" in risks[0]


def test_a_block_device_is_known_by_its_number_on_one_host_only():
    marker = DiskMarker("vda", "/dev/null", "", "", 1234)

    with pytest.raises(WrongState, match=r"/dev/null.*cannot be proved; --force"):
        check_markers((marker,), HERE, HERE, force=False)
    with pytest.raises(WrongState, match="cannot be proved"):
        check_markers((marker,), HERE, ELSEWHERE, force=False)
    assert "cannot be proved" in check_markers((marker,), HERE, ELSEWHERE, force=True)[0]


def test_a_cache_that_is_never_flushed_is_a_risk_between_kernels(tmp_path: Path):
    definition = _definition(tmp_path / "web.raw", "cache='unsafe'")

    assert check_caches(definition, HERE, HERE, force=False) == ()
    assert check_caches(_definition(tmp_path / "web.raw", "cache='writeback'"), HERE, ELSEWHERE, force=False) == ()
    with pytest.raises(WrongState, match=r"disk vda.*cache mode unsafe.*--force"):
        check_caches(definition, HERE, ELSEWHERE, force=False)
    assert len(check_caches(definition, HERE, ELSEWHERE, force=True)) == 1
