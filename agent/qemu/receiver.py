"""A receiver that says it has all of the guest and cannot load it: how a source whose destination is gone gets out of post-copy.

A QEMU in `postcopy-paused` holds the whole guest stopped and obeys neither `cont` nor `migrate_cancel`: only a destination with
which it recovers leads out of that state. In a recovery the source asks which pages have arrived, then whether the other side goes
on, and sends what is missing. A receiver that answers "all of them" is sent no page. It answers at last that the guest could not be
loaded, and QEMU gives the migration up: `failed`, where QEMU 7.2 obeys `cont` and newer ones run the guest by themselves.

Whoever uses it has to be sure that the guest does not run elsewhere: QEMU cannot tell any more.

    receiver = await Receiver.listen(path, await ram_block_bytes(qemu))
    await qemu.migrate_again(f"unix:{path}")

Source: migration/savevm.c and migration/migration.c of QEMU 7.2, 10.0 and 10.2, alike in all.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

_COMMAND: Final = 8  # QEMU_VM_COMMAND of migration/savevm.h
_PING, _RESUME, _RECEIVED_BITMAP = 2, 9, 10  # enum qemu_vm_cmd of migration/savevm.c
_SHUT_ANSWER, _PONG_ANSWER, _BITMAP_ANSWER, _RESUME_ANSWER = 1, 2, 5, 6  # enum mig_rp_message_type of migration/migration.c
_RESUME_VALUE: Final = 1
_NOT_LOADED: Final = 1
_BITMAP_END: Final = 0x0123456789ABCDEF
_PAGE_BYTES: Final = 4096
_READ_BYTES: Final = 1 << 16


class Receiver:
    """Listens on a UNIX socket until closed."""

    def __init__(self, block_bytes: Mapping[str, int]) -> None:
        self._block_bytes = block_bytes
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def listen(cls, path: Path, block_bytes: Mapping[str, int]) -> Self:
        """Listen for the source's QEMU.

        Args:
            path: of the socket; what lies there is replaced.
            block_bytes: how large each RAM block of that QEMU is.

        Raises:
            OSError: nothing can listen there.
        """
        receiver = cls(block_bytes)
        receiver._server = await asyncio.start_unix_server(receiver._serve, path)
        return receiver

    async def close(self) -> None:
        """End every connection, and listen no more."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._answer(reader, writer)
            while await reader.read(_READ_BYTES):  # the end of QEMU's stream, without a page in it
                pass
        except (OSError, EOFError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer commands until the source goes on; a connection for urgent pages has none."""
        while True:
            kind, command, length = struct.unpack(">BHH", await reader.readexactly(5))
            if kind != _COMMAND:
                return
            argument = await reader.readexactly(length)
            match command:
                case command if command == _PING:
                    writer.write(_message(_PONG_ANSWER, argument))
                case command if command == _RECEIVED_BITMAP:
                    writer.write(self._bitmap(argument))
                case command if command == _RESUME:
                    writer.write(_message(_RESUME_ANSWER, struct.pack(">I", _RESUME_VALUE)))
                    await reader.readexactly(1)  # it goes on; QEMU 10.0 would stop and wait again if it were told before
                    writer.write(_message(_SHUT_ANSWER, struct.pack(">I", _NOT_LOADED)))
                    return
            await writer.drain()

    def _bitmap(self, argument: bytes) -> bytes:
        """Say that every page of a block is here. Source: migration/ram.c, ramblock_recv_bitmap_send()."""
        name = argument[1:].decode()
        pages = self._block_bytes.get(name, 0) // _PAGE_BYTES
        bitmap = b"\xff" * ((pages + 63) // 64 * 8)
        return _message(_BITMAP_ANSWER, argument) + struct.pack(">Q", len(bitmap)) + bitmap + struct.pack(">Q", _BITMAP_END)


def _message(kind: int, data: bytes) -> bytes:
    return struct.pack(">HH", kind, len(data)) + data
