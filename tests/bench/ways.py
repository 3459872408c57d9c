"""The ways that a benchmark moves its guest, each with the one that it is held against. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.bench import raw

RAW: Final = "raw"
PLAIN: Final = "Ferry plain"
RAW_PSK: Final = "raw PSK"
PSK: Final = "Ferry PSK"
RAW_PSK_DEFAULT: Final = "raw PSK, QEMU's default cipher"
RAW_PSK_4: Final = "raw PSK, 4 channels"
PSK_4: Final = "Ferry PSK, 4 channels"
TUNNEL: Final = "Ferry tunnel"
TUNNEL_4: Final = "Ferry tunnel, 4 channels"
RAW_POST_COPY: Final = "raw post-copy"
POST_COPY: Final = "Ferry post-copy"


@dataclass(frozen=True, slots=True)
class RawWay:
    """By QEMU alone.

    Attributes:
        options: how.
    """

    options: raw.Options


@dataclass(frozen=True, slots=True)
class FerryWay:
    """By Ferry.

    Attributes:
        options: words of `ferry migrate`.
        against: the way of QEMU alone that its total is divided by: the same encryption and channels where QEMU has such.
    """

    options: tuple[str, ...]
    against: str


WAYS: Final[dict[str, RawWay | FerryWay]] = {
    RAW: RawWay(raw.Options()),
    PLAIN: FerryWay(("--plain",), RAW),
    RAW_PSK: RawWay(raw.Options(is_encrypted=True)),
    PSK: FerryWay((), RAW_PSK),
    RAW_PSK_DEFAULT: RawWay(raw.Options(is_encrypted=True, priority="")),
    RAW_PSK_4: RawWay(raw.Options(is_encrypted=True, channel_count=4)),
    PSK_4: FerryWay(("--multifd", "4"), RAW_PSK_4),
    TUNNEL: FerryWay(("--tunnel",), RAW),
    TUNNEL_4: FerryWay(("--tunnel", "--multifd", "4"), RAW),
    RAW_POST_COPY: RawWay(raw.Options(is_post_copy=True)),
    POST_COPY: FerryWay(("--plain", "--postcopy", "immediately"), RAW_POST_COPY),
}
