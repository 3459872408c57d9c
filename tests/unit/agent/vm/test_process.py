"""Starting a program detached, and learning how it ended; any program will do."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.guest_user import GuestUser
from agent.store import VmDirectory
from agent.vm.process import Exit, Launched, QemuNotStarted, find_launched, kill, last_words, launch, reap, rotate_log

if TYPE_CHECKING:
    from agent.qemu.identity import ProcessIdentity


def start(directory: Path, *command: str, token: str = "t") -> Launched:
    """Launch a program."""
    its = VmDirectory(directory, directory / "q", GuestUser())
    its.run_dir.mkdir(exist_ok=True)
    return launch(lambda fd: (*command, str(fd)), its, token=token)


def is_in_proc(identity: ProcessIdentity) -> bool:
    """Say whether the kernel still lists a process, if only as a zombie."""
    return Path(f"/proc/{identity.pid}").exists()


async def end(identity: ProcessIdentity) -> Exit:
    """Wait for a program's end and collect it."""
    async with asyncio.timeout(5):
        await identity.wait_exit()
    return reap(identity)


async def test_a_program_runs_in_a_session_of_its_own_with_a_clean_environment(tmp_path: Path) -> None:
    launched = start(tmp_path, "/bin/sh", "-c", "env; ps -o sid= $$ 2>/dev/null; cat /proc/self/stat; pwd")

    assert await end(launched.identity) == Exit(0, None)

    said = (tmp_path / "qemu.log").read_text().splitlines()
    assert "FERRY_LAUNCH=t" in said
    assert not any(line.startswith(("HOME=", "PYTEST")) for line in said)
    assert said[-1] == str(tmp_path / "q.d")
    session = next(line for line in said if line.startswith(tuple("0123456789")) and ")" in line)
    assert session.rpartition(")")[2].split()[3] == str(launched.identity.pid)


async def test_the_socket_is_bound_before_and_passed(tmp_path: Path) -> None:
    launched = start(tmp_path, "/bin/sh", "-c", 'readlink /proc/self/fd/$0; grep -c "$PWD" /proc/net/unix >/dev/null')

    await end(launched.identity)

    assert (tmp_path / "qemu.log").read_text().startswith("socket:")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(tmp_path / "q"))  # so no descriptor of the listener stayed with us


async def test_a_program_that_does_not_exist_is_named_and_leaves_no_socket(tmp_path: Path) -> None:
    with pytest.raises(QemuNotStarted, match="/no/qemu: No such file"):
        start(tmp_path, "/no/qemu")

    assert not (tmp_path / "q").exists()


async def test_an_ended_child_is_no_zombie_and_tells_its_code(tmp_path: Path) -> None:
    launched = start(tmp_path, "/bin/sh", "-c", "exit 3")

    assert await end(launched.identity) == Exit(3, None)
    assert not is_in_proc(launched.identity)


async def test_a_killed_child_tells_the_signal(tmp_path: Path) -> None:
    launched = start(tmp_path, "/bin/sleep", "60")
    launched.identity.send_signal(signal.SIGTERM)

    assert str(await end(launched.identity)) == "killed by signal 15 (Terminated)"


async def test_kill_ends_a_stopped_process(tmp_path: Path) -> None:
    launched = start(tmp_path, "/bin/sleep", "60")
    launched.identity.send_signal(signal.SIGSTOP)

    await kill(launched.identity)

    assert reap(launched.identity) == Exit(None, 9)
    await kill(launched.identity)


async def test_a_process_is_found_by_its_token_while_it_lives(tmp_path: Path) -> None:
    token = secrets.token_hex()
    launched = start(tmp_path, sys.executable, "-c", "import signal; signal.pause()", token=token)

    async with asyncio.timeout(5):  # the kernel shows the environment a moment after the program was put in place
        while find_launched(token) != launched.identity:  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.01)
    assert find_launched(token[:-1]) is None
    await kill(launched.identity)
    reap(launched.identity)
    assert find_launched(token) is None


def test_nothing_can_be_learnt_of_a_process_that_is_not_ours() -> None:
    class Init:
        pid = 1

    assert reap(Init()) == Exit(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("qemu-system-x86_64: -device x: no\n", "-device x: no"),
        ("qemu-system-x86_64: warning: a\nqemu-system-x86_64: bad\n", "bad"),
        ("qemu-system-x86_64: bad\nqemu-system-x86_64: warning: a\n", "bad"),
        ("qemu-system-x86_64: warning: a\n", "warning: a"),
        (
            '/opt/q/qemu-system-x86_64: Failed to get "write" lock\nIs another process using the image [/a]?\n',
            'Failed to get "write" lock; Is another process using the image [/a]?',
        ),
        ("qemu-system-x86_64: -mon a=b: warning: '-mon' is deprecated\nqemu-system-x86_64: -device x: no\n", "-device x: no"),
        ("qemu-system-x86_64: bad\nqemu-system-x86_64: -mon a=b: warning: '-mon' is deprecated, use c\n", "bad"),
        ("qemu-system-x86_64: warning: Machine type 'p' is deprecated: 6\n", ""),
        ("segfault\n\n", "segfault"),
        ("kvm: bad\n", "bad"),
    ],
)
def test_the_last_words_are_the_last_error_without_the_programs_name(tmp_path: Path, log: str, words: str) -> None:
    path = tmp_path / "qemu.log"
    path.write_text("qemu-system-x86_64: of an earlier run\n" + log)

    assert last_words(path, path.stat().st_size - len(log)) == words


def test_a_missing_log_says_nothing(tmp_path: Path) -> None:
    assert last_words(tmp_path / "qemu.log", 0) == ""


def test_a_log_that_has_grown_long_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "qemu.log"
    path.touch()
    os.truncate(path, 5 * 1024 * 1024)

    rotate_log(path)

    assert [entry.name for entry in tmp_path.iterdir()] == ["qemu.log.1"]
