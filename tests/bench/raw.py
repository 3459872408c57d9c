"""A migration from QEMU to QEMU with no management: the yardstick for Ferry, and for its test guests.

It follows the same recipe as Ferry (return path, stop before the switch-over, the destination
starts only after the source's `completed`) and keeps no promise: no journal, no watch, no undo.

    async with start(guest, directory / "a") as source, start(guest, directory / "b", incoming=True) as destination:
        figures = await move(source, destination, Options(channel_count=4, is_encrypted=True))
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.qmp import Qmp, QmpError

DEFAULT_BINARY = "qemu-system-x86_64"
_CAPABILITIES = ("events", "return-path", "pause-before-switchover", "late-block-activate")
_POST_COPY_CAPABILITIES = ("events", "return-path", "postcopy-ram")
_UNLIMITED_BYTES_S = 1 << 40
AES_128_FIRST = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305"
KEY_ID = "raw-key"
_START_TIMEOUT_S = 10.0
_EXIT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Guest:
    """What to run: QEMU's options but for those that `start` adds (monitor, log, incoming)."""

    options: tuple[str, ...]
    binary: str = DEFAULT_BINARY


def tick_guest(
    image: Path,
    memory_kib: int,
    serial_log: Path,
    *,
    machine: str = "pc-q35-7.2",
    binary: str = DEFAULT_BINARY,
) -> Guest:
    """Describe a VM for an image of `tests.guests.tick`; both sides share image and log."""
    # fmt: off
    options = (
        *_common_options(memory_kib, serial_log, machine),
        "-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={image}",
        "-device", "virtio-blk-pci,drive=disk,addr=0x5",
    )
    # fmt: on
    return Guest(options, binary)


def disk_guest(
    image: Path, memory_kib: int, serial_log: Path, *, machine: str = "pc-q35-7.2", binary: str = DEFAULT_BINARY
) -> Guest:
    """Describe a VM that boots from a qcow2 image of its own; its top node is `disk`."""
    # fmt: off
    options = (
        *_common_options(memory_kib, serial_log, machine),
        "-blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={image}",
        "-device", "virtio-blk-pci,drive=disk,addr=0x5",
    )
    # fmt: on
    return Guest(options, binary)


def linux_guest(  # noqa: PLR0913 - one keyword for each property of the VM
    kernel: Path,
    initrd: Path,
    command_line: str,
    memory_kib: int,
    serial_log: Path,
    *,
    machine: str = "pc-q35-7.2",
    binary: str = DEFAULT_BINARY,
) -> Guest:
    """Describe a VM for an initrd of `tests.guests.linux`."""
    # fmt: off
    options = (
        *_common_options(memory_kib, serial_log, machine),
        "-kernel", str(kernel),
        "-initrd", str(initrd),
        "-append", command_line,
    )
    # fmt: on
    return Guest(options, binary)


def _common_options(memory_kib: int, serial_log: Path, machine: str) -> tuple[str, ...]:
    # fmt: off
    return (
        "-machine", machine,
        "-accel", "tcg",
        "-cpu", "qemu64",
        "-m", f"{memory_kib}k",
        "-chardev", f"file,id=console,path={serial_log},append=on",
        "-serial", "chardev:console",
    )
    # fmt: on


