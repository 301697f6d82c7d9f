"""A probe kind: the facts that differ from kind to kind, and what follows from them and from the parameters."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from maglev.base.states import CheckType
from maglev.kinds.params import Block, Param, Params, Site, specs
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
        keys: list[Key] = []
        for attribute, spec in specs(self.params).items():
            if isinstance(spec, Param):
                keys.append(spec.key)
            elif (block := self._blocks.get(attribute)) is not None:
                keys += [block.switch, *block.keys] if block.switch else block.keys
        return Section(f"the parameters of {self.a_check}", tuple(keys))

    @cached_property
    def _blocks(self) -> dict[str, _BlockOfKind]:
        """The blocks that parameters of this kind may have, by attribute."""
        return {
            attribute: _BlockOfKind(spec, self.blocks[attribute])
            for attribute, spec in specs(self.params).items()
            if isinstance(spec, Block) and self.blocks[attribute] is not Presence.NEVER
        }

    def build(self, values: Mapping[str, Any], path: Path, report: Report) -> P:
        """The parameters made of the values that the section read, by attribute; those of blocks are among them.

        Reports a key of a block that is not switched on, at its place below ``path``; ``report`` collects.
        """
        if not self._blocks:
            return self.params(**values)
        made = dict(values)
        for attribute, block in self._blocks.items():
            # The block takes its switch and its keys out of ``made``, and puts itself there.
            switched = made.pop(attribute, False)
            given = {key.attribute: made.pop(key.attribute) for key in block.keys if key.attribute in made}
            if switched or block.switch is None:
                made[attribute] = block.params(**given)
            else:
                for key in block.keys:
                    if key.attribute in given:
                        message = f"{key.name} needs {attribute}: true"
                        report.semantic((path, key.name), message, at_key=True)
        return self.params(**made)

    def check(self, params: P, site: Site) -> None:
        """Report the semantic rules that the parameters break, their own and those of their blocks."""
        params.check(site)
        for attribute in self._blocks:
            block: Params | None = getattr(params, attribute)
            if block is not None:
                block.check(site)

    def written(self, params: P) -> dict[str, str]:
        """The parameters in the words of the file, by key, for the changes of a reload. Empty: the value is not set."""
        found: dict[str, str] = {}
        for attribute, spec in specs(self.params).items():
            value = getattr(params, attribute)
            if isinstance(spec, Param):
                found[spec.key.name] = spec.key.write(value)
            elif (block := self._blocks.get(attribute)) is not None:
                if block.switch:
                    found[block.switch.name] = block.switch.write(value is not None)
                if value is not None:
                    found |= {key.name: key.write(getattr(value, key.attribute)) for key in block.keys}
        return found

    def shown(self, params: P) -> Iterator[tuple[str, str]]:
        """Labels and words of the parameters for ``show healthchecks NAME``, those of blocks last."""
        yield from params.shown()
        for attribute in self._blocks:
            block: Params | None = getattr(params, attribute)
            if block is not None:
                yield from block.shown()


class _BlockOfKind:
    """A block of parameters as one kind has it. Raises TypeError for a block that the file has no form for."""

    def __init__(self, spec: Block, presence: Presence) -> None:
        self.params = spec.params
        self.switch: Key | None = None
        """The key that turns it on; None: it is always on."""
        self.keys: tuple[Key, ...] = tuple(
            inner.key for inner in specs(spec.params).values() if isinstance(inner, Param)
        )
        if len(self.keys) != len(specs(spec.params)):
            raise TypeError(f"{spec.params.__name__} is a block and has another: its keys would stand beside it")
        if presence is Presence.SWITCHED:
            if spec.switch is None:
                raise TypeError(f"a block of {spec.params.__name__} has a switch, but no sentence for it")
            self.switch = spec.switch
