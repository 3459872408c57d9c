"""Dataclasses survive the way to JSON and back, and nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from uuid import UUID

import pytest

from common.codec import BadRecord, Unknown, decode, decode_what_can_be, encode, encode_fields
from common.errors import Bug, InvalidRequest


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Part:
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InvalidRequest("negative")


@dataclass(frozen=True, slots=True)
class Whole:
    name: str
    is_big: bool
    ratio: float
    colour: Colour
    uuid: UUID
    path: Path
    parts: tuple[Part, ...]
    table: dict[str, int]
    maybe: Part | None


WHOLE = Whole(
    name="a",
    is_big=True,
    ratio=0.5,
    colour=Colour.RED,
    uuid=UUID(int=7),
    path=Path("/a"),
    parts=(Part(1), Part(2)),
    table={"x": 1},
    maybe=None,
)


def test_a_value_comes_back_equal() -> None:
    encoded = json.loads(json.dumps(encode_fields(WHOLE)))

    assert decode(Whole, encoded) == WHOLE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 1),
        ("is_big", 1),
        ("ratio", "1"),
        ("colour", "green"),
        ("colour", None),
        ("uuid", "x"),
        ("uuid", 5),
        ("path", []),
        ("parts", {}),
        ("parts", [{"count": True}]),
        ("parts", [{"count": 1, "more": 2}]),
        ("parts", [{}]),
        ("table", []),
        ("table", {"x": "1"}),
        ("maybe", 3),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    encoded = encode_fields(WHOLE) | {field: value}

    with pytest.raises(BadRecord, match=rf"Whole\.{field}"):
        decode(Whole, encoded)


def test_missing_and_unknown_fields_are_refused() -> None:
    encoded = encode_fields(WHOLE)

    with pytest.raises(BadRecord, match="no field 'name'"):
        decode(Whole, {key: value for key, value in encoded.items() if key != "name"})
    with pytest.raises(BadRecord, match="unknown field 'extra'"):
        decode(Whole, encoded | {"extra": 1})


def test_rules_of_the_dataclass_hold_for_decoded_values() -> None:
    with pytest.raises(InvalidRequest, match="negative"):
        decode(Part, {"count": -1})


def test_a_value_of_an_uncarried_type_is_our_bug() -> None:
    with pytest.raises(Bug):
        encode(object())


@dataclass(frozen=True)
class _Inner:
    a: int = 1


@dataclass(frozen=True)
class _Newer:
    name: str
    inner: _Inner = _Inner()
    several: tuple[_Inner, ...] = ()
    unknown: Unknown = field(default_factory=Unknown, compare=False)


def test_fields_that_are_unknown_are_kept_and_written_back_where_a_record_says_so() -> None:
    value = {"name": "web", "inner": {"a": 2, "b": 3}, "several": [{"a": 4, "c": 5}], "colour": {"of": "the future"}}

    decoded = decode(_Newer, value)
    encoded = encode_fields(replace(decoded, name="db"))

    assert decoded.inner == _Inner(2)
    assert encoded == {
        "name": "db",
        "inner": {"a": 2, "b": 3},
        "several": [{"a": 4}],
        "colour": {"of": "the future"},
    }


def test_fields_with_a_default_may_be_missing() -> None:
    assert decode(_Newer, {"name": "web"}) == _Newer("web")


def test_what_can_be_read_is_read() -> None:
    assert decode_what_can_be(_Newer, {"name": 7, "inner": {"a": 2, "b": 1}, "several": "none"}) == {"inner": _Inner(2)}
