"""Channels to other processes of Ferry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import grpc

from common.identity import Identity
from common.rpc.address import check_plain_text_allowed
from common.rpc.tracing import client_interceptors

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str, identity: Identity | None, *, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
    """Open a channel to `host:port` or `unix:/path`; connecting happens with the first call.

    Args:
        address: where to.
        identity: this process's certificate; None for plain text, which is for loopback and UNIX sockets only.
        options: gRPC channel arguments beside ours.

    Raises:
        InvalidRequest: plain text to another host.
        WrongState: a certificate file cannot be read.
    """
    everything = (*options, *_OPTIONS)  # gRPC takes the first of two
    if identity is None or address.startswith("unix:"):
        check_plain_text_allowed(address)
        return grpc.aio.insecure_channel(address, options=everything, interceptors=client_interceptors())
    ca, certificate, key = identity.read()
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.aio.secure_channel(address, credentials, options=everything, interceptors=client_interceptors())
