"""Files that a guest uses and that do not go along with it: whether the destination has the same, told by fingerprints.

Images that the guest writes to are proved by markers (`shared_disks`) or copied; here it is about what is only named: images of
read-only disks and CD-ROMs, everything that images stand on, and what the guest boots from.

| file | the destination has another one | that cannot be told |
| --- | --- | --- |
| image of a read-only disk, and what it stands on | refused, unless forced | refused, unless forced |
| what a disk that the guest writes to stands on | refused: its data would be other data | refused, unless forced |
| `-fw_cfg` files, which a guest may read at any time | refused, unless forced | refused, unless forced |
| other files that a guest boots from | a warning that says from when on it matters | a warning likewise |
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.migration.disk_wishes import Mode
from agent.migration.order import FileProof
from agent.migration.shared_disks import risk_of
from agent.vm.boot_files import BootFile, Needed, boot_files
from agent.vm.data_files import files_beside
from agent.vm.disk_images import disk_images
from agent.vm.fingerprint import TooSlow, difference, take
from agent.vm.image_files import disk_files, files_of
from agent.vm.image_locks import has_open
from common.errors import WrongState
from common.findings import Risk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.migration.order import DiskFacts
    from agent.vm.definition import Definition
    from agent.vm.disk_images import DiskImage
    from agent.vm.image_files import ImageFile
    from common.findings import Findings

# Reading takes milliseconds; storage that gives less than this is in trouble, and the guest waits in its job's lock.
TIME_S: Final = 5.0


# the source


def prove_files(definition: Definition, pid: int | None) -> tuple[FileProof, ...]:
    """Take the fingerprints of what a guest uses and what does not go along with it; blocks for up to `TIME_S`.

    Args:
        definition: what the guest runs as.
        pid: its QEMU, which tells whether the file at a path is still the one that the guest uses; None of a stopped VM.
    """
    deadline_s = time.monotonic() + TIME_S
    proofs: list[FileProof] = []
    for image in disk_images(definition):
        if image.path:
            proofs += _prove_disk(definition, image, pid, deadline_s)
    proofs += [_prove(one.what, 0, one.path, deadline_s) for one in boot_files(definition)]
    return tuple(proofs)


def _prove_disk(definition: Definition, image: DiskImage, pid: int | None, deadline_s: float) -> Iterator[FileProof]:
    what = _disk(image.disk)
    try:
        files = _standing_below(definition, image)
    except WrongState as error:
        yield FileProof(what, 0, image.path, obstacle=error.text)
        return
    for index, file in enumerate(files):
        if not file.path:
            yield FileProof(what, index, file.name[:200], obstacle="it is no file of the host")
        elif pid is not None and has_open(pid, file.path) is False:
            yield FileProof(what, index, file.path, obstacle="another file lies there by now than the one that its QEMU has open")
        elif index == 0 and not image.is_read_only:
            yield FileProof(what, index, file.path)
        else:
            yield _prove(what, index, file.path, deadline_s)


def _standing_below(definition: Definition, image: DiskImage) -> tuple[ImageFile, ...]:
    """List an image and what it stands on; what the guest writes to with it changes, and is proved by markers."""
    files = disk_files(definition, image.disk)
    beside = () if image.is_read_only else files_beside(definition, image)
    return tuple(file for file in files if file.path not in beside)


def _prove(what: str, index: int, path: str, deadline_s: float) -> FileProof:
    try:
        return FileProof(what, index, path, fingerprint=take(path, deadline_s))
    except TooSlow:
        return FileProof(what, index, path, obstacle=f"it could not be read there within {TIME_S:g} s")
    except OSError as error:
        return FileProof(what, index, path, obstacle=f"it cannot be read there: {error.strerror}")


# the destination


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the source has told, held against this host; `check` blocks for up to `TIME_S`."""

    proofs: Sequence[FileProof]
    disks: Mapping[str, DiskFacts]
    source: str
    here: str
    force: bool

    def check(self, definition: Definition, copied: Sequence[str], mode: Mode, findings: Findings) -> tuple[str, ...]:
        """Require the files that a guest uses here to be those that it uses there; return what is a risk.

        Args:
            definition: as this host would build it.
            copied: disks that are copied; a full copy stands on nothing.
            mode: how.
            findings: what collects refusals.

        Raises:
            WrongState: there is another file, or whether it is the same cannot be told and `force` is not given.
        """
        deadline_s = time.monotonic() + TIME_S
        risks: list[str] = []
        for image in disk_images(definition):
            is_copied = image.disk in copied
            if image.path and not (is_copied and mode is Mode.FULL):
                with findings.check():
                    risks += self._check_disk(definition, image, deadline_s, is_copied=is_copied)
        for file in boot_files(definition):
            with findings.check():
                risks += self._check_boot_file(file, deadline_s)
        return tuple(risks)

    def _check_disk(self, definition: Definition, image: DiskImage, deadline_s: float, *, is_copied: bool) -> Iterator[str]:
        here = self._files_here(definition, image, is_copied=is_copied)
        there = sorted((one for one in self.proofs if one.what == _disk(image.disk)), key=lambda one: one.index)
        if is_copied:
            there = there[1:]
        if image.is_read_only and not there:
            yield self._refuse_unknown(image, image.path, f"the agent of {self.source} tells nothing of it")
            return
        for proof, file in zip(there, here, strict=False):
            yield from self._check_image(image, proof, file, deadline_s)
        if there and len(there) != len(here):
            text = f"it is made of {len(here)} files here and of {len(there)} there"
            yield self._refuse_unknown(image, image.path, text)

    def _files_here(self, definition: Definition, image: DiskImage, *, is_copied: bool) -> Sequence[ImageFile]:
        if not is_copied:
            return _standing_below(definition, image)
        facts = self.disks[image.disk]
        return files_of(facts.backing_path, facts.backing_format) if facts.backing_path else ()

    def _check_image(self, image: DiskImage, proof: FileProof, file: ImageFile, deadline_s: float) -> Iterator[str]:
        path = file.path or file.name
        if file.path and not os.path.lexists(file.path):  # who looks for missing files says that better
            return
        if proof.obstacle:
            yield self._refuse_unknown(image, path, f"{proof.path}: {proof.obstacle}")
        elif proof.fingerprint is not None:
            what, is_other = _compare(proof, file.path, deadline_s)
            if is_other and not image.is_read_only:
                raise WrongState(
                    f"disk {image.disk}: it stands on {path} on this host, which is another file than on {self.source}: {what}; "
                    "put the same image there, or have all of the disk copied (--disks, --disks-mode full)",
                    reason="DISK_NOT_SHARED",
                    disk=image.disk,
                    path=path,
                )
            if what:
                yield self._refuse_unknown(image, path, what)

    def _refuse_unknown(self, image: DiskImage, path: str, why: str) -> str:
        text = (
            f"disk {image.disk}: that {path} on {self.here} is the image that the guest uses on {self.source} is not proved: "
            f"{why}; put the same image there, or name where it lies (--dest-path {image.disk}=FILE)"
        )
        return risk_of(text, "DISK_NOT_PROVED", force=self.force, disk=image.disk)

    def _check_boot_file(self, file: BootFile, deadline_s: float) -> Iterator[str]:
        proof = next((one for one in self.proofs if one.what == file.what), None)
        why = f"the agent of {self.source} tells nothing of it" if proof is None else proof.obstacle
        if proof is not None and proof.fingerprint is not None:
            why, _ = _compare(proof, file.path, deadline_s)
        if not why:
            return
        text = (
            f"{file.what}: {file.path} on {self.here} is not proved to be the file of {self.source}: {why}; "
            f"the guest gets this one {file.needed.value}"
        )
        if file.needed is Needed.ANY_TIME:
            yield risk_of(f"{text}; put the same file there", "FILE_NOT_PROVED", force=self.force, file=file.what)
        else:
            yield Risk(text, "FILE_DIFFERS")


def _compare(proof: FileProof, path: str, deadline_s: float) -> tuple[str, bool]:
    """Say what is wrong, in a clause, and whether the file is known to be another one."""
    if not path or proof.fingerprint is None:
        return "it is no file of the host", False
    try:
        found = difference(proof.fingerprint, path, deadline_s)
    except TooSlow:
        return f"it could not be read here within {TIME_S:g} s", False
    except OSError as error:
        return f"it cannot be read here: {error.strerror}", False
    return found, bool(found)


def _disk(name: str) -> str:
    return f"disk {name}"
