"""The table of probe kinds, and the views of it that the other rooms look kinds up by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maglev.base.states import CheckType
from maglev.kinds.http import HTTP, HTTPS
from maglev.kinds.icmp import ICMP
from maglev.kinds.kind import Kind, PortRule
from maglev.kinds.tcp import TCP
from maglev.schema.section import Section

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (ICMP, TCP, HTTP, HTTPS)}
"""Every probe kind by its name, in the order of the books. A new kind is one more entry."""


def kind_of(check_type: CheckType) -> Kind[Any]:
    """The kind of a check. Raises KeyError for a number without an entry."""
    return KINDS[str(check_type)]


# The two views look things up in KINDS when they are asked, and hold nothing: the table has one owner, and a kind that
# a test puts there is found everywhere.


class _Words(Mapping[str, CheckType]):
    def __getitem__(self, name: str) -> CheckType:
        return KINDS[name].check_type

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


class _Sections(Mapping[CheckType, Section]):
    def __getitem__(self, check_type: CheckType) -> Section:
        return kind_of(check_type).section

    def __iter__(self) -> Iterator[CheckType]:
        return (kind.check_type for kind in KINDS.values())

    def __len__(self) -> int:
        return len(KINDS)


WORDS: Mapping[str, CheckType] = _Words()
"""The words of the key ``type``, with the types that they mean."""

SECTIONS: Mapping[CheckType, Section] = _Sections()
"""The section ``params`` of each type."""


def port_help() -> str:
    """The sentence in the books for the key ``port``: which kinds need one."""
    required = [kind.name for kind in KINDS.values() if kind.port is PortRule.REQUIRED and not kind.default_port]
    refused = [kind.name for kind in KINDS.values() if kind.port is PortRule.REFUSED]
    usual = [f" Default for {kind.name}: {kind.default_port}." for kind in KINDS.values() if kind.default_port]
    verb = "has" if len(refused) == 1 else "have"
    return f"Port that is probed. Required for {_listed(required)}; {_listed(refused)} {verb} none.{''.join(usual)}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def counter_help() -> dict[str, str]:
    """The engine's counters of all kinds' probes, with the help texts of their metrics."""
    return {counter: text for kind in KINDS.values() for counter, text in kind.counters.items()}
