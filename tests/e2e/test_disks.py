"""Disks go along with a guest: between all QEMUs, by every way, and nothing of a copy is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ferry.common.v1 import disks_pb2 as disks_pb
from tests.e2e.binaries import require
from tests.e2e.guest import Plan
from tests.e2e.lab import Lab
from tests.e2e.move import WAYS, State
from tests.e2e.test_moves import PAIRS

MIB = 1 << 20


def make_image(path: Path, kind: str, size: str, *writes: str) -> Path:
    """Make an image and write to it with qemu-io commands."""
    subprocess.run(("qemu-img", "create", "-q", "-f", kind, path, size), check=True)
    if writes:
        words = [word for write in writes for word in ("-c", write)]
        subprocess.run(("qemu-io", "-f", kind, *words, path), check=True, stdout=subprocess.DEVNULL)
    return path


def data_disk(path: Path, kind: str, target: str = "vdb") -> str:
    return f"""<disk type="file" device="disk"><driver name="qemu" type="{kind}"/><source file="{path}"/>
        <target dev="{target}" bus="virtio"/></disk>"""


def assert_equal(first: Path, second: Path, kind: str) -> None:
    """Fail unless a guest would read the same of both."""
    compared = subprocess.run(
        ("qemu-img", "compare", "-f", kind, "-F", kind, first, second), check=False, capture_output=True, text=True
    )
    assert compared.returncode == 0, compared.stdout


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def copied_to(**paths: Path) -> disks_pb.DiskWishes:
    return disks_pb.DiskWishes(destination_paths={disk: str(path) for disk, path in paths.items()})


@pytest.mark.parametrize("way", ["plain", "psk", "tunnel"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_a_disk_that_is_not_shared_goes_along(pair, way, lab: Lab):
    first, second = ("host-b", "host-a") if pair == ("10.0", "7.2") else ("host-a", "host-b")
    emulator = require(pair[0]) if pair[0] == pair[1] else ""
    source = make_image(lab.directory / "data.qcow2", "qcow2", "64M", "write -P 7 1M 8M", "write -P 9 40M 64k")
    copy = lab.directory / "there.qcow2"
    plan = Plan(emulator=emulator, inside=data_disk(source, "qcow2"))
    guest = await lab.start_guest(first, plan)

    options = WAYS[way](disks=copied_to(vdb=copy))
    outcome = await (await lab.start_move(guest.name, second, options, source=first)).outcome()

    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    [progress] = outcome.progress.disks
    assert (progress.disk, progress.path, progress.is_ready) == ("vdb", str(copy), True)
    await guest.console.wait_sweeps(2)
    await lab.assert_only_on(second, guest)
    guest.assert_whole()
    await lab.stop_vm(second, guest.name)
    assert_equal(source, copy, "qcow2")
    assert allocated(copy) < allocated(source) + MIB
