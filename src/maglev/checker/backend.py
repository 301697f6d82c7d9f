"""A backend at run time, and what is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from maglev.base.events import BackendEvent
from maglev.base.states import Code, State
from maglev.config.model import Backend, HealthCheck


class Check:
    """A health check as the engine knows it; ``id`` -1: not given to it yet, or refused by it (``problem``)."""

    __slots__ = ("id", "problem", "spec")

    def __init__(self, spec: HealthCheck) -> None:
        self.spec = spec
        self.id = -1
        self.problem = ""


class LiveBackend:
    """A backend at run time. One object from its first configuration to its removal, whatever is done to it.

    ``history``: the last transitions, oldest first. ``transitions``: how often it went from one state to another.
    ``target``: the engine's id, -1 while it has none. ``trouble``: why the engine would not take it.
    """

    __slots__ = (
        "address",
        "check",
        "conf",
        "drained",
        "history",
        "name",
        "presumed",
        "since_ns",
        "state",
        "target",
        "transitions",
        "trouble",
        "trouble_since_ns",
    )

    def __init__(self, conf: Backend, check: Check | None, now_ns: int) -> None:
        self.name = conf.name
        self.conf = conf
        self.check = check
        self.address = str(conf.address)
        # Not part of anything until it is admitted.
        self.state = State.REMOVED
        self.since_ns = now_ns
        self.drained = False
        self.presumed = False
        self.target = -1
        self.trouble = ""
        self.trouble_since_ns = 0
        self.history: tuple[BackendEvent, ...] = ()
        self.transitions: dict[tuple[State, State], int] = {}

    @property
    def enabled(self) -> bool:
        """False while it is disabled, by the file or by an operator."""
        return self.state is not State.DISABLED

    @property
    def probed(self) -> bool:
        """False while no probe is to be sent: it is paused or disabled."""
        return self.state is not State.DISABLED and self.state is not State.PAUSED

    @property
    def healthcheck(self) -> str:
        """Name of its health check; empty: static."""
        return self.conf.healthcheck or ""


@dataclass(slots=True)  # and not frozen: lists make 50,000 of them, in half the time
class BackendStatus:
    """Everything that is known of one backend. Times in nanoseconds; None where there was no result yet.

    ``unprobed_since_ns`` (wall clock) is 0 while it can be probed. ``rise`` and ``fall`` are 0 for a static backend.
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
    probes_passed: int
    probes_failed: int
    transitions: tuple[BackendEvent, ...]


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    """An override as it is shown; see ``maglev.checker.overrides.Override``."""

    kind: str
    backend: str
    frontend: str
    pool: str
    weight: int
    file_weight: int
    file_enabled: bool
    address: str
    since_ns: int
    until_ns: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator's verb did: ``changed`` False means that it was like that already."""

    changed: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What became of a run-time weight: ``weight`` is in force now, ``previous`` was before, ``requested`` was asked.

    ``weight`` differs from ``requested`` where that is no multiple of the frontend's unit.
    """

    changed: bool
    previous: int
    weight: int
    requested: int | None
    unit: int
    warnings: tuple[str, ...] = ()
