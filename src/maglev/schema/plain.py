"""Frozen dataclasses as lists of plain values, and back: what JSON can hold, without the names of the fields.

The type hints of a dataclass say how each of its fields is read back, so a new field needs no code here. Enums travel
as their values and nested dataclasses as lists. A list holds data only: reading one executes nothing.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")
Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How the objects of a class are packed and unpacked, field by field. Only fields that are not plain have steps.

    A value of None is never given to a step.
    """

    values: Callable[[Any], tuple[Any, ...]]
    """All fields of an object, in order."""
    names: tuple[str, ...]
    packing: tuple[tuple[int, Step], ...]
    """Steps with the index of their field."""
    unpacking: tuple[tuple[int, Step], ...]


# The result of ``form`` for each class. functools.cache would do, but mypy thinks that such classes have no hash.
_FORMS: dict[type[Any], Form] = {}


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


def pack(thing: object) -> list[Any]:
    """A dataclass as the list of its fields' values, in order."""
    found = form(type(thing))
    row = list(found.values(thing))
    for index, step in found.packing:
        if row[index] is not None:
            row[index] = step(row[index])
    return row


def unpack(cls: type[T], row: list[Any]) -> T:
    """The inverse of ``pack`` for an object of ``cls``; takes ``row`` over.

    Raises ValueError or TypeError for a row that ``pack`` does not make.
    """
    found = form(cls)
    if len(row) != len(found.names):
        raise ValueError(f"{len(row)} values for the {len(found.names)} fields of {cls.__name__}")
    for index, step in found.unpacking:
        if row[index] is not None:
            row[index] = step(row[index])
    return cls(*row)


def form(cls: type[Any]) -> Form:
    """The form of a dataclass. Raises TypeError for a field of a type that has no plain form."""
    found = _FORMS.get(cls)
    if found is None:
        hints = typing.get_type_hints(cls)
        names = tuple(field.name for field in fields(cls))
        steps = [_steps(hints[name]) for name in names]
        found = _FORMS[cls] = Form(
            _getter(names),
            names,
            tuple((index, packing) for index, (packing, _) in enumerate(steps) if packing is not None),
            tuple((index, unpacking) for index, (_, unpacking) in enumerate(steps) if unpacking is not None),
        )
    return found


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    # attrgetter makes a tuple of several attributes, but no tuple of one.
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda thing: (get(thing),)


def _steps(hint: Any) -> tuple[Step | None, Step | None]:
    """The steps that pack and unpack a value with this type hint."""
    origin = typing.get_origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if origin in (typing.Union, types.UnionType):
        # The packed form of IPv4Address | IPv6Address says which of them it is.
        return (pack_address, unpack_address) if IPv4Address in arguments else _steps(*arguments)
    if origin is tuple:
        return _tuple_steps(arguments)
    if hint in (int, float, str, bool):
        return None, None
    if hint in (IPv4Address, IPv6Address):
        return pack_address, unpack_address
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return attrgetter("value"), hint
    if isinstance(hint, type) and is_dataclass(hint):
        return pack, partial(unpack, hint)
    raise TypeError(f"no plain form is known for {hint!r}")


def _tuple_steps(arguments: list[Any]) -> tuple[Step | None, Step]:
    if any(argument is not Ellipsis and argument is not arguments[0] for argument in arguments):
        raise TypeError(f"no plain form is known for a tuple of {arguments!r}")
    packing, unpacking = _steps(arguments[0])
    # JSON has lists alone: a tuple of plain values becomes one by itself, and has to be made of one again.
    return _for_each(list, packing) if packing else None, _for_each(tuple, unpacking) if unpacking else tuple


def _for_each(kind: Callable[[Any], Any], step: Step) -> Step:
    return lambda values: kind(step(value) for value in values)
