"""The figures that QEMU gives of a migration beside its state. Pure decoding.

Source: qapi/migration.json, `MigrationStats`, `XBZRLECacheStats` and `MigrationInfo` of QEMU 7.2 and 10.0. What a version does not
give, or gives only where a means is used, is None. `compression` belongs to the capability `compress`, which Ferry leaves off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.qemu.decoding import as_int, as_list, as_mapping, find_int, get_float, get_int

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class XbzrleFigures:
    """What xbzrle did.

    Attributes:
        sent_bytes, page_count: sent as differences.
        cache_miss_rate: of the pages looked for, between two passes.
        encoding_rate: bytes of pages for a byte sent.
        overflow_count: pages that had changed too much.
    """

    cache_size_bytes: int
    sent_bytes: int
    page_count: int
    cache_miss_count: int
    cache_miss_rate: float
    encoding_rate: float
    overflow_count: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What a migration did so far.

    Attributes:
        skipped_page_count: only before QEMU 8.1.
        precopy_bytes, downtime_bytes, postcopy_bytes: sent before, while and after the guest changed hands.
        missed_zero_copy_count: passes in which the kernel copied although it had been asked not to.
        dirty_limit_throttle_us, dirty_limit_ring_full_us: with dirty-limit; microseconds.
        blocktime_ms, vcpu_blocktimes_ms: at the destination of a post-copy; how long vCPUs waited for pages, all at once and each.
    """

    skipped_page_count: int | None = None
    normal_bytes: int = 0
    page_size_bytes: int = 0
    pages_per_second: int = 0
    multifd_bytes: int = 0
    precopy_bytes: int = 0
    downtime_bytes: int = 0
    postcopy_bytes: int = 0
    postcopy_request_count: int = 0
    missed_zero_copy_count: int = 0
    vfio_bytes: int | None = None
    xbzrle: XbzrleFigures | None = None
    dirty_limit_throttle_us: int | None = None
    dirty_limit_ring_full_us: int | None = None
    blocktime_ms: int | None = None
    vcpu_blocktimes_ms: tuple[int, ...] = ()


def decode_figures(reply: Mapping[str, object]) -> Figures:
    """Decode the figures in an answer to `query-migrate`."""
    ram = as_mapping(reply.get("ram", {}), "ram")
    blocktimes = as_list(reply.get("postcopy-vcpu-blocktime", []), "postcopy-vcpu-blocktime")
    return Figures(
        **_ram(ram) if ram else {},
        vfio_bytes=get_int(as_mapping(reply["vfio"], "vfio"), "transferred") if "vfio" in reply else None,
        xbzrle=_xbzrle(as_mapping(reply["xbzrle-cache"], "xbzrle-cache")) if "xbzrle-cache" in reply else None,
        dirty_limit_throttle_us=find_int(reply, "dirty-limit-throttle-time-per-round"),
        dirty_limit_ring_full_us=find_int(reply, "dirty-limit-ring-full-time"),
        blocktime_ms=find_int(reply, "postcopy-blocktime"),
        vcpu_blocktimes_ms=tuple(as_int(entry, "postcopy-vcpu-blocktime") for entry in blocktimes),
    )


def _ram(ram: Mapping[str, object]) -> dict[str, int]:
    figures = {
        "normal_bytes": get_int(ram, "normal-bytes"),
        "page_size_bytes": get_int(ram, "page-size"),
        "pages_per_second": get_int(ram, "pages-per-second"),
        "multifd_bytes": get_int(ram, "multifd-bytes"),
        "precopy_bytes": get_int(ram, "precopy-bytes"),
        "downtime_bytes": get_int(ram, "downtime-bytes"),
        "postcopy_bytes": get_int(ram, "postcopy-bytes"),
        "postcopy_request_count": get_int(ram, "postcopy-requests"),
        "missed_zero_copy_count": get_int(ram, "dirty-sync-missed-zero-copy"),
    }
    return figures | ({"skipped_page_count": get_int(ram, "skipped")} if "skipped" in ram else {})


def _xbzrle(cache: Mapping[str, object]) -> XbzrleFigures:
    return XbzrleFigures(
        cache_size_bytes=get_int(cache, "cache-size"),
        sent_bytes=get_int(cache, "bytes"),
        page_count=get_int(cache, "pages"),
        cache_miss_count=get_int(cache, "cache-miss"),
        cache_miss_rate=get_float(cache, "cache-miss-rate"),
        encoding_rate=get_float(cache, "encoding-rate"),
        overflow_count=get_int(cache, "overflow"),
    )
