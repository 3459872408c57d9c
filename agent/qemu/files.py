"""Files that QEMU reads and writes by a descriptor of ours, so that it needs no right to open them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from agent.qemu.decoding import as_list, as_mapping, as_str, get_int, get_str
from agent.qemu.errors import QemuRefused

if TYPE_CHECKING:
    from agent.qemu.commands import Qemu

_FD_NAME = "ferry-file"
_SET_ID = 7001
DUMP_FAILED = "failed"
DUMP_ACTIVE = "active"


async def pass_fd(qemu: Qemu, fd: int) -> str:
    """Give QEMU a descriptor; return the URI that names it. The file position is shared.

    For a file that a guest is migrated to or from QEMU takes it before 11.1, for a dump always. Source: qapi/misc.json, `getfd`.
    """
    await qemu.monitor.execute_with_fd("getfd", {"fdname": _FD_NAME}, fd)
    return f"fd:{_FD_NAME}"


async def pass_seekable_fd(qemu: Qemu, fd: int, offset: int) -> str:
    """Give QEMU 9.0 or newer a descriptor that is read-only or write-only; return the URI that opens it at an offset.

    Source: qapi/misc.json, `add-fd`; migration/file.c.
    """
    await release_fds(qemu)
    await qemu.monitor.execute_with_fd("add-fd", {"fdset-id": _SET_ID}, fd)
    return f"file:/dev/fdset/{_SET_ID},offset={offset}"


async def release_fds(qemu: Qemu) -> None:
    """Let QEMU close what it was given and has not used up."""
    for command, arguments in (("closefd", {"fdname": _FD_NAME}), ("remove-fd", {"fdset-id": _SET_ID})):
        with suppress(QemuRefused):  # there is none
            await qemu.monitor.execute(command, arguments)


async def dump_formats(qemu: Qemu) -> tuple[str, ...]:
    """List the formats that this QEMU can dump memory in. Source: qapi/dump.json."""
    reply = as_mapping(await qemu.monitor.execute("query-dump-guest-memory-capability"), "dump capability")
    return tuple(as_str(name, "format") for name in as_list(reply.get("formats"), "formats"))


async def start_dump(qemu: Qemu, uri: str, file_format: str) -> None:
    """Let QEMU write the guest's memory; the guest stands still meanwhile. DUMP_COMPLETED tells the end."""
    arguments = {"paging": False, "protocol": uri, "detach": True, "format": file_format}
    await qemu.monitor.execute("dump-guest-memory", arguments)


async def query_dump(qemu: Qemu) -> tuple[str, int, int]:
    """Return status, bytes done and bytes in all of the last dump; the status is `none` when there was none."""
    reply = as_mapping(await qemu.monitor.execute("query-dump"), "query-dump")
    return get_str(reply, "status"), get_int(reply, "completed"), get_int(reply, "total")
