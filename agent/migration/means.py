"""The means of a RAM migration that a user may wish for, what they need of QEMU, and which exclude each other. Pure.

Source of ranges and of the table: `migrate_params_check` and `migrate_caps_check` of QEMU 7.2 and 10.0, each pair tried on both
(tests/contract/test_means.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from common.errors import InvalidRequest

MIB: Final = 1 << 20
XBZRLE_CACHE_BYTES: Final = (4096, 1 << 40)
PERCENT: Final = (1, 99)
SWITCHOVER_BANDWIDTH: Final = (1024, 1 << 40)
DIRTY_LIMIT: Final = (MIB, 1 << 40)


class Compression(Enum):
    """How multifd channels compress; the values are QEMU's."""

    NONE = "none"
    ZLIB = "zlib"
    ZSTD = "zstd"
    QPL = "qpl"
    UADK = "uadk"
    QATZIP = "qatzip"


USUAL_LEVEL: Final = 1
LEVELS: Final[Mapping[Compression, tuple[int, int]]] = {
    Compression.ZLIB: (0, 9),
    Compression.ZSTD: (0, 20),
    Compression.QATZIP: (1, 9),
}


@dataclass(frozen=True, slots=True)
class AutoConverge:
    """How QEMU slows the vCPUs of a guest that dirties memory faster than it is sent; percent of their time.

    Attributes:
        initial: what is taken at first, `increment`: added each time that it did not suffice, `most`: never more.
    """

    initial: int = 20
    increment: int = 10
    most: int = 99

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("throttle-initial", self.initial), ("throttle-increment", self.increment)):
            _check(name, value, PERCENT, "percent")
        _check("throttle-max", self.most, (self.initial, PERCENT[1]), "percent, from throttle-initial on,")

    def parameters(self) -> dict[str, object]:
        """Return QEMU's parameters."""
        return {
            "cpu-throttle-initial": self.initial,
            "cpu-throttle-increment": self.increment,
            "max-cpu-throttle": self.most,
        }


@dataclass(frozen=True, slots=True)
class Means:
    """What the user wishes of QEMU's RAM migration.

    Attributes:
        compression_level: None leaves QEMU's default, which is 1.
        xbzrle_cache_bytes: 0 is without xbzrle.
        switchover_bandwidth_bytes_per_second: what QEMU reckons with for the last pass; 0 lets it measure.
        dirty_limit_bytes_per_second: how much memory a vCPU may dirty; 0 is without a limit.
    """

    compression: Compression = Compression.NONE
    compression_level: int | None = None
    xbzrle_cache_bytes: int = 0
    auto_converge: AutoConverge | None = None
    zero_copy: bool = False
    switchover_bandwidth_bytes_per_second: int = 0
    dirty_limit_bytes_per_second: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self._check_level()
        cache = self.xbzrle_cache_bytes
        if cache:
            _check("xbzrle-cache", cache, XBZRLE_CACHE_BYTES, "bytes")
        if cache & (cache - 1):
            raise InvalidRequest(f"xbzrle-cache: {cache} bytes; a power of two is wanted", reason="OPTION_OUT_OF_RANGE")
        if self.switchover_bandwidth_bytes_per_second:
            _check("switchover-bandwidth", self.switchover_bandwidth_bytes_per_second, SWITCHOVER_BANDWIDTH, "bytes per second")
        if self.dirty_limit_bytes_per_second:
            _check("dirty-limit", self.dirty_limit_bytes_per_second, DIRTY_LIMIT, "bytes per second")

    def _check_level(self) -> None:
        level = self.compression_level
        if level is None:
            return
        if self.compression not in LEVELS:
            raise InvalidRequest(
                f"compression-level {level}: compression {self.compression.value} has no levels; "
                f"{', '.join(one.value for one in LEVELS)} have",
                reason="OPTIONS_CONFLICT",
            )
        _check(f"compression-level of {self.compression.value}", level, LEVELS[self.compression], "")

    @property
    def level_parameter(self) -> str:
        """QEMU's name of the compression's level."""
        return f"multifd-{self.compression.value}-level"

    def needs(self) -> tuple[str, ...]:
        """Return QEMU's names of what both sides have to know, see `means_check`."""
        names = {
            "xbzrle": bool(self.xbzrle_cache_bytes),
            "auto-converge": self.auto_converge is not None,
            "zero-copy-send": self.zero_copy,
            "dirty-limit": bool(self.dirty_limit_bytes_per_second),
            "avail-switchover-bandwidth": bool(self.switchover_bandwidth_bytes_per_second),
            f"multifd-compression={self.compression.value}": self.compression is not Compression.NONE,
        }
        return tuple(name for name, is_wished in names.items() if is_wished)

    def capabilities(self) -> tuple[str, ...]:
        """Return the capabilities to be set."""
        return tuple(name for name in self.needs() if name in _CAPABILITIES)

    def parameters(self) -> dict[str, object]:
        """Return the parameters to be set beside the capabilities, on both sides."""
        found: dict[str, object] = {"multifd-compression": self.compression.value}
        if self.compression in LEVELS:
            found[self.level_parameter] = USUAL_LEVEL if self.compression_level is None else self.compression_level
        if self.xbzrle_cache_bytes:
            found["xbzrle-cache-size"] = self.xbzrle_cache_bytes
        if self.auto_converge is not None:
            found |= self.auto_converge.parameters()
        if self.dirty_limit_bytes_per_second:
            found["vcpu-dirty-limit"] = self.dirty_limit_bytes_per_second // MIB
        return found

    def optional_parameters(self) -> dict[str, object]:
        """Return the parameters to be set where QEMU knows them, so that none of an earlier migration stays."""
        return {"avail-switchover-bandwidth": self.switchover_bandwidth_bytes_per_second}


