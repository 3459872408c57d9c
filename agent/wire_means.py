"""Means and figures of a RAM migration, protobuf to the agent's own types and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from agent.migration.means import AutoConverge, Compression, Means
from agent.qemu.figures import Figures
from common.errors import InvalidRequest
from ferry.common.v1 import figures_pb2, means_pb2

_COMPRESSIONS: Final = {
    means_pb2.COMPRESSION_UNSPECIFIED: Compression.NONE,
    **{means_pb2.Compression.Value(f"COMPRESSION_{one.name}"): one for one in Compression},
}
_NUMBERS: Final = {one: number for number, one in _COMPRESSIONS.items() if number}


def means(message: means_pb2.Means) -> Means:
    """Decode how memory is to be sent.

    Raises:
        InvalidRequest: a value is unknown or out of range.
    """
    if message.compression not in _COMPRESSIONS:
        raise InvalidRequest(
            f"means.compression {message.compression} is unknown; 0 to {max(_COMPRESSIONS)} are known", reason="COMPRESSION_UNKNOWN"
        )
    return Means(
        compression=_COMPRESSIONS[message.compression],
        compression_level=message.compression_level if message.HasField("compression_level") else None,
        xbzrle_cache_bytes=message.xbzrle_cache_bytes,
        auto_converge=_auto_converge(message.auto_converge) if message.HasField("auto_converge") else None,
        zero_copy=message.zero_copy,
        switchover_bandwidth_bytes_per_second=message.switchover_bandwidth_bytes_per_second,
        dirty_limit_bytes_per_second=message.dirty_limit_bytes_per_second,
    )


def _auto_converge(message: means_pb2.AutoConverge) -> AutoConverge:
    usual = AutoConverge()
    return AutoConverge(
        initial=message.initial_percent or usual.initial,
        increment=message.increment_percent or usual.increment,
        most=message.max_percent or usual.most,
    )


def means_message(value: Means) -> means_pb2.Means:
    """Encode how memory is to be sent."""
    message = means_pb2.Means(
        compression=_NUMBERS[value.compression],
        compression_level=value.compression_level,
        xbzrle_cache_bytes=value.xbzrle_cache_bytes,
        zero_copy=value.zero_copy,
        switchover_bandwidth_bytes_per_second=value.switchover_bandwidth_bytes_per_second,
        dirty_limit_bytes_per_second=value.dirty_limit_bytes_per_second,
    )
    if value.auto_converge is not None:
        slow = value.auto_converge
        message.auto_converge.CopyFrom(
            means_pb2.AutoConverge(initial_percent=slow.initial, increment_percent=slow.increment, max_percent=slow.most)
        )
    return message


def figures(value: Figures) -> figures_pb2.Figures:
    """Encode QEMU's figures; the fields have one name on both sides."""
    fields = {name: given for name, given in asdict(value).items() if name != "xbzrle"}
    message = figures_pb2.Figures(**fields)
    if value.xbzrle is not None:
        message.xbzrle.CopyFrom(figures_pb2.XbzrleFigures(**asdict(value.xbzrle)))
    return message
