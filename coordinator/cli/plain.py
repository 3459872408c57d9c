"""Messages as JSON values whose shape never depends on their content.

Every field is there under its name in the .proto; one that is unset is null. Enums are their value's name without the
prefix (`SUCCEEDED`), a Duration `downtime` is a number of seconds named `downtime_s`, a Timestamp is RFC 3339 text,
bytes are hexadecimal, 64-bit integers are numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message

_NANOSECONDS = 1_000_000_000


def to_plain(message: Message) -> dict[str, object]:
    """Turn a message into what `json.dumps` takes."""
    fields = cast("Iterable[FieldDescriptor]", message.DESCRIPTOR.fields)
    return dict(_field(message, field) for field in fields)


def seconds(duration: Duration) -> float:
    """Turn a Duration into seconds."""
    return duration.seconds + duration.nanos / _NANOSECONDS


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """Name a value without its enum's prefix; a number that this side does not know stays a number."""
    value = enum.values_by_number.get(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if value is None else value.name.removeprefix(prefix)


def _field(message: Message, field: FieldDescriptor) -> tuple[str, object]:
    name = field.name
    if field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name:
        name = f"{name}_s"
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return name, dict(sorted(cast("Mapping[str, str]", value).items()))
    if field.is_repeated:
        return name, [_value(field, item) for item in cast("Iterable[object]", value)]
    if field.has_presence and not message.HasField(field.name):
        return name, None
    return name, _value(field, value)


def _value(field: FieldDescriptor, value: object) -> object:
    match value:
        case Duration():
            return seconds(value)
        case Timestamp():
            return value.ToJsonString()
        case bytes():
            return value.hex()
        case int() if field.enum_type is not None:
            return enum_name(field.enum_type, value)
        case str() | bool() | int() | float():
            return value
        case _:
            return to_plain(cast("Message", value))
