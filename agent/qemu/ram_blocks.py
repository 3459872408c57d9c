"""How large each of QEMU's RAM blocks is, by the names that its migration stream uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent.qemu.decoding import as_mapping, get_str
from agent.qemu.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.qemu.commands import Qemu

# Name (PCI paths have no blanks, other names may), page size, offset, used. Source: softmmu/physmem.c, ram_block_format().
_BLOCK: Final = re.compile(r"^\s*(?P<name>\S.*?)\s+\d+ [A-Za-z]+\s+0x[0-9a-f]+\s+0x(?P<used>[0-9a-f]+)\s")


async def ram_block_bytes(qemu: Qemu) -> Mapping[str, int]:
    """Ask QEMU for its RAM blocks and how many bytes of each are used.

    Source: qapi/machine.json, `x-query-ramblock`, for people since QEMU 6.2; nothing else tells names and sizes.

    Raises:
        NotUnderstood: it tells none.
    """
    reply = as_mapping(await qemu.monitor.execute("x-query-ramblock"), "x-query-ramblock")
    blocks = decode_ram_blocks(get_str(reply, "human-readable-text"))
    if not blocks:
        raise NotUnderstood("x-query-ramblock: QEMU names no RAM block")
    return blocks


def decode_ram_blocks(text: str) -> Mapping[str, int]:
    """Read the table of RAM blocks."""
    lines = (_BLOCK.match(f"{line} ") for line in text.splitlines())
    return {line["name"]: int(line["used"], 16) for line in lines if line is not None}
