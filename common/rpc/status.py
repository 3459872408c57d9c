"""Errors to gRPC statuses and back: the one table.

An error travels as a status with ErrorInfo(reason, domain "ferry", metadata) in its details. Source:
google/rpc/error_details.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from common.errors import Bug, Busy, Expired, FerryError, InvalidRequest, NotFound, Unreachable, WrongState

DOMAIN: Final = "ferry"
# Other than ASCII takes three bytes a byte on the wire, and all of it goes twice.
MAX_TEXT_BYTES: Final = 2000
MAX_FACT_BYTES: Final = 200
_CODES: Final[dict[type[FerryError], grpc.StatusCode]] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    Busy: grpc.StatusCode.ABORTED,
    Unreachable: grpc.StatusCode.UNAVAILABLE,
    Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    Bug: grpc.StatusCode.INTERNAL,
}
_CATEGORIES: Final = {code: category for category, code in _CODES.items()}
_NOT_ALLOWED: Final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


def code_of(error: FerryError) -> grpc.StatusCode:
    """Return the code of an error's category."""
    return next((code for category, code in _CODES.items() if isinstance(error, category)), grpc.StatusCode.INTERNAL)


def status_of(error: FerryError) -> grpc.Status:
    """Return the status that tells of an error."""
    facts = {name: _shortened(value, MAX_FACT_BYTES) for name, value in error.facts.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    detail = AnyMessage()
    detail.Pack(info)
    number: int = code_of(error).value[0]
    text = _shortened(error.text, MAX_TEXT_BYTES)
    return rpc_status.to_status(status_pb2.Status(code=number, message=text, details=[detail]))


def _shortened(text: str, most_bytes: int) -> str:
    """Cut a text that quotes something endless: gRPC refuses a status of more than 16 KiB, and its reader would see only that."""
    content = text.encode()
    return text if len(content) <= most_bytes else f"{content[:most_bytes].decode(errors='ignore')} ..."


def error_of(call: grpc.aio.AioRpcError, peer: str) -> FerryError:  # noqa: PLR0911 - one line a code
    """Return the error that a status tells of.

    Args:
        call: what the call raised.
        peer: names the peer and its address, as `agent host-b at 192.0.2.2:7701`.
    """
    code, text = call.code(), call.details() or ""
    info = _info(call)
    category = _CATEGORIES.get(code)
    if info is not None and category is not None:
        return category(text, reason=info.reason, **_facts(info))
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(f"{peer} cannot be reached: {_plain(text)}", reason="PEER_UNREACHABLE", peer=peer)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Expired(f"{peer} did not answer in time", reason="PEER_SILENT", peer=peer)
    if code in _NOT_ALLOWED:
        return InvalidRequest(f"{peer}: {text}", reason="NOT_ALLOWED", peer=peer)
    if code is grpc.StatusCode.CANCELLED:
        return Unreachable(f"{peer} broke the call off", reason="PEER_UNREACHABLE", peer=peer)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return WrongState(f"{peer} does not know this call: it is of another version", reason="PEER_TOO_OLD", peer=peer)
    if category is not None and category is not Bug:
        return category(f"{peer}: {text}")
    return Bug(f"{peer}: {text or code.name}")


@contextmanager
def calls_to(peer: str) -> Iterator[None]:
    """Turn the failures of gRPC calls inside into our errors.

    Raises:
        FerryError: instead of grpc.aio.AioRpcError.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_of(error, peer) from error


def _info(call: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
    return None


def _facts(info: error_details_pb2.ErrorInfo) -> dict[str, object]:
    return {name: value for name, value in info.metadata.items() if name not in {"text", "reason"}}


# What gRPC says, any of these words in small letters, and what helps; the first that fits.
_PLAIN: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("hostname verification",), "its certificate is not for this address; issue one that names it (ferry pki issue)"),
    # gRPC's own time for connecting was over
    (("handshaker shutdown", "endpoint closing"), "no answer; is it stopped, or a firewall in the way?"),
    (("certificate has expired",), "its certificate has expired; renew it by `ferry pki issue` and restart it"),
    (
        ("certificate is not yet valid",),
        "its certificate is not valid yet by this machine's clock; set the clock of both, or issue a new one",
    ),
    (
        ("certificate", "ssl", "tls", "handshake", "verification"),
        "the certificates do not fit: one side has none, or one of another authority",
    ),
    (("refused",), "connection refused; is it running?"),
    (
        ("socket closed", "recvmsg", "connection reset"),
        "the connection was closed, or this side's certificate is missing or not accepted",
    ),
)


def _plain(text: str) -> str:
    """Cut gRPC's own words down to what helps."""
    lowered = text.lower()
    for words, plain in _PLAIN:
        if any(word in lowered for word in words):
            return plain
    return text.rpartition("Failed to connect to remote host: ")[2].rpartition("; last error: ")[2] or "no connection"
