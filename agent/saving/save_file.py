"""The file that holds a saved guest: what it says, and whether each of its bytes is what was written.

    0       magic, version, length of the JSON header, SHA-256 of these and of the JSON header
    52      JSON header: definition, state before, QEMU version, format, length and SHA-256 of the contents
    ...     zeros
    65536   contents, as QEMU wrote them; the file ends with them

QEMU writes the contents first, from `CONTENTS_OFFSET` on; `seal` writes the header when they are complete, so a file
that was not finished begins with zeros. QEMU restores a file with a flipped byte, or without its last 100, as
`completed`, so `verify` reads every byte. All functions block: call them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

from common.errors import InvalidRequest, WrongState
from common.foreign_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    OnBlock = Callable[[int, int], None]

MAGIC = b"FERRYSAV"
VERSION = 1
CONTENTS_OFFSET = 65536

StateBefore = Literal["running", "paused"]
Format = Literal["stream", "mapped-ram"]

_PREFIX = struct.Struct(">8sII")  # magic, version, length of the JSON header in bytes
_BLOCK_BYTES = 1 << 22
_DIGEST_BYTES = hashlib.sha256().digest_size
_JSON_OFFSET = _PREFIX.size + _DIGEST_BYTES
_MAX_JSON_BYTES = CONTENTS_OFFSET - _JSON_OFFSET
_STATES = frozenset(get_args(StateBefore))
_FORMATS = frozenset(get_args(Format))


@dataclass(frozen=True, slots=True)
class SavedGuest:
    """What is known about a guest when it is saved."""

    definition: Mapping[str, object]
    state_before: StateBefore
    qemu_version: str
    format: Format


@dataclass(frozen=True, slots=True)
class Header:
    """What a finished file says of itself."""

    guest: SavedGuest
    contents_bytes: int
    contents_sha256: str


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    """Nobody wants to know."""


def seal(file: BinaryIO, guest: SavedGuest, on_block: OnBlock = _ignore) -> Header:
    """Hash the contents that QEMU wrote and put the header before them; both are durable on return.

    Args:
        file: open for reading and writing, contents from `CONTENTS_OFFSET` to its end.
        guest: goes into the header.
        on_block: called with bytes read and bytes in all; what it raises ends the reading.

    Raises:
        InvalidRequest: the definition is too large for the header.
        WrongState: there are no contents.
    """
    contents_bytes = file.seek(0, os.SEEK_END) - CONTENTS_OFFSET
    if contents_bytes <= 0:
        raise WrongState("the save has no contents: QEMU wrote nothing", reason="SAVE_EMPTY")
    header = Header(guest, contents_bytes, _hash_contents(file, contents_bytes, on_block))
    text = json.dumps(asdict(header), sort_keys=True).encode()
    if len(text) > _MAX_JSON_BYTES:
        raise InvalidRequest(
            f"the definition makes a header of {len(text)} bytes, {_MAX_JSON_BYTES} is the most",
            reason="SAVE_HEADER_TOO_LONG",
            length_bytes=len(text),
        )
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text))
    file.seek(0)
    file.write((prefix + hashlib.sha256(prefix + text).digest() + text).ljust(CONTENTS_OFFSET, b"\0"))
    file.flush()
    os.fsync(file.fileno())
    return header


def verify(file: BinaryIO, path: Path, on_block: OnBlock = _ignore) -> Header:
    """Read a file to its end and return its header, if each byte is the one that was written.

    Raises:
        InvalidRequest: it is not a file of ours, not finished, truncated, longer than it was, or damaged.
    """
    header = read_header(file, path)
    found_bytes = file.seek(0, os.SEEK_END) - CONTENTS_OFFSET
    if found_bytes != header.contents_bytes:
        raise _damaged(path, f"{found_bytes} bytes of contents, {header.contents_bytes} were saved")
    if _hash_contents(file, found_bytes, on_block) != header.contents_sha256:
        raise _damaged(path, "the checksum of the contents differs")
    return header


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read what a file says of itself; the contents are not looked at.

    Raises:
        InvalidRequest: it is not a file of ours, of another version, not finished, or its header is damaged.
    """
    file.seek(0)
    head = file.read(CONTENTS_OFFSET)
    if not head.startswith(MAGIC):
        raise InvalidRequest(
            f"{path} is not a finished save of `ferry vm save`: it begins with {head[: len(MAGIC)]!r}",
            reason="SAVE_FILE_FOREIGN",
            path=path,
        )
    if len(head) < CONTENTS_OFFSET:
        raise _damaged(path, f"{len(head)} bytes, the header alone has {CONTENTS_OFFSET}")
    _, version, json_bytes = _PREFIX.unpack_from(head)
    if version != VERSION:
        raise InvalidRequest(
            f"{path}: save file version {version}, this agent reads version {VERSION}",
            reason="SAVE_FILE_VERSION",
            path=path,
            version=version,
        )
    text = head[_JSON_OFFSET : _JSON_OFFSET + json_bytes]
    digest = hashlib.sha256(head[: _PREFIX.size] + text).digest()
    if digest != head[_PREFIX.size : _JSON_OFFSET] or any(head[_JSON_OFFSET + json_bytes :]):
        raise _damaged(path, "the checksum of the header differs")
    return _decode(text, path)


def _decode(text: bytes, path: Path) -> Header:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _damaged(path, "its header is not JSON") from error
    match content:
        case {
            "guest": {
                "definition": dict(definition),
                "state_before": str(state_before),
                "qemu_version": str(qemu_version),
                "format": str(contents_format),
            },
            "contents_bytes": int(contents_bytes),
            "contents_sha256": str(contents_sha256),
        } if state_before in _STATES and contents_format in _FORMATS:
            guest = SavedGuest(definition, state_before, qemu_version, contents_format)  # type: ignore[arg-type]
            return Header(guest, contents_bytes, contents_sha256)
        case _:
            raise _damaged(path, "the header lacks a field or has an unknown value")


def _hash_contents(file: BinaryIO, total_bytes: int, on_block: OnBlock) -> str:
    digest = hashlib.sha256()
    done_bytes = 0
    file.seek(CONTENTS_OFFSET)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        done_bytes += len(block)
        on_block(done_bytes, total_bytes)
    return digest.hexdigest()


def _damaged(path: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path} is damaged: {what}", reason="SAVE_FILE_DAMAGED", path=path)
