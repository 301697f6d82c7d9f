"""The brake: when very many targets stop to answer at once, their failures are not believed for a moment. Pure.

An *origin* is where probes leave from: a network namespace, an address family and a source address. All that lies
between an origin and the servers is common to all of them, so a failure of most servers at one moment is more often a
failure of the way. Weights that fall then move all flows twice, and a way that flaps does so again and again.

- The brake of an origin **begins** at a verdict "down" by silence while more than ``share``, and more than
  ``at_least``, of the targets that were up fail by silence. Silence is a time-out of any kind, or an ICMP error of a
  router. A server that refuses, resets or answers wrongly is there, and its verdict takes effect.
- Until ``hold`` after that, verdicts "down" by silence of this origin are held, where a hold is of use (``spared``).
- Then all of them take effect, if the targets still fail. For ten minutes since it began the brake does not begin
  again.
- An operator may end it at once.

Each hold therefore ends after ``hold`` at most, and a target that stays dead is out in the end.

Sources: Envoy's outlier detection (``max_ejection_percent``), AWS Route 53 (which considers all healthy when none is),
PyBal's ``depool-threshold``, the back-off of BGP route flap damping (RFC 2439).

Times are monotonic nanoseconds; an origin has the number that the probe engine gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REST_NS = 600 * 1_000_000_000
"""From the beginning of a brake until the same origin may brake again."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``share`` 0..1 of the targets that were up, and how many ``at_least``: more than both. ``hold_ns``: how long."""

    share: float
    at_least: int
    hold_ns: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The brake of an origin: when it began, when it ends, and how many of the targets that were up were silent."""

    origin: int
    since_ns: int
    until_ns: int
    silent: int
    up: int


class Brakes:
    """The brakes of all origins. ``rule`` None: there are none."""

    def __init__(self) -> None:
        self._rule: Rule | None = None
        self._active: dict[int, Begun] = {}
        self._rests: dict[int, int] = {}

    def configure(self, rule: Rule | None) -> list[int]:
        """Another rule is in force; returns the origins whose brakes end by that.

        A brake that has begun keeps its end, unless the new rule is None.
        """
        self._rule = rule
        return self.release() if rule is None else []

    def active(self) -> list[Begun]:
        """The brakes that hold verdicts, by origin."""
        return [self._active[origin] for origin in sorted(self._active)]

    def holds(self, origin: int, up: int, silent: int, now_ns: int) -> bool:
        """Whether a verdict "down" by silence is to be held now, which may begin the brake of its origin.

        ``up``: targets of the origin that are up, or were until this failure. ``silent``: those that fail by silence.
        """
        active = self._active.get(origin)
        if active is not None:
            return now_ns < active.until_ns
        rule = self._rule
        if rule is None or silent <= rule.at_least or silent <= rule.share * up:
            return False
        if now_ns < self._rests.get(origin, now_ns):
            return False
        self._active[origin] = Begun(origin, now_ns, now_ns + rule.hold_ns, silent, up)
        self._rests[origin] = now_ns + REST_NS
        return True

    def end(self, now_ns: int) -> list[int]:
        """The origins whose brakes have ended by now, which are active no longer."""
        ended = [origin for origin, brake in self._active.items() if brake.until_ns <= now_ns]
        for origin in ended:
            del self._active[origin]
        return ended

    def release(self) -> list[int]:
        """End all brakes; returns their origins. The time until they may begin again goes on."""
        ended = list(self._active)
        self._active.clear()
        return ended

    def due(self) -> int | None:
        """When the next brake ends; None: none is active."""
        return min((brake.until_ns for brake in self._active.values()), default=None)


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """A pool as its members are at this moment. A member that fails is not ``healthy``, whatever its state.

    ``healthy``: the weight of the members that are up and answer, without what an operator took out. ``whole``: the
    weight of all members that no operator took out. ``usable``: as many are healthy as the pool needs to serve.
    """

    healthy: int
    whole: int
    usable: bool


def spared(pools: Sequence[PoolHealth], own: Iterable[int]) -> bool:
    """Whether a frontend needs no hold for a member that fails, which is in the pools with the indices ``own``.

    It needs none where another pool can serve, nor where the members that are healthy carry more than half of the
    weight of the member's pool.
    """
    pools_of = set(own)
    if any(pool.usable for index, pool in enumerate(pools) if index not in pools_of):
        return True
    return all(2 * pools[index].healthy > pools[index].whole for index in pools_of)
