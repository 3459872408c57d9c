"""Records of a VM that cannot be read: its name, UUID and QEMU stay taken, it is shown with a warning, and a command ends that."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from common.errors import FerryError, WrongState
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.move import State
from tests.e2e.test_broken_records import change
from tests.e2e.waiting import until_equal

CUT_OFF = 150


def directory_of(lab: Lab, guest: Guest) -> Path:
    """Name the directory of a VM's records."""
    return lab.fleet.directory / "host-a" / "vms" / str(guest.uuid)


def cut(path: Path) -> None:
    """Take the end of a record, and more."""
    path.write_bytes(path.read_bytes()[:CUT_OFF])


async def ferry(lab: Lab, *words: str) -> tuple[int, str, str]:
    """Run a command."""
    done = await asyncio.to_thread(lab.fleet.ferry, *words)
    return done.returncode, done.stdout, done.stderr


async def restart_with(lab: Lab, *broken: Path) -> None:
    """Start the agent of host-a again with records that were cut meanwhile."""
    await lab.kill("agent-a")
    for path in broken:
        cut(path)
    await lab.restart("agent-a")
    await lab.wait_reachable()


async def assert_taken(lab: Lab, guest: Guest, xml: bytes) -> None:
    """Fail unless nothing else can have the name or the UUID."""
    with pytest.raises(FerryError):
        await lab.define("host-a", xml)
    with pytest.raises(FerryError):
        await lab.define("host-a", domain(Plan(), lab.directory))
    assert (directory_of(lab, guest) / "definition.json").stat().st_size == CUT_OFF


async def test_a_vm_whose_records_cannot_be_read_stays_taken_and_is_served_again_by_a_new_definition(lab: Lab):
    guest = await lab.start_guest()
    xml = domain(Plan(), lab.directory, uuid=guest.uuid)
    pid = await lab.qemu_pid("host-a")
    place = directory_of(lab, guest)

    await restart_with(lab, place / "definition.json", place / "running.json")

    code, out, err = await ferry(lab, "vm", "ls", "-o", "json")
    (shown,) = [one for one in json.loads(out) if one["host"] == "host-a"]
    assert (code, shown["name"], shown["state"], shown["pid"]) == (1, "web", "UNKNOWN", pid)
    assert str(place / "definition.json") in err
    await assert_taken(lab, guest, xml)
    moved = await (await lab.start_move()).outcome()
    assert (moved.state, moved.error_reason) == (State.STATE_FAILED, "RECORD_BROKEN")
    assert "ferry vm define FILE --force" in moved.error
    _, doctor, _ = await ferry(lab, "doctor", "-o", "json")
    assert str(place / "running.json") in doctor

    file = lab.directory / "web.xml"
    file.write_bytes(xml)
    assert (await ferry(lab, "vm", "define", str(file), "--host", "host-a", "--force"))[0] == 0

    await until_equal(lambda: lab.vms("host-a"), {"web": "RUNNING"})
    assert await lab.qemu_pid("host-a") == pid
    outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_vm_whose_records_cannot_be_read_is_ended_and_removed_on_a_users_word(lab: Lab):
    guest = await lab.start_guest()
    place = directory_of(lab, guest)
    await restart_with(lab, place / "definition.json", place / "running.json")

    code, _, err = await ferry(lab, "vm", "undefine", "web", "--force")
    assert (code, "ferry vm destroy web" in err) == (1, True)
    assert (await ferry(lab, "vm", "destroy", "web"))[0] == 0
    assert (await ferry(lab, "vm", "undefine", "web"))[0] == 1
    assert (await ferry(lab, "vm", "undefine", "web", "--force"))[0] == 0

    await lab.wait_empty("host-a")
    assert not place.exists()
    assert lab.qemus() == []


async def test_a_guest_whose_stored_definition_cannot_be_read_is_moved_with_what_runs(lab: Lab):
    guest = await lab.start_guest()
    place = directory_of(lab, guest)

    await restart_with(lab, place / "definition.json")

    await until_equal(lambda: lab.vms("host-a"), {"web": "RUNNING"})
    assert (await ferry(lab, "vm", "ls"))[0] == 1
    with pytest.raises(WrongState):
        await lab.undefine("host-a", "web")
    outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_what_runs_is_found_again_where_its_record_cannot_be_read(lab: Lab):
    guest = await lab.start_guest()
    pid = await lab.qemu_pid("host-a")
    place = directory_of(lab, guest)

    await restart_with(lab, place / "running.json")

    await until_equal(lambda: lab.vms("host-a"), {"web": "RUNNING"})
    assert await lab.qemu_pid("host-a") == pid
    outcome = await (await lab.start_move()).outcome()
    assert outcome.state == State.STATE_SUCCEEDED, outcome.error
    await lab.assert_only_on("host-b", guest)
    guest.assert_whole()


async def test_a_vm_of_which_it_is_not_known_whether_it_moved_away_starts_on_a_users_word_alone(lab: Lab):
    guest = await lab.start_guest()
    await lab.stop_vm("host-a", "web")
    place = directory_of(lab, guest)
    await lab.kill("agent-a")
    (place / "wishes.json").write_text("{")
    await lab.restart("agent-a")

    code, _, err = await ferry(lab, "vm", "start", "web")
    assert (code, "RECORD_BROKEN" in err) == (1, True)
    assert (await ferry(lab, "vm", "start", "web", "--force"))[0] == 0

    assert (await ferry(lab, "vm", "ls"))[0] == 0
    change(place / "wishes.json", lambda record: record["body"].update(colour="blue"))
    await lab.kill("agent-a")
    await lab.restart("agent-a")
    await until_equal(lambda: lab.vms("host-a"), {"web": "RUNNING"})
    await lab.stop_vm("host-a", "web")
