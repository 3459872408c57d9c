"""The last way to run a guest: QEMU's own debugger stub, which obeys where `cont` does not.

QEMU 10.0 forgets to end a post-copy whose connection breaks between `migrate-continue` and `postcopy-active`: its migration thread
is gone, the run state stays `finish-migrate`, and `cont`, `migrate_cancel` and a new `migrate` are refused or change nothing. A
debugger that detaches runs the guest in any run state. The migration state stays as it is: this QEMU can be neither migrated
nor saved again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_str
from agent.qemu.errors import QemuRefused
from common.errors import Unreachable

if TYPE_CHECKING:
    from pathlib import Path

    from agent.qemu.commands import Qemu

_DETACH: Final = b"$D#44"  # with its checksum; the guest goes on. Source: the GDB remote serial protocol
_TIMEOUT_S: Final = 2.0


async def run_by_debugger(qemu: Qemu, socket_path: Path) -> None:
    """Let the guest go on by a debugger that attaches and detaches at once, which needs its images to be QEMU's own.

    Source: gdbstub, gdb_continue(), which starts the vCPUs without looking at migrations.

    Raises:
        QemuRefused: QEMU opens no debugger stub.
        Unreachable: it does not take the debugger.
    """
    socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 - a name in a directory of our own
    said = await _human(qemu, f"gdbserver unix:{socket_path},server=on,wait=off")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(socket_path)
            try:
                writer.write(_DETACH)
                await reader.readexactly(1)
            finally:
                writer.transport.abort()
    except (OSError, EOFError, TimeoutError) as error:
        raise Unreachable(f"QEMU takes no debugger: {said.strip() or error}", reason="DEBUGGER_REFUSED") from error
    finally:
        with suppress(QemuRefused):
            await _human(qemu, "gdbserver none")
        socket_path.unlink(missing_ok=True)  # noqa: ASYNC240 - as above


async def _human(qemu: Qemu, command: str) -> str:
    return as_str(await qemu.monitor.execute("human-monitor-command", {"command-line": command}), command)
