"""Frozen dataclasses to JSON values and back, strictly.

The types are the schema: every field is written, every field without a default must be there when read, and nothing else may be,
unless the dataclass, or one around it, has a field of type `Unknown`: that keeps what a newer version of Ferry wrote. A dataclass
may add rules of its own in `__post_init__`; they hold for decoded values as for all others. Carried types: str, int, bool, float,
None, Enum (by value), UUID, Path, tuple[X, ...], dict[str, X], dataclasses, each of them or None, and object for any JSON value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from common.errors import Bug, InvalidRequest

_T = typing.TypeVar("_T")
_SCALARS = (str, int, bool, float)


class Unknown(dict[str, object]):
    """Fields that this version does not know, by name, those of dataclasses inside too; written back as they were.

    Not those of dataclasses in lists: what has changed there could not be told apart.
    """


class BadRecord(InvalidRequest):
    """A value does not have the shape of the type that it should be."""

    default_reason = "RECORD_MALFORMED"


def encode(value: object) -> object:
    """Turn a value of carried types into what `json.dumps` takes."""
    match value:
        case enum.Enum():
            return value.value
        case None | str() | int() | float():
            return value
        case UUID() | Path():
            return str(value)
        case tuple() | list():
            return [encode(item) for item in value]
        case dict():
            return {str(key): encode(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            encoded = {name: encode(one) for name, one in fields.items() if not isinstance(one, Unknown)}
            for kept in fields.values():
                if isinstance(kept, Unknown):
                    _add_unknown(encoded, kept)
            return encoded
        case _:
            raise Bug(f"cannot encode a {type(value).__name__}")


def encode_fields(value: object) -> dict[str, object]:
    """Turn a dataclass into a JSON object."""
    encoded = encode(value)
    if not isinstance(encoded, dict):
        raise Bug(f"a {type(value).__name__} is not a dataclass")
    return encoded


def decode(wanted: type[_T], value: object, *, where: str = "") -> _T:
    """Build a `wanted` from what `json.loads` gave.

    Raises:
        BadRecord: the value is not what `encode` makes of a `wanted`; the text names the field.
        InvalidRequest: the dataclass itself refuses the values.
    """
    decoded: _T = _decode(wanted, value, where or wanted.__name__, None)
    return decoded


def decode_what_can_be(wanted: type, value: Mapping[str, object]) -> dict[str, typing.Any]:
    """Return the fields of a dataclass that can be read, by name; of the others nothing is told."""
    read = {}
    for name, hint in _hints(wanted).items():
        if name in value and hint is not Unknown:
            with contextlib.suppress(InvalidRequest):
                read[name] = _decode(hint, value[name], name, Unknown())
    return read


def _add_unknown(encoded: dict[str, object], unknown: Mapping[str, object]) -> None:
    for name, value in unknown.items():
        known = encoded.setdefault(name, value)
        if known is not value and isinstance(known, dict) and isinstance(value, dict):
            _add_unknown(known, value)


def _decode(wanted: typing.Any, value: object, where: str, unknown: Unknown | None) -> typing.Any:  # the types are data here
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(wanted):
            return None
        (inner,) = [option for option in typing.get_args(wanted) if option is not type(None)]
        return _decode(inner, value, where, unknown)
    if origin is tuple:
        return _decode_tuple(typing.get_args(wanted)[0], value, where, unknown)
    if origin is dict:
        return _decode_dict(typing.get_args(wanted)[1], value, where, unknown)
    if dataclasses.is_dataclass(wanted):
        return _decode_dataclass(wanted, value, where, unknown)
    return _decode_scalar(wanted, value, where)


def _decode_tuple(item_type: typing.Any, value: object, where: str, unknown: Unknown | None) -> tuple[typing.Any, ...]:
    if not isinstance(value, list):
        raise _bad(where, "a list", value)
    return tuple(_decode(item_type, item, f"{where}[{index}]", _lost(unknown)) for index, item in enumerate(value))


def _decode_dict(item_type: typing.Any, value: object, where: str, unknown: Unknown | None) -> dict[str, typing.Any]:
    if not isinstance(value, dict):
        raise _bad(where, "an object", value)
    return {key: _decode(item_type, item, f"{where}.{key}", _lost(unknown)) for key, item in value.items()}


def _lost(unknown: Unknown | None) -> Unknown | None:
    return None if unknown is None else Unknown()


def _decode_dataclass(wanted: typing.Any, value: object, where: str, unknown: Unknown | None) -> typing.Any:
    if not isinstance(value, dict):
        raise _bad(where, "an object", value)
    hints = _hints(wanted)
    keeper = next((name for name, hint in hints.items() if hint is Unknown), None)
    hints = {name: hint for name, hint in hints.items() if hint is not Unknown}
    kept = Unknown() if keeper is not None else unknown
    if missing := sorted(hints.keys() - value.keys() - _defaulted(wanted)):
        raise BadRecord(f"{where}: no field {missing[0]!r}", where=where)
    foreign = sorted(value.keys() - hints.keys())
    if foreign and kept is None:
        raise BadRecord(f"{where}: unknown field {foreign[0]!r}", where=where)
    fields = {}
    for name in hints.keys() & value.keys():
        inside = _lost(kept)
        fields[name] = _decode(hints[name], value[name], f"{where}.{name}", inside)
        if kept is not None and inside:
            kept[name] = inside
    if kept is not None:
        kept.update((name, value[name]) for name in foreign)
    if keeper is not None:
        fields[keeper] = kept
    return wanted(**fields)


def _decode_scalar(wanted: typing.Any, value: object, where: str) -> typing.Any:
    if wanted is object:
        return value
    if wanted in _SCALARS:
        if type(value) is wanted:
            return value
        if wanted is float and type(value) is int:
            return float(value)
        raise _bad(where, f"a {wanted.__name__}", value)
    if not isinstance(value, str | int):
        raise _bad(where, f"a {wanted.__name__}", value)
    try:
        return wanted(value)  # Enum, UUID, Path
    except (ValueError, TypeError, AttributeError) as error:
        raise _bad(where, f"a {wanted.__name__}", value) from error


@functools.cache
def _defaulted(wanted: typing.Any) -> frozenset[str]:
    missing = dataclasses.MISSING
    return frozenset(
        field.name for field in dataclasses.fields(wanted) if (field.default, field.default_factory) != (missing, missing)
    )


@functools.cache
def _hints(wanted: typing.Any) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(wanted)
    return {field.name: hints[field.name] for field in dataclasses.fields(wanted)}


def _bad(where: str, expected: str, value: object) -> BadRecord:
    shown = repr(value)
    return BadRecord(f"{where}: {expected} is wanted, not {shown[:40]}", where=where)
