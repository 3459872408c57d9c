"""What a host's kernel and limits allow."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from agent.guest_user import GuestUser
from agent.host_means import has_capability, locked_memory_limit, userfaultfd_obstacle, zero_copy_obstacle

SOMEBODY = GuestUser("somebody", 4711, 4711)


def test_page_faults_may_be_handled_where_the_kernel_lets_everybody(tmp_path: Path):
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("1\n")

    assert userfaultfd_obstacle(SOMEBODY, opens_device=False, sysctl=sysctl) == ""


def test_page_faults_of_an_unprivileged_guest_user_are_refused_with_the_remedy(tmp_path: Path):
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("0\n")

    obstacle = userfaultfd_obstacle(SOMEBODY, opens_device=True, sysctl=sysctl, device=tmp_path / "none")

    assert "vm.unprivileged_userfaultfd=1" in obstacle


@pytest.mark.parametrize(("mode", "opens_device", "may"), [(0o666, True, True), (0o666, False, False), (0o660, True, False)])
def test_page_faults_may_be_handled_through_a_device_that_qemu_knows_and_may_open(tmp_path: Path, mode, opens_device, may):
    sysctl, device = tmp_path / "sysctl", tmp_path / "device"
    sysctl.write_text("0\n")
    device.touch()
    device.chmod(mode)

    obstacle = userfaultfd_obstacle(SOMEBODY, opens_device=opens_device, sysctl=sysctl, device=device)

    assert (obstacle == "") is may


def test_a_kernel_without_userfaultfd_is_named(tmp_path: Path):
    assert "no userfaultfd" in userfaultfd_obstacle(GuestUser(), opens_device=True, sysctl=tmp_path / "none")


def test_capabilities_and_limits_are_read_as_the_kernel_writes_them(tmp_path: Path):
    status, limits = tmp_path / "status", tmp_path / "limits"
    status.write_text("Name:\tq\nCapEff:\t0000000000004000\n")
    limits.write_text(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max locked memory         8388608              unlimited            bytes     \n"
    )

    assert has_capability(status, 14)
    assert not has_capability(status, 13)
    assert locked_memory_limit(limits) == 8388608
    limits.write_text(limits.read_text().replace("8388608  ", "unlimited"))
    assert locked_memory_limit(limits) is None


def test_the_limit_of_a_process_is_that_of_the_kernel():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)

    assert locked_memory_limit(Path(f"/proc/{os.getpid()}/limits")) == (None if soft == resource.RLIM_INFINITY else soft)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock what it likes")
def test_root_may_send_without_a_copy():
    assert zero_copy_obstacle(os.getpid(), 1 << 50) == ""


def test_a_process_that_has_ended_locks_nothing():
    assert "may lock 0 KiB" in zero_copy_obstacle(2**31 - 1, 1 << 20)
