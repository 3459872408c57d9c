"""Where groups are made, and what is written there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cgroup.detect import find, open_hierarchy
from agent.cgroup.group import Hierarchy, Version, convert
from common.errors import InvalidRequest, WrongState

V1 = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
CPUSET = "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


def v2(point: Path, root: str = "/") -> str:
    return f"41 31 0:38 {root} {point} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def unified(directory: Path, controllers: str = "cpuset cpu io memory") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers + "\n")
    (directory / "cgroup.subtree_control").write_text("")
    return directory


def test_v1_groups_are_made_below_our_own():
    found = find(CPUSET + V1, "3:cpuset:/\n2:cpu,cpuacct:/system.slice/ferry-agent.service\n0::/x\n")

    assert found == Hierarchy(Version.V1, Path("/sys/fs/cgroup/cpu,cpuacct/system.slice/ferry-agent.service"))


def test_v2_groups_are_made_beside_our_own(tmp_path):
    base = unified(tmp_path / "system.slice")

    assert find(v2(tmp_path), "0::/system.slice/ferry-agent.service\n") == Hierarchy(Version.V2, base)


def test_in_a_container_the_mount_shows_a_part_of_the_tree(tmp_path):
    unified(tmp_path)

    assert find(v2(tmp_path, "/docker/1"), "0::/docker/1\n") == Hierarchy(Version.V2, tmp_path)


def test_v2_without_the_controller_is_none(tmp_path):
    unified(tmp_path, "memory pids")

    assert find(CPUSET + v2(tmp_path), "3:cpuset:/\n0::/\n") is None


def test_a_configured_directory_says_itself_which_version_it_is(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/cpu.shares").write_text("1024\n")

    assert open_hierarchy(tmp_path / "one").version is Version.V1
    assert open_hierarchy(unified(tmp_path / "two")).version is Version.V2
    with pytest.raises(WrongState, match="neither a v1 group"):
        open_hierarchy(tmp_path)


def test_on_v2_the_controller_is_passed_down_and_the_weight_written(tmp_path):
    hierarchy = Hierarchy(Version.V2, unified(tmp_path))
    group = hierarchy.group("vm")

    hierarchy.make_parent()
    group.make()
    (group.path / "cpu.weight").write_text("100\n")

    assert group.set_shares(300) == 300
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (tmp_path / "ferry/cgroup.subtree_control").read_text() == "+cpu"


def test_a_number_that_the_kernel_refuses_is_told_with_the_range(tmp_path):
    group = Hierarchy(Version.V2, tmp_path).group("vm")
    group.path.mkdir(parents=True)
    (group.path / "cpu.weight").mkdir()  # as good as any file that refuses to be written

    with pytest.raises(InvalidRequest, match=r"cpu shares 262144: refused by cgroup v2 of this host .*1 to 10000"):
        group.set_shares(262144)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(WrongState, match=r"ferry cannot be made: No such file or directory; cgroup_root"):
        Hierarchy(Version.V1, tmp_path / "gone").make_parent()


@pytest.mark.parametrize(
    ("shares", "of", "to", "wanted"),
    [
        (1024, Version.V1, Version.V2, 100),
        (2048, Version.V1, Version.V2, 200),
        (2, Version.V1, Version.V2, 1),
        (262144, Version.V1, Version.V2, 10000),
        (100, Version.V2, Version.V1, 1024),
        (10000, Version.V2, Version.V1, 102400),
        (512, Version.V1, Version.V1, 512),
    ],
)
def test_shares_keep_their_relation_to_the_default(shares, of, to, wanted):
    assert convert(shares, of, to) == wanted
