"""Dirty bitmaps and snapshots inside of images that do not go along are named beforehand and in the result."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.e2e.binaries import require
from tests.e2e.by_hand import by_hand
from tests.e2e.guest import Plan
from tests.e2e.move import State, wishes
from tests.e2e.test_adopted_disks import COMMON, WAYS
from tests.e2e.test_disk_shapes import image_disk, make_image, wish
from tests.e2e.test_newest_disks import ferry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Lab


def qemu_img(*words: str | Path) -> None:
    subprocess.run(("qemu-img", *words), check=True)


def make_history(path: Path) -> Path:
    """Make an image with a snapshot and a persistent bitmap inside of it."""
    make_image(path, "qcow2", "8M")
    qemu_img("snapshot", "-c", "before-upgrade", path)
    qemu_img("bitmap", "--add", path, "nightly")
    return path


async def test_a_move_names_the_bitmaps_and_snapshots_that_its_copies_have_not_and_those_that_no_move_takes(lab: Lab):
    make_history(lab.directory / "data.qcow2")
    copy = lab.directory / "copy.qcow2"
    async with by_hand(lab, require("10.0"), *COMMON, *WAYS["nodes"]) as hand:
        await hand.ask(("block-dirty-bitmap-add", {"node": "boot", "name": "hourly"}))
        guest = await hand.guest((await hand.adopt("host-a")).vm.uuid)

        planned = await ferry(lab, "plan", guest.name, "--to", "host-b", "--dest-path", f"data={copy}")
        outcome = await (await lab.start_move(guest.name, "host-b", wishes(disks=wish(data=copy)), source="host-a")).outcome()

        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        for word in ("hourly", "nightly", "before-upgrade"):
            assert word in planned.stdout
            assert any(word in warning for warning in outcome.warnings), outcome.warnings
        assert {"BITMAPS_LOST", "BITMAPS_STAY", "SNAPSHOTS_STAY"} <= set(planned.stdout.split())


async def test_a_pivot_and_a_pull_name_what_the_disk_has_no_more_when_they_begin_and_in_the_result(lab: Lab):
    image = make_history(lab.directory / "a.qcow2")
    guest = await lab.start_guest(plan=Plan(inside=image_disk(image, "qcow2")))
    copied = await ferry(lab, "block", "copy", guest.name, "vdb", "--to", str(lab.directory / "b.qcow2"), "--pivot", "-o", "json")

    assert copied.returncode == 0, copied.stderr
    for word in ("before-upgrade", "nightly"):
        assert word in copied.stderr
        assert any(word in warning for warning in json.loads(copied.stdout)["warnings"])
