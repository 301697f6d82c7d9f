"""Facts and their times: the only source from which the oracle explains a write. Pure; times are monotonic seconds.

The run notes a fact on both sides of each action, because an action takes time: a server *may* fail from the moment
before it is told to until the moment after it was told to serve again, and *surely* fails between the two answers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.plan import Plan

LAG = 4.0
"""Undisturbed seconds within which a fact takes effect in VPP, or ceases to: verdict, batch and a full sync."""

RECOVERY = 4.0
"""Seconds after a disturbance of daemon or VPP that still belong to it: back-off, warm-up and the first full sync."""


class Spans:
    """Times during which something holds. One span may still be open."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []
        self._open: list[float] | None = None

    @property
    def holds(self) -> bool:
        """Whether it holds now."""
        return self._open is not None

    def begin(self, t: float) -> None:
        """It holds from now on; it may hold already."""
        if self._open is None:
            self._open = [t, math.inf]
            self._spans.append(self._open)
            self._spans.sort()

    def end(self, t: float) -> None:
        """It holds no longer."""
        if self._open is not None:
            self._open[1] = max(t, self._open[0])
            self._open = None

    def add(self, since: float, until: float) -> None:
        """It held between the two. Such spans may overlap."""
        self._spans.append([since, until])
        self._spans.sort()

    def opened(self, t: float) -> Callable[[float], None]:
        """It holds from now on, beside other spans; the result ends this one."""
        span = [t, math.inf]
        self._spans.append(span)
        self._spans.sort()

        def end(t: float) -> None:
            span[1] = t

        return end

    def within(self, since: float, until: float) -> list[tuple[float, float]]:
        """The spans that reach into this time, as they are: not cut to it."""
        return [(a, b) for a, b in self._spans if a <= until and b >= since]

    def touches(self, since: float, until: float) -> bool:
        """True if it held at any moment of this time."""
        return bool(self.within(since, until))

    def covers(self, since: float, until: float) -> bool:
        """True if it held throughout."""
        return any(a <= since and b >= until for a, b in self._spans)


@dataclass(slots=True)
class Force:
    """A configuration that is, or may be, in force. ``prunes`` False: VIPs that it lacks have to stay."""

    plan: Plan
    since: float
    until: float = math.inf
    prunes: bool = True


class Facts:
    """All facts of a run.

    By address of a server: ``bad`` (it may fail), ``dead`` (it surely fails). By name of a backend: ``out`` (an
    operator may have taken it out), ``taken`` (one surely has), ``flushed`` (one may have disabled it). By group:
    ``slow`` (its servers may have been slow), ``blind`` (no probe could leave for it).
    ``weights``: run-time weights that may be in force, by key of the VIP and address.

    ``disturbed``: times at which daemon or VPP could do nothing. Moments: ``emptied``, VPP started empty; ``started``,
    the daemon started; ``broken``, it started or lost its connection, so that an acknowledgement may be lost;
    ``drift``, another client changed a VIP.
    """

    def __init__(self) -> None:
        self.bad: defaultdict[str, Spans] = defaultdict(Spans)
        self.dead: defaultdict[str, Spans] = defaultdict(Spans)
        self.out: defaultdict[str, Spans] = defaultdict(Spans)
        self.taken: defaultdict[str, Spans] = defaultdict(Spans)
        self.flushed: defaultdict[str, Spans] = defaultdict(Spans)
        self.slow: defaultdict[str, Spans] = defaultdict(Spans)
        self.weights: defaultdict[tuple[str, str], dict[int, Spans]] = defaultdict(lambda: defaultdict(Spans))
        self.blind: defaultdict[str, Spans] = defaultdict(Spans)
        self.disturbed = Spans()
        self.emptied: list[float] = []
        self.broken: list[float] = []
        self.started: list[float] = []
        self.drift: defaultdict[str, list[float]] = defaultdict(list)
        self.forces: list[Force] = []

    # ---- time

    def since(self, t: float, lag: float = LAG) -> float:
        """How far back from ``t`` a fact may still explain something: ``lag`` seconds without a disturbance."""
        spans = self._merged(t)
        for a, b in reversed(spans):
            if t - b >= lag:
                break
            lag -= max(0.0, t - b)
            t = min(t, a)
        return t - lag

    def _merged(self, t: float) -> list[tuple[float, float]]:
        merged: list[tuple[float, float]] = []
        for a, b in self.disturbed.within(-math.inf, t):
            b = min(b + RECOVERY, t)
            if merged and a <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
            elif a < b:
                merged.append((a, b))
        return merged

    # ---- configurations

    def propose(self, plan: Plan, t: float, *, prunes: bool = True) -> Force:
        """This configuration may come into force from now on."""
        force = Force(plan, t, prunes=prunes)
        self.forces.append(force)
        return force

    def accept(self, force: Force, t: float) -> None:
        """It is in force, and no other one."""
        for other in self.forces:
            if other is not force:
                other.until = min(other.until, t)

    def refuse(self, force: Force, t: float) -> None:
        """It is not in force."""
        force.until = min(force.until, t)

    def plans(self, since: float, until: float) -> list[Force]:
        """The configurations that may have been in force at any moment of this time."""
        return [force for force in self.forces if force.since <= until and force.until >= since]
