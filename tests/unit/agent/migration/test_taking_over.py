"""A destination makes the images of its guest its own, and lets it go on where it can."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.migration.taking_over import Goes, take_over
from agent.qemu.commands import Qemu
from agent.qemu.errors import QemuRefused
from agent.qemu.monitor import Monitor
from agent.qemu.status import RunState
from agent.vm.image_activation import ImageLocked, ensure_own_images
from tests.fakes.qemu import FakeQemu
from tests.transcripts import VERSIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACTIVATIONS = {"blockdev-set-active", "block-export-add"}


@asynccontextmanager
async def arrived(directory: Path, version: str, state: RunState = RunState.PAUSED) -> AsyncIterator[tuple[FakeQemu, Qemu]]:
    """Give a destination that has loaded its guest."""
    async with (
        FakeQemu(directory / "qmp", version=version, is_incoming=True) as fake,
        Monitor(fake.path, fake.process, vm="web") as monitor,
    ):
        fake.migration.run_state = state
        yield fake, Qemu(monitor)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_guest_that_is_to_stay_paused_gets_its_images_and_is_not_run(version: str, tmp_path: Path):
    async with arrived(tmp_path, version) as (fake, qemu):
        goes = await take_over(qemu, "web", keep_paused=True, has_run=lambda: False)

        assert (goes, fake.migration.has_images) == (Goes.STAYS_STOPPED, True)
        assert "cont" not in dict(fake.commands)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("keep_paused", [True, False])
async def test_while_another_process_has_the_image_the_guest_stays_as_it_came(version: str, tmp_path: Path, *, keep_paused: bool):
    async with arrived(tmp_path, version) as (fake, qemu):
        fake.migration.image_is_locked = True

        with pytest.raises(ImageLocked if keep_paused else QemuRefused):
            await take_over(qemu, "web", keep_paused=keep_paused, has_run=lambda: False)

        assert fake.migration.run_state is RunState.PAUSED


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_guest_that_powered_itself_off_on_the_way_is_taken_as_it_is(version: str, tmp_path: Path):
    async with arrived(tmp_path, version, RunState.SHUTDOWN) as (fake, qemu):
        goes = await take_over(qemu, "web", keep_paused=False, has_run=lambda: False)

        assert (goes, fake.migration.has_images) == (Goes.STAYS_STOPPED, True)


async def test_a_guest_that_runs_costs_one_command(tmp_path: Path):
    async with arrived(tmp_path, "7.2") as (fake, qemu):
        goes = await take_over(qemu, "web", keep_paused=False, has_run=lambda: True)

        assert (goes, [name for name, _ in fake.commands]) == (Goes.RUNS, ["cont"])


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE])
async def test_images_are_left_alone_where_the_guest_runs_or_may_be_another_hosts(state: RunState, tmp_path: Path):
    async with arrived(tmp_path, "7.2", state) as (fake, qemu):
        await ensure_own_images(qemu, "web")

        assert not ACTIVATIONS & {name for name, _ in fake.commands}
