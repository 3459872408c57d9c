"""The means of a RAM migration as options of `ferry migrate`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from coordinator.cli import units
from coordinator.cli.options import Misused, Switch, bandwidth_of, one_value, whole_number
from ferry.common.v1 import means_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

MEANS = Group("Means of the transfer", sort_key=20)
_PERCENT = (1, 99)


class Compression(Enum):
    """How multifd channels compress; what both QEMUs know of these can be had."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"
    QPL = "qpl"
    UADK = "uadk"
    QATZIP = "qatzip"


_LEVELS = {Compression.ZLIB: (0, 9), Compression.ZSTD: (0, 20), Compression.QATZIP: (1, 9)}


def size_of(_: object, tokens: Sequence[Token]) -> int:
    """Convert an option to bytes."""
    return units.parse_size(tokens[0].value)


def _rate(name: str, text: str) -> Parameter:
    return one_value("RATE", bandwidth_of, text, name=name, show_default=False)


def _percent(name: str, text: str) -> Parameter:
    return Parameter(name=name, metavar="PERCENT", show_default=False, converter=whole_number, help=text)


@Parameter(name="*", group=MEANS)
@dataclass(frozen=True, slots=True)
class MeansWishes:
    """How memory is to be sent."""

    compression: Annotated[Compression, Parameter(help="How multifd channels compress; needs --multifd.")] = Compression.NONE
    compression_level: Annotated[
        int | None,
        Parameter(
            metavar="N", show_default=False, converter=whole_number, help="Of zlib 0 to 9, zstd 0 to 20, qatzip 1 to 9; usually 1."
        ),
    ] = None
    xbzrle_cache: Annotated[
        int,
        one_value(
            "SIZE",
            size_of,
            "Send what changed of a page, with a cache of this size, a power of two as 64MiB; without multifd only.",
            show_default=False,
        ),
    ] = 0
    auto_converge: Annotated[Switch, Parameter(help="Slow the guest's vCPUs when it dirties memory faster than it is sent.")] = (
        False
    )
    throttle_initial: Annotated[
        int | None, _percent("--throttle-initial", "What auto-converge takes at first, 1 to 99; usually 20.")
    ] = None
    throttle_increment: Annotated[int | None, _percent("--throttle-increment", "What it adds each time, 1 to 99; usually 10.")] = (
        None
    )
    throttle_max: Annotated[int | None, _percent("--throttle-max", "Never more than this, up to 99; usually 99.")] = None
    zero_copy: Annotated[Switch, Parameter(help="Let the kernel send without a copy; needs --multifd and --plain.")] = False
    switchover_bandwidth: Annotated[
        int | None,
        _rate("--switchover-bandwidth", "What to reckon with for the last pass, as 1GiB/s; needs QEMU 8.2 on both hosts."),
    ] = None
    dirty_limit: Annotated[
        int | None,
        _rate(
            "--dirty-limit", "How much a vCPU may dirty, at least 1MiB/s; needs QEMU 8.1 on both hosts, and KVM with a dirty ring."
        ),
    ] = None

    def message(self, *, has_multifd: bool, is_plain: bool) -> pb.Means | None:
        """Turn the wishes into a message; None without any.

        Args:
            has_multifd: whether there are multifd channels.
            is_plain: whether memory is sent unencrypted, directly.

        Raises:
            Misused: they are out of range, exclude each other, or one lacks what it needs.
        """
        self._check()
        self._check_needs(has_multifd=has_multifd, is_plain=is_plain)
        message = pb.Means(
            compression_level=self.compression_level,
            xbzrle_cache_bytes=self.xbzrle_cache,
            zero_copy=self.zero_copy,
            switchover_bandwidth_bytes_per_second=self.switchover_bandwidth or 0,
            dirty_limit_bytes_per_second=self.dirty_limit or 0,
        )
        if self.compression is not Compression.NONE:
            message.compression = pb.Compression.Value(f"COMPRESSION_{self.compression.name}")
        if self.auto_converge:
            message.auto_converge.CopyFrom(
                pb.AutoConverge(
                    initial_percent=self.throttle_initial or 0,
                    increment_percent=self.throttle_increment or 0,
                    max_percent=self.throttle_max or 0,
                )
            )
        return None if self == NO_MEANS else message

    def _check_needs(self, *, has_multifd: bool, is_plain: bool) -> None:
        if self.compression is not Compression.NONE and not has_multifd:
            raise Misused(f"--compression {self.compression.value} needs --multifd")
        if self.zero_copy and not (has_multifd and is_plain):
            raise Misused("--zero-copy needs --multifd and --plain")
        if self.zero_copy and self.compression is not Compression.NONE:
            raise Misused("--zero-copy and --compression exclude each other")
        if self.xbzrle_cache and has_multifd:
            raise Misused("--xbzrle-cache and --multifd exclude each other")
        if self.auto_converge and self.dirty_limit:
            raise Misused("--auto-converge and --dirty-limit exclude each other")

    def _check(self) -> None:
        throttles = {
            "--throttle-initial": self.throttle_initial,
            "--throttle-increment": self.throttle_increment,
            "--throttle-max": self.throttle_max,
        }
        for name, value in throttles.items():
            if value is None:
                continue
            if not self.auto_converge:
                raise Misused(f"{name} is for --auto-converge")
            _check(name, value, _PERCENT)
        if self.compression_level is not None:
            if self.compression not in _LEVELS:
                raise Misused(f"--compression-level is for --compression zlib, zstd or qatzip, not {self.compression.value}")
            _check(f"--compression-level of {self.compression.value}", self.compression_level, _LEVELS[self.compression])


def _check(name: str, value: int, allowed: tuple[int, int]) -> None:
    least, most = allowed
    if not least <= value <= most:
        raise Misused(f"{name} {value} is out of range: {least} to {most}")


NO_MEANS = MeansWishes()
