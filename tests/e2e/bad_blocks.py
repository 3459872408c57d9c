"""Errors of the storage below a disk of a VM that runs: QEMU's `blkdebug`, put between an image's format and its file.

No VM of Ferry's has such a node; a test puts it there by the second monitor of a watched fleet, and takes it away.
"""

from __future__ import annotations

import errno
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ConnectError, ExecuteError

from tests.e2e.lab import Lab
from tests.e2e.qemu_state import ask_qemu
from tests.e2e.waiting import until_equal

SECTOR_BYTES = 512
MANY = 40


@dataclass(frozen=True, slots=True)
class Fault:
    """What fails, and how. Source: qapi/block-core.json, BlkdebugInjectErrorOptions.

    Attributes:
        iotype: `read`, `write` or `flush`.
        number: of the error.
        sector: of the image's file; requests that touch it fail. None is all of them.
        count: how many requests fail; 0 is all.
    """

    iotype: str = "read"
    number: int = errno.EIO
    sector: int | None = None
    count: int = 0

    def rules(self) -> list[dict[str, object]]:
        """Write it as QEMU takes it; the event `none` holds from when the node is opened."""
        where = {} if self.sector is None else {"sector": self.sector}
        rule = {"event": "none", "iotype": self.iotype, "errno": self.number, "once": self.count > 0, **where}
        return [rule] * (self.count or 1)


class BadBlocks:
    """The storage below the image `node` of a VM on a host of a watched fleet; by the name of its disk where it is the first."""

    def __init__(self, lab: Lab, node: str = "vdb", storage: str = "", *, kind: str = "qcow2", is_read_only: bool = False) -> None:
        self._lab = lab
        self._image: dict[str, object] = {"driver": kind, "node-name": node, "read-only": is_read_only}
        self._storage = storage or f"{node}-file"
        self._fault: dict[str, Any] = {"driver": "blkdebug", "node_name": "fault", "read_only": is_read_only}

    async def inject(self, *faults: Fault) -> None:
        """Let these happen from now on."""
        rules = [rule for fault in faults for rule in fault.rules()]
        await self._ask("blockdev-add", image=self._storage, inject_error=rules, **self._fault)
        await self._stand_on("fault")

    async def mend(self) -> None:
        """Let nothing fail any more, and leave QEMU's nodes as they were."""
        await until_equal(self._can_stand_on_storage, wanted=True)
        await self._ask("blockdev-del", node_name="fault")

    async def _can_stand_on_storage(self) -> bool:
        """QEMU flushes before, and what is still to fail fails in that; and 7.2 may tell of an error before it greets."""
        try:
            await self._stand_on(self._storage)
        except ExecuteError as error:
            if "flushing" not in str(error):
                raise
        except ConnectError:
            pass
        else:
            return True
        return False

    async def _stand_on(self, node: str) -> None:
        await self._ask("blockdev-reopen", options=[{**self._image, "file": node}])

    async def _ask(self, command: str, **arguments: Any) -> None:
        await ask_qemu(self._lab, "host-a", command, **arguments)


def sector_of(image: Path, byte: int) -> int:
    """Find the sector of a qcow2 image that holds a byte of its disk."""
    words = ("qemu-img", "map", "-U", "--output=json", "-f", "qcow2", image)
    extents = cast("list[dict[str, int]]", json.loads(subprocess.run(words, check=True, capture_output=True).stdout))
    for extent in extents:
        if extent["start"] <= byte < extent["start"] + extent["length"] and "offset" in extent:
            return (extent["offset"] + byte - extent["start"]) // SECTOR_BYTES
    raise AssertionError(f"{image}: byte {byte} of its disk is nowhere")
