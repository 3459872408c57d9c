"""QEMU's RAM blocks: their names, which its migration stream uses, and where in its own numbering of memory they lie.

Source: system/physmem.c, ram_block_format(); the columns HVA and RO are there since 8.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_mapping, get_str
from agent.qemu.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.commands import Qemu

# PCI paths have no blanks, other names may.
_LINE: Final = re.compile(
    r"\s*(?P<name>\S.*?)\s+\d+ [A-Za-z]+\s+0x(?P<offset>[0-9a-f]+)\s+0x(?P<used>[0-9a-f]+)\s+0x(?P<total>[0-9a-f]+)"
    r"(?:\s+0x[0-9a-f]+\s+(?P<access>r[ow]))?\s*"
)
_FIRMWARE: Final = frozenset({"isa-bios", "pc.bios", "pc.rom"})
_OBJECTS: Final = "/objects/"


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One of them.

    Attributes:
        offset_bytes: where it lies in QEMU's numbering, which is not the guest's.
        total_bytes: what it may grow to.
        is_read_only: whether the guest cannot write it; QEMU before 8.0 does not tell.
    """

    name: str
    offset_bytes: int
    used_bytes: int
    total_bytes: int
    is_read_only: bool = False

    @property
    def is_memory(self) -> bool:
        """Whether it is memory of the guest, not of a device or of the firmware."""
        name = self.name.removeprefix(_OBJECTS)
        return "/" not in name and name not in _FIRMWARE and not name.startswith("system.flash")

    @property
    def label(self) -> str:
        """What people know it by: the id of its object."""
        return self.name.removeprefix(_OBJECTS)


async def query_ram_blocks(qemu: Qemu) -> tuple[RamBlock, ...]:
    """Ask QEMU for all of them.

    Source: qapi/machine.json, `x-query-ramblock`, for people since QEMU 6.2; nothing else tells names and sizes.

    Raises:
        NotUnderstood: it tells none.
    """
    reply = as_mapping(await qemu.monitor.execute("x-query-ramblock"), "x-query-ramblock")
    blocks = decode_ram_blocks(get_str(reply, "human-readable-text"))
    if not blocks:
        raise NotUnderstood("x-query-ramblock: QEMU names no RAM block")
    return blocks


async def ram_block_bytes(qemu: Qemu) -> Mapping[str, int]:
    """Ask QEMU for its RAM blocks and how many bytes of each are used.

    Raises:
        NotUnderstood: it tells none.
    """
    return {block.name: block.used_bytes for block in await query_ram_blocks(qemu)}


def decode_ram_blocks(text: str) -> tuple[RamBlock, ...]:
    """Read the table of RAM blocks."""
    found = (_LINE.fullmatch(line) for line in text.splitlines())
    return tuple(
        RamBlock(match["name"], int(match["offset"], 16), int(match["used"], 16), int(match["total"], 16), match["access"] == "ro")
        for match in found
        if match is not None
    )
