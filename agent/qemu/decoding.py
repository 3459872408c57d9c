"""Strict reading of QMP replies: what we rely on must be there with its type, the rest may be anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from agent.qemu.errors import NotUnderstood

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def as_mapping(value: object, what: str) -> Mapping[str, object]:
    """Return `value` as a JSON object."""
    if not isinstance(value, dict):
        raise _unexpected(what, "an object", value)
    return cast("Mapping[str, object]", value)


def as_list(value: object, what: str) -> Sequence[object]:
    """Return `value` as a JSON array."""
    if not isinstance(value, list):
        raise _unexpected(what, "an array", value)
    return cast("Sequence[object]", value)


def as_str(value: object, what: str) -> str:
    """Return `value` as a string."""
    if not isinstance(value, str):
        raise _unexpected(what, "a string", value)
    return value


def as_int(value: object, what: str) -> int:
    """Return `value` as an integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unexpected(what, "an integer", value)
    return value


def as_bool(value: object, what: str) -> bool:
    """Return `value` as a boolean."""
    if not isinstance(value, bool):
        raise _unexpected(what, "a boolean", value)
    return value


def as_float(value: object, what: str) -> float:
    """Return `value` as a number; JSON writes a whole one without a point."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _unexpected(what, "a number", value)
    return float(value)


def get_str(mapping: Mapping[str, object], key: str) -> str:
    """Return the string that must be at `key`."""
    return as_str(mapping.get(key), key)


def get_int(mapping: Mapping[str, object], key: str) -> int:
    """Return the integer that must be at `key`."""
    return as_int(mapping.get(key), key)


def get_bool(mapping: Mapping[str, object], key: str) -> bool:
    """Return the boolean that must be at `key`."""
    return as_bool(mapping.get(key), key)


def get_float(mapping: Mapping[str, object], key: str) -> float:
    """Return the number that must be at `key`."""
    return as_float(mapping.get(key), key)


def find_str(mapping: Mapping[str, object], key: str) -> str | None:
    """Return the string at `key`, or None when there is none."""
    return as_str(mapping[key], key) if key in mapping else None


def find_int(mapping: Mapping[str, object], key: str) -> int | None:
    """Return the integer at `key`, or None when there is none."""
    return as_int(mapping[key], key) if key in mapping else None


def find_bool(mapping: Mapping[str, object], key: str) -> bool | None:
    """Return the boolean at `key`, or None when there is none."""
    return as_bool(mapping[key], key) if key in mapping else None


def _unexpected(what: str, wanted: str, value: object) -> NotUnderstood:
    found = "nothing" if value is None else f"{value!r:.80}"
    return NotUnderstood(f"QEMU's reply: {what} must be {wanted}, found {found}")
