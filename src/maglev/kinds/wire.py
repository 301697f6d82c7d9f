"""Parameters to a message of the API, and back, by the names of their fields.

Nothing here depends on a kind: ``Params.to_api`` decides how a value is named in ``proto/maglev.proto``. A value that
the message has no field for is left out, as a word without a number on the wire is left unspecified. A test checks that
no kind of the registry has such a value.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from maglev.kinds.params import Block, Params, specs
from maglev.schema import plain

if TYPE_CHECKING:
    # The child that loads a configuration needs the kinds and no protobuf.
    from google.protobuf.message import Message

P = TypeVar("P", bound=Params)


def fill(message: Message, params: Params) -> None:
    """Set the fields of ``message`` from ``params``. A value that is None stays unset."""
    # Parameters that all have their proto3 default would leave the message absent, and a oneof undecided.
    message.SetInParent()
    known = message.DESCRIPTOR.fields_by_name
    for name, value in params.to_api().items():
        if value is None or name not in known:
            continue
        if isinstance(value, Params):
            fill(getattr(message, name), value)
        elif isinstance(value, tuple):
            _extend(getattr(message, name), value, known[name].message_type)
        else:
            setattr(message, name, _plain(value))


def _extend(repeated: Any, values: Iterable[Any], element: Any) -> None:
    """Append to a repeated field. A tuple becomes a message whose fields it fills in their order."""
    if element is None:
        repeated.extend(_plain(value) for value in values)
        return
    names = [field.name for field in element.fields]
    for value in values:
        repeated.add(**dict(zip(names, value, strict=True)))


def read(message: Message, params: type[P]) -> P:
    """The inverse of ``fill``. Raises ValueError for a word that this version does not know."""
    values: dict[str, Any] = {}
    form = plain.form(params)
    steps = {form.names[index]: step for index, step in form.unpacking}
    shape = specs(params)
    for field in message.DESCRIPTOR.fields:
        name = field.name
        spec = shape.get(name)
        value = getattr(message, name)
        if isinstance(spec, Block):
            values[name] = read(value, spec.params) if message.HasField(name) else None
        elif field.is_repeated:
            values[name] = tuple(_element(field.message_type, one) for one in value)
        elif spec is not None and value == "" and not spec.key.required and spec.key.default is None:
            # proto3 has no absent text: what may be left out in the file is empty here.
            values[name] = None
        else:
            step = steps.get(name)
            values[name] = value if step is None else step(value)
    return params.from_api(values)


def _plain(value: Any) -> Any:
    """A value as the API has it; a word travels as text."""
    return value.value if isinstance(value, enum.Enum) else value


def _element(element: Any, value: Any) -> Any:
    return value if element is None else tuple(getattr(value, field.name) for field in element.fields)
