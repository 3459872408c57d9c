"""What a host has to have before a VM is started or let in: found before, not by a QEMU that dies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent.qemu.block_status import path_of
from agent.vm.host_files import FILE_DRIVERS, Use, hidden_paths, host_files
from agent.vm.image_files import named_below
from agent.vm.paths import confine, confine_found
from common.errors import InvalidRequest, WrongState

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from agent.qemu.block_status import ImageReport
    from agent.vm.definition import Definition
    from agent.vm.host_files import HostFile
    from agent.vm.image_files import ImageFile
    from agent.vm.settings import VmSettings
    from common.findings import Findings

_MEMINFO = Path("/proc/meminfo")
_MOUNTS = Path("/proc/mounts")
_POOLS = Path("/sys/kernel/mm/hugepages")
_KIB = 1024


def find_emulator(definition: Definition, settings: VmSettings) -> Path:
    """Choose the QEMU binary: the one that the definition names, else the host's own.

    Raises:
        InvalidRequest: the definition names one that the operator does not allow.
        WrongState: the binary is not there, or not executable.
    """
    if definition.emulator is None:
        found = shutil.which(settings.qemu)
        if found is None:
            raise WrongState(f"{settings.qemu}: no such program", reason="QEMU_MISSING", path=settings.qemu)
        return Path(found).absolute()
    allowed = {*settings.emulators, settings.qemu}
    if definition.emulator not in allowed:
        raise InvalidRequest(
            f"emulator {definition.emulator} is not among the allowed ones ({', '.join(sorted(allowed))})",
            reason="EMULATOR_NOT_ALLOWED",
            path=definition.emulator,
        )
    path = Path(definition.emulator)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise WrongState(f"emulator {path}: no such program here", reason="QEMU_MISSING", path=path)
    return path


def check_paths(definition: Definition, roots: Sequence[Path]) -> None:
    """Refuse files outside of the configured directories; they need not exist.

    Raises:
        InvalidRequest: a path lies outside.
    """
    for file in host_files(definition):
        confine(file.path, roots)
    for hidden in hidden_paths(definition) if roots else ():
        raise InvalidRequest(
            f"{hidden[:200]}: may name a file outside of the configured directories; name files by their absolute paths",
            reason="PATH_OUTSIDE_ROOTS",
        )


def check_files(definition: Definition, roots: Sequence[Path], findings: Findings, *, to_come: Container[str] = ()) -> None:
    """Require that kernel, initrd, firmware and images are here and may be used, and that lines have a directory.

    Files in `to_come` are made before they are needed.

    Raises:
        InvalidRequest: a path lies outside of the configured directories.
        WrongState: a file is missing, not a file, or may not be read or written.

    Both are collected where `findings` collects.
    """
    with findings.check():
        check_paths(definition, roots)
    for file in host_files(definition):
        with findings.check():
            match file.use:
                case Use.READ | Use.WRITE if file.path not in to_come:
                    _check_there(file)
                case Use.MAKE:
                    _check_directory(file)
                case _:
                    pass
    with findings.check():
        below = [file for file in named_below(definition) if file.named_by not in to_come]
        check_below(below, roots, findings)


def check_below(files: Sequence[ImageFile], roots: Sequence[Path], findings: Findings) -> None:
    """Require of what image headers name that it is here, may be read, and lies in the configured directories.

    Raises:
        InvalidRequest: it lies outside, or is no file of this host where directories are configured.
        WrongState: a file is missing, or may not be read.

    Both are collected where `findings` collects.
    """
    for file in files:
        with findings.check():
            _check_below(file, roots)


def check_opened(images: Mapping[str, ImageReport], roots: Sequence[Path]) -> None:
    """Require of what a QEMU has opened that it lies in the configured directories.

    Raises:
        InvalidRequest: something does not. Nodes that the definition names have been checked before; QEMU names the others `#...`.
    """
    for node, image in images.items():
        if image.format in FILE_DRIVERS:
            confine_found(path_of(image.filename), roots)
        elif node.startswith("#") and "://" in image.filename:
            raise InvalidRequest(
                f"QEMU has opened {image.filename[:200]}, which an image names and the definition does not",
                reason="PATH_OUTSIDE_ROOTS",
                path=image.filename,
            )


def _check_below(file: ImageFile, roots: Sequence[Path]) -> None:
    if not file.path:
        if roots:
            raise InvalidRequest(
                f"{file.named_by}: its header names {file.name[:200]!r} as its {file.role.value}, which is no file in the "
                f"configured directories ({', '.join(str(root) for root in roots)}); give the image one there (qemu-img rebase -u)",
                reason="PATH_OUTSIDE_ROOTS",
                path=file.named_by,
            )
        return
    try:
        confine_found(file.path, roots)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{file.named_by}: its header names {file.name[:200]!r} as its {file.role.value}: {error.text}",
            reason=error.reason,
            path=file.path,
        ) from error
    if not os.access(file.path, os.R_OK):
        why = "cannot be read" if os.path.lexists(file.path) else "does not exist on this host"
        reason = "FILE_NOT_ACCESSIBLE" if os.path.lexists(file.path) else "FILE_MISSING"
        raise WrongState(
            f"{file.named_by}: its {file.role.value} {file.path} {why}", reason=reason, what=file.named_by, path=file.path
        )


def _check_there(file: HostFile) -> None:
    what, path = file.what, file.path
    if not os.path.lexists(path):
        raise WrongState(f"{what}: {path} does not exist on this host", reason="FILE_MISSING", what=what, path=path)
    if file.is_image and not (Path(path).is_file() or Path(path).is_block_device()):
        raise WrongState(f"{what}: {path} is not a regular file or block device", reason="FILE_MISSING", what=what, path=path)
    is_written = file.use is Use.WRITE
    if not os.access(path, os.R_OK | (os.W_OK if is_written else 0)):
        wish = "read and written" if is_written else "read"
        raise WrongState(f"{what}: {path} cannot be {wish}", reason="FILE_NOT_ACCESSIBLE", what=what, path=path)


def _check_directory(file: HostFile) -> None:
    directory = Path(file.path).parent
    if not directory.is_dir():
        raise WrongState(
            f"{file.what}: directory {directory} does not exist on this host",
            reason="FILE_MISSING",
            what=file.what,
            path=directory,
        )


def check_memory(definition: Definition, margin_kib: int) -> None:
    """Require room for the guest's memory.

    Raises:
        WrongState: the host has less; the text has both numbers.
    """
    available_kib, _ = read_memory_kib()
    if available_kib < definition.memory_kib + margin_kib:
        raise WrongState(
            f"{definition.memory_kib} KiB of memory and {margin_kib} KiB of margin are needed, "
            f"{available_kib} KiB are available on this host",
            reason="NOT_ENOUGH_MEMORY",
            needed_kib=definition.memory_kib + margin_kib,
            available_kib=available_kib,
        )


def check_huge_pages(definition: Definition, mounts: Path = _MOUNTS, pools: Path = _POOLS) -> None:
    """Require as many free huge pages of each size as the definition reserves; QEMU itself only says that memory is missing.

    Args:
        definition: what is to be started.
        mounts: the mounted file systems.
        pools: the kernel's pools of huge pages. Source: Documentation/admin-guide/mm/hugetlbpage.rst.

    Raises:
        WrongState: a directory is no hugetlbfs, or its pool has too few free pages.
    """
    wanted: dict[str, int] = {}
    for option in definition.options:
        path, size = option.get("mem-path"), option.properties.get("size")
        if option.name == "object" and path.startswith("/dev/hugepages"):
            wanted[path] = wanted.get(path, 0) + (size if isinstance(size, int) else definition.memory_kib * _KIB)
    for path, wanted_bytes in wanted.items():
        page_kib = _huge_page_kib(path, mounts.read_text(encoding="utf-8"))
        if not page_kib:
            text = f"huge pages: {path} is not mounted on this host; mount -t hugetlbfs -o pagesize=SIZE none {path}"
            raise WrongState(text, reason="HUGE_PAGES_MISSING", path=path)
        free = int((pools / f"hugepages-{page_kib}kB" / "free_hugepages").read_text(encoding="ascii"))
        needed = -(-wanted_bytes // (page_kib * _KIB))
        if free < needed:
            raise WrongState(
                f"huge pages of {page_kib} KiB: {needed} are needed and {free} are free on this host; raise "
                f"{pools}/hugepages-{page_kib}kB/nr_hugepages by {needed - free}",
                reason="HUGE_PAGES_MISSING",
                needed=needed,
                free=free,
            )


def _huge_page_kib(path: str, mounts: str) -> int:
    """Read the page size of a hugetlbfs; 0 where none is mounted. Source: proc_pid_mounts(5)."""
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split()
        if (where, kind) == (path, "hugetlbfs"):
            size = next((word.partition("=")[2] for word in options.split(",") if word.startswith("pagesize=")), "2M")
            return int(size[:-1]) * {"K": 1, "M": _KIB, "G": _KIB * _KIB}[size[-1]]
    return 0


def read_memory_kib() -> tuple[int, int]:
    """Read the memory that new programs may use, and all there is. Source: proc_meminfo(5), MemAvailable."""
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]), int(fields["MemTotal"].split()[0])
