"""Every figure that QEMU gives of a migration, as a table for people.

Pure: messages in, renderables out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.cli.plain import enum_name, seconds
from coordinator.cli.screen import pairs
from coordinator.cli.units import format_bytes, format_duration, format_rate
from ferry.common.v1 import means_pb2 as means_pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from ferry.common.v1 import figures_pb2 as figures_pb
    from ferry.common.v1 import migration_pb2 as common

_US_PER_S = 1_000_000
_MS_PER_S = 1000


def statistics_table(progress: common.Progress) -> RenderableType:
    """Show the figures of a transfer; those of means that were not used are left out."""
    return pairs([*_transfer(progress), *_figures(progress.figures), *_means(progress)])


def means_words(means: means_pb.Means) -> Iterator[str]:
    """Name the means that were wished for, each in a word or two."""
    if means.compression > means_pb.COMPRESSION_NONE:
        level = f" level {means.compression_level}" if means.HasField("compression_level") else ""
        yield f"{enum_name(means_pb.Compression.DESCRIPTOR, means.compression).lower()}{level}"
    if means.xbzrle_cache_bytes:
        yield f"xbzrle with {format_bytes(means.xbzrle_cache_bytes)}"
    if means.HasField("auto_converge"):
        yield "auto-converge"
    if means.zero_copy:
        yield "zero-copy"
    if means.switchover_bandwidth_bytes_per_second:
        yield f"{format_rate(means.switchover_bandwidth_bytes_per_second)} for the switch-over"
    if means.dirty_limit_bytes_per_second:
        yield f"at most {format_rate(means.dirty_limit_bytes_per_second)} dirtied"


def _transfer(progress: common.Progress) -> Iterator[tuple[str, str]]:
    yield "elapsed", format_duration(seconds(progress.elapsed))
    yield "setup", format_duration(seconds(progress.setup))
    yield "expected downtime", format_duration(seconds(progress.expected_downtime))
    yield "memory total", _size(progress.ram_total_bytes)
    yield "memory sent", _size(progress.ram_transferred_bytes)
    yield "memory remaining", _size(progress.ram_remaining_bytes)
    yield "throughput", format_rate(progress.bytes_per_second)
    yield "dirty rate", format_rate(progress.dirty_bytes_per_second)
    yield "dirty syncs", str(progress.pass_count)
    yield "normal pages", f"{progress.normal_page_count}, {_size(progress.figures.normal_bytes)}"
    yield "zero pages", str(progress.zero_page_count)


def _figures(figures: figures_pb.Figures) -> Iterator[tuple[str, str]]:
    if figures.HasField("skipped_page_count"):
        yield "skipped pages", str(figures.skipped_page_count)
    yield "page size", f"{figures.page_size_bytes} bytes"
    yield "pages per second", str(figures.pages_per_second)
    yield "sent before the stop", _size(figures.precopy_bytes)
    yield "sent during the stop", _size(figures.downtime_bytes)
    yield "sent after the stop", _size(figures.postcopy_bytes)
    yield "sent over multifd", _size(figures.multifd_bytes)
    yield "post-copy requests", str(figures.postcopy_request_count)
    yield "zero-copy missed", f"{figures.missed_zero_copy_count} syncs"


def _means(progress: common.Progress) -> Iterator[tuple[str, str]]:
    figures = progress.figures
    if progress.throttle_percent:
        yield "throttled", f"{progress.throttle_percent} %"
    if figures.HasField("vfio_bytes"):
        yield "sent of devices", _size(figures.vfio_bytes)
    if figures.HasField("xbzrle"):
        yield from _xbzrle(figures.xbzrle)
    if figures.HasField("dirty_limit_throttle_us"):
        yield "dirty-limit throttle", format_duration(figures.dirty_limit_throttle_us / _US_PER_S)
    if figures.HasField("dirty_limit_ring_full_us"):
        yield "dirty ring full after", format_duration(figures.dirty_limit_ring_full_us / _US_PER_S)
    if figures.HasField("blocktime_ms"):
        each = ", ".join(format_duration(span / _MS_PER_S) for span in figures.vcpu_blocktimes_ms)
        yield "vCPUs waited for pages", f"{format_duration(figures.blocktime_ms / _MS_PER_S)} all at once; each: {each or '-'}"


def _xbzrle(cache: figures_pb.XbzrleFigures) -> Iterator[tuple[str, str]]:
    yield "xbzrle cache", _size(cache.cache_size_bytes)
    yield "xbzrle sent", f"{cache.page_count} pages in {_size(cache.sent_bytes)}, encoding rate {cache.encoding_rate:.2f}"
    yield "xbzrle cache misses", f"{cache.cache_miss_count}, rate {cache.cache_miss_rate:.2f}"
    yield "xbzrle overflows", str(cache.overflow_count)


def _size(count: int) -> str:
    return f"{format_bytes(count)} ({count} bytes)"
