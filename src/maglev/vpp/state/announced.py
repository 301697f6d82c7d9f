"""By which configuration verdicts are programmed: the one that was announced last.

The checker puts a reload in force some time before it announces it (``ConfigEvent``): it moves thousands of backends to
the new configuration one after the other. Until the announcement, verdicts are programmed by the configuration before,
and frontends with a backend that leaves or moves wait. Only this room compares the two configurations.

Owned by the event loop. ``take`` alone changes which configuration it is; ``watch`` notes since when a reload is under
way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from maglev.base.clock import Clock
from maglev.base.errors import UnknownName
from maglev.base.pace import at_once, in_slices
from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import FrontendWeights, Memory, StateSource, TargetState
from maglev.vpp.planning.model import vip_key
from maglev.vpp.state.configured import Configured, Transition, transition
from maglev.vpp.wire.messages import VipKey

PATIENCE_NS = 10 * 1_000_000_000
"""How long a configuration may be in force unannounced: the time between the first and the last step of a reload."""

Serves = Callable[[VipKey, bytes], bool]
"""Whether VPP sends traffic to an address in a VIP, or may do so as far as is known."""


class Before(StateSource):
    """The states of now under the configuration before a reload that is still under way.

    A frontend with a backend that the reload takes away or gives another address must wait: the state of that backend
    does not describe the AS in VPP.
    """

    def __init__(self, config: Config, now: StateSource) -> None:
        self._config = config
        self._now = now

    def config(self) -> Config:
        """The configuration before."""
        return self._config

    def backend_state(self, name: str) -> TargetState:
        """The backend as it is now."""
        return self._now.backend_state(name)

    def target_state(self, frontend: str, backend: str) -> TargetState:
        """The target as it is now."""
        return self._now.target_state(frontend, backend)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's weight as it is now."""
        return self._now.weight_override(frontend, pool, backend)

    def memory(self, frontend: Frontend) -> Memory:
        """What is remembered of a frontend of the old configuration."""
        return self._now.memory(frontend)

    def unsettled(self, frontend: str) -> bool:
        """Whether a frontend waits for verdicts now."""
        return self._now.unsettled(frontend)

    def weights(self, frontend: Frontend) -> FrontendWeights:
        """The weights of a frontend of the old configuration, by the rule and the present states."""
        return self._now.weights(frontend)

    def waits(self, frontend: Frontend) -> bool:
        """Whether this frontend (of the old configuration) has to wait for the end of the reload."""
        new = self._now.config().backends
        return any(
            (backend := new.get(member.backend)) is None
            or backend.address != self._config.backends[member.backend].address
            for pool in frontend.pools
            for member in pool.members
        )


class Announced:
    """The configuration that was announced last, and since when a reload is under way."""

    def __init__(self, states: StateSource, clock: Clock) -> None:
        self.states = states
        self.current = Configured()
        self.begun = False
        """Whether there was a configuration yet."""
        self.news = asyncio.Event()
        """A reload was announced and has not been looked at."""
        self.taken = asyncio.Event()
        """Set whenever a configuration is taken over; ``wait`` clears it."""
        self._clock = clock
        self._since_ns = 0

    @property
    def in_force(self) -> Config:
        """The configuration in force, announced or not."""
        return self.states.config()

    @property
    def reloading(self) -> bool:
        """Whether a reload is under way: another configuration is in force than the one that was announced last."""
        return self.begun and self.states.config() is not self.current.config

    @property
    def source(self) -> StateSource:
        """The states to program by: those of now, and while a reload is under way the configuration before it."""
        return Before(self.current.config, self.states) if self.reloading else self.states

    def vips_of(self, config: Config) -> frozenset[VipKey]:
        """The VIPs of a configuration; those of the announced one are known already."""
        if config is self.current.config:
            return self.current.vips
        return frozenset(vip_key(frontend) for frontend in config.frontends.values())

    def state_of(self, name: str) -> State:
        """The state of a backend; unknown where a reload that is under way has taken it away already."""
        try:
            return self.states.backend_state(name).state
        except UnknownName:
            return State.UNKNOWN

    def state_for(self, frontend: str, backend: str) -> State:
        """The state of the target by which a member of a frontend is judged, as ``state_of``."""
        try:
            return self.states.target_state(frontend, backend).state
        except UnknownName:
            return State.UNKNOWN

    def watch(self) -> bool:
        """Note since when a reload is under way; returns whether its announcement is overdue.

        No event announces the beginning of a reload. So every task calls this before it goes by the configuration.
        """
        if not self.reloading:
            self._since_ns = 0
            return False
        now = self._clock.monotonic_ns()
        if self._since_ns == 0:
            self._since_ns = now
        return now - self._since_ns >= PATIENCE_NS

    def step(self, serves: Serves) -> Transition:
        """The step to the configuration in force, made in one go."""
        return at_once(transition(self.current if self.begun else None, self.in_force, serves))

    async def step_in_slices(self, serves: Serves) -> Transition | None:
        """The same, made while the event loop runs.

        None where the next reload has begun meanwhile: its announcement is still to come.
        """
        new = self.in_force
        result = await in_slices(transition(self.current if self.begun else None, new, serves))
        await asyncio.sleep(0)
        return result if new is self.in_force else None

    def take(self, step: Transition) -> None:
        """The configuration that ``step`` leads to is the announced one from now on."""
        self.current = step.after
        self.begun = True
        self._since_ns = 0
        self.taken.set()


def outdated(step: Transition) -> list[object]:
    """The objects that only the configuration before holds, for ``let_go``: each comes after the objects it holds.

    An index and its configuration are tens of thousands of objects, whose release in one go would hold the event loop
    for 10 ms. The caller must drop its own references, ``step`` among them, before it lets them go.
    """
    before = step.before
    if before is None:
        return []
    config = before.config
    parts: list[object] = [*before.uses.values(), *config.backends.values(), *config.frontends.values()]
    return [*parts, before.uses, before.keys, before.names, config, before]
