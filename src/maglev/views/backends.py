"""Backends as they are shown, and what operators have set of them at run time."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from maglev.base.events import BackendEvent
from maglev.base.states import Code, State
from maglev.views.effects import NO_EFFECTS, Effects


@dataclass(slots=True)
class BackendStatus:
    """Everything that is known of one backend at run time.

    ``rise`` and ``fall`` are 0 for a static backend. ``last_code`` is ``NONE`` before the first result, and
    ``last_rtt_ns`` and ``last_result_age_ns`` (a span) are None. ``unprobed_since_ns`` is 0 while the backend can be
    probed. ``presumed``: counted as good until its own probes have decided. ``held``: the mechanism that keeps it from
    being down though its probes say so; empty where none does. ``transitions``: oldest first.

    This is the only view that is not frozen: a list of 50,000 backends makes 50,000 of these, and a frozen dataclass
    takes three times as long to make. Callers treat it as read-only.
    """

    name: str
    address: str
    state: State
    drained: bool
    enabled: bool
    healthcheck: str
    counter: int
    rise: int
    fall: int
    last_code: Code
    last_detail: str
    last_rtt_ns: int | None
    last_result_age_ns: int | None
    state_since_ns: int
    unprobed_since_ns: int
    unprobed_reason: str
    presumed: bool
    held: str
    probes_passed: int
    probes_failed: int
    transitions: tuple[BackendEvent, ...]


class OverrideKind(enum.Enum):
    """Kind of an override. ``ENABLE`` exists where the file says ``enabled: false``."""

    DRAIN = "drain"
    DISABLE = "disable"
    ENABLE = "enable"
    PAUSE = "pause"
    WEIGHT = "weight"


OverrideKey = tuple[str, str, str, str]
"""Identity of an override: item, backend, frontend, pool."""


@dataclass(frozen=True, slots=True)
class Override:
    """One thing that an operator set.

    ``until_ns`` 0 means without end. ``address`` is the backend's at the time. ``file_enabled`` and ``file_weight`` are
    what the file said at the time: the override ends when the file comes to say something else. ``frontend``, ``pool``,
    ``weight`` and ``file_weight`` are used by ``WEIGHT`` only.
    """

    kind: OverrideKind
    backend: str
    address: str
    since_ns: int
    until_ns: int = 0
    by: str = ""
    reason: str = ""
    frontend: str = ""
    pool: str = ""
    weight: int = 0
    file_weight: int = 0
    file_enabled: bool = True

    @property
    def key(self) -> OverrideKey:
        """Its identity: at most one override exists for each key (disable and enable share one)."""
        item = "enabled" if self.kind in (OverrideKind.DISABLE, OverrideKind.ENABLE) else self.kind.value
        return item, self.backend, self.frontend, self.pool


@dataclass(frozen=True, slots=True)
class ValueChange:
    """One value that a request changed: ``state``, ``drained``, ``weight``, ``reason``, ``until`` or ``by``.

    Texts; empty: none. ``until``: nanoseconds since the epoch, empty: without end.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """Result of an operator's verb. ``changed`` False: the backend was in the requested state already.

    ``values``: all that the verb changed; also of a setting that was there already. ``effects``: on frontends.
    """

    changed: bool
    values: tuple[ValueChange, ...] = ()
    effects: Effects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class WeightChange:
    """Result of setting a run-time weight.

    ``weight`` is in force now, ``previous`` was before. ``requested`` is what the caller asked for, None for the file's
    weight; ``weight`` differs from it where it is not a multiple of the frontend's ``unit``.
    """

    changed: bool
    previous: int
    weight: int
    requested: int | None
    unit: int
    values: tuple[ValueChange, ...] = ()
    effects: Effects = NO_EFFECTS
