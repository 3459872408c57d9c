"""What users wish of disks, checked against the disk as it is: an order becomes the record of a job, or a refusal that says why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.blockjobs import images
from agent.blockjobs.block_job import BlockJobRecord, Kind, Place, qemu_id
from agent.blockjobs.chain import find_layer, is_same
from agent.vm.image_locks import find_user
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.blockjobs.chain import Chain, Layer
    from agent.vm.definition import Disk
    from agent.vm.vm import Vm


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """Copy a disk to another image.

    Attributes:
        path: checked to lie where images may lie.
        image_format: empty for that of the disk.
        is_top_only: copy the uppermost image, and stand on the same images as it.
        reuses: write into an image that is there.
        pivots_when_ready: go over to it without being asked again.
        bandwidth_bytes_per_second: 0 for no bound.
    """

    path: Path
    image_format: str = ""
    is_top_only: bool = False
    reuses: bool = False
    pivots_when_ready: bool = False
    bandwidth_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class PullOrder:
    """Take what is below the uppermost image into it, down to `base`, which stays; an empty one is all of it."""

    base: str = ""
    bandwidth_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class CommitOrder:
    """Write the images from `top` on down into `base`; an empty top is the uppermost image."""

    base: str
    top: str = ""
    pivots_when_ready: bool = False
    bandwidth_bytes_per_second: int = 0


@dataclass(frozen=True, slots=True)
class Ground:
    """What an order is about, and the name and the time that its job gets."""

    vm: Vm
    others: Iterable[Vm]
    disk: Disk
    chain: Chain
    job_id: str
    at_s: float

    @property
    def named(self) -> str:
        """Name the disk in a sentence."""
        return f"disk {self.disk.target} of VM {self.vm.name}"

    def find(self, wanted: str) -> int:
        """Find an image of the disk; its place."""
        return find_layer(self.chain, wanted, self.disk.target, self.vm.name)


def plan_copy(ground: Ground, order: CopyOrder) -> BlockJobRecord:
    """Check a copy.

    Raises:
        InvalidRequest, WrongState: it cannot be made; the text says why.
    """
    chain, path = ground.chain, order.path
    image_format = order.image_format or _likely_format(chain.top)
    if image_format not in images.FORMATS:
        raise InvalidRequest(f"format {image_format[:40]!r}: {' or '.join(images.FORMATS)} is wanted", reason="VALUE_INVALID")
    if order.is_top_only:
        if len(chain.layers) == 1:
            raise WrongState(f"{ground.named} has a single image, {chain.top.path}: copy it in full", reason="NO_BACKING_IMAGE")
        if image_format == "raw":
            raise InvalidRequest("a raw image stands on no other: --mode top needs the format qcow2", reason="VALUE_INVALID")
    if order.reuses:
        _check_reused(ground, order, image_format)
    else:
        images.check_place(path, ", or say --reuse if what is in it may be overwritten")
    copied = chain.layers[:1] if order.is_top_only else chain.layers
    images.check_room(path, _most(copied, chain.top.virtual_size_bytes), f"a copy of {ground.named}")
    place = _new_place(ground, path, image_format)
    after = (place, *_places(chain.layers[1:])) if order.is_top_only else (place,)
    made = None if order.reuses else images.MadeFile(str(path), str(images.part_of(path, ground.job_id)))
    return _record(ground, Kind.COPY, str(path), after, order.bandwidth_bytes_per_second, made=made, pivots=order.pivots_when_ready)


def plan_pull(ground: Ground, order: PullOrder) -> BlockJobRecord:
    """Check a pull.

    Raises:
        InvalidRequest, WrongState: there is nothing to pull, or no room for it.
    """
    layers = ground.chain.layers
    base = ground.find(order.base) if order.base else len(layers)
    if base <= 1:
        path = layers[0].path
        what = f"{path} stands on no other image" if len(layers) == 1 else f"nothing lies between {path} and that base"
        raise WrongState(f"{ground.named}: {what}: there is nothing to pull", reason="NOTHING_TO_DO")
    top = layers[0]
    needed_bytes = min(_most(layers[1:base], top.virtual_size_bytes), max(top.virtual_size_bytes - top.actual_size_bytes, 0))
    images.check_room(Path(top.path), needed_bytes, f"the pull into {ground.named}")
    after = _places((top, *layers[base:]))
    return _record(ground, Kind.PULL, layers[base].path if order.base else "", after, order.bandwidth_bytes_per_second)


def plan_commit(ground: Ground, order: CommitOrder) -> BlockJobRecord:
    """Check a commit.

    Raises:
        InvalidRequest, WrongState: the images are not in this order, or the base cannot be written to.
    """
    layers = ground.chain.layers
    if not order.base:
        raise InvalidRequest(
            f"{ground.named}: say with --base which image gets the data; its images: {ground.chain.words()}", reason="VALUE_INVALID"
        )
    base, top = ground.find(order.base), ground.find(order.top) if order.top else 0
    if base <= top:
        raise InvalidRequest(
            f"{ground.named}: base {layers[base].path} is not below top {layers[top].path}; its images: {ground.chain.words()}",
            reason="IMAGES_NOT_IN_ORDER",
        )
    if order.pivots_when_ready and top > 0:
        raise InvalidRequest(
            f"{layers[top].path} is not the uppermost image of {ground.named}: there is no pivot at the end of its commit",
            reason="VALUE_INVALID",
        )
    below = layers[base]
    if not os.access(below.path, os.W_OK):
        raise WrongState(f"{ground.named}: base {below.path} cannot be written to", reason="FILE_NOT_ACCESSIBLE", path=below.path)
    _check_unused(ground, below.path, "other data under the guest of that")
    room_bytes = max(layers[top].virtual_size_bytes - below.actual_size_bytes, 0)
    images.check_room(Path(below.path), min(_most(layers[top:base], room_bytes), room_bytes), f"the commit of {ground.named}")
    kind = Kind.COMMIT if top else Kind.ACTIVE_COMMIT
    after = _places((*layers[:top], *layers[base:]))
    return _record(ground, kind, below.path, after, order.bandwidth_bytes_per_second, pivots=order.pivots_when_ready)


def plan_snapshot(ground: Ground, path: Path) -> BlockJobRecord:
    """Check a snapshot.

    Raises:
        WrongState: something is there already, or there is no directory.
    """
    images.check_place(path)
    images.check_room(path, 1 << 20, f"an image on top of {ground.named}")
    after = (_new_place(ground, path, "qcow2"), *_places(ground.chain.layers))
    made = images.MadeFile(str(path), str(images.part_of(path, ground.job_id)))
    return _record(ground, Kind.SNAPSHOT, str(path), after, 0, made=made)


def _check_reused(ground: Ground, order: CopyOrder, image_format: str) -> None:
    path, chain = order.path, ground.chain
    user = find_user(str(path), (ground.vm, *ground.others))
    if user is not None:
        raise WrongState(f"{path} is used by VM {user.name}, which is running here", reason="IMAGE_IN_USE", path=path, vm=user.name)
    found = images.find_image(path)
    if image_format == "qcow2" and found.format != "qcow2":
        text = f"{path} is no qcow2 image; say --format raw if it is to be overwritten as raw"
        raise WrongState(text, reason="FORMAT_DIFFERS", path=path)
    size_bytes = found.virtual_size_bytes if image_format == "qcow2" else path.stat().st_size or found.virtual_size_bytes
    if size_bytes != chain.top.virtual_size_bytes:
        raise WrongState(
            f"{path} has {size_bytes} bytes, {ground.named} has {chain.top.virtual_size_bytes}: the sizes have to be equal",
            reason="SIZES_DIFFER",
            path=path,
        )
    wanted = chain.layers[1].path if order.is_top_only else ""
    if image_format == "qcow2" and not is_same(found.backing_path, wanted):
        stands = f"stands on {found.backing_path}" if found.backing_path else "stands on no image"
        raise WrongState(
            f"{path} {stands}; a copy {f'of the top alone has to stand on {wanted}' if wanted else 'in full stands on none'}",
            reason="BACKING_DIFFERS",
            path=path,
        )
    if order.is_top_only and found.has_clusters:
        raise WrongState(
            f"{path} has data of its own, which would show where the top of {ground.named} has none: make it anew, or copy in full",
            reason="IMAGE_NOT_EMPTY",
            path=path,
        )


def _check_unused(ground: Ground, path: str, harm: str) -> None:
    user = find_user(path, (other for other in ground.others if other.uuid != ground.vm.uuid))
    if user is not None:
        raise WrongState(
            f"{ground.named}: {path} is used by VM {user.name}, which is running here; it would get {harm}",
            reason="IMAGE_IN_USE",
            path=path,
            vm=user.name,
        )


def _likely_format(top: Layer) -> str:
    return top.format if top.format in images.FORMATS else "raw" if top.format in ("file", "host_device") else "qcow2"


def _most(layers: Iterable[Layer], virtual_size_bytes: int) -> int:
    """Say how many bytes the data of some images takes at most in one."""
    return min(sum(layer.actual_size_bytes for layer in layers), virtual_size_bytes)


def _new_place(ground: Ground, path: Path, image_format: str) -> Place:
    name = qemu_id(ground.job_id)
    return Place(str(path), image_format, name, f"{name}-f")


def _places(layers: Iterable[Layer]) -> tuple[Place, ...]:
    return tuple(Place(layer.path, layer.format, layer.node, layer.file_node) for layer in layers)


def _record(  # noqa: PLR0913 -- what differs between the kinds
    ground: Ground,
    kind: Kind,
    file: str,
    after: tuple[Place, ...],
    bandwidth: int,
    *,
    made: images.MadeFile | None = None,
    pivots: bool = False,
) -> BlockJobRecord:
    return BlockJobRecord(
        id=ground.job_id,
        kind=kind,
        vm_uuid=ground.vm.uuid,
        vm_name=ground.vm.name,
        disk=ground.disk.target,
        device=ground.disk.device,
        node=ground.disk.node,
        file=file,
        before=_places(ground.chain.layers),
        after=after,
        made=made,
        started_at_s=ground.at_s,
        bandwidth_bytes_per_second=bandwidth,
        pivots_when_ready=pivots,
    )
