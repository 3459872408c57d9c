"""Commands send what QEMU expects, and nothing it would refuse."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.qemu.commands import Qemu
from agent.qemu.machine import Endpoint
from agent.qemu.monitor import Monitor
from tests.fakes.qemu import FakeQemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def session(directory: Path, version: str = "7.2") -> AsyncIterator[tuple[FakeQemu, Qemu]]:
    async with (
        FakeQemu(directory / "qmp", version=version, is_incoming=True) as fake,
        Monitor(fake.path, fake.process, vm="web") as monitor,
    ):
        yield fake, Qemu(monitor)


async def test_exit_on_error_is_left_out_unless_wanted(tmp_path):
    async with session(tmp_path, "10.0") as (fake, qemu):
        await qemu.migrate_incoming("unix:/a")

        assert fake.commands == [("migrate-incoming", {"uri": "unix:/a"})]


async def test_a_server_key_has_no_username_and_a_client_key_has_one(tmp_path):
    async with session(tmp_path) as (fake, qemu):
        await qemu.add_psk("tls", Path("/k"), Endpoint.SERVER, "m")
        await qemu.add_psk("tls", Path("/k"), Endpoint.CLIENT, "m", "NORMAL")

        common = {"qom-type": "tls-creds-psk", "id": "tls", "dir": "/k"}
        assert [arguments for _, arguments in fake.commands] == [
            common | {"endpoint": "server"},
            common | {"endpoint": "client", "username": "m", "priority": "NORMAL"},
        ]


async def test_quit_is_content_with_a_qemu_that_is_gone(tmp_path):
    async with session(tmp_path) as (fake, qemu):
        fake.die()

        await qemu.quit()


async def test_a_state_from_the_future_is_passed_on_as_unknown(tmp_path):
    async with session(tmp_path) as (fake, qemu):
        fake.answers.replies["query-status"] = {"status": "dreaming", "running": False}
        fake.answers.replies["query-migrate"] = {"status": "teleporting"}

        assert (await qemu.query_status()).value == "unknown"
        assert (await qemu.query_migrate()).status_text == "teleporting"


@pytest.mark.parametrize("command", ["system_powerdown", "system_reset", "stop", "cont"])
async def test_plain_commands_have_qemus_names(tmp_path, command):
    async with session(tmp_path) as (fake, qemu):
        await getattr(qemu, command)()

        assert fake.commands == [(command, {})]
