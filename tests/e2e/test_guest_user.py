"""An agent that runs as root gives its guests to an unprivileged user: everything works, and says whose fault a refusal is."""

from __future__ import annotations

import asyncio
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import WrongState
from deploy.lab.fleet import HOSTS, Fleet
from tests.e2e.binaries import PATHS
from tests.e2e.guest import Guest, Plan, domain
from tests.e2e.lab import RUNNING, Lab
from tests.e2e.move import State, post_copy, wishes
from tests.guests.console import Console

USER = "nobody"
TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="ferry-", dir="/tmp"))
    directory.chmod(0o711)
    try:
        with Fleet(
            directory, qemu=dict.fromkeys(HOSTS, str(PATHS["7.2"])), settings=dict.fromkeys(HOSTS, f'qemu_user = "{USER}"')
        ) as fleet:
            yield fleet
    finally:
        shutil.rmtree(directory)


@pytest.fixture
async def its_lab(fleet: Fleet) -> AsyncIterator[Lab]:
    directory = fleet.directory / str(uuid4())
    directory.mkdir()
    directory.chmod(0o777)
    lab = Lab(fleet, directory)
    async with lab:
        yield lab
        await lab.tidy()


def users(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


async def start(lab: Lab) -> Guest:
    uuid = uuid4()
    await lab.define("host-a", domain(Plan(inside=TPM), lab.directory, uuid=uuid))
    for image in lab.directory.iterdir():
        image.chmod(0o666)
    await lab.start_vm("host-a", "web")
    return await lab.listen(Guest("web", uuid, Console(lab.directory / "serial.log"), lab.directory))


async def test_a_guest_of_another_user_moves_by_key_and_by_tunnel_and_is_saved(its_lab: Lab):
    lab = its_lab
    guest = await start(lab)

    there = await (await lab.start_move()).outcome()
    back = await (await lab.start_move(to="host-a", options=wishes(tunnel=True))).outcome()
    seen = users(await lab.qemu_pid("host-a"))
    await asyncio.to_thread(lab.fleet.ferry, "vm", "save", "web", "--managed", check=True)
    await asyncio.to_thread(lab.fleet.ferry, "vm", "start", "web", check=True)
    await guest.console.wait_sweeps(2, timeout_s=20.0)

    assert [move.state for move in (there, back)] == [State.STATE_SUCCEEDED] * 2, f"{there.error} {back.error}"
    assert seen == {pwd.getpwnam(USER).pw_uid}
    await lab.assert_only_on("host-a", guest, RUNNING)
    guest.assert_whole()


async def test_an_image_that_the_user_may_not_open_is_refused_with_the_user_named(its_lab: Lab):
    await its_lab.define("host-a", domain(Plan(), its_lab.directory))
    for image in its_lab.directory.iterdir():
        image.chmod(0o600)

    with pytest.raises(WrongState, match=rf"Permission denied.*runs as user {USER}"):
        await its_lab.start_vm("host-a", "web")


async def test_post_copy_to_a_user_that_may_not_use_userfaultfd_is_refused_before_anything_moves(its_lab: Lab):
    guest = await start(its_lab)

    outcome = await (await its_lab.start_move(options=wishes(post_copy=post_copy()))).outcome()

    assert outcome.state == State.STATE_FAILED
    assert outcome.error_reason == "CAPABILITY_MISSING"
    assert "host-b" in outcome.error
    assert "userfaultfd" in outcome.error
    await its_lab.assert_only_on("host-a", guest)
    guest.assert_whole()
