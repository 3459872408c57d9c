"""Which other files an image names in its header: backing files, external data files, extents.

Read here and not by `qemu-img info`, which opens what it finds there: a header may name a server or a device. Of each file
a bounded part is read.

Source: docs/interop/qcow2.txt and qed_spec.txt; block/qcow.c (`QCowHeader`), block/qed.h (`QEDHeader`), block/vmdk.c
(`VMDK4Header`, `vmdk_open_desc_file`, `vmdk_parse_extents`).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Final

from common.errors import WrongState

_QCOW: Final = b"QFI\xfb"
_QED: Final = b"QED\0"
_VMDK_SPARSE: Final = b"KDMV"
_VMDK_OLD: Final = b"COWD"
_SECTOR: Final = 512
_LONGEST_NAME: Final = 1023  # of a backing file, in each of these formats. Source: block/qcow2.c, qcow2_do_open()
_LONGEST_EXTENSION: Final = 4096
_MOST_EXTENSIONS: Final = 1000
_MOST_OF_A_DESCRIPTOR: Final = 1 << 20
_HEAD_BYTES: Final = 1024
_EXTERNAL_DATA: Final = 1 << 2
_QED_BACKING: Final = 1
_QED_BACKING_IS_RAW: Final = 1 << 2
_BACKING_FORMAT: Final = 0xE2792ACA
_DATA_FILE: Final = 0x44415441
_EXTENT: Final = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)\s+"([^"\n]*)"', re.MULTILINE)
_LINES_BEFORE_A_DESCRIPTOR: Final = re.compile(rb"(?:[ \t\r]*(?:#[^\n]*)?\n)*version=")
_PARENT: Final = re.compile(r'parentFileNameHint="([^"\n]*)"')


class Role(Enum):
    """What a file is to the image that names it."""

    TOP = "image"
    BACKING = "backing file"
    DATA = "data file"
    EXTENT = "extent"


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that a header names.

    Attributes:
        name: as it stands there.
        format: empty where QEMU guesses it.
    """

    role: Role
    name: str
    format: str = ""


def references(path: str, image_format: str) -> tuple[Reference, ...]:
    """List what an image names, as QEMU reads it in this format; an empty format is guessed as QEMU does.

    A file that is not there, or is neither a file nor a block device, names nothing: who opens it finds that.

    Raises:
        WrongState: the header cannot be read, or is broken.
    """
    try:
        if not _is_storage(Path(path).stat().st_mode):  # looked at before it is opened: a pipe would wait, a device might act
            return ()
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:  # noqa: PTH123 -- a descriptor
            if not _is_storage(os.fstat(file.fileno()).st_mode):
                return ()
            return tuple(_read(file, image_format))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise WrongState(f"{path} cannot be read: {error.strerror}", reason="FILE_NOT_ACCESSIBLE", path=path) from error
    except (_Broken, struct.error) as error:
        text = f"{path}: its {image_format or 'image'} header is broken: {error}"
        raise WrongState(text, reason="IMAGE_BROKEN", path=path) from error


class _Broken(Exception):
    """A header that QEMU would not take."""


