"""Looking at an NBD server before QEMU does: QEMU and its guest stand still while one says nothing."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Final

from common.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

GREETING_TIMEOUT_S: Final = 3.0
# Source: the NBD protocol, doc/proto.md, newstyle negotiation.
_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_GREETING: Final = struct.Struct(">8s8sH")
_FLAGS: Final = struct.Struct(">I")
_OPTION: Final = struct.Struct(">8sII")
_ABORT: Final = 2


async def greet(server: Mapping[str, object], whose: str) -> None:
    """Require that a server greets its client, and leave.

    Args:
        server: flat address as `blockdev-add` takes it.
        whose: names the server in errors.

    Raises:
        Unreachable: nothing listens, nothing is said, or it is no NBD server.
    """
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            reader, writer = await _connect(server)
            try:
                magic, _, flags = _GREETING.unpack(await reader.readexactly(_GREETING.size))
                writer.write(
                    _FLAGS.pack(flags) + _OPTION.pack(_OPTION_MAGIC, _ABORT, 0)
                )  # a server complains of one who just leaves
                await reader.read(1)
            finally:
                writer.close()
    except TimeoutError as error:
        raise Unreachable(
            f"{whose} says nothing on {_where(server)} in {GREETING_TIMEOUT_S:g} s: is a firewall in the way?", reason="NBD_SILENT"
        ) from error
    except (OSError, asyncio.IncompleteReadError) as error:
        why = getattr(error, "strerror", None) or "it ended the connection"
        raise Unreachable(f"{whose} on {_where(server)}: {why}", reason="NBD_UNREACHABLE") from error
    if magic != _MAGIC:
        raise Unreachable(f"{whose} on {_where(server)} is no NBD server", reason="NBD_UNREACHABLE")


async def _connect(server: Mapping[str, object]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if server["type"] == "unix":
        return await asyncio.open_unix_connection(str(server["path"]))
    return await asyncio.open_connection(str(server["host"]), int(str(server["port"])))


def _where(server: Mapping[str, object]) -> str:
    return str(server["path"]) if server["type"] == "unix" else f"{server['host']} port {server['port']}"
