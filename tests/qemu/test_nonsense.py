"""One QEMU that answers nonsense harms no other VM of its host, and is found again when it answers well."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest

from agent.qemu.identity import ProcessIdentity
from agent.store import Store
from agent.vm.vm import VmState
from common.codec import encode
from tests.qemu.vms import agent, guest_xml, stop_all

UUID_1 = UUID("11111111-0000-0000-0000-000000000001")
UUID_2 = UUID("11111111-0000-0000-0000-000000000002")
WAIT_CS = 1500
# A QMP server that answers what lies in a file; where there is none it answers well.
_SERVER = """
import contextlib, json, os, socket, sys
place, answer = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(place)
listening.listen(1)
while True:
    peer, _ = listening.accept()
    with peer, contextlib.suppress(OSError):
        version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
        peer.sendall(json.dumps({"QMP": {"version": version, "capabilities": ["oob"]}}).encode() + b"\\r\\n")
        text = ""
        for chunk in iter(lambda: peer.recv(65536), b""):
            text += chunk.decode()
            while text:
                message, end = json.JSONDecoder().raw_decode(text)  # nothing stands between two of them
                text = text[end:].lstrip()
                said = {"return": {"status": "running", "running": True} if message["execute"] == "query-status" else {}}
                if "id" in message:
                    said["id"] = message["id"]
                content = json.dumps(said).encode()
                if message["execute"] != "qmp_capabilities" and os.path.exists(answer):
                    with open(answer, "rb") as file:
                        content = file.read().replace(b"ID", str(message.get("id")).encode())
                peer.sendall(content + b"\\r\\n")
"""
ANSWERS = {
    "odd-error": b'{"error": ["x"], "id": "ID"}',
    "deep": b'{"return": ' + b"[" * 100_000 + b"}",
    "foreign-ids": b'{"return": {}, "id": "other"}',
    "odd-state": b'{"return": {"status": {"x": 1}}, "id": "ID"}',
    "no-json": b"\xff\xfe",
}


@pytest.mark.parametrize(
    "kind",
    ["deep", "foreign-ids", *(pytest.param(kind, marks=pytest.mark.matrix) for kind in ("odd-error", "odd-state", "no-json"))],
)
async def test_a_qemu_that_answers_nonsense_is_unknown_and_the_others_are_as_ever(kind: str, place: Path) -> None:
    answer = place / "answer"
    answer.write_bytes(ANSWERS[kind])
    async with agent(place / "s") as vms:
        await vms.define(guest_xml(place, UUID_1, name="odd"), "odd.xml")
        (place / "b").mkdir()
        await vms.start(await vms.define(guest_xml(place / "b", UUID_2), "web.xml"))
    with subprocess.Popen([sys.executable, "-c", _SERVER, str(Store(place / "s").vm(UUID_1).qmp_path), str(answer)]) as server:  # noqa: ASYNC220 -- begins at once
        _write_running(place, server.pid)
        try:
            async with agent(place / "s") as vms:
                for _ in range(3):
                    states = {view.name: view.state for view in await vms.views()}
                    assert states == {"odd": VmState.UNKNOWN, "web": VmState.RUNNING}
                answer.unlink()
                for _ in range(WAIT_CS):
                    if (await vms.view(vms.get("odd"))).state is VmState.RUNNING:
                        break
                    await asyncio.sleep(0.01)
                assert {view.name: view.state for view in await vms.views()} == {"odd": VmState.RUNNING, "web": VmState.RUNNING}
                await stop_all(vms)
        finally:
            server.kill()


def _write_running(place: Path, pid: int) -> None:
    """Put the other VM on record as running in a process that is no QEMU."""
    store = Store(place / "s")
    record = store.vm(UUID_2).find_running()
    assert record is not None
    record["definition"] = cast("dict[str, object]", record["definition"]) | {"name": "odd", "uuid": str(UUID_1)}
    record["process"] = encode(ProcessIdentity.of(pid))
    store.vm(UUID_1).save_running(record)
    while not store.vm(UUID_1).qmp_path.exists():
        time.sleep(0.01)  # it binds at once
