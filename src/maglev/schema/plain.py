"""Frozen dataclasses as lists of plain values, and back: what JSON can hold, without the names of the fields.

The type hints of a dataclass say how each of its fields is read back, so a new field needs no code here. Enums travel
as their values and nested dataclasses as lists. A list holds data only: reading one executes nothing.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

T = TypeVar("T")
Reader = Callable[[Any], Any]

# The result of ``readers`` for each class. functools.cache would do, but mypy thinks that such classes have no hash.
_READERS: dict[type[Any], dict[str, Reader | None]] = {}


def pack_address(address: IPv4Address | IPv6Address | None) -> int | str | None:
    """An address as JSON: IPv4 as a number, IPv6 as hexadecimal text, because JSON numbers end at 64 bits.

    Both are read back ten times faster than the written form.
    """
    if address is None:
        return None
    return int(address) if isinstance(address, IPv4Address) else f"{int(address):x}"


def unpack_address(packed: int | str | None) -> Any:
    """The inverse of ``pack_address``."""
    if packed is None:
        return None
    return IPv4Address(packed) if isinstance(packed, int) else IPv6Address(int(packed, 16))


def pack(value: Any) -> Any:
    """A dataclass as the list of its fields' values, in order; an enum as its value; plain values as they are."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, tuple):
        return [pack(item) for item in value]
    if isinstance(value, IPv4Address | IPv6Address):
        return pack_address(value)
    return [pack(getattr(value, name)) for name in readers(type(value))]


def unpack(cls: type[T], row: list[Any]) -> T:
    """The inverse of ``pack`` for an object of ``cls``. Raises ValueError or TypeError for a row of another shape."""
    return cls(
        *[
            value if read is None or value is None else read(value)
            for read, value in zip(readers(cls).values(), row, strict=True)
        ]
    )


def readers(cls: type[Any]) -> dict[str, Reader | None]:
    """For every field of a dataclass, the function from the plain value to its own; None: they are the same."""
    found = _READERS.get(cls)
    if found is None:
        hints = typing.get_type_hints(cls)
        found = _READERS[cls] = {field.name: _reader(hints[field.name]) for field in fields(cls)}
    return found


def _reader(hint: Any) -> Reader | None:
    origin = typing.get_origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if origin in (typing.Union, types.UnionType):
        # Readers never see None. Of IPv4Address | IPv6Address the packed form says which it is.
        return unpack_address if IPv4Address in arguments else _reader(*arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if hint in (int, float, str, bool):
        return None
    if hint in (IPv4Address, IPv6Address):
        return unpack_address
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    if isinstance(hint, type) and is_dataclass(hint):
        return partial(unpack, hint)
    raise TypeError(f"no plain form is known for {hint!r}")


def _tuple_reader(arguments: list[Any]) -> Reader:
    item = _reader(arguments[0])
    if any(argument is not Ellipsis and argument is not arguments[0] for argument in arguments):
        raise TypeError(f"no plain form is known for a tuple of {arguments!r}")
    if item is None:
        return tuple
    read = item
    return lambda values: tuple(read(value) for value in values)
