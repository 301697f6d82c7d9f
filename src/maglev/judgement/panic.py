"""Panic: when so few servers of a frontend are healthy that health is believed no longer. Pure.

The *base* is the weight of the members of the pool that serves, without members that an operator took out (drained,
disabled, paused, weight 0). Members that are up are healthy, and so are members without a verdict: ignorance is never a
reason for panic. While a daemon starts, panic therefore needs as many failed checks as at any other time.

- A frontend **enters** panic while the healthy weight is below the share ``below`` of the base, and no later pool
  reaches that share of its base. With a base of 0, nothing can fail.
- It **leaves** panic when the reason has been gone for 30 seconds.

If no member of any pool is up, the first pool with a base stands for the pool that serves.

The operator chooses what it does (``action``):

- ``all``: members of the pool whose check failed have their weights. Their flows are not flushed: a flush that a
  failure owes waits while the server has a weight. Members without a verdict get nothing by this.
- ``keep``: no weight falls. Members that are up have their weights; all others keep what VPP has, in every pool.
- ``drain``: weights are those without panic; only the frontend's state and its alert are different.

None of this concerns members that an operator took out. ``all`` and ``keep`` come before ``on-all-down``.

The present states alone decide whether there is a reason. The weight rule looks for it whenever it works out weights,
so no drop of the batch that brings a frontend into panic is sent. This room owns what lasts: which frontends are in
panic, and since when their reason has been gone. A reload keeps it by the name of the frontend.

After a restart of the daemon, panic follows from the states again. The verdicts come one by one, so the frontend could
lose a weight before the last of them shows that it is in panic. With ``all`` and ``keep``, no weight falls while first
verdicts are *awaited*, and the frontend would be in panic if all of those turned out to be failures. They are awaited
until the end of the warm-up, and for a minute at least (``maglev.vpp.state.warmup``). A server that cannot be probed
has no verdict for days: from then on it counts as healthy here too, and servers that are down lose their weight.

Sources: Envoy's panic threshold (``healthy_panic_threshold``, 50 % by default, all hosts get traffic), AWS's target
group health (``unhealthy_state_routing``), GCP's failover ratio, PyBal's depool threshold (``keep``).

Times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from maglev.judgement.weights import WeightTable

CALM_NS = 30 * 1_000_000_000
"""How long the reason must be gone before a frontend leaves panic."""


@dataclass(slots=True)
class _Panic:
    """``since_ns``: when it began; ``calm_ns``: since when the reason has been gone, None while it lasts."""

    since_ns: int
    calm_ns: int | None = None


class Panics:
    """The frontends in panic, of those that can be."""

    def __init__(self) -> None:
        self._able: frozenset[str] = frozenset()
        self._panics: dict[str, _Panic] = {}

    def __contains__(self, frontend: str) -> bool:
        """Whether this frontend can be in panic at all."""
        return frontend in self._able

    def names(self) -> list[str]:
        """The frontends that can be in panic, in alphabetical order."""
        return sorted(self._able)

    def apart(self, names: Iterable[str]) -> Panics:
        """A copy of the memory of these frontends, to try something out."""
        twin = Panics()
        twin._able = self._able.intersection(names)
        twin._panics = {name: replace(panic) for name in twin._able if (panic := self._panics.get(name)) is not None}
        return twin

    def configure(self, frontends: Iterable[str]) -> None:
        """Another configuration is in force, in which these frontends can be in panic."""
        self._able = frozenset(frontends)
        self._panics = {name: panic for name, panic in self._panics.items() if name in self._able}

    def panicking(self, frontend: str) -> bool:
        """Whether a frontend is in panic until further notice."""
        return frontend in self._panics

    def restore(self, table: WeightTable) -> None:
        """Enter the memory into a new table of weights."""
        for name in self._panics:
            table.panic(name, True)

    def follow(self, name: str, table: WeightTable, now_ns: int) -> bool:
        """Take note of the present states of a frontend; returns whether it has entered or left panic.

        Called after every change of the states, and when it is ``due``. A second call with the same states and time
        changes nothing.
        """
        if name not in self._able:
            return False
        panic = self._panics.get(name)
        if table.panics(name):
            if panic is None:
                self._panics[name] = _Panic(now_ns)
                table.panic(name, True)
                return True
            panic.calm_ns = None
        elif panic is not None:
            if panic.calm_ns is None:
                panic.calm_ns = now_ns
            if now_ns - panic.calm_ns >= CALM_NS:
                del self._panics[name]
                table.panic(name, False)
                return True
        return False

    def due(self) -> dict[str, int]:
        """When frontends leave panic, unless their states change before."""
        return {name: panic.calm_ns + CALM_NS for name, panic in self._panics.items() if panic.calm_ns is not None}
