"""The receiver, asked as a QEMU that recovers asks it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.qemu.ram_blocks import decode_ram_blocks
from agent.qemu.receiver import Receiver

END = struct.pack(">Q", 0x0123456789ABCDEF)
BLOCKS = {"pc.ram": 65 * 4096, "0000:00:02.0/vga.vram": 64 * 4096}
# As QEMU 7.2 and 10.0 tell them, shortened.
TABLES = [
    """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
    /rom@etc/acpi/tables    4 KiB  0x0000000005140000 0x0000000000020000 0x0000000000200000
0000:00:04.0/virtio-net-pci.rom    4 KiB  0x0000000005100000 0x0000000000040000 0x0000000000040000
""",
    """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f54f7e00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000005140000 0x0000000000020000 0x0000000000200000 0x00007f5501600000  ro
0000:00:04.0/virtio-net-pci.rom    4 KiB  0x0000000005100000 0x0000000000040000 0x0000000000040000 0x00007f5501a00000  ro
""",
]


def command(number: int, argument: bytes = b"") -> bytes:
    return struct.pack(">BHH", 8, number, len(argument)) + argument


def block(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


async def assert_silent(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await reader.readexactly(1)


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    receiver = await Receiver.listen(directory / "back", BLOCKS)
    reader, writer = await asyncio.open_unix_connection(directory / "back")
    try:
        yield reader, writer
    finally:
        writer.close()
        await receiver.close()


async def test_every_page_of_every_block_is_said_to_be_there(tmp_path: Path):
    async with connected(tmp_path) as (reader, writer):
        for name, size in (("pc.ram", 16), ("0000:00:02.0/vga.vram", 8)):
            writer.write(command(10, block(name)))

            assert await reader.readexactly(4) == struct.pack(">HH", 5, len(name) + 1)
            assert await reader.readexactly(len(name) + 1) == block(name)
            assert await reader.readexactly(8) == struct.pack(">Q", size)
            assert await reader.readexactly(size) == b"\xff" * size
            assert await reader.readexactly(8) == END


async def test_the_source_is_told_that_the_guest_could_not_be_loaded_only_once_it_has_gone_on(tmp_path: Path):
    async with connected(tmp_path) as (reader, writer):
        writer.write(command(2, b"\0\0\0\5") + command(9))

        assert await reader.readexactly(8) == struct.pack(">HHI", 2, 4, 5)
        assert await reader.readexactly(8) == struct.pack(">HHI", 6, 4, 1)
        await assert_silent(reader)
        writer.write(b"the end of a section")
        assert await reader.readexactly(8) == struct.pack(">HHI", 1, 4, 1)
        writer.write(b"more")  # nothing is answered, and nothing closed
        await assert_silent(reader)


async def test_a_closed_receiver_ends_its_connections(tmp_path: Path):
    receiver = await Receiver.listen(tmp_path / "back", BLOCKS)
    reader, _ = await asyncio.open_unix_connection(tmp_path / "back")
    await asyncio.sleep(0.01)

    await receiver.close()

    assert await reader.read() == b""
    with pytest.raises(OSError, match="refused"):
        await asyncio.open_unix_connection(tmp_path / "back")


@pytest.mark.parametrize("table", TABLES, ids=["7.2", "10.0"])
def test_ram_blocks_are_read_from_what_each_qemu_prints(table):
    assert {block.name: block.used_bytes for block in decode_ram_blocks(table)} == {
        "pc.ram": 0x4000000,
        "/rom@etc/acpi/tables": 0x20000,
        "0000:00:04.0/virtio-net-pci.rom": 0x40000,
    }
