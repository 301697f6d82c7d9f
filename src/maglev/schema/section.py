"""Sections: mappings with known keys, whose values are single values or sections again.

A table of keys is the only description of a file. The loader walks the file along it, and the tables of the
configuration guide and the JSON schema are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from maglev.schema import types
from maglev.schema.problems import Path, Report, quote
from maglev.schema.types import BAD, Bad, Type


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section. ``default`` and ``example`` are in the words of the file; None: there is none."""

    name: str
    attribute: str
    type: Type | Section | Named | Listed | Variants
    help: str
    default: str | None = None
    required: bool = False
    example: str | None = None

    def write(self, value: Any) -> str:
        """``value`` as a file has it; empty for a value that is not set. For keys of a single value only."""
        assert not isinstance(self.type, Section | Named | Listed | Variants)
        # None means "not set" for every type but one: a weight unit of None is written ``auto``.
        return "" if value is None and not isinstance(self.type, types.WeightUnit) else self.type.write(value)


@dataclass(frozen=True)
class Section:
    """A mapping with known keys. Reads into a dict of those that are there, by attribute."""

    what: str
    keys: tuple[Key, ...]
    by_name: dict[str, Key] = field(init=False, repr=False, compare=False)
    required: tuple[Key, ...] = field(init=False, repr=False, compare=False)
    variants: tuple[Key, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {key.name: key for key in self.keys})
        object.__setattr__(self, "required", tuple(key for key in self.keys if key.required))
        object.__setattr__(self, "variants", tuple(key for key in self.keys if isinstance(key.type, Variants)))

    def read(self, value: object, path: Path, report: Report) -> dict[str, object] | Bad:
        """The section's values by attribute. An empty section may also be left empty."""
        if value is None:
            value = {}
        elif not isinstance(value, dict):
            report.parse(path, f"expected a mapping ({self.what}), got {quote(value)}")
            return BAD
        found: dict[str, object] = {}
        by_name = self.by_name
        for name, item in value.items():
            key = by_name.get(name)
            if key is None:
                # {address:192.0.2.1} is a key without a value to YAML.
                glued = name.partition(":")[0] in by_name and ":" in name
                hint = "; a space is missing after the colon" if glued else report.suggest(name, by_name)
                report.parse((path, name), f"unknown key in {self.what}{hint}", at_key=True)
                continue
            if isinstance(key.type, Variants):
                continue  # read below, as the selector may come later in the file
            read = key.type.read(item, (path, name), report)
            if read is not BAD:
                found[key.attribute] = read
        for key in self.variants:
            assert isinstance(key.type, Variants)
            chosen: Any = found.get(key.type.selector)
            # A selector that is missing or wrong has been reported. The keys that belong here are then unknown.
            if chosen is not None and (key.name in value or chosen.section.required):
                read = chosen.section.read(value.get(key.name), (path, key.name), report)
                if read is not BAD:
                    found[key.attribute] = read
        for key in self.required:
            if key.name not in value:
                report.parse(path, f"{self.what} needs the key {key.name}", at_key=True)
        return found


@dataclass(frozen=True)
class Switched(Section):
    """A section that the word ``off`` may stand for, which reads as False. YAML's own ``false`` does, too."""

    def read(self, value: object, path: Path, report: Report) -> Any:
        """False where it is off, else as a section."""
        if value is False or value == "off":
            return False
        return super().read(value, path, report)


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names, which the operator chooses, to sections of one kind."""

    what: str
    section: Section

    def read(self, value: object, path: Path, report: Report) -> dict[str, dict[str, object]] | Bad:
        """The sections by name, in the order of the file."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            report.parse(path, f"expected a mapping from names ({self.what}), got {quote(value)}")
            return BAD
        found: dict[str, dict[str, object]] = {}
        for name, item in value.items():
            place = (path, name)
            types.check_name(name, place, report)
            read = self.section.read(item, place, report)
            if not isinstance(read, Bad):
                found[name] = read
        return found


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of sections of one kind."""

    what: str
    section: Section

    def read(self, value: object, path: Path, report: Report) -> list[dict[str, object]] | Bad:
        """The sections, in order. One that could not be read is left out; its error is in the report."""
        if value is None:
            return []
        if not isinstance(value, list):
            report.parse(path, f"expected a list ({self.what}), got {quote(value)}")
            return BAD
        read = (self.section.read(item, (path, index), report) for index, item in enumerate(value))
        return [values for values in read if not isinstance(values, Bad)]


class Variant(Protocol):
    """A choice of a selector."""

    @property
    def section(self) -> Section:
        """The keys that belong to it."""
        ...


@dataclass(frozen=True, slots=True)
class Variants:
    """A section whose keys depend on the value of another key beside it, the one with attribute ``selector``.

    The selector reads one of the values of ``variants``. The section may be left out unless the chosen variant's has a
    required key.
    """

    selector: str
    variants: Mapping[str, Variant]
