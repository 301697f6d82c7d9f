"""A backend at run time, as the checker keeps it."""

from __future__ import annotations

import copy

from maglev.base.events import BackendEvent
from maglev.base.states import State
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
    ``state`` is the effective one. ``held``: the hold that keeps it from being down, empty where there is none
    (``maglev.checker.holds``).
    ``target``: the engine's id, -1 while it has none. ``trouble``: why the engine would not take it. ``since_ns`` (in
    this state) is monotonic: the wall clock may be set meanwhile.
    """

    __slots__ = (
        "address",
        "check",
        "conf",
        "drained",
        "held",
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
        self.held = ""
        self.presumed = False
        self.target = -1
        self.trouble = ""
        self.trouble_since_ns = 0
        self.history: tuple[BackendEvent, ...] = ()
        self.transitions: dict[tuple[State, State], int] = {}

    def copy(self) -> LiveBackend:
        """The same backend once more, to try something out."""
        twin = copy.copy(self)
        twin.transitions = dict(self.transitions)
        return twin

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