@dataclass(frozen=True, slots=True)
class Options:
    """How to move it.

    Attributes:
        channel_count: connections that carry memory; more than 1 turns multifd on.
        is_encrypted: TLS with a one-time key.
        priority: which ciphers, in GnuTLS's words; empty for QEMU's own choice.
        is_post_copy: the guest goes over at once, and its memory after it.
        is_unix: a UNIX socket in place of TCP on loopback.
        bandwidth_bytes_s: QEMU's own limit.
        downtime_limit_ms: what QEMU may plan for.
        timeout_s: for the whole move.
    """

    channel_count: int = 1
    is_encrypted: bool = False
    priority: str = AES_128_FIRST
    is_post_copy: bool = False
    is_unix: bool = False
    bandwidth_bytes_s: int = _UNLIMITED_BYTES_S
    downtime_limit_ms: int = 300
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a move took; spans are on this process's clock unless QEMU's.

    Attributes:
        elapsed_s: `migrate` sent until the destination's RESUME; of post-copy until the source's `completed`.
        started_at_s: when `migrate` was sent; `time.monotonic()`.
        stopped_at_s: when the source's STOP arrived.
        resumed_at_s: when the destination's RESUME arrived.
        stop_to_continue_s: STOP received until `migrate-continue` sent.
        continue_to_loaded_s: from there until the source's `completed` received; of post-copy its `postcopy-active`.
        loaded_to_resume_s: from there until the destination's RESUME received.
        qemu_total_ms: QEMU's `total-time`.
        qemu_downtime_ms: QEMU's `downtime`.
        transferred_bytes: QEMU's `ram.transferred`.
        pass_count: QEMU's `ram.dirty-sync-count`.
    """

    elapsed_s: float
    started_at_s: float
    stopped_at_s: float
    resumed_at_s: float
    stop_to_continue_s: float
    continue_to_loaded_s: float
    loaded_to_resume_s: float
    qemu_total_ms: int
    qemu_downtime_ms: int
    transferred_bytes: int
    pass_count: int

    @property
    def downtime_s(self) -> float:
        """From the source's STOP to the destination's RESUME."""
        return self.resumed_at_s - self.stopped_at_s

    @property
    def bytes_s(self) -> float:
        """Bytes each second of QEMU's own total time."""
        return self.transferred_bytes * 1000 / max(self.qemu_total_ms, 1)


@dataclass(frozen=True, slots=True)
class RawQemu:
    """A running QEMU of ours; `start` owns it."""

    qmp: Qmp
    process: subprocess.Popen[bytes]
    directory: Path


