"""The disks that come to a destination: which are copied, whether they can be, and their images."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.blockjobs.images import MadeFile, put_in_place
from agent.migration.disk_facts import COPIED_FORMATS, CREATE_OPTIONS, totals
from agent.migration.disk_making import TOOL, create, create_empty, plan_image, run_tool
from agent.migration.disk_wishes import Mode, Which
from agent.migration.left_behind import left_with_the_original
from agent.migration.order import DiskCopy, DiskFacts, DiskMarker, Options, SourceFacts
from agent.migration.shared_disks import Sight, check_marker, may_be_same, sight_of
from agent.vm.data_files import with_data_file
from agent.vm.disk_images import DiskImage, check_known, disk_images, placed, standing_alone
from agent.vm.image_header import Role, references
from common.errors import InvalidRequest, WrongState
from common.findings import Risk

if TYPE_CHECKING:
    from agent.migration.destination import DestinationSession
    from agent.migration.surroundings import Surroundings
    from agent.vm.definition import Definition
    from common.findings import Findings

# What a file system needs beside the images: their tables, and what the guest writes meanwhile.
ROOM_BYTES: Final = 16 << 20
_OPTION: Final = re.compile(r"[a-z0-9_]+=[A-Za-z0-9.]+")
_MIB: Final = 1 << 20


class IncomingDisks:
    """The disks of one guest that is to come."""

    def __init__(self, around: Surroundings, options: Options, source: SourceFacts) -> None:
        self._around = around
        self._options = options
        self._wishes = options.disks
        self._source = source
        self._facts = {one.disk: one for one in source.disks}
        self._markers = {marker.disk: marker for marker in source.disk_markers}
        self._beside = source.beside_markers
        self.copied: tuple[str, ...] = ()

    # which

    async def check(self, definition: Definition, findings: Findings) -> tuple[str, ...]:
        """Choose what is copied, and look whether it can be and whether the rest is shared; return what is a risk.

        Raises:
            FerryError: the disks cannot come here, unless `findings` collects that; nothing was changed.
        """
        images = {image.disk: image for image in disk_images(definition)}
        for name in (*self._wishes.names, *self._wishes.place_of):
            with findings.check():
                check_known(definition, name)
        chosen = await asyncio.to_thread(self._choose)
        risks: list[str] = []
        for marker in (*self._markers.values(), *(one for one in self._beside if one.disk not in chosen)):
            disk = marker.disk
            if disk not in chosen:
                with findings.check():
                    hint = self._why_not_copied(disk)
                    risks += await asyncio.to_thread(
                        check_marker,
                        marker,
                        self._source.host,
                        self._around.identity,
                        force=self._options.force,
                        hint=hint,
                    )
        self.copied = tuple(disk for disk in images if disk in chosen)
        with findings.check():
            await asyncio.to_thread(self._check_apart, images)
        for disk in self.copied:
            with findings.check():
                await self._check_copy(self._facts[disk], images[disk])
            risks += left_with_the_original(self._facts[disk])
        with findings.check():
            risks += await asyncio.to_thread(self._check_room, images)
        return tuple(risks)

    def _choose(self) -> frozenset[str]:
        """Choose what is copied; of disks that cannot be only those that were named, so that the refusal says why."""
        can_be = {disk for disk, facts in self._facts.items() if not facts.obstacle}
        match self._wishes.which:
            case Which.NONE:
                return frozenset()
            case Which.NAMED:
                return frozenset(self._wishes.names) & frozenset(self._facts)
            case Which.ALL:
                return frozenset(can_be)
            case Which.NOT_SHARED:
                return frozenset(disk for disk in can_be if self._sight(disk) is not Sight.SAME)

    def _sight(self, disk: str) -> Sight:
        marker = self._markers.get(disk)
        return Sight.SAME if marker is None else sight_of(marker, self._source.host, self._around.identity)

    def _why_not_copied(self, disk: str) -> str:
        facts = self._facts.get(disk)
        if facts is not None and facts.obstacle:
            return f", since it cannot be copied: {facts.obstacle}"
        if self._wishes.which in (Which.NONE, Which.NAMED):
            return ", or let it be copied too (--disks)"
        return ""

    async def _check_copy(self, facts: DiskFacts, image: DiskImage) -> None:
        disk, path = facts.disk, image.path
        if facts.obstacle:
            raise WrongState(f"disk {disk} cannot be copied: {facts.obstacle}", reason="DISK_NOT_COPYABLE", disk=disk)
        _check_facts(facts)
        if self._sight(disk) is Sight.SAME:
            raise WrongState(
                f"disk {disk}: {path} on this host is the very file that {self._source.host.name} uses; name another place for the "
                f"copy (--dest-path {disk}=FILE), or do not copy it",
                reason="DISK_SHARED",
                disk=disk,
                path=path,
            )
        await asyncio.to_thread(self._check_not_the_original, self._markers.get(disk), path)
        await asyncio.to_thread(self._check_data_file, facts)
        for place in filter(None, (path, facts.data_path, facts.backing_path)):
            await asyncio.to_thread(self._around.vms.premises.check_place, place)
        if facts.backing_path:  # qemu-img opens it when it makes what stands on it
            await asyncio.to_thread(self._around.vms.premises.check_image, facts.backing_path, facts.backing_format)
        if facts.backing_path and facts.backing_marker is not None:
            hint = ", or copy all of the disk (--disks-mode full)"
            await asyncio.to_thread(
                check_marker, facts.backing_marker, self._source.host, self._around.identity, force=self._options.force, hint=hint
            )
        if await asyncio.to_thread(self._is_reused, path):
            await self._check_reused(facts, path)
        else:
            for place in filter(None, (path, facts.data_path)):
                await asyncio.to_thread(_check_absent, disk, place, self._source.host.name, reuse=self._wishes.reuse)
            if shutil.which(TOOL) is None:
                raise WrongState(f"disk {disk}: this host has no {TOOL}; install qemu-utils", reason="QEMU_IMG_MISSING")

    def _check_apart(self, images: Mapping[str, DiskImage]) -> None:
        """Refuse two disks in one place.

        Raises:
            WrongState: a copy would be made where another disk of the guest is.
        """
        users: dict[str, str] = {}
        for disk, image in images.items():
            data_path = self._facts[disk].data_path if disk in self.copied else ""
            for place in filter(None, (image.path, data_path)):
                other = users.setdefault(os.path.realpath(place), disk)
                if other != disk and {disk, other} & set(self.copied):
                    raise WrongState(
                        f"disks {other} and {disk}: both would lie in {place} on this host; name another place for one of them "
                        f"(--dest-path {disk}=FILE)",
                        reason="PLACE_TAKEN_TWICE",
                        path=place,
                    )

    def _check_data_file(self, facts: DiskFacts) -> None:
        """Refuse to write the copy's data into the data file that the guest writes to.

        Raises:
            WrongState: it is, or may be, the very file.
        """
        for marker in (
            replace(one, image_path=facts.data_path) for one in self._beside if one.disk == facts.disk and facts.data_path
        ):
            if sight_of(marker, self._source.host, self._around.identity) is Sight.SAME:
                raise WrongState(
                    f"disk {facts.disk}: its data file {facts.data_path} on this host is the very file that "
                    f"{self._source.host.name} uses; name another place for the copy (--dest-path {facts.disk}=FILE)",
                    reason="DISK_SHARED",
                    disk=facts.disk,
                    path=facts.data_path,
                )
            self._check_not_the_original(marker, facts.data_path)

    def _check_not_the_original(self, marker: DiskMarker | None, path: str) -> None:
        """Refuse to write over, or to advise to remove, what may be the guest's own disk.

        Raises:
            WrongState: something is there that cannot be told from the source's image, and `force` does not say that it is another.
        """
        if marker is None or not may_be_same(marker, self._source.host, self._around.identity):
            return
        disk = marker.disk
        if not (self._options.force and self._wishes.reuse):
            raise WrongState(
                f"disk {disk}: that {path} on this host is another file than that of {self._source.host.name} cannot be proved, "
                "and a copy onto itself would destroy the disk; where it is the same: --disks none --force; where it is another: "
                f"--reuse --force writes over it; or name another place for the copy (--dest-path {disk}=FILE)",
                reason="DISK_NOT_PROVED",
                disk=disk,
                path=path,
            )

    def _is_reused(self, path: str) -> bool:
        return self._wishes.reuse and os.path.lexists(path)

    async def _check_reused(self, facts: DiskFacts, path: str) -> None:
        await asyncio.to_thread(self._around.vms.premises.check_image, path, facts.format)
        words = [TOOL, "info", "--output=json", "-U", "-f", facts.format, "--", path]
        found = json.loads(await run_tool(words, f"disk {facts.disk}"))
        if found["virtual-size"] != facts.virtual_size_bytes:
            raise WrongState(
                f"disk {facts.disk}: {path} has {found['virtual-size']} bytes and the guest's disk {facts.virtual_size_bytes}; "
                "give it the same size",
                reason="DISK_SIZE_DIFFERS",
                disk=facts.disk,
            )
        await asyncio.to_thread(_check_same_data_file, facts, path)

    def _check_room(self, images: Mapping[str, DiskImage]) -> tuple[str, ...]:
        """Require room for what is copied, and tell where the disks could outgrow it.

        Raises:
            WrongState: a file system has too little; the text has the numbers.
        """
        risks = []
        for directory, disks in _by_file_system(images[disk] for disk in self.copied).items():
            usage = shutil.disk_usage(directory)
            needed = totals(self._facts, disks, self._wishes.mode)
            most = sum(self._facts[disk].virtual_size_bytes for disk in disks)
            names = ", ".join(disks)
            if needed + ROOM_BYTES > usage.free and not self._wishes.reuse:
                raise WrongState(
                    f"disk {names}: {needed / _MIB:.0f} MiB are to be copied to {directory} on this host, and "
                    f"{usage.free / _MIB:.0f} MiB are free there; make room or name another place (--dest-path)",
                    reason="NOT_ENOUGH_SPACE",
                    needed_bytes=needed,
                    free_bytes=usage.free,
                )
            if most > usage.free and not self._wishes.reuse:
                text = (
                    f"disk {names}: may grow to {most / _MIB:.0f} MiB, and {usage.free / _MIB:.0f} MiB are free in {directory} "
                    "on this host"
                )
                risks.append(Risk(text, "SPACE_MAY_RUN_OUT"))
        return tuple(risks)

    def paths(self, definition: Definition) -> frozenset[str]:
        """Name the images that are going to be made."""
        images = [image for image in disk_images(definition) if image.disk in self.copied]
        return frozenset(filter(None, (path for one in images for path in (one.path, self._facts[one.disk].data_path))))

    def notes(self, definition: Definition) -> tuple[str, ...]:
        """Say what is going to be copied, a sentence each."""
        paths = {image.disk: image.path for image in disk_images(definition)}
        sizes = {disk: totals(self._facts, (disk,), self._wishes.mode) / _MIB for disk in self.copied}
        return tuple(f"disk {disk} is going to be copied to {paths[disk]}, {size:.1f} MiB of it" for disk, size in sizes.items())

    # making ready

    def adapt(self, definition: Definition, wanted: Definition) -> Definition:
        """Return a definition of the VM as this host builds it.

        Args:
            definition: what runs, or what the source keeps of the VM.
            wanted: what is going to run here; it tells where the disks are.
        """
        paths = {image.disk: image.path for image in disk_images(wanted)}
        known = {image.disk for image in disk_images(definition) if image.path}
        for disk in known & paths.keys() & {*self.copied, *self._wishes.place_of}:
            is_block_device = Path(paths[disk]).is_block_device()
            definition = placed(definition, disk, paths[disk], is_block_device=is_block_device)
            if disk in self.copied and (data_path := self._facts[disk].data_path):
                definition = with_data_file(definition, disk, data_path, is_block_device=Path(data_path).is_block_device())
            if disk in self.copied and self._wishes.mode is Mode.FULL:
                definition = standing_alone(definition, disk)
        return definition

    async def make(self, definition: Definition, session: DestinationSession) -> None:
        """Make the images that are not there; on record before, so that they are removed again when the guest does not come.

        Raises:
            WrongState: one cannot be made.
        """
        copies = []
        for image in disk_images(definition):
            if image.disk not in self.copied:
                continue
            facts = self._facts[image.disk]
            is_new = not await asyncio.to_thread(self._is_reused, image.path)
            if is_new:
                if facts.data_path:
                    await self._make(plan_image(facts.data_path), facts, session)
                await self._make(plan_image(image.path), facts, session)
            elif self._wishes.mode is Mode.TOP and facts.backing_path:  # what it has of its own would show through the copy
                await create(facts, image.path, with_backing=True)
                is_new = True
            copies.append(DiskCopy(image.disk, image.path, facts.virtual_size_bytes, is_new))
        session.update(copies=tuple(copies))
        session.save()

    async def _make(self, image: MadeFile, facts: DiskFacts, session: DestinationSession) -> None:
        made = session.facts.made_images
        session.update(made_images=(*made, image))
        session.save()
        there = await asyncio.to_thread(create_empty, image, f"disk {facts.disk}")
        session.update(made_images=(*made, there))
        session.save()
        if image.path != facts.data_path:
            await create(facts, image.part_path, with_backing=self._wishes.mode is Mode.TOP)
        await asyncio.to_thread(self._around.store.guests.own, Path(image.part_path))
        await asyncio.to_thread(put_in_place, image)


def _check_facts(facts: DiskFacts) -> None:
    """Refuse what no source of ours says: it becomes words of a command line."""
    if facts.format not in COPIED_FORMATS or (facts.backing_path and facts.backing_format not in COPIED_FORMATS):
        raise InvalidRequest(f"disk {facts.disk[:80]}: format {facts.format[:40]!r} is not copied", reason="DISK_FACTS_INVALID")
    wrong = [option for option in facts.create_options if not _is_known(option)]
    if wrong or facts.virtual_size_bytes < 0:
        raise InvalidRequest(f"disk {facts.disk[:80]}: {(*wrong, 'size')[0][:80]!r} is not understood", reason="DISK_FACTS_INVALID")


def _is_known(option: str) -> bool:
    return _OPTION.fullmatch(option) is not None and option.partition("=")[0] in CREATE_OPTIONS


def _check_same_data_file(facts: DiskFacts, path: str) -> None:
    """Refuse an image whose data would go elsewhere than the copy's.

    Raises:
        WrongState: its header names another data file, or one where the copy has none.
    """
    found = next((one.name for one in references(path, facts.format) if one.role is Role.DATA), "")
    if found == facts.data_path or (found and facts.data_path and os.path.realpath(found) == os.path.realpath(facts.data_path)):
        return
    there, wanted = found or "itself", facts.data_path or "itself"
    raise WrongState(
        f"disk {facts.disk}: {path} has its data in {there}, and that of the copy would be in {wanted}; make it anew, or name "
        f"another place (--dest-path {facts.disk}=FILE)",
        reason="DATA_FILE_DIFFERS",
        disk=facts.disk,
        path=path,
    )


def _check_absent(disk: str, path: str, source: str, *, reuse: bool) -> None:
    if os.path.lexists(path):
        write_over = "" if reuse else ", or have it written over (--reuse)"  # with it this is a data file without its image
        raise WrongState(
            f"disk {disk}: {path} exists on this host already and is not the file that {source} uses; remove it, or name another "
            f"place for the copy (--dest-path {disk}=FILE){write_over}",
            reason="FILE_EXISTS",
            disk=disk,
            path=path,
        )
    if not Path(path).parent.is_dir():
        raise WrongState(
            f"disk {disk}: directory {Path(path).parent} does not exist on this host; make it, or name another place "
            f"(--dest-path {disk}=FILE)",
            reason="FILE_MISSING",
            disk=disk,
            path=path,
        )


def _by_file_system(images: Iterable[DiskImage]) -> dict[str, list[str]]:
    """Group disks by the file system that their images come to, named by the directory of the first."""
    directories: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for image in images:
        directory = str(Path(image.path).parent)
        if not Path(directory).is_dir() or Path(image.path).is_block_device():
            continue
        name = directories.setdefault(Path(directory).stat().st_dev, directory)
        found.setdefault(name, []).append(image.disk)
    return found
