"""Frozen dataclasses to JSON values and back, strictly.

The types are the schema: every field is written, every field must be there when read, and nothing else may be. A
dataclass may add rules of its own in `__post_init__`; they hold for decoded values as for all others. Carried types:
str, int, bool, float, None, Enum (by value), UUID, Path, tuple[X, ...], dict[str, X], dataclasses, each of them or None,
and object for any JSON value.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from pathlib import Path
from uuid import UUID

from common.errors import Bug, InvalidRequest

_T = typing.TypeVar("_T")
_SCALARS = (str, int, bool, float)


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
            return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
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
    decoded: _T = _decode(wanted, value, where or wanted.__name__)
    return decoded


def _decode(wanted: typing.Any, value: object, where: str) -> typing.Any:  # the types are data here
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(wanted):
            return None
        (inner,) = [option for option in typing.get_args(wanted) if option is not type(None)]
        return _decode(inner, value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(wanted)[0], value, where)
    if origin is dict:
        return _decode_dict(typing.get_args(wanted)[1], value, where)
    if dataclasses.is_dataclass(wanted):
        return _decode_dataclass(wanted, value, where)
    return _decode_scalar(wanted, value, where)


def _decode_tuple(item_type: typing.Any, value: object, where: str) -> tuple[typing.Any, ...]:
    if not isinstance(value, list):
        raise _bad(where, "a list", value)
    return tuple(_decode(item_type, item, f"{where}[{index}]") for index, item in enumerate(value))


def _decode_dict(item_type: typing.Any, value: object, where: str) -> dict[str, typing.Any]:
    if not isinstance(value, dict):
        raise _bad(where, "an object", value)
    return {key: _decode(item_type, item, f"{where}.{key}") for key, item in value.items()}


def _decode_dataclass(wanted: typing.Any, value: object, where: str) -> typing.Any:
    if not isinstance(value, dict):
        raise _bad(where, "an object", value)
    hints = _hints(wanted)
    if missing := sorted(hints.keys() - value.keys()):
        raise BadRecord(f"{where}: no field {missing[0]!r}", where=where)
    if unknown := sorted(value.keys() - hints.keys()):
        raise BadRecord(f"{where}: unknown field {unknown[0]!r}", where=where)
    return wanted(**{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


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
def _hints(wanted: typing.Any) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(wanted)
    return {field.name: hints[field.name] for field in dataclasses.fields(wanted)}


def _bad(where: str, expected: str, value: object) -> BadRecord:
    shown = repr(value)
    return BadRecord(f"{where}: {expected} is wanted, not {shown[:40]}", where=where)
