"""Messages as JSON with stable keys: the names of ``maglev.proto``, all of them, always.

Enums are short lower-case words ("up", "tcp"; check codes as HAProxy writes them, "L7OK"), "" for unspecified and the
number for one that this version does not know. Times and counts are numbers. What is absent is null.
"""

from __future__ import annotations

from typing import Any

import orjson
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from maglev.cli.text import escape_json

_SHORT: dict[EnumDescriptor, dict[int, str]] = {}


def word(enum: Any, number: int) -> str:
    """The short word of an enum value: ``word(pb.BackendState, 2)`` is ``up``."""
    short = _short(enum.DESCRIPTOR, number)
    return short if isinstance(short, str) else str(short)


def _short(descriptor: EnumDescriptor, number: int) -> str | int:
    words = _SHORT.get(descriptor)
    if words is None:
        # The names of an enum share a prefix, which ends where UNSPECIFIED begins.
        prefix = len(descriptor.values_by_number[0].name) - len("UNSPECIFIED")
        words = {}
        for value in descriptor.values:
            name = value.name[prefix:]
            code = descriptor.name == "CheckCode" and name.startswith("L")
            words[value.number] = "" if value.number == 0 else name if code else name.lower().replace("_", "-")
        _SHORT[descriptor] = words
    return words.get(number, number)


def plain(message: Message) -> dict[str, Any]:
    """A message as a dictionary of plain values."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_value(field, one) for one in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return _short(field.enum_type, value)
    return value


def dumps(value: Any, *, pretty: bool = False) -> str:
    """JSON text, safe to print on a terminal."""
    return escape_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 if pretty else None).decode())
