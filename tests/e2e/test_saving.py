"""`ferry vm save`, `restore`, `dump` and `job` from end to end, with an agent that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from tests.e2e.binaries import require
from tests.e2e.by_hand import by_hand
from tests.e2e.guest import Guest, Plan
from tests.e2e.lab import Lab
from tests.e2e.test_adoption import command_line
from tests.e2e.test_linux import BOOT_TIMEOUT_S
from tests.e2e.test_linux import domain as linux_domain
from tests.e2e.test_vm_commands import terminal
from tests.guests.console import Console

BOUND = ("--bandwidth", "1MiB/s")
SWEEPS_TIMEOUT_S = 20.0


async def ferry(lab: Lab, *arguments: str) -> str:
    done = await asyncio.to_thread(lab.fleet.ferry, "vm", *arguments, check=True)
    return done.stdout + done.stderr


async def test_a_guest_is_saved_shown_started_dumped_and_restored_by_commands(lab: Lab):
    guest = await lab.start_guest()
    file, core = str(lab.directory / "web.save"), str(lab.directory / "web.core")

    said = [await ferry(lab, "save", "web", "--managed")]
    shown = await ferry(lab, "show", "web")
    await ferry(lab, "start", "web")
    await guest.console.wait_sweeps(2, timeout_s=SWEEPS_TIMEOUT_S)
    said += [await ferry(lab, "dump", "web", core), await ferry(lab, "save", "web", file, "--bandwidth", "0")]
    refused = await asyncio.to_thread(lab.fleet.ferry, "vm", "restore", core, "--host", "host-a")
    said.append(await ferry(lab, "restore", file, "--host", "host-a"))
    job = json.loads(await ferry(lab, "job", "web", "-o", "json"))
    await guest.console.wait_sweeps(2, timeout_s=SWEEPS_TIMEOUT_S)

    assert "saved guest" in shown
    assert [line.split(" in ")[0] for line in said[1:]] == [
        f"web dumped to {core} on host-a",
        f"web saved to {file} on host-a",
        f"web restored from {file} on host-a",
    ]
    assert (refused.returncode, "SAVE_FILE_FOREIGN" in refused.stderr) == (1, True)
    assert (job["kind"], job["state"]) == ("RESTORE", "COMPLETED")
    guest.assert_whole()


async def test_a_managed_save_is_discarded_and_the_guest_boots(lab: Lab):
    guest = await lab.start_guest()
    await ferry(lab, "save", "web", "--managed")

    await ferry(lab, "start", "web", "--discard-saved")

    assert not (await lab.vm("host-a", guest.name)).has_saved_guest


async def test_ctrl_c_cancels_a_save_and_the_guest_runs_on(lab: Lab):
    guest = await lab.start_guest(plan=Plan(megabytes=16))
    file = lab.directory / "web.save"

    def interrupt() -> tuple[int, bytes]:
        with terminal(lab, "vm", "save", "web", str(file), *BOUND) as one:
            one.wait_for(rb"saving web: writing \d+ %")
            lab.fleet.ferry("vm", "job", "web", "--set-bandwidth", "2MiB/s", check=True)
            one.process.send_signal(signal.SIGINT)
            one.wait_for(rb"was cancelled; the guest runs on \[CANCELLED\]")
            return one.wait_end(), one.said

    code, said = await asyncio.to_thread(interrupt)
    await guest.console.wait_sweeps(2, timeout_s=SWEEPS_TIMEOUT_S)

    assert (code, b"cancelling" in said) == (1, True)
    assert _files(lab) == set()
    guest.assert_whole()


async def test_an_agent_killed_in_a_save_lets_the_guest_run_on_when_it_is_back(lab: Lab):
    guest = await lab.start_guest(plan=Plan(megabytes=16))

    def save() -> None:
        with terminal(lab, "vm", "save", "web", str(lab.directory / "web.save"), *BOUND) as one:
            one.wait_for(rb"saving web: writing [1-9]\d* %")
            lab.fleet.kill("agent-a")
            assert one.wait_end() == 6

    await asyncio.to_thread(save)
    await guest.wait_silent(0.3)
    await lab.restart("agent-a")
    await guest.console.wait_sweeps(2, timeout_s=SWEEPS_TIMEOUT_S)

    told = await ferry(lab, "events", "web", "--host", "host-a")
    assert "the partial file was removed, the guest runs on" in told
    assert _files(lab) == set()
    guest.assert_whole()


@pytest.mark.linux
@pytest.mark.timeout(150)
async def test_a_busy_linux_guest_is_saved_on_one_version_restored_by_the_other_and_back(lab: Lab):
    uuid = uuid4()
    await lab.define("host-a", linux_domain(lab, uuid))
    await lab.start_vm("host-a", "linux")
    guest = await lab.listen(Guest("linux", uuid, Console(lab.directory / "serial.log"), lab.directory), boot_s=BOOT_TIMEOUT_S)

    for number, (here, there) in enumerate((("host-a", "host-b"), ("host-b", "host-a"))):
        file = str(lab.directory / f"{number}.save")
        await ferry(lab, "save", "linux", file, "--host", here)
        await ferry(lab, "restore", file, "--host", there)
        await guest.console.wait_sweeps(2, timeout_s=BOOT_TIMEOUT_S)

    assert (await lab.vm("host-a", "linux")).is_persistent
    await lab.wait_empty("host-b")
    guest.assert_whole()


def _files(lab: Lab) -> set[Path]:
    return {path for path in lab.directory.iterdir() if "save" in path.name}


async def test_an_adopted_guest_is_saved_and_restored(lab: Lab):
    async with by_hand(lab, require("7.2"), *command_line("all defaults")) as hand:
        guest = await hand.guest((await hand.adopt("host-a")).vm.uuid)
        file = str(lab.directory / "adopted.save")

        await ferry(lab, "save", guest.name, file)
        await lab.wait_empty("host-a")
        await ferry(lab, "restore", file, "--host", "host-a")
        await guest.console.wait_sweeps(2, timeout_s=SWEEPS_TIMEOUT_S)

        guest.assert_whole()
