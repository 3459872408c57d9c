"""Opening an image that is in a chain already for writing, or for reading alone.

QEMU itself does so for images that it has opened by what others name. A node that was opened `read-only` by an option of its own is
reopened with the same options but that one. Source: block.c, bdrv_reopen_prepare().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.blockjobs.definitions import plain_options

if TYPE_CHECKING:
    from agent.qemu.block_commands import BlockCommands
    from agent.vm.definition import Definition


async def reopen(commands: BlockCommands, definition: Definition, node: str, *, is_read_only: bool) -> bool:
    """Reopen a node and its storage, both by their options in the running definition; say whether they have such.

    Raises:
        QemuRefused: the file may not be opened so.
    """
    options = {option.get("node-name"): plain_options(option) for option in definition.find("blockdev")}
    if node not in options:
        return False
    graph = await commands.query_graph()
    upper = {**options[node], "read-only": is_read_only}
    if backing := graph.child(node, "backing"):
        upper["backing"] = backing
    storage = upper.get("file")
    lower = [] if not isinstance(storage, str) or storage not in options else [{**options[storage], "read-only": is_read_only}]
    await commands.reopen_node(*lower, upper)
    return True
