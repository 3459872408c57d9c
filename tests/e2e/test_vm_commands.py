"""`ferry vm` from end to end: the life of a VM, its console, its shares, what is told and what is audited."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from coordinator.cli.exits import ExitCode
from deploy.lab.fleet import ferry_argv
from ferry.agent.v1 import vm_pb2
from tests.e2e.binaries import installed
from tests.e2e.lab import Lab
from tests.e2e.waiting import until

# Echoes what comes in on COM1, after it has said `F`: mov dx,0x3f8; mov al,'F'; out dx,al; l: mov dx,0x3fd; in al,dx; test al,1;
# jz l; mov dx,0x3f8; in al,dx; out dx,al; jmp l
_ECHO = bytes.fromhex("baf803 b046 ee bafd03 ec a801 74f8 baf803 ec ee ebf1")
LINES = {"pty": "<serial type='pty'/>", "unix": "<serial type='unix'><source mode='bind' path='{directory}/line'/></serial>"}


def domain(directory: Path, *, line: str = LINES["pty"], emulator: str = "", name: str = "web") -> Path:
    image = directory / f"{name}.img"
    image.write_bytes((_ECHO.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    path = directory / f"{name}.xml"
    path.write_text(f"""
        <domain type='qemu'><name>{name}</name><uuid>{uuid4()}</uuid><memory>16392</memory>
          <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
          <devices>{f"<emulator>{emulator}</emulator>" if emulator else ""}
            <disk type='file'><source file='{image}'/><target dev='vda' bus='virtio'/></disk>
            {line.format(directory=directory)}
          </devices></domain>""")
    return path


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        self.fd, inner = pty.openpty()
        # What runs in a shell's background ignores Ctrl-C, as these tests may; a command in a terminal does not.
        argv = ("env", "--default-signal=INT", *ferry_argv(*arguments))
        self.process = subprocess.Popen(
            argv, stdin=inner, stdout=inner, stderr=inner, env=lab.fleet.environment, start_new_session=True
        )
        os.close(inner)
        self.said = b""

    def wait_for(self, pattern: bytes, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.said):
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no {pattern!r} in {self.said!r}"
            try:
                self.said += os.read(self.fd, 4096)
            except OSError as error:  # the command has ended
                raise AssertionError(f"no {pattern!r} in {self.said!r}") from error

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def wait_end(self) -> int:
        return self.process.wait(15)


@contextmanager
def terminal(lab: Lab, *arguments: str) -> Iterator[Terminal]:
    one = Terminal(lab, *arguments)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.fd)


async def start(lab: Lab, **wishes: str) -> None:
    await asyncio.to_thread(lab.fleet.ferry, "vm", "create", str(domain(lab.directory, **wishes)), "--host", "host-a", check=True)


@pytest.mark.parametrize("emulator", installed())
@pytest.mark.parametrize("kind", LINES)
async def test_a_console_carries_what_is_typed_and_said_and_ctrl_bracket_leaves_it(kind, emulator, lab: Lab):
    await start(lab, line=LINES[kind], emulator=emulator)

    def use() -> tuple[int, int]:
        with terminal(lab, "vm", "console", "web") as first:
            first.wait_for(rb"attached to serial0 of web; Ctrl-\] leaves")
            first.type(b"ab\x03\rc")
            first.wait_for(rb"ab\x03\rc")  # raw: Ctrl-C is the guest's
            first.type(b"\x1d")
            code = first.wait_end()
        with terminal(lab, "vm", "console", "web", "--device", "serial0") as second:
            second.wait_for(rb"attached")
            second.type(b"again")
            second.wait_for(rb"again")
            second.type(b"\x1d")
            return code, second.wait_end()

    assert await asyncio.to_thread(use) == (0, 0)


@pytest.mark.parametrize("kind", LINES)
async def test_a_line_has_one_client_whom_force_ends(kind, lab: Lab):
    await start(lab, line=LINES[kind])

    def use() -> None:
        with terminal(lab, "vm", "console", "web") as first:
            first.wait_for(rb"attached")
            refused = lab.fleet.ferry("vm", "console", "web")
            assert refused.returncode == 1
            assert "serial0 is in use by operator" in refused.stderr
            with terminal(lab, "vm", "console", "web", "--force") as second:
                first.wait_for(rb"was taken over by operator .*CONSOLE_TAKEN_OVER")
                assert first.wait_end() == 1
                second.wait_for(rb"attached")
                second.type(b"mine")
                second.wait_for(rb"mine")

    await asyncio.to_thread(use)


async def test_a_console_ends_with_its_guest_and_a_killed_client_frees_the_line(lab: Lab):
    await start(lab)

    def use() -> None:
        with terminal(lab, "vm", "console", "web") as interrupted:
            interrupted.wait_for(rb"attached")
            interrupted.process.send_signal(signal.SIGINT)
            assert interrupted.wait_end() == ExitCode.INTERRUPTED
        with terminal(lab, "vm", "console", "web") as first:
            first.wait_for(rb"attached")
            first.process.kill()
            first.wait_end()
        with terminal(lab, "vm", "console", "web") as second:
            second.wait_for(rb"attached|in use")
            if b"in use" not in second.said:
                lab.fleet.ferry("vm", "destroy", "web", check=True)
                second.wait_for(rb"the line was closed")
                assert second.wait_end() == 0

    await asyncio.to_thread(use)


async def test_a_line_that_is_a_file_cannot_be_attached(lab: Lab):
    await start(lab, line="<serial type='file'><source path='{directory}/serial.log'/></serial>")

    refused = await asyncio.to_thread(lab.fleet.ferry, "vm", "console", "web")

    assert refused.returncode == 1
    assert "only a line of type pty or unix can be attached" in refused.stderr


async def test_the_commands_of_a_vms_life_do_what_they_say_and_are_told_and_audited(lab: Lab):
    definition = domain(lab.directory, name="life")

    def live() -> tuple[list[str], str, list[dict[str, str]]]:
        def ferry(*arguments: str) -> str:
            done = lab.fleet.ferry("vm", *arguments, check=True)
            return done.stdout + done.stderr

        ferry("define", str(definition), "--host", "host-a")
        ferry("autostart", "life")
        marked = json.loads(ferry("show", "life", "-o", "json"))["autostart"]
        ferry("autostart", "life", "--off")
        assert marked is True
        ferry("start", "life", "--paused")
        refused = lab.fleet.ferry("vm", "stop", "life")
        assert (refused.returncode, "is paused" in refused.stderr) == (1, True)
        ferry("resume", "life")
        ferry("pause", "life")
        ferry("resume", "life")
        ferry("reset", "life")
        ferry("undefine", "life")
        transient = json.loads(ferry("show", "life", "-o", "json"))
        assert transient["is_persistent"] is False
        shown = ferry("show", "life")
        ferry("stop", "life", "--timeout", "1s", "--kill")
        listed = json.loads(lab.fleet.ferry("vm", "events", "life", "--host", "host-a", "-o", "json", check=True).stdout)
        told = [f"{one['event']}/{one['reason']}" for one in listed if one["reason"] != "GUEST"]  # SeaBIOS may reset once more
        logs = [(lab.fleet.directory / "host-a" / name).read_text() for name in ("audit.jsonl", "audit-refused.jsonl")]
        audited = sorted((json.loads(line) for log in logs for line in log.splitlines()), key=lambda line: str(line["time"]))
        return told, shown, [one for one in audited if one.get("vm") == "life"]

    told, shown, audited = await asyncio.to_thread(live)

    assert told == [
        "DEFINED/ADDED",
        "STARTED/BOOTED",
        "RESUMED/UNPAUSED",
        "SUSPENDED/PAUSED",
        "RESUMED/UNPAUSED",
        "RESET/HOST",
        "UNDEFINED/REMOVED",
        "STOPPED/DESTROYED",
    ]
    assert "no: it vanishes when it stops" in shown
    asked = [(one["rpc"], one["result"], one.get("reason", "")) for one in audited]
    assert asked[-10:] == [
        ("SetVm", "OK", ""),
        ("SetVm", "OK", ""),
        ("StartVm", "OK", ""),
        ("StopVm", "FAILED_PRECONDITION", "GUEST_CANNOT_POWER_OFF"),
        ("ResumeVm", "OK", ""),
        ("PauseVm", "OK", ""),
        ("ResumeVm", "OK", ""),
        ("ResetVm", "OK", ""),
        ("UndefineVm", "OK", ""),
        ("StopVm", "OK", ""),
    ]
    assert {one["who"] for one in audited} == {"operator operator"}


async def test_events_are_followed_until_ctrl_c(lab: Lab):
    definition = domain(lab.directory, name="followed")

    def follow() -> int:
        lab.fleet.ferry("vm", "define", str(definition), "--host", "host-b", check=True)
        with terminal(lab, "vm", "events", "followed", "--follow") as one:
            one.wait_for(rb"host-b +followed +defined/added")
            lab.fleet.ferry("vm", "undefine", "followed", check=True)
            one.wait_for(rb"host-b +followed +undefined/removed")
            one.process.send_signal(signal.SIGINT)
            return one.wait_end()

    assert await asyncio.to_thread(follow) == ExitCode.INTERRUPTED


@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpu/cpu.shares").exists(), reason="no cgroup v1 with cpu")
async def test_shares_are_set_shown_and_go_along_with_a_migration(lab: Lab):
    guest = await lab.start_guest()

    done = await asyncio.to_thread(lab.fleet.ferry, "vm", "set", guest.name, "--cpu-shares", "300000")
    shown = await asyncio.to_thread(lab.fleet.ferry, "vm", "show", guest.name, check=True)
    move = await lab.start_move(guest.name, "host-b")
    outcome = await move.outcome()
    there = await lab.vm("host-b", guest.name)
    group = _cpu_group(there.pid)

    assert done.stderr == "web: cpu shares 262144 now, 262144 from its next start on (the kernel does not take 300000)\n"
    assert "262144" in shown.stdout
    assert outcome.error == ""
    assert (there.cpu_shares, there.next_cpu_shares) == (262144, 262144)
    assert str(guest.uuid) in group
    await lab.agents["host-b"].StopVm(vm_pb2.StopVmRequest(vm=guest.name, force=True))
    await until(_remove_parent, "no cgroup of a VM")


def _cpu_group(pid: int) -> str:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return next(path for _, controllers, path in lines if "cpu" in controllers.split(","))


def _remove_parent() -> bool:
    """Remove the directory that the agents have made; it can be once no VM has a group in it."""
    with suppress(OSError):
        Path("/sys/fs/cgroup/cpu/ferry").rmdir()
    return not Path("/sys/fs/cgroup/cpu/ferry").exists()
