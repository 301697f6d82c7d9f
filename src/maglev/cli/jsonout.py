"""Messages as JSON with stable keys: the names of ``maglev.proto``, all of them, always.

Enums are short lower-case words ("up", "tcp"; check codes as HAProxy writes them, "L7OK"), "" for unspecified and the
number for one that this version does not know. Times and counts are numbers. Absent values are null.

Numbers are exact in the text, but a reader that holds them as doubles (JavaScript, jq before 1.7) keeps 53 bits.
Nanoseconds since 1970 have 61, so each point in time also stands beside its number as a string of RFC 3339, under the
key without ``_ns``: ``"at_ns": 1800000000123456789, "at": "2027-01-15T08:00:00.123456789Z"``; null for never. Packet
and byte counters of VPP exceed 53 bits after some days of full load: they stand there as strings too, under the key
with ``_text``. All other numbers stay below: lengths of time do for a hundred days, and are only rounded after that.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import orjson
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from maglev.cli.text import escape_json
from maglev.pb import maglev_pb2 as pb

TEXT = "_text"
"""The suffix of the key that repeats a counter as a string."""

# The times of the API are called like that; the conventions stand at the beginning of maglev.proto.
_POINT_IN_TIME = re.compile(r"(?:_at|^at|since|until)_ns$")
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_COUNTERS: Any = pb.VPPVipCounters.DESCRIPTOR

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
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = values[field.name] = _field(message, field)
        beside = twin(field)
        if beside is not None:
            values[beside] = str(value) if beside.endswith(TEXT) else rfc3339(value)
    return values


def twin(field: Any) -> str | None:
    """The key of the string that stands beside a number which doubles cannot hold; None for all other fields."""
    if _POINT_IN_TIME.search(field.name):
        return str(field.name).removesuffix("_ns")
    return f"{field.name}{TEXT}" if field.containing_type is _COUNTERS and field.type == field.TYPE_UINT64 else None


def rfc3339(ns: int) -> str | None:
    """Nanoseconds since the epoch as RFC 3339 in UTC, with all nine digits; None for 0, which means never."""
    if not ns:
        return None
    seconds, rest = divmod(ns, 10**9)
    return f"{_EPOCH + datetime.timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


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
