"""The images of a destination, exported by its QEMU for the source to write to, until the guest is about to run."""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from agent.migration.disk_facts import find_drive
from agent.migration.order import DiskCopy, DiskEndpoint, Options, Transport
from agent.migration.qemu_setup import CREDENTIALS_ID
from agent.qemu.errors import QemuRefused
from agent.vm.disk_images import disk_images, node_options
from agent.vm.inner_nodes import inner_file
from common.errors import FerryError, WrongState

if TYPE_CHECKING:
    from agent.migration.listening import Listening
    from agent.migration.surroundings import Surroundings
    from agent.qemu.commands import Qemu
    from agent.vm.definition import Definition
    from agent.vm.options import Option

TOKEN_BYTES: Final = 32
TOKEN_LIFETIME_S: Final = 24 * 3600.0
_BACKLOG: Final = 64
_SOCKET_NAME: Final = "ferry-nbd"


class DiskExports:
    """The exports of one migration."""

    def __init__(self, around: Surroundings, migration_id: str, options: Options, copies: tuple[DiskCopy, ...]) -> None:
        self._around = around
        self._migration_id = migration_id
        self._options = options
        self._copies = copies

    async def open(self, qemu: Qemu, definition: Definition, listening: Listening) -> DiskEndpoint:
        """Let the source write to the images.

        Raises:
            FerryError: QEMU, the tunnel or the pool of ports refuses.
        """
        drives = await qemu.block.query_drives()
        images = {image.disk: image for image in disk_images(definition)}
        nodes = {}
        for copy in self._copies:
            drive = find_drive(drives, images[copy.disk])
            if drive is None or not drive.node:
                raise WrongState(f"disk {copy.disk}: QEMU has no image for it", reason="DISK_CHANGED", disk=copy.disk)
            nodes[copy.disk] = drive.node
            await let_holes_through(qemu, definition, copy)
        endpoint = await self._serve(qemu, listening)
        for index, (disk, node) in enumerate(nodes.items()):
            await qemu.block.export(f"ferry-{index}", node, disk)
        return endpoint

    async def _serve(self, qemu: Qemu, listening: Listening) -> DiskEndpoint:
        around = self._around
        if self._options.transport is Transport.TUNNEL:
            path = around.store.session_socket_path(self._migration_id, "nbd-in")
            token = secrets.token_urlsafe(TOKEN_BYTES)
            digest = hashlib.sha256(token.encode()).digest()
            channel_count = len(self._copies) + 1  # the source looks before QEMU does
            await around.tunnel.open_exit(disks_session(self._migration_id), digest, path, channel_count, TOKEN_LIFETIME_S)
            await qemu.block.start_nbd_server({"type": "unix", "data": {"path": str(path)}})
            return DiskEndpoint(self._copies, tunnel_token=token)
        target, address = await listening.address()
        pool = range(around.pool.first, around.pool.last + 1)
        with _bound(address, [port for port in pool if port != target.port], around.identity.name) as listener:
            await qemu.block.pass_socket(_SOCKET_NAME, listener.fileno())
            port = listener.getsockname()[1]
            credentials = CREDENTIALS_ID if self._options.is_psk else ""
            await qemu.block.start_nbd_server({"type": "fd", "data": {"str": _SOCKET_NAME}}, credentials=credentials)
        return DiskEndpoint(self._copies, uri=f"tcp:{target.bracketed}:{port}")


def disks_session(migration_id: str) -> str:
    """Name the tunnel's session of a migration's disks."""
    return f"{migration_id}-disks"


async def stop_exports(qemu: Qemu) -> None:
    """Drop every export and listen no more, or do nothing. Before the guest runs: else the source could still write to its disks.

    Raises:
        FerryError: QEMU does not answer.
    """
    with suppress(QemuRefused):  # they were stopped before
        await qemu.block.stop_nbd_server()


async def let_holes_through(qemu: Qemu, definition: Definition, copy: DiskCopy) -> None:
    """Let zeroes become holes in a raw image while it is filled: else QEMU 10.0 takes room for each of them.

    Raises:
        FerryError: QEMU refuses.
    """
    for option in reversed(_stubborn(definition, copy)):
        await qemu.block.reopen_node({**option.properties, "discard": "unmap"})


async def treat_holes_as_defined(qemu: Qemu, definition: Definition, copy: DiskCopy) -> None:
    """Undo `let_holes_through`."""
    with suppress(FerryError):  # it changes nothing for the guest
        for option in _stubborn(definition, copy):
            await qemu.block.reopen_node(option.properties)


def _stubborn(definition: Definition, copy: DiskCopy) -> list[Option]:
    """List the nodes of a raw image that keep holes from it, the top one first.

    None where one is written inside of another: of a person's own words QEMU would not take them as they are.
    """
    options = node_options(definition, copy.disk)
    if any(inner_file(option) for option in options):
        return []
    is_raw = any(option.get("driver") == "raw" for option in options)
    return [option for option in options if is_raw and option.get("discard") != "unmap"]


@contextmanager
def _bound(address: str, ports: list[int], host: str) -> Iterator[socket.socket]:
    """Listen on the first port that is free, for as long as the context is open.

    Raises:
        WrongState: none is.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in ports:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
                listener.listen(_BACKLOG)
            except OSError:
                continue
            yield listener
            return
    raise WrongState(
        f"no free port on {host} for disks, of the {len(ports)} from port_min to port_max; end what listens there, or widen it",
        reason="PORT_POOL_EXHAUSTED",
    )
