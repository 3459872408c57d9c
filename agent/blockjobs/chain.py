"""The images of a disk, the uppermost first, and finding one by what people call it. Pure but for comparing paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.qemu.block_graph import FILTERS
from agent.qemu.block_status import path_of
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from agent.qemu.block_graph import Graph
    from agent.qemu.block_status import DriveReport, ImageReport


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a disk.

    Attributes:
        path: file or block device; QEMU's own name of it where it is neither.
        node, file_node: QEMU's nodes of the format and of the storage; names with `#` are of QEMU's making. Empty while not known.
        actual_size_bytes: what it takes on its storage; 0 while not known.
        cluster_size_bytes: 0 of a format without clusters.
        backing_path: what the image itself names as its backing file; empty without.
        snapshots: names of the snapshots inside of it.
    """

    path: str
    format: str
    node: str
    file_node: str
    virtual_size_bytes: int
    actual_size_bytes: int
    cluster_size_bytes: int = 0
    backing_path: str = ""
    snapshots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """What a drive reads from.

    Attributes:
        root: the node that the device uses: the first filter, else that of the first layer.
        filters: nodes above the first layer.
        layers: at least one, the uppermost first.
    """

    root: str
    filters: tuple[str, ...]
    layers: tuple[Layer, ...]
    is_read_only: bool

    @property
    def top(self) -> Layer:
        """The image that the guest writes to."""
        return self.layers[0]

    @property
    def paths(self) -> tuple[str, ...]:
        """What the layers are, the uppermost first."""
        return tuple(layer.path for layer in self.layers)

    def words(self) -> str:
        """Name the images in a sentence, the uppermost first."""
        return " on ".join(self.paths)


def read_chain(drive: DriveReport, graph: Graph) -> Chain | None:
    """Read what is behind a drive; None of one without a medium."""
    if drive.image is None:
        return None
    pairs = list(zip(drive.image.chain(), graph.line(drive), strict=True))
    filters = [node for image, node in pairs if image.format in FILTERS]
    layers = [_layer(image, node, graph) for image, node in pairs if image.format not in FILTERS]
    return Chain(drive.node, tuple(filters), tuple(layers), drive.is_read_only)


def _layer(image: ImageReport, node: str, graph: Graph) -> Layer:
    return Layer(
        path=path_of(image.filename),
        format=image.format,
        node=node,
        file_node=graph.child(node, "file") if node else "",
        virtual_size_bytes=image.virtual_size_bytes,
        actual_size_bytes=image.actual_size_bytes or 0,
        cluster_size_bytes=image.cluster_size_bytes or 0,
        backing_path=image.backing_filename,
        snapshots=image.snapshots,
    )


def is_same(one: str, other: str) -> bool:
    """Say whether two paths name the same file."""
    return one == other or (one.startswith("/") and other.startswith("/") and os.path.realpath(one) == os.path.realpath(other))


def find_layer(chain: Chain, wanted: str, disk: str, vm_name: str) -> int:
    """Find an image of a chain by its path, or by its file name if that is the only one; return its place.

    Raises:
        InvalidRequest: the chain has none; the text lists what it has.
    """
    found = [index for index, path in enumerate(chain.paths) if is_same(path, wanted)]
    if not found and "/" not in wanted:
        found = [index for index, path in enumerate(chain.paths) if os.path.basename(path) == wanted]  # noqa: PTH119 -- a name, no file
    if len(found) != 1:
        why = f"has no image {wanted}" if not found else f"has several images {wanted}"
        raise InvalidRequest(
            f"disk {disk} of VM {vm_name} {why}; its images: {chain.words()}", reason="IMAGE_NOT_IN_CHAIN", disk=disk, path=wanted
        )
    return found[0]


def check_known(chain: Chain, disk: str, vm_name: str) -> None:
    """Require that each image has its node: not so while a job rearranges them.

    Raises:
        WrongState: one has none.
    """
    if not all(layer.node for layer in chain.layers):
        raise WrongState(
            f"disk {disk} of VM {vm_name}: QEMU rearranges its images for another job; try again when that is over",
            reason="DISK_IN_USE",
            disk=disk,
            vm=vm_name,
        )
