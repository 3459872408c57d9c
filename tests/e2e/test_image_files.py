"""An image is all of its files: a qcow2's external data file is named, made, checked, placed and removed with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.binaries import require
from tests.e2e.by_hand import by_hand
from tests.e2e.disk_moves import allocated_bytes
from tests.e2e.guest import Plan
from tests.e2e.move import State, wishes
from tests.e2e.test_adopted_disks import COMMON, WORDS
from tests.e2e.test_disk_shapes import assert_equal, image_disk, make_image, wish, write
from tests.e2e.test_newest_disks import ferry

if TYPE_CHECKING:
    from tests.e2e.lab import Lab
    from tests.e2e.move import Whole

FILE = {"driver": "file", "filename": "a.qcow2"}
DATA = {"driver": "file", "filename": "a.data"}
BOOT = ("-blockdev", WORDS, "-device", "virtio-blk,drive=boot")
AS_GIVEN = {
    "inside": ("-blockdev", json.dumps({"driver": "qcow2", "node-name": "data", "file": FILE, "data-file": DATA})),
    "node": (
        *("-blockdev", json.dumps({**DATA, "node-name": "bytes"})),
        *("-blockdev", json.dumps({"driver": "qcow2", "node-name": "data", "file": FILE, "data-file": "bytes"})),
    ),
    "words": (
        "-blockdev",
        "driver=qcow2,node-name=data,file.driver=file,file.filename=a.qcow2,data-file.driver=file,data-file.filename=a.data",
    ),
    "drive": (
        "-drive",
        "if=none,id=data,format=qcow2,file=a.qcow2,data-file.driver=file,data-file.filename=a.data",
    ),
    "header": ("-blockdev", json.dumps({"driver": "qcow2", "node-name": "data", "file": FILE})),
}


@pytest.mark.parametrize("given", AS_GIVEN)
async def test_a_data_file_goes_along_however_it_is_given_and_what_has_its_old_name_is_left_alone(given, lab: Lab):
    data, decoy = lab.directory / "real.data", lab.directory / "a.data"
    source = make_image(lab.directory / "a.qcow2", "qcow2", "-o", f"data_file={decoy}", "2M")
    write(source, "qcow2", "write -P 5 0 2M")
    copy = lab.directory / "copy.qcow2"
    async with by_hand(lab, require("7.2"), *COMMON, *BOOT, *AS_GIVEN[given], "-device", "virtio-blk,drive=data") as hand:
        guest = await hand.guest((await hand.adopt("host-a")).vm.uuid)
        decoy.rename(data)  # as if the other host had a file of its own there
        decoy.write_bytes(b"\7" * (2 << 20))

        outcome = await (await lab.start_move(guest.name, "host-b", wishes(disks=wish(data=copy)), source="host-a")).outcome()

        assert decoy.read_bytes() == b"\7" * (2 << 20)
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await guest.console.wait_sweeps(1)
        await lab.assert_only_on("host-b", guest)
    data.rename(decoy)
    assert_equal(source, copy, "qcow2")
    assert_equal(decoy, Path(f"{copy}.data"), "raw")


async def test_a_plan_says_what_the_move_does_and_a_move_that_fails_removes_all_files_of_the_copy(lab: Lab):
    source = make_image(lab.directory / "a.qcow2", "qcow2", "-o", f"data_file={lab.directory / 'a.data'}", "2M")
    copy, copied_data = lab.directory / "copy.qcow2", lab.directory / "copy.qcow2.data"
    there = ("--to", "host-b", "--dest-path", f"data={copy}")
    async with by_hand(lab, require("10.0"), *COMMON, *BOOT, *AS_GIVEN["inside"], "-device", "virtio-blk,drive=data") as hand:
        guest = await hand.guest((await hand.adopt("host-a")).vm.uuid)

        planned = await ferry(lab, "plan", guest.name, *there)
        assert planned.returncode == 0, planned.stdout + planned.stderr
        move = await lab.start_move(guest.name, "host-b", wishes(bandwidth_mib_s=1, disks=wish(data=copy)), source="host-a")
        await move.wait_transferring()
        assert copied_data.exists()
        await move.cancel()
        await move.outcome()

        assert not copy.exists()
        assert not copied_data.exists()
    assert source.exists()


async def test_nothing_that_exists_is_written_to_without_reuse_and_with_it_only_what_the_header_of_the_image_names(lab: Lab):
    data = lab.directory / "a.data"
    make_image(lab.directory / "a.qcow2", "qcow2", "-o", f"data_file={data}", "2M")
    copy, copied_data, other = lab.directory / "copy.qcow2", lab.directory / "copy.qcow2.data", lab.directory / "other.data"
    copied_data.write_bytes(b"\7" * 512)
    async with by_hand(lab, require("10.0"), *COMMON, *BOOT, *AS_GIVEN["node"], "-device", "virtio-blk,drive=data") as hand:
        guest = await hand.guest((await hand.adopt("host-a")).vm.uuid)
        disks = wish(data=copy)

        async def moved() -> Whole:
            return await (await lab.start_move(guest.name, "host-b", wishes(disks=disks), source="host-a")).outcome()

        refused = await moved()
        assert (refused.error_reason, str(copied_data) in refused.error) == ("FILE_EXISTS", True), refused.error
        assert copied_data.read_bytes() == b"\7" * 512

        copied_data.unlink()
        make_image(copy, "qcow2", "-o", f"data_file={other}", "2M")
        disks.reuse = True
        refused = await moved()
        assert (refused.error_reason, str(other) in refused.error) == ("DATA_FILE_DIFFERS", True), refused.error

        make_image(copy, "qcow2", "-o", f"data_file={copied_data}", "2M")
        outcome = await moved()
        assert outcome.state == State.STATE_SUCCEEDED, outcome.error
        await lab.assert_only_on("host-b", guest)


async def test_the_copy_of_a_raw_data_file_takes_all_of_its_size_and_that_is_counted(lab: Lab):
    data, copy = lab.directory / "a.data", lab.directory / "b.qcow2"
    source = make_image(lab.directory / "a.qcow2", "qcow2", "-o", f"data_file={data},data_file_raw=on", "64M")
    write(source, "qcow2", "write -P 5 1M 1M")
    guest = await lab.start_guest(plan=Plan(inside=image_disk(source, "qcow2")))

    planned = await ferry(lab, "plan", guest.name, "--to", "host-b", "--dest-path", f"vdb={copy}")
    move = await lab.start_move(options=wishes(disks=wish(vdb=copy)))

    assert (await move.outcome()).state == State.STATE_SUCCEEDED
    taken_mib = allocated_bytes(Path(f"{copy}.data")) >> 20
    assert f"{taken_mib}.0 MiB" in planned.stdout + planned.stderr