def _is_storage(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _read(file: BinaryIO, image_format: str) -> Iterator[Reference]:
    head = _at(file, 0, _HEAD_BYTES)
    for name, (is_of, reader) in _READERS.items():
        if image_format in ("", name) and (is_of(head) or image_format == "vmdk"):  # else QEMU refuses it itself
            yield from reader(file, head)
            return


def _qcow(file: BinaryIO, head: bytes) -> Iterator[Reference]:
    offset, length = struct.unpack_from(">QI", head, 8)
    if name := _name(file, offset, length):
        yield Reference(Role.BACKING, name)


def _qcow2(file: BinaryIO, head: bytes) -> Iterator[Reference]:
    (version,) = struct.unpack_from(">I", head, 4)
    offset, length, cluster_bits = struct.unpack_from(">QII", head, 8)
    features, header_length = 0, 72
    if version >= 3:  # noqa: PLR2004 -- of the format
        (features,) = struct.unpack_from(">Q", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
    if not 9 <= cluster_bits <= 21:  # noqa: PLR2004 -- of the format
        raise _Broken(f"clusters of 2^{cluster_bits} bytes")
    end = offset or 1 << cluster_bits
    extensions = dict(_extensions(file, header_length, end))
    if name := _name(file, offset, length):
        yield Reference(Role.BACKING, name, extensions.get(_BACKING_FORMAT, ""))
    if features & _EXTERNAL_DATA:
        yield Reference(Role.DATA, extensions.get(_DATA_FILE, ""), "raw")


def _extensions(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, str]]:
    for _ in range(_MOST_EXTENSIONS):
        if start + 8 > end:
            return
        kind, length = struct.unpack(">II", _at(file, start, 8))
        if kind == 0:
            return
        if length > end - start - 8:
            raise _Broken("an extension ends outside of its header")
        if kind in (_BACKING_FORMAT, _DATA_FILE):
            if length > _LONGEST_EXTENSION:
                raise _Broken(f"a name of {length} bytes")
            yield kind, _text(_at(file, start + 8, length))
        start += 8 + (length + 7) // 8 * 8
    raise _Broken(f"more than {_MOST_EXTENSIONS} extensions")


def _qed(file: BinaryIO, head: bytes) -> Iterator[Reference]:
    (features,) = struct.unpack_from("<Q", head, 16)
    offset, length = struct.unpack_from("<II", head, 56)
    if features & _QED_BACKING and (name := _name(file, offset, length)):
        yield Reference(Role.BACKING, name, "raw" if features & _QED_BACKING_IS_RAW else "")


def _vmdk(file: BinaryIO, head: bytes) -> Iterator[Reference]:
    if not head.startswith(_VMDK_SPARSE):
        yield from _descriptor(_at(file, 0, _MOST_OF_A_DESCRIPTOR), names_extents=not head.startswith(_VMDK_OLD))
        return
    (capacity,) = struct.unpack_from("<Q", head, 12)
    first_sector, sector_count = struct.unpack_from("<QQ", head, 28)
    if first_sector:
        text = _at(file, first_sector * _SECTOR, min(sector_count * _SECTOR, _MOST_OF_A_DESCRIPTOR))
        yield from _descriptor(text, names_extents=capacity == 0)


def _descriptor(content: bytes, *, names_extents: bool) -> Iterator[Reference]:
    text = content.split(b"\0", 1)[0].decode(errors="surrogateescape")
    if found := _PARENT.search(text):
        yield Reference(Role.BACKING, found[1])
    if names_extents:
        for kind, name in _EXTENT.findall(text):
            yield Reference(Role.EXTENT, name, "raw" if kind in ("FLAT", "VMFS") else "vmdk")


def _name(file: BinaryIO, offset: int, length: int) -> str:
    if not offset or not length:
        return ""
    if length > _LONGEST_NAME:
        raise _Broken(f"a backing file name of {length} bytes")
    return _text(_at(file, offset, length))


def _text(content: bytes) -> str:
    """Return what QEMU, for which a name ends at a NUL, makes of it."""
    return os.fsdecode(content.split(b"\0", 1)[0])


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    return os.pread(file.fileno(), length, offset)


def _is_qed(head: bytes) -> bool:
    return head.startswith(_QED)


def _is_vmdk(head: bytes) -> bool:
    """Say so of a sparse one, or of a descriptor, as vmdk_probe() does."""
    return head.startswith((_VMDK_SPARSE, _VMDK_OLD)) or _LINES_BEFORE_A_DESCRIPTOR.match(head) is not None


def _is_version(*versions: int) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == _QCOW and len(head) >= 8 and struct.unpack_from(">I", head, 4)[0] in versions  # noqa: PLR2004


_READERS: Final[dict[str, tuple[Callable[[bytes], bool], Callable[[BinaryIO, bytes], Iterator[Reference]]]]] = {
    "qcow": (_is_version(1), _qcow),
    "qcow2": (_is_version(2, 3), _qcow2),
    "qed": (_is_qed, _qed),
    "vmdk": (_is_vmdk, _vmdk),
}
