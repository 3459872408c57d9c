"""The frames of a Relay stream, encoded by hand so that data is not copied through protobuf objects. Pure.

What leaves here is valid protobuf: each frame is a RelayRequest or RelayResponse with its one field set. Both have the same
numbers: 1 is the first frame (Open, Opened), 2 is data, 3 is half_close. Source: protos/ferry/tunnel/v1/tunnel_service.proto and
the protobuf encoding guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from common.errors import InvalidRequest
from ferry.tunnel.v1 import tunnel_service_pb2 as pb

_FIRST_TAG: Final = 0x0A  # field 1, length-delimited
_DATA_TAG: Final = 0x12
_HALF_CLOSE_TAG: Final = 0x1A
HALF_CLOSE: Final = bytes((_HALF_CLOSE_TAG, 0))
OPENED: Final = bytes((_FIRST_TAG, 0))
HEADER_LIMIT_BYTES: Final = 6
_VARINT_BITS: Final = 7
_VARINT_MORE: Final = 0x80


@dataclass(frozen=True, slots=True)
class First:
    """The first frame of a direction; its content is a protobuf message."""

    content: bytes


@dataclass(frozen=True, slots=True)
class HalfClose:
    """No more data in this direction."""


Frame: TypeAlias = First | HalfClose | memoryview


def encode_data(data: bytes | memoryview) -> bytes:
    """Return the frame for some bytes."""
    return b"".join((_header(len(data)), data))


def encode_open(token: str, ordinal: int) -> bytes:
    """Return the frame that names session and connection."""
    return pb.RelayRequest(open=pb.Open(token=token, ordinal=ordinal)).SerializeToString()


def decode_open(frame: First) -> pb.Open:
    """Return what the first frame of a request stream names.

    Raises:
        InvalidRequest: it is not an Open.
    """
    try:
        return pb.Open.FromString(frame.content)
    except DecodeError as error:
        raise InvalidRequest(f"relay: the first frame is not an Open: {error}", reason="FRAME_INVALID") from error


def decode(message: bytes) -> Frame:
    """Return what a message holds; data is a view into it.

    Raises:
        InvalidRequest: it is not exactly one frame.
    """
    if not message:
        raise InvalidRequest("relay: an empty frame", reason="FRAME_INVALID")
    length, start = _varint(message)
    if start + length != len(message):
        raise InvalidRequest(f"relay: a frame of {len(message)} bytes says {start + length}", reason="FRAME_INVALID")
    match message[0]:
        case 0x12:
            return memoryview(message)[start:]
        case 0x0A:
            return First(message[start:])
        case 0x1A:
            return HalfClose()
        case tag:
            raise InvalidRequest(f"relay: a frame with tag {tag:#x}", reason="FRAME_INVALID")


def _header(length: int) -> bytes:
    header = bytearray((_DATA_TAG,))
    while length >= _VARINT_MORE:
        header.append(length & (_VARINT_MORE - 1) | _VARINT_MORE)
        length >>= _VARINT_BITS
    header.append(length)
    return bytes(header)


def _varint(message: bytes) -> tuple[int, int]:
    """Return the varint after the tag, and where it ends."""
    value = 0
    for position in range(1, min(len(message), HEADER_LIMIT_BYTES)):
        byte = message[position]
        value |= (byte & (_VARINT_MORE - 1)) << (_VARINT_BITS * (position - 1))
        if byte < _VARINT_MORE:
            return value, position + 1
    raise InvalidRequest("relay: a frame whose length does not end", reason="FRAME_INVALID")
