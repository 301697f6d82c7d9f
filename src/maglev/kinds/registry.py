"""The table of probe kinds, and the texts of the books that name several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maglev.base.states import CheckType
from maglev.kinds.http import HTTP, HTTPS
from maglev.kinds.icmp import ICMP
from maglev.kinds.kind import Kind, PortRule
from maglev.kinds.tcp import TCP
from maglev.schema.types import Choice

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in (ICMP, TCP, HTTP, HTTPS)}
"""Every probe kind by its name, in the order of the books. A new kind is one more entry.

The table has one owner: other rooms look kinds up here, and keep no table of their own."""


def kind_of(check_type: CheckType) -> Kind[Any]:
    """The kind of a check. Raises KeyError for a number without an entry."""
    return KINDS[str(check_type)]


@dataclass(frozen=True, slots=True)
class KindName(Choice):
    """The key ``type`` of a health check: reads a kind, and writes the type of a check."""

    def write(self, value: object) -> str:
        """The name of a ``CheckType``."""
        return str(value)


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
