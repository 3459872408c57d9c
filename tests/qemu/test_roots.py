"""What the configured directories hold: with images and machines that lead outside, on a real QEMU."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from agent.store import Store
from agent.vm.lifecycle import Vms
from agent.vm.probes import HostProbes
from agent.vm.settings import VmSettings
from common.errors import InvalidRequest
from tests.qemu.vms import guest_xml, stop_all

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")


def qcow2(path: Path, *words: str) -> Path:
    """Make an image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, str(path), "1M"], check=True)
    return path


def with_disk(root: Path, image: Path) -> bytes:
    disk = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{image}'/><target dev='vdb' bus='virtio'/></disk>"
    return guest_xml(root, UUID_1, inside=disk)


class Swapping(HostProbes):
    """Lets an image be another one between its check and QEMU's start."""

    def __init__(self, cache_dir: Path, old: Path, new: Path) -> None:
        super().__init__(cache_dir)
        self._swap = (old, new)

    async def facts(self, binary: Path):
        old, new = self._swap
        found = await super().facts(binary)
        if new.exists():
            new.rename(old)
        return found


@asynccontextmanager
async def agent(state_dir: Path, root: Path, swapped: tuple[Path, Path] | None = None) -> AsyncIterator[Vms]:
    store = Store(state_dir)
    probes = HostProbes(store.cache_dir) if swapped is None else Swapping(store.cache_dir, *swapped)
    async with Vms(store, VmSettings(roots=(root,)), probes) as vms:
        yield vms
        await stop_all(vms)


@pytest.fixture
def root(place: Path) -> Path:
    (place / "r").mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", str(place / "secret.raw"), "1M"], check=True)
    return place / "r"


async def test_a_vm_does_not_start_on_an_image_whose_header_leads_outside(place: Path, root: Path) -> None:
    image = qcow2(root / "a.qcow2", "-b", str(place / "secret.raw"), "-F", "raw")
    async with agent(place / "s", root) as vms:
        vm = await vms.define(with_disk(root, image), "web.xml")

        with pytest.raises(InvalidRequest, match=r"a\.qcow2: its header names .*secret\.raw.* as its backing file"):
            await vms.start(vm)

        assert vm.running is None


async def test_a_vm_starts_on_a_chain_that_stays_inside(place: Path, root: Path) -> None:
    base = qcow2(root / "base.qcow2")
    async with agent(place / "s", root) as vms:
        vm = await vms.define(with_disk(root, qcow2(root / "a.qcow2", "-b", str(base), "-F", "qcow2")), "web.xml")
        await vms.start(vm)

        assert vm.running is not None


async def test_a_qemu_that_opened_an_image_changed_after_its_check_is_ended(place: Path, root: Path) -> None:
    image = qcow2(root / "a.qcow2")
    other = qcow2(root / "b.qcow2", "-b", str(place / "secret.raw"), "-F", "raw")
    async with agent(place / "s", root) as vms:  # the definition is pinned before
        await vms.define(with_disk(root, image), "web.xml")

    async with agent(place / "s", root, (image, other)) as vms:
        vm = vms.get("web")

        with pytest.raises(InvalidRequest, match=r"secret\.raw: outside of the configured directories"):
            await vms.start(vm)

        assert vm.running is None
