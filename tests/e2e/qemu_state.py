"""What a QEMU of the fleet has, by its own word: jobs, exports, nodes, connections, objects.

The agent holds a VM's only monitor, so QEMUs of a watched fleet are started by a script that gives them another one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from qemu.qmp import QMPClient

from tests.e2e.binaries import PATHS, require
from tests.e2e.lab import Lab
from tests.e2e.waiting import until_equal

_WATCHED = "watched"
_ANSWER_S = 10.0
_TIDY_S = 20.0


@dataclass(frozen=True, slots=True)
class QemuState:
    """What there is that a move of disks could leave behind; each is named."""

    jobs: tuple[str, ...]
    exports: tuple[str, ...]
    nodes: tuple[str, ...]
    connections: tuple[str, ...]
    objects: tuple[str, ...]


def watched(version: str, emulator: str, directory: Path) -> str:
    """Write a script that runs a QEMU with a second monitor, named by its process, in `directory`; return its path."""
    sockets = directory / _WATCHED
    sockets.mkdir(exist_ok=True)
    script = sockets / f"qemu-{version}"
    script.write_text(f'#!/bin/sh\nexec "{emulator}" "$@" -qmp "unix:{sockets}/$$.sock,server=on,wait=off"\n')
    script.chmod(0o755)
    return str(script)


def watched_emulator(lab: Lab, version: str) -> str:
    """Return the path of the script that runs a QEMU of this version in a watched fleet."""
    require(version)
    return str(lab.fleet.directory / _WATCHED / f"qemu-{[*PATHS].index(version)}")


async def ask_qemu(lab: Lab, host: str, command: str, name: str = "web", **arguments: object) -> object:
    """Give a VM's QEMU a command on its second monitor; arguments have `_` for `-`."""
    pid = await lab.qemu_pid(host, name)
    client = QMPClient("watcher")
    async with asyncio.timeout(_ANSWER_S):
        await client.connect(str(lab.fleet.directory / _WATCHED / f"{pid}.sock"))
        try:
            return await client.execute(command, {key.replace("_", "-"): value for key, value in arguments.items()})
        finally:
            with suppress(Exception):
                await client.disconnect()


async def state_of(lab: Lab, host: str = "host-a", name: str = "web") -> QemuState:
    """Ask a VM's QEMU for all that it has."""

    async def names(command: str, key: str, **arguments: object) -> tuple[str, ...]:
        found = cast("list[dict[str, object]]", await ask_qemu(lab, host, command, name, **arguments))
        return tuple(sorted(str(one.get(key, "")) for one in found))

    jobs = await names("query-jobs", "id")
    return QemuState(
        jobs=jobs,
        exports=await names("query-block-exports", "id"),
        nodes=() if jobs else tuple(_lasting(await names("query-named-block-nodes", "node-name"))),
        connections=tuple(filter(None, await names("query-yank", "node-name"))),
        objects=await names("qom-list", "name", path="/objects"),
    )


async def assert_state(lab: Lab, wanted: QemuState, host: str = "host-a", name: str = "web") -> None:
    """Fail unless a VM's QEMU comes to have what it had, and nothing else."""
    await until_equal(lambda: state_of(lab, host, name), wanted, timeout_s=_TIDY_S)


def _lasting(nodes: tuple[str, ...]) -> list[str]:
    """Leave out the names that QEMU makes up itself."""
    return [node for node in nodes if not node.startswith("#")]
