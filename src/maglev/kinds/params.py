"""The parameters of a probe kind as one frozen dataclass, whose fields describe themselves.

Each field is made by ``param`` or ``block`` and so carries its type in the file, its sentence in the books and its
words for people. From these follow the section of the file, the JSON schema, the tables of the guide, the rows that the
loader's child sends (``maglev.schema.plain``), the fields of the API's message, and ``show healthchecks NAME``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Self, TypeVar, overload

from maglev.schema.problems import Path, Report
from maglev.schema.section import Key
from maglev.schema.types import Boolean, Type

T = TypeVar("T")
P = TypeVar("P", bound="Params")

# The metadata of a dataclass field under this name: what makes the field's Spec, once the field knows its own name.
_SPEC = "spec"

# The result of ``specs`` for each class. functools.cache would do, but mypy thinks that such classes have no hash.
_SPECS: dict[type[Any], dict[str, Spec]] = {}


class Files:
    """Files that the configuration names, each examined once in a load, however many checks name it."""

    def __init__(self) -> None:
        self._known: dict[tuple[Callable[[str], str | None], str], str | None] = {}

    def problem(self, name: str, examine: Callable[[str], str | None]) -> str | None:
        """The result of ``examine(name)``: why the file cannot be used, or None."""
        key = (examine, name)
        if key not in self._known:
            self._known[key] = examine(name)
        return self._known[key]


@dataclass(slots=True)
class Site:
    """Where the rules of one check's parameters report: ``path`` is that of ``params`` in the file.

    ``report`` collects: a rule that is broken is recorded there, and the other rules are checked nevertheless.
    """

    path: Path
    report: Report
    files: Files

    def wrong(self, key: str, message: str) -> None:
        """Record that the value of ``key`` breaks a rule."""
        self.report.semantic((self.path, key), message)


@dataclass(frozen=True, slots=True)
class Params:
    """Base of the parameters of every kind, and of every block of them."""

    def check(self, site: Site) -> None:
        """Report the rules between values that these parameters break. Blocks are checked by themselves."""

    def to_api(self) -> dict[str, object]:
        """The values by the names of the fields of the API's message."""
        return {name: getattr(self, name) for name in specs(type(self))}

    @classmethod
    def from_api(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_api``; a field that the message lacks has its default."""
        return cls(**{name: values[name] for name in specs(cls) if name in values})

    def shown(self) -> Iterator[tuple[str, str]]:
        """Labels and words for ``show healthchecks NAME``; those with empty words are not printed."""
        for name, spec in specs(type(self)).items():
            if isinstance(spec, Param) and spec.label:
                yield spec.label, spec.words(getattr(self, name))


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: ``key`` of the file, and ``label`` (empty: not shown) with ``words`` on the command line."""

    key: Key
    label: str
    words: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Block:
    """Parameters of their own class that a kind may have; in the file their keys stand beside the others.

    ``switch`` is the key that turns the block on, in kinds for which it is optional (``Presence.SWITCHED``).
    """

    params: type[Params]
    switch: Key | None


Spec = Param | Block


def plain_words(value: Any) -> str:
    """A value for people: ``yes`` or ``no``, the word of an enum, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value.value if isinstance(value, enum.Enum) else value)


@overload
def param(
    kind: Type,
    help: str,
    *,
    key: str | None = ...,
    default: T,
    example: str,
    label: str | None = ...,
    words: Callable[[Any], str] = ...,
) -> T: ...
@overload
def param(
    kind: Type,
    help: str,
    *,
    key: str | None = ...,
    example: str,
    label: str | None = ...,
    words: Callable[[Any], str] = ...,
) -> Any: ...
def param(
    kind: Type,
    help: str,
    *,
    key: str | None = None,
    default: Any = MISSING,
    example: str,
    label: str | None = None,
    words: Callable[[Any], str] = plain_words,
) -> Any:
    """A field of ``Params`` that is one key of the file.

    ``help`` is its sentence in the books and ``example`` is in the words of the file. Without ``default`` the key is
    required; None as default means that it may be left out. ``key`` and ``label`` follow from the field's name where
    they are not given: ``server_name`` is the key ``server-name`` and the label ``server name``.
    """

    def spec(field: dataclasses.Field[Any]) -> Spec:
        name = key or field.name.replace("_", "-")
        required = default is MISSING
        written = None if required or default is None else kind.write(default)
        said = name.replace("-", " ") if label is None else label
        return Param(Key(name, field.name, kind, help, written, required, example), said, words)

    return dataclasses.field(default=default, metadata={_SPEC: spec})


def block(params: type[P], *, switch: str | None = None) -> P | None:
    """A field of ``Params`` that is a block of further parameters; its default is None.

    ``switch`` is the sentence in the books for the key of the field's name, which turns the block on.
    """

    def spec(field: dataclasses.Field[Any]) -> Spec:
        key = None if switch is None else Key(field.name, field.name, Boolean(), switch, "false", example="true")
        return Block(params, key)

    made: P | None = dataclasses.field(default=None, metadata={_SPEC: spec})
    return made


def specs(params: type[Params]) -> dict[str, Spec]:
    """The fields of parameters, by name and in order, with their specifications.

    Raises KeyError for a field that neither ``param`` nor ``block`` made.
    """
    found = _SPECS.get(params)
    if found is None:
        made = {field.name: field.metadata[_SPEC](field) for field in dataclasses.fields(params)}
        found = _SPECS[params] = made
    return found