@asynccontextmanager
async def start(guest: Guest, directory: Path, *, incoming: bool = False) -> AsyncIterator[RawQemu]:
    """Run a QEMU and kill it on leaving.

    Args:
        guest: what to run.
        directory: made here if need be; keeps the monitor socket and `stderr.log`.
        incoming: wait, stopped, for a migration.

    Raises:
        QmpError: it did not start; `stderr.log` says why.
    """
    directory.mkdir(mode=0o700, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    path = directory / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as monitor, (directory / "stderr.log").open("ab") as log:
        monitor.bind(str(path))
        # fmt: off
        argv = [
            guest.binary,
            "-nodefaults",
            "-no-user-config",
            "-display", "none",
            *guest.options,
            "-chardev", f"socket,id=monitor,fd={monitor.fileno()},server=on,wait=off",
            "-mon", "chardev=monitor,mode=control",
            *(("-S", "-incoming", "defer") if incoming else ()),
        ]
        # fmt: on
        process = subprocess.Popen(  # noqa: ASYNC220 - a process without pipes has nothing to await
            argv,
            pass_fds=[monitor.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        qmp = await _open(path, process)
        try:
            yield RawQemu(qmp, process, directory)
        finally:
            qmp.close()
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, _EXIT_TIMEOUT_S)


async def move(source: RawQemu, destination: RawQemu, options: Options | None = None) -> Figures:
    """Move the guest and return when it runs on the destination; the source stays, stopped.

    Raises:
        QmpError: QEMU refused or failed; its log says more.
        TimeoutError: it took longer than `options.timeout_s`.
    """
    wanted = options or Options()
    async with asyncio.timeout(wanted.timeout_s):
        uri = await listen(source, destination, wanted)
        send = _send_post_copy if wanted.is_post_copy else _send
        return await send(source.qmp, destination.qmp, uri, wanted)


async def _open(path: Path, process: subprocess.Popen[bytes]) -> Qmp:
    """Connect as soon as QEMU listens; the socket is bound, so until then it refuses."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        while process.poll() is None:
            try:
                return await Qmp.open(path)
            except ConnectionRefusedError:
                await asyncio.sleep(0.002)
    raise QmpError(f"{path}: QEMU exited with {process.returncode} before it listened")


async def listen(source: RawQemu, destination: RawQemu, options: Options) -> str:
    """Set both sides up alike and return the address that the destination listens on."""
    capabilities = [*_POST_COPY_CAPABILITIES] if options.is_post_copy else [*_CAPABILITIES]
    if options.channel_count > 1:
        capabilities.append("multifd")
    parameters: dict[str, object] = {
        "max-bandwidth": options.bandwidth_bytes_s,
        "downtime-limit": options.downtime_limit_ms,
    }
    if options.channel_count > 1:
        parameters["multifd-channels"] = options.channel_count
    if options.is_encrypted:
        await _share_key(source, destination, options.priority)
        parameters["tls-creds"] = KEY_ID
    for side in (source.qmp, destination.qmp):
        states = [{"capability": name, "state": True} for name in capabilities]
        await side.execute("migrate-set-capabilities", {"capabilities": states})
        await side.execute("migrate-set-parameters", parameters)
    if options.is_unix:
        uri = f"unix:{destination.directory / 'incoming.sock'}"
        await destination.qmp.execute("migrate-incoming", {"uri": uri})
        return uri
    await destination.qmp.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
    report = await destination.qmp.execute("query-migrate")
    return f"tcp:127.0.0.1:{report['socket-address'][0]['port']}"


async def _share_key(source: RawQemu, destination: RawQemu, priority: str) -> None:
    key = destination.directory / "keys.psk"
    key.touch(mode=0o600)
    key.write_text(f"raw:{secrets.token_hex(32)}\n")
    common: Mapping[str, object] = {
        "qom-type": "tls-creds-psk",
        "id": KEY_ID,
        "dir": str(destination.directory),
    }
    await destination.qmp.execute("object-add", {**common, "endpoint": "server"})
    client = {**common, "endpoint": "client", "username": "raw", **({"priority": priority} if priority else {})}
    await source.qmp.execute("object-add", client)


async def _send(source: Qmp, destination: Qmp, uri: str, options: Options) -> Figures:
    source_from, destination_from = len(source.events), len(destination.events)
    patience_s = options.timeout_s

    started_at_s = time.monotonic()
    await source.execute("migrate", {"uri": uri})
    await source.wait_event("MIGRATION", status="pre-switchover", after=source_from, timeout_s=patience_s)
    continued_at_s = time.monotonic()
    await source.execute("migrate-continue", {"state": "pre-switchover"})
    completed = await source.wait_event("MIGRATION", status="completed", after=source_from)
    await destination.wait_event("MIGRATION", status="completed", after=destination_from)
    await destination.execute("cont")
    resumed = await destination.wait_event("RESUME", after=destination_from)

    stopped = await source.wait_event("STOP", after=source_from)
    moments = _Moments(started_at_s, stopped.received_at_s, continued_at_s, completed.received_at_s, resumed.received_at_s)
    return await _figures(source, moments, ended_at_s=resumed.received_at_s)


async def _send_post_copy(source: Qmp, destination: Qmp, uri: str, options: Options) -> Figures:
    source_from, destination_from = len(source.events), len(destination.events)
    patience_s = options.timeout_s

    started_at_s = time.monotonic()
    await source.execute("migrate", {"uri": uri})
    await source.execute("migrate-start-postcopy")
    active = await source.wait_event("MIGRATION", status="postcopy-active", after=source_from, timeout_s=patience_s)
    await destination.wait_event("MIGRATION", status="postcopy-active", after=destination_from)
    await destination.execute("cont")
    resumed = await destination.wait_event("RESUME", after=destination_from)
    completed = await source.wait_event("MIGRATION", status="completed", after=source_from, timeout_s=patience_s)

    stopped = await source.wait_event("STOP", after=source_from)
    moments = _Moments(started_at_s, stopped.received_at_s, stopped.received_at_s, active.received_at_s, resumed.received_at_s)
    return await _figures(source, moments, ended_at_s=completed.received_at_s)


@dataclass(frozen=True, slots=True)
class _Moments:
    """When things happened; `time.monotonic()`."""

    started_at_s: float
    stopped_at_s: float
    continued_at_s: float
    loaded_at_s: float
    resumed_at_s: float


async def _figures(source: Qmp, moments: _Moments, *, ended_at_s: float) -> Figures:
    report = await source.execute("query-migrate")
    return Figures(
        elapsed_s=ended_at_s - moments.started_at_s,
        started_at_s=moments.started_at_s,
        stopped_at_s=moments.stopped_at_s,
        resumed_at_s=moments.resumed_at_s,
        stop_to_continue_s=moments.continued_at_s - moments.stopped_at_s,
        continue_to_loaded_s=moments.loaded_at_s - moments.continued_at_s,
        loaded_to_resume_s=moments.resumed_at_s - moments.loaded_at_s,
        qemu_total_ms=report["total-time"],
        qemu_downtime_ms=report["downtime"],
        transferred_bytes=report["ram"]["transferred"],
        pass_count=report["ram"]["dirty-sync-count"],
    )
