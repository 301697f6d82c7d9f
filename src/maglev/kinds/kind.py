"""A probe kind: the facts that differ from kind to kind, and what follows from them and from the parameters."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from maglev.base.states import CheckType
from maglev.kinds.params import Block, Params, Site, specs
from maglev.schema.problems import Path, Report
from maglev.schema.section import Key, Section

P = TypeVar("P", bound=Params)


class PortRule(enum.Enum):
    """Whether a check of this kind has a port."""

    REQUIRED = "required"
    REFUSED = "refused"


class Presence(enum.Enum):
    """Whether checks of a kind have a certain block of parameters."""

    NEVER = "never"
    SWITCHED = "switched"
    """A key of the block's name says so; the block's own keys need it."""
    ALWAYS = "always"


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind(Generic[P]):
    """One probe kind: its facts. A subclass overrides a method only where its kind is not like the others.

    There is one object of each kind, in ``maglev.kinds.registry``. Two checks are of one kind if it is the same object.
    """

    check_type: CheckType
    """Its number, by which the engine also counts durations; its name is the word in the file and in the metrics."""
    params: type[P]
    message: str
    """The field of the API's ``HealthCheckInfo.params`` that carries its parameters. Kinds may share one."""
    article: str = "a"
    port: PortRule = PortRule.REQUIRED
    default_port: int = 0
    """The port of a check that names none; 0: the file has to name one."""
    blocks: Mapping[str, Presence] = field(default_factory=dict)
    """The presence of each block of ``params``."""
    notes: str = ""
    """Markdown below the table of its parameters in the configuration guide."""
    counters: Mapping[str, str] = field(default_factory=dict)
    """The engine's counters of its probes, with the help texts of their metrics."""

    @property
    def name(self) -> str:
        """The word for it in the file, in labels of metrics and on the command line."""
        return str(self.check_type)

    @property
    def a_check(self) -> str:
        """``an http check``: the subject of messages about one."""
        return f"{self.article} {self.name} check"

    @cached_property
    def section(self) -> Section:
        """The section ``params`` of the file, with every key that it may have."""
        return Section(f"the parameters of {self.a_check}", tuple(self._keys()))

    def _keys(self) -> Iterator[Key]:
        for attribute, spec in specs(self.params).items():
            if isinstance(spec, Block):
                presence = self.blocks[attribute]
                if presence is Presence.SWITCHED:
                    yield _switch(spec)
                if presence is not Presence.NEVER:
                    yield from _inner_keys(spec)
            else:
                yield spec.key

    def build(self, values: Mapping[str, Any], path: Path, report: Report) -> P:
        """The parameters made of the values that the section read, by attribute; those of blocks are among them.

        Reports a key of a block that is not switched on, at its place below ``path``; ``report`` collects.
        """
        made: dict[str, Any] = {}
        for attribute, spec in specs(self.params).items():
            if isinstance(spec, Block):
                made[attribute] = self._block(attribute, spec, values, path, report)
            elif attribute in values:
                made[attribute] = values[attribute]
        return self.params(**made)

    def _block(
        self, attribute: str, spec: Block, values: Mapping[str, Any], path: Path, report: Report
    ) -> Params | None:
        given = {key: values[key.attribute] for key in _inner_keys(spec) if key.attribute in values}
        presence = self.blocks[attribute]
        if presence is Presence.ALWAYS or (presence is Presence.SWITCHED and values.get(attribute, False)):
            return spec.params(**{key.attribute: value for key, value in given.items()})
        for key in given:
            report.semantic((path, key.name), f"{key.name} needs {_switch(spec).name}: true", at_key=True)
        return None

    def check(self, params: P, site: Site) -> None:
        """Report the semantic rules that the parameters break, their own and those of their blocks."""
        params.check(site)
        for block in _blocks(params):
            block.check(site)

    def written(self, params: P) -> dict[str, str]:
        """The parameters in the words of the file, by key, for the changes of a reload. Empty: the value is not set."""
        found: dict[str, str] = {}
        for attribute, spec in specs(self.params).items():
            value = getattr(params, attribute)
            if isinstance(spec, Block):
                if self.blocks[attribute] is Presence.SWITCHED:
                    switch = _switch(spec)
                    found[switch.name] = switch.write(value is not None)
                if value is not None:
                    found |= {key.name: key.write(getattr(value, key.attribute)) for key in _inner_keys(spec)}
            else:
                found[spec.key.name] = spec.key.write(value)
        return found

    def shown(self, params: Params) -> Iterator[tuple[str, str]]:
        """Labels and words of the parameters for ``show healthchecks NAME``, those of blocks last."""
        yield from params.shown()
        for block in _blocks(params):
            yield from block.shown()


def _switch(spec: Block) -> Key:
    if spec.switch is None:
        raise TypeError(f"a block of {spec.params.__name__} is switched by a key, but has no sentence for it")
    return spec.switch


def _inner_keys(spec: Block) -> Iterator[Key]:
    for inner in specs(spec.params).values():
        if isinstance(inner, Block):
            raise TypeError(f"{spec.params.__name__} is a block and has another: the file has no form for that")
        yield inner.key


def _blocks(params: Params) -> Iterator[Params]:
    for attribute, spec in specs(type(params)).items():
        block = getattr(params, attribute)
        if isinstance(spec, Block) and block is not None:
            yield block
