"""Sizes, rates and times as people write and read them.

Pure. Parsing is strict: a number, a unit, nothing else; an error says what would have been right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "min": Fraction(60), "h": Fraction(3600)}
_NUMBER = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)(?P<unit>.*)", re.DOTALL)
_SHOWN_LENGTH = 40

MIN_BANDWIDTH_BYTES_PER_SECOND = 1024
MAX_BANDWIDTH_BYTES_PER_SECOND = 1024**4


@dataclass(frozen=True, slots=True)
class Range:
    """Times that are allowed, both ends included, with the words for them."""

    least_s: Fraction
    most_s: Fraction
    words: str


DOWNTIME = Range(Fraction(1, 1000), Fraction(2000), "1ms to 2000s")
STOP_TIMEOUT = Range(Fraction(1), Fraction(3600), "1s to 1h")
DURATION = Range(Fraction(1), Fraction(7 * 24 * 3600), "1s to 168h")
PATIENCE = Range(Fraction(1), Fraction(24 * 3600), "1s to 24h")


def parse_bandwidth(text: str) -> int:
    """Read a transfer rate as bytes per second; `0` stands for no bound.

    Raises:
        ValueError: it is not a number with a unit of bytes per second, or out of range.
    """
    if text == "0":
        return 0
    number, unit = _split(text, "a rate like 100MiB/s or 1.5GB/s, or 0 for no bound")
    if not unit.endswith("/s"):
        hint = f"{text}/s" if unit in _BYTES else f"{_plain(number)}MiB/s"
        raise ValueError(f"{_shown(text)} is not a rate per second: did you mean {hint}?")
    scale = _BYTES.get(unit.removesuffix("/s"))
    if scale is None:
        raise ValueError(
            f"{_shown(text)}: unit {_shown(unit)} is not known; rates are in bytes: B/s, KB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s"
        )
    bytes_per_second = round(number * scale)
    if bytes_per_second == 0:
        raise ValueError(f"{_shown(text)} is too slow; say 0 for no bound")
    if not MIN_BANDWIDTH_BYTES_PER_SECOND <= bytes_per_second <= MAX_BANDWIDTH_BYTES_PER_SECOND:
        raise ValueError(f"{_shown(text)} is out of range: 1KiB/s to 1TiB/s, or 0 for no bound")
    return bytes_per_second


def parse_duration(text: str, allowed: Range) -> Fraction:
    """Read a time in seconds, exactly.

    Raises:
        ValueError: it is not a number with a unit of time, or not in `allowed`.
    """
    number, unit = _split(text, "a time like 300ms or 2s")
    if not unit:
        raise ValueError(f"{_shown(text)} has no unit: did you mean {text}ms or {text}s?")
    scale = _SECONDS.get(unit)
    if scale is None:
        raise ValueError(f"{_shown(text)}: unit {_shown(unit)} is not known; times are in ms, s, min or h")
    duration_s = number * scale
    if not allowed.least_s <= duration_s <= allowed.most_s:
        raise ValueError(f"{_shown(text)} is out of range: {allowed.words}")
    return duration_s


def _split(text: str, wanted: str) -> tuple[Fraction, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{_shown(text)} is not {wanted}")
    return Fraction(match["number"]), match["unit"]


def _shown(text: str) -> str:
    shown = text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."
    return f"'{shown}'" if shown.isprintable() else repr(shown)


def _plain(number: Fraction) -> str:
    return f"{float(number):g}"


def format_bytes(size_bytes: float) -> str:
    """Write a size with three significant digits or more: `512 MiB`, `1.38 GiB`."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1000:  # noqa: PLR2004 -- three digits before the point, as people read them
            return f"{size:.0f} {unit}" if unit == "B" else f"{_three_digits(size)} {unit}"
        size /= 1024
    return f"{_three_digits(size)} TiB"


def format_rate(bytes_per_second: float) -> str:
    """Write a rate: `118 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_duration(duration_s: float) -> str:
    """Write a time with three significant digits: `4.21 ms`, `12.3 s`, `2 min 05 s`."""
    if duration_s < 0:
        return f"-{format_duration(-duration_s)}"
    if duration_s < 0.9995e-3:  # noqa: PLR2004 -- what three digits would round up to 1 ms
        return f"{duration_s * 1e6:.0f} µs" if duration_s > 0 else "0 s"
    if duration_s < 0.9995:  # noqa: PLR2004 -- what three digits would round up to 1 s
        return f"{_three_digits(duration_s * 1e3)} ms"
    if duration_s < 99.95:  # noqa: PLR2004 -- what three digits would round up to 100 s
        return f"{_three_digits(duration_s)} s"
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _three_digits(number: float) -> str:
    if abs(number) >= 99.95:  # noqa: PLR2004 -- rounds to three digits before the point
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(number) >= 9.995 else f"{number:.2f}"  # noqa: PLR2004 -- likewise with two
