"""QEMU's commands about disks, each as a typed method; errors as in `agent.qemu.commands`.

Source: qapi/block-core.json, qapi/block-export.json, qapi/job.json of QEMU 7.2 and 10.0.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from agent.qemu.block_graph import Graph, decode_graph
from agent.qemu.block_status import (
    Bitmap,
    BlockJobReport,
    DriveReport,
    ImageReport,
    JobReport,
    decode_block_jobs,
    decode_drives,
    decode_jobs,
    decode_node_bitmaps,
    decode_nodes,
)
from agent.qemu.decoding import as_list, as_mapping, get_str
from agent.qemu.errors import QemuRefused
from common.errors import WrongState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.qemu.monitor import Monitor

YANK_ANSWER_S: Final = 0.5
_NO_SOCKET: Final = "ferry-none"
_NO_EXPORT: Final = "ferry-activate"
# A job that has ended waits to be dismissed, so that its error can be read.
_KEPT: Final = {"auto-finalize": True, "auto-dismiss": False}


# Source: block/mirror.c: DEFAULT_MIRROR_BUF_SIZE is 10 MiB, and as many requests of 1 MiB as fit into a turn make it 16.
LARGEST_PIECE_BYTES: Final = 16 << 20
_SMALLEST_PIECE_BYTES: Final = 1 << 16


def piece_bytes(bytes_per_second: int) -> int:
    """Choose how much a mirror has on its way at a time: what it may copy in a second, so that it sleeps no longer than that."""
    return min(max(bytes_per_second or LARGEST_PIECE_BYTES, _SMALLEST_PIECE_BYTES), LARGEST_PIECE_BYTES)


class Sync(Enum):
    """What a mirror copies: all that the disk shows, or its top image alone."""

    FULL = "full"
    TOP = "top"


class BlockCommands:
    """The disks of one QEMU, by its commands."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    # what there is

    async def query_drives(self) -> tuple[DriveReport, ...]:
        """Return the guest's drives with their images; safe at any time, and hides the filters of jobs."""
        return decode_drives(await self._execute("query-block"))

    async def query_images(self) -> Mapping[str, ImageReport]:
        """Return the image of each node, filters included. Ends QEMU where a stream job is concluded: only while there is no job.

        Raises:
            WrongState: there is a job.
        """
        if jobs := await self.query_jobs():
            raise WrongState(f"job {jobs[0].id}: nodes cannot be asked for while there is one", reason="BLOCK_JOB_ACTIVE")
        return decode_nodes(await self._execute("query-named-block-nodes", {"flat": True}))

    async def query_bitmaps(self) -> Mapping[str, tuple[Bitmap, ...]]:
        """Return the dirty bitmaps of each node that has some; while there is a job, of the uppermost nodes of drives alone."""
        if await self.query_jobs():  # see `query_images`
            return {drive.node: drive.bitmaps for drive in await self.query_drives() if drive.bitmaps}
        return decode_node_bitmaps(await self._execute("query-named-block-nodes", {"flat": True}))

    async def query_jobs(self) -> tuple[JobReport, ...]:
        """Return every job that is not dismissed, the error of a concluded one included."""
        return decode_jobs(await self._execute("query-jobs"))

    async def query_block_jobs(self) -> tuple[BlockJobReport, ...]:
        """Return every job on a disk that is not dismissed."""
        return decode_block_jobs(await self._execute("query-block-jobs"))

    async def query_graph(self) -> Graph:
        """Return every block node and what uses it; safe at any time."""
        return decode_graph(await self._execute("x-debug-query-block-graph"))

    async def query_exports(self) -> tuple[str, ...]:
        """Return the ids of what is exported."""
        reply = as_list(await self._execute("query-block-exports"), "query-block-exports")
        return tuple(get_str(as_mapping(export, "export"), "id") for export in reply)

    async def query_yankable_nodes(self) -> tuple[str, ...]:
        """Return, out of band, the nodes that have a connection to another host."""
        reply = as_list(await self._monitor.execute_oob("query-yank", timeout_s=YANK_ANSWER_S), "query-yank")
        instances = [as_mapping(instance, "yank instance") for instance in reply]
        return tuple(get_str(one, "node-name") for one in instances if get_str(one, "type") == "block-node")

    # nodes

    async def add_node(self, options: Mapping[str, object], *, timeout_s: float | None = None) -> None:
        """Open a node. With a peer that is silent QEMU and its guest stand still for the node's `open-timeout`."""
        if timeout_s is None:
            await self._execute("blockdev-add", options)
        else:
            await self._monitor.execute("blockdev-add", options, timeout_s=timeout_s)

    async def remove_node(self, node: str) -> None:
        """Close a node that nothing uses."""
        await self._execute("blockdev-del", {"node-name": node})

    async def reopen_node(self, *options: Mapping[str, object]) -> None:
        """Change the options of open nodes, all or none; what is not given gets its default."""
        await self._execute("blockdev-reopen", {"options": [dict(one) for one in options]})

    async def activate_all(self) -> None:
        """Make every image this QEMU's own to read and write, all or none; does nothing where it is. QEMU 10.0 and newer.

        Raises:
            QemuRefused: another process holds the lock of one; of class `CommandNotFound` on an older QEMU.
        """
        await self._execute("blockdev-set-active", {"active": True})

    async def activate_node(self, node: str) -> None:
        """Make an image, with all that it stands on, this QEMU's own; also before QEMU 10.0, which has no command for it.

        An export is begun: QEMU activates the node first, hides why that fails, then looks for its NBD server. Only query_graph()
        tells what came of it. Source: block/export/export.c, blk_exp_add().
        """
        try:
            await self._execute("block-export-add", {"type": "nbd", "id": _NO_EXPORT, "node-name": node, "name": _NO_EXPORT})
        except QemuRefused:  # mostly: no NBD server
            return
        await self._execute("block-export-del", {"id": _NO_EXPORT, "mode": "hard"})

    async def yank_nodes(self, nodes: Sequence[str]) -> None:
        """Break the connections of nodes, out of band: also while QEMU's main loop waits for one of them."""
        instances = [{"type": "block-node", "node-name": node} for node in nodes]
        await self._monitor.execute_oob("yank", {"instances": instances}, timeout_s=YANK_ANSWER_S)

    # jobs

    async def mirror(  # noqa: PLR0913 -- QEMU's own arguments
        self,
        job_id: str,
        node: str,
        target: str,
        sync: Sync,
        *,
        bytes_per_second: int,
        replaces: str = "",
        is_write_blocking: bool = True,
        stops_on_error: bool = False,
        granularity_bytes: int = 0,
    ) -> None:
        """Start to copy a root node; each of the guest's writes goes to both, so that it stays ready under load.

        To abort such a job while the guest writes corrupts QEMU's memory, before and after it is ready, on 7.2 and 10.0; so does an
        error that ends it. With `stops_on_error` an error only stops it; it may then be aborted while the guest stands still.
        Without `is_write_blocking` the target is a moment behind the guest, and the job may be aborted at any time; what the guest
        writes is then copied in pieces of `granularity_bytes`, QEMU's default where it is 0.

        What the job needs is told by JOB_STATUS_CHANGE, and its error by query_jobs() until dismiss_job(). When it is completed the
        target takes the place of the node, or of `replaces`, which may be below filters of that node.

        A bounded job copies a piece at a time and sleeps then, deaf to errors; see `piece_bytes`. A later bound changes no piece.
        """
        await self._execute(
            "blockdev-mirror",
            {
                **({"replaces": replaces} if replaces else {}),
                **({"granularity": granularity_bytes} if granularity_bytes else {}),
                **({"buf-size": piece_bytes(bytes_per_second)} if bytes_per_second else {}),
                "job-id": job_id,
                "device": node,
                "target": target,
                "sync": sync.value,
                "copy-mode": "write-blocking" if is_write_blocking else "background",
                "speed": bytes_per_second,
                "auto-finalize": True,
                "auto-dismiss": False,
                "on-source-error": "stop" if stops_on_error else "report",
                "on-target-error": "stop" if stops_on_error else "report",
            },
        )

    async def stream(self, job_id: str, node: str, base_node: str, *, bytes_per_second: int) -> None:
        """Start to copy what is below a node into it, down to `base_node`, which stays; without one all of it."""
        arguments: dict[str, object] = {"job-id": job_id, "device": node, "speed": bytes_per_second, "on-error": "report", **_KEPT}
        await self._execute("block-stream", arguments | ({"base-node": base_node} if base_node else {}))

    async def commit(self, job_id: str, node: str, top_node: str, base_node: str, *, bytes_per_second: int) -> None:
        """Start to write the images from `top_node` down into `base_node`.

        Args:
            job_id: for the job.
            node: the disk's root node. Where `top_node` is its uppermost image the job becomes ready, and is to be completed.
            top_node: the uppermost image whose data goes down.
            base_node: the image that gets it.
            bytes_per_second: 0 is without a bound.
        """
        nodes = {"device": node, "top-node": top_node, "base-node": base_node}
        await self._execute("block-commit", {"job-id": job_id, **nodes, "speed": bytes_per_second, "on-error": "report", **_KEPT})

    async def snapshot(self, node: str, overlay: str) -> None:
        """Put an open overlay, which must have no backing node yet, on top of a node: the guest writes to it from now on."""
        await self._execute("blockdev-snapshot", {"node": node, "overlay": overlay})

    async def create_image(self, job_id: str, options: Mapping[str, object]) -> None:
        """Start to write an empty image into a node that is open; a job like others, which has to be dismissed."""
        await self._execute("blockdev-create", {"job-id": job_id, "options": dict(options)})

    async def complete_job(self, job_id: str) -> None:
        """Let a job that is ready end with its target in the disk's place. The reply proves nothing: see settle_job()."""
        await self._execute("job-complete", {"id": job_id})

    async def set_job_speed(self, job_id: str, bytes_per_second: int) -> None:
        """Bound a job on a disk; 0 is without a bound."""
        await self._execute("block-job-set-speed", {"device": job_id, "speed": bytes_per_second})

    async def settle_job(self, job_id: str) -> None:
        """End a mirror that is ready, both sides equal. The reply proves nothing: only `concluded` without an error does."""
        await self._execute("block-job-cancel", {"device": job_id})

    async def abort_job(self, job_id: str) -> None:
        """Abort a job; what it copied is worth nothing then. On 7.2 it waits for the guest's writes that hang in the job."""
        await self._execute("job-cancel", {"id": job_id})

    async def dismiss_job(self, job_id: str) -> None:
        """Forget a concluded job, with its error."""
        await self._execute("job-dismiss", {"id": job_id})

    # exports

    async def start_nbd_server(self, address: Mapping[str, object], *, credentials: str = "", max_connections: int = 0) -> None:
        """Listen for NBD clients; one server for each QEMU.

        Args:
            address: a SocketAddress, such as `{"type": "unix", "data": {"path": PATH}}`.
            credentials: id of a TLS credentials object; empty is without TLS.
            max_connections: 0 is without a bound.
        """
        arguments: dict[str, object] = {"addr": dict(address), "max-connections": max_connections}
        if credentials:
            arguments["tls-creds"] = credentials
        await self._execute("nbd-server-start", arguments)

    async def has_nbd_server(self) -> bool:
        """Find out whether an NBD server listens, for which there is no query.

        QEMU looks for one before it looks for the socket of a name that nobody has passed.
        Source: blockdev-nbd.c, nbd_server_start_full().
        """
        try:
            await self._execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": _NO_SOCKET}}})
        except QemuRefused as error:
            return "already running" in error.description
        return True

    async def stop_nbd_server(self) -> None:
        """Listen no more and drop every export, with a client connected or not."""
        await self._execute("nbd-server-stop")

    async def export(self, identifier: str, node: str, name: str) -> None:
        """Let NBD clients read and write a node."""
        await self._execute(
            "block-export-add", {"type": "nbd", "id": identifier, "node-name": node, "name": name, "writable": True}
        )

    async def pass_socket(self, name: str, descriptor: int) -> None:
        """Give QEMU a listening socket under a name; the caller's copy stays open."""
        await self._monitor.execute_with_fd("getfd", {"fdname": name}, descriptor)

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        return await self._monitor.execute(command, arguments)
