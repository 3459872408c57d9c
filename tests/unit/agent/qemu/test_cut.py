"""Connections of another process are seen and cut, with real sockets of a child."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.qemu.cut import Connection, TcpState, connections, cut
from tests.fakes.network import black_hole

if TYPE_CHECKING:
    from collections.abc import Iterator

CHILD = """
import socket, sys
peer = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print("calling", flush=True)
try:
    peer.connect((sys.argv[1], int(sys.argv[2])))
    print("connected", flush=True)
    print(f"read {peer.recv(1)}", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""


class Child:
    """A process that connects, blocking, then reads, blocking."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def child_that_calls(host: str, port: int) -> Iterator[Child]:
    argv = [sys.executable, "-S", "-c", CHILD, host, str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            child = Child(process)
            assert child.says() == "calling"
            yield child
        finally:
            process.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize(
    ("host", "seen"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")],
    ids=["IPv4", "IPv6", "IPv4 mapped into IPv6"],
)
def test_an_open_connection_is_seen_with_both_ends_and_ends_when_cut(listener: socket.socket, host: str, seen: str):
    port = listener.getsockname()[1]
    with child_that_calls(host, port) as child:
        assert child.says() == "connected"
        accepted, peer = listener.accept()

        (connection,) = connections(child.pid)
        assert connection.state is TcpState.ESTABLISHED
        assert connection.remote == (seen, port)
        assert connection.local == (seen, peer[1])
        assert cut(child.pid, connection)
        assert child.says() == "read b''"
        assert accepted.recv(1) == b""
        accepted.close()


def test_a_cut_of_the_sending_side_leaves_the_reader_waiting(listener: socket.socket):
    with child_that_calls("127.0.0.1", listener.getsockname()[1]) as child:
        assert child.says() == "connected"
        accepted, _ = listener.accept()
        (connection,) = connections(child.pid)

        assert cut(child.pid, connection, sending_only=True)
        assert accepted.recv(1) == b""
        accepted.sendall(b"x")
        assert child.says() == "read b'x'"
        accepted.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_that_hangs_in_syn_sent_is_seen_and_cut(host: str):
    with black_hole(host) as (_, port), child_that_calls(host, port) as child:
        connection = wait_for_one(child.pid)

        assert connection.state is TcpState.SYN_SENT
        assert connection.remote == (host, port)
        assert cut(child.pid, connection)
        assert child.says() in {"ConnectionAbortedError", "ConnectionResetError", "ConnectionRefusedError"}


def wait_for_one(pid: int) -> Connection:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for connection in connections(pid):
            if connection.state is TcpState.SYN_SENT:
                return connection
    raise AssertionError("the child does not call")


def test_listening_sockets_are_left_out_unless_asked_for(listener: socket.socket):
    port = listener.getsockname()[1]

    assert port not in {connection.local[1] for connection in connections(os.getpid())}
    found = [one for one in connections(os.getpid(), with_listening=True) if one.local[1] == port]
    assert [(one.state, one.local[0], one.remote) for one in found] == [(TcpState.LISTEN, "::", ("", 0))]


def test_a_process_that_has_gone_has_no_connections_and_cannot_be_cut():
    process = subprocess.Popen(["true"])
    process.wait()

    assert connections(process.pid) == ()
    assert not cut(process.pid, Connection(3, 1, ("127.0.0.1", 1), ("127.0.0.1", 2), TcpState.ESTABLISHED))


def test_a_number_that_means_another_socket_by_now_is_left_alone(listener: socket.socket):
    with child_that_calls("127.0.0.1", listener.getsockname()[1]) as child:
        assert child.says() == "connected"
        accepted, _ = listener.accept()
        (connection,) = connections(child.pid)
        other = Connection(connection.fd, connection.inode + 1, connection.local, connection.remote, connection.state)

        assert not cut(child.pid, other)
        accepted.sendall(b"x")
        assert child.says() == "read b'x'"
        accepted.close()


def test_a_stopped_process_is_cut_too(listener: socket.socket):
    with child_that_calls("127.0.0.1", listener.getsockname()[1]) as child:
        assert child.says() == "connected"
        accepted, _ = listener.accept()
        os.kill(child.pid, signal.SIGSTOP)
        (connection,) = connections(child.pid)

        assert cut(child.pid, connection)
        assert accepted.recv(1) == b""
        accepted.close()


def test_looking_costs_less_than_five_milliseconds(listener: socket.socket):
    with child_that_calls("127.0.0.1", listener.getsockname()[1]) as child:
        assert child.says() == "connected"
        costs_s = []
        for _ in range(20):
            started_s = time.perf_counter()
            connections(child.pid)
            costs_s.append(time.perf_counter() - started_s)

    assert min(costs_s) < 0.005
