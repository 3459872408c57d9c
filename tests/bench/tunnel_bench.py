"""What the tunnel costs: bytes/s, CPU for each GB, and the time of an answer, without QEMU.

Two ferry-tunnels with mTLS on loopback, a writer and a reader on their UNIX sockets; beside them the same writer and reader on one
UNIX socket, and through a bare relay over TCP that neither frames nor encrypts. All cases are interleaved in each round.

    python -m tests.bench.tunnel_bench --rounds 5 --frame-sizes 65536,262144,1048576
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agent.tunnel.client import TunnelClient
from common.identity import Role
from common.pki import init_authority, issue

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
GB = 1_000_000_000
WRITE_BYTES = 128 * 1024  # what QEMU gives to one sendmsg: 32 pages
READ_BYTES = 1024 * 1024
ANSWER_COUNT = 500
START_TIMEOUT_S = 20.0
TOKEN = "a token of the benchmark"


@dataclass(frozen=True, slots=True)
class Case:
    """A way for bytes to go; `frame_bytes` is 0 where there is no tunnel."""

    name: str
    channel_count: int = 1
    frame_bytes: int = 0


@dataclass(slots=True)
class Samples:
    """What a case measured, one value a round."""

    mb_s: list[float] = field(default_factory=list)
    cpu_s_gb: list[float] = field(default_factory=list)
    answer_us: list[float] = field(default_factory=list)
    loaded_answer_us: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Way:
    """How to connect, and which processes carry.

    Attributes:
        connect: makes a new connection: the writer's and the reader's socket.
        process_ids: whose CPU counts.
    """

    connect: Callable[[], tuple[socket.socket, socket.socket]]
    process_ids: tuple[int, ...]

    def cpu_s(self) -> float:
        """CPU that the carrying processes have taken so far."""
        times = [psutil.Process(one).cpu_times() for one in self.process_ids]
        return sum(one.user + one.system for one in times)

    def rss_mb(self) -> float:
        """Memory of the largest of them."""
        return max((psutil.Process(one).memory_info().rss / 1e6 for one in self.process_ids), default=0.0)


def listen_unix(path: Path) -> socket.socket:
    """Listen as QEMU's destination does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def dial_unix(path: Path) -> socket.socket:
    """Connect as QEMU's source does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


@contextmanager
def direct(directory: Path) -> Iterator[Way]:
    """One UNIX socket."""
    with listen_unix(directory / "in.sock") as listener:
        yield Way(lambda: (dial_unix(directory / "in.sock"), listener.accept()[0]), ())


@contextmanager
def bare_relay(directory: Path) -> Iterator[Way]:
    """UNIX socket, TCP on loopback, UNIX socket: two processes that copy and do nothing else."""
    with listen_unix(directory / "in.sock") as listener, socket.create_server((LOOPBACK, 0)) as tcp:
        address = f"{LOOPBACK}:{tcp.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.bench.bare_relay"]
        leave = subprocess.Popen(
            [*command, "exit", str(tcp.fileno()), str(directory / "in.sock")], pass_fds=[tcp.fileno()], cwd=ROOT
        )
        with listen_unix(directory / "out.sock") as out:
            enter = subprocess.Popen([*command, "entrance", str(out.fileno()), address], pass_fds=[out.fileno()], cwd=ROOT)
            try:
                yield Way(lambda: (dial_unix(directory / "out.sock"), listener.accept()[0]), (enter.pid, leave.pid))
            finally:
                for process in (enter, leave):
                    process.kill()
                    process.wait()


@contextmanager
def through_tunnels(directory: Path, case: Case) -> Iterator[Way]:
    """Two ferry-tunnels, each with a certificate."""
    init_authority(directory / "ca")
    processes = []
    try:
        for name in ("source", "destination"):
            issue(directory / "ca", directory / name, name, Role.AGENT, [LOOPBACK])
            processes.append(_start_tunnel(directory, name, case.frame_bytes))
        port = _wait_ready(directory / "destination.log")
        _wait_ready(directory / "source.log")
        with listen_unix(directory / "in.sock") as listener:
            asyncio.run(_open_session(directory, port, case.channel_count + 2))
            yield Way(
                lambda: (dial_unix(directory / "out.sock"), listener.accept()[0]), tuple(process.pid for process in processes)
            )
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _start_tunnel(directory: Path, name: str, frame_bytes: int) -> subprocess.Popen[bytes]:
    # fmt: off
    command = [
        sys.executable, "-m", "agent.tunnel",
        "--listen", f"{LOOPBACK}:0",
        "--control", str(directory / f"{name}.control"),
        "--pki", str(directory / name),
        "--frame-size", str(frame_bytes),
    ]
    # fmt: on
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stderr=log, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"})


def _wait_ready(log: Path) -> int:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        _, found, rest = log.read_text().partition('"port": ')
        if found:
            return int(rest.split(",")[0])
        time.sleep(0.02)
    raise TimeoutError(log.read_text())


async def _open_session(directory: Path, port: int, connection_count: int) -> None:
    digest = hashlib.sha256(TOKEN.encode()).digest()
    async with TunnelClient(directory / "source.control") as source, TunnelClient(directory / "destination.control") as destination:
        await destination.open_exit("bench", digest, directory / "in.sock", connection_count, 3600.0)
        await source.open_entrance("bench", TOKEN, directory / "out.sock", f"{LOOPBACK}:{port}", connection_count)


def pour(connection: socket.socket, total_bytes: int) -> None:
    """Write so many bytes as fast as they are taken."""
    content = os.urandom(WRITE_BYTES)
    for _ in range(total_bytes // WRITE_BYTES):
        connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def drain(connection: socket.socket) -> None:
    """Read until the end."""
    buffer = bytearray(READ_BYTES)
    while connection.recv_into(buffer):
        pass


def answer_us(writer: socket.socket, reader: socket.socket, count: int) -> float:
    """Return the median time of 8 bytes there and 8 back."""

    def echo() -> None:
        for _ in range(count):
            reader.sendall(reader.recv(8))

    echoing, spans_us = threading.Thread(target=echo), []
    echoing.start()
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        writer.sendall(b"8 bytes.")
        writer.recv(8)
        spans_us.append((time.perf_counter_ns() - began_ns) / 1000)
    echoing.join()
    return statistics.median(spans_us)


def measure(way: Way, case: Case, total_bytes: int, samples: Samples) -> None:
    """Carry `total_bytes` once over all channels of a case, and time some answers before and meanwhile."""
    quiet, loaded = way.connect(), way.connect()
    samples.answer_us.append(answer_us(*quiet, ANSWER_COUNT))
    channels = [way.connect() for _ in range(case.channel_count)]
    share_bytes = total_bytes // case.channel_count
    threads = [threading.Thread(target=pour, args=(writer, share_bytes)) for writer, _ in channels]
    threads += [threading.Thread(target=drain, args=(reader,)) for _, reader in channels]
    cpu_s, began_s = way.cpu_s(), time.perf_counter()
    for thread in threads:
        thread.start()
    samples.loaded_answer_us.append(answer_us(*loaded, 20))
    for thread in threads:
        thread.join()
    samples.mb_s.append(total_bytes / 1e6 / (time.perf_counter() - began_s))
    samples.cpu_s_gb.append((way.cpu_s() - cpu_s) / (total_bytes / GB))
    samples.rss_mb.append(way.rss_mb())
    for pair in (quiet, loaded, *channels):
        for connection in pair:
            connection.close()


def run(case: Case, total_bytes: int, samples: Samples) -> None:
    """Measure a case once, from nothing to nothing."""
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as name:
        directory = Path(name)
        match case.name:
            case "one UNIX socket":
                context = direct(directory)
            case "bare relay over TCP":
                context = bare_relay(directory)
            case _:
                context = through_tunnels(directory, case)
        with context as way:
            measure(way, case, total_bytes, samples)


def table(results: dict[Case, Samples]) -> str:
    """Write the medians as Markdown."""
    lines = [
        "| way | channels | MB/s | CPU s/GB, both ends | answer, idle | answer, loaded | RSS |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, samples in results.items():
        values = (samples.mb_s, samples.cpu_s_gb, samples.answer_us, samples.loaded_answer_us, samples.rss_mb)
        mb_s, cpu, answer, loaded, rss = (statistics.median(one) for one in values)
        lines.append(
            f"| {case.name} | {case.channel_count} | {mb_s:.0f} | {cpu:.2f} ({min(samples.cpu_s_gb):.2f}) "
            f"| {answer / 1000:.2f} ms | {loaded / 1000:.2f} ms | {rss:.0f} MB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--frame-sizes", default="65536,131072,262144,524288,1048576,4194304")
    parser.add_argument("--channels", default="1,4")
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.channels.split(",")]
    cases = [Case("one UNIX socket"), Case("bare relay over TCP")]
    for size in (int(one) for one in arguments.frame_sizes.split(",")):
        cases += [Case(f"tunnel, frames of {size // 1024} KiB", count, size) for count in counts]
    results = {case: Samples() for case in cases}
    for number in range(arguments.rounds):
        for case in cases:
            run(case, int(arguments.gigabytes * GB), results[case])
        print(f"round {number + 1} of {arguments.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
