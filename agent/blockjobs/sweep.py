"""Removing from a QEMU what an earlier agent left there by a name of ours; what is not ours is left alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import structlog

from agent.blockjobs.block_job import PREFIX
from agent.qemu.block_status import JobStatus
from common.errors import FerryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.qemu.block_commands import BlockCommands

_OURS: Final = re.compile(rf"{PREFIX}[0-9a-f]{{12}}(-f|-c)?")
_log = structlog.get_logger()


def is_ours(name: str) -> bool:
    """Say whether a job or a node has a name that only we give."""
    return _OURS.fullmatch(name) is not None


async def sweep(vm_name: str, commands: BlockCommands, owned: Callable[[], frozenset[str]]) -> None:
    """Dismiss jobs and close nodes of ours that nothing uses. Must not raise.

    Args:
        vm_name: for the log.
        commands: of its QEMU.
        owned: names of jobs and nodes that go on, or that are about to be made; asked after each look into QEMU.
    """
    try:
        for job in await commands.query_jobs():
            if is_ours(job.id) and job.id not in owned() and job.status is JobStatus.CONCLUDED:
                await commands.dismiss_job(job.id)
                _log.warning("left-over job dismissed", vm=vm_name, job=job.id)
        while True:
            graph = await commands.query_graph()
            left = [node for node in graph.nodes if is_ours(node) and node not in owned() and not graph.is_used(node)]
            if not left:
                return
            for node in left:
                await commands.remove_node(node)
                _log.warning("left-over block node closed", vm=vm_name, node=node)
    except FerryError as error:
        _log.warning("left-overs not looked for", vm=vm_name, error=error.text)