_CAPABILITIES: Final = frozenset({"xbzrle", "auto-converge", "zero-copy-send", "dirty-limit"})

CONFLICTS: Final[Mapping[frozenset[str], str]] = {
    frozenset({"multifd", "xbzrle"}): "xbzrle works on one channel only",
    frozenset({"auto-converge", "dirty-limit"}): "both slow the vCPUs, and every policy but safe may use auto-converge",
    frozenset({"zero-copy-send", "compression"}): "what is compressed is a copy",
    frozenset({"zero-copy-send", "tls"}): "what is encrypted is a copy; plain is wanted",
    frozenset({"zero-copy-send", "tunnel"}): "the tunnel copies",
    frozenset({"zero-copy-send", "xbzrle"}): "zero-copy works over multifd channels only, and xbzrle on one channel only",
}
"""What excludes each other, and why."""

NEEDED: Final[Mapping[str, str]] = {"zero-copy-send": "multifd", "compression": "multifd"}
"""What has no effect, or is refused by QEMU, without another one."""

_OPTION_NAMES: Final = {"zero-copy-send": "zero-copy", "tls": "encryption"}


def refuse_conflicts(wished: frozenset[str]) -> None:
    """Refuse what QEMU would refuse, or silently not do.

    Args:
        wished: of the words in `CONFLICTS`.

    Raises:
        InvalidRequest: two exclude each other, or one lacks what it needs.
    """
    for pair, why in CONFLICTS.items():
        if pair <= wished:
            names = " and ".join(sorted(_OPTION_NAMES.get(name, name) for name in pair))
            raise InvalidRequest(f"{names} exclude each other: {why}", reason="OPTIONS_CONFLICT")
    for name, needed in NEEDED.items():
        if name in wished and needed not in wished:
            raise InvalidRequest(f"{_OPTION_NAMES.get(name, name)} needs {needed} channels", reason="OPTIONS_CONFLICT")


def _check(name: str, value: int, allowed: tuple[int, int], unit: str) -> None:
    least, most = allowed
    if not least <= value <= most:
        raise InvalidRequest(
            f"{name}: {value}{' ' if unit else ''}{unit} is out of range; {least} to {most} are possible",
            reason="OPTION_OUT_OF_RANGE",
            option=name,
            value=value,
        )
