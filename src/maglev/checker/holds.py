"""Verdicts that are held: the backend keeps its state though the probe engine has found it down.

A backend has two states: the *probed* one is the engine's, and the *effective* one (``LiveBackend.state``) is what
weights, history, events and every display go by. A hold is their difference, and has a name (``LiveBackend.held``).
What decides is pure (``maglev.judgement.brake``); this room asks it at each verdict, keeps the held backends, and ends
holds by the clock.

Nothing depends on a transition that is seen once. When a hold ends, the engine gets a command and reports the target
once more if it has failed ``fall`` times in a row since the hold began; that verdict is judged as any other. A target
that has not failed as often is probed on, with its failures counted. Until then the engine probes it at fast-
interval.

The verdicts that follow the end of a brake take effect together (``maglev.judgement.together``): the frontends
concerned are ``unsettled`` until they are read.

A hold ends early when the target passes, when it gives a wrong answer, when an operator takes it out, or when its check
or address changes. Commands that the engine does not take are given again a little later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.states import State
from maglev.checker.backend import LiveBackend
from maglev.checker.engine import ProbeEngine
from maglev.checker.frontends import Frontends
from maglev.config.model import Brake, Frontend
from maglev.judgement.brake import Begun, Brakes, PoolHealth, Rule, spared
from maglev.judgement.together import Together
from maglev.judgement.weights import pool_counts
from maglev.schema.durations import format_duration

log = logs.get(__name__)

BRAKE = "brake"
"""The name of a hold by the brake."""

LOOK_NS = 100_000_000
"""How long it is remembered how healthy a frontend is: a mass failure asks for each of its members."""

AGAIN_NS = 100_000_000
"""When a command that the engine did not take is given again."""


class Holds:
    """The held backends. ``targets``: the live backend of a name, for the members of a frontend."""

    def __init__(
        self,
        engine: ProbeEngine,
        frontends: Frontends,
        clock: Clock,
        frontend: Callable[[str], Frontend],
        backend: Callable[[str], LiveBackend],
    ) -> None:
        self._engine = engine
        self._frontends = frontends
        self._clock = clock
        self._frontend = frontend
        self._backend = backend
        self._brakes = Brakes()
        self._held: dict[str, tuple[LiveBackend, int]] = {}
        self._ending: dict[str, LiveBackend] = {}
        self._together = Together()
        self._looks: dict[str, tuple[int, list[PoolHealth]]] = {}
        self._sooner = asyncio.Event()
        self.begun = 0
        """Brakes that have begun since the start."""

    def __len__(self) -> int:
        return len(self._held)

    def names(self) -> list[str]:
        """The names of the held backends, in the order in which their holds began."""
        return list(self._held)

    def brakes(self) -> list[Begun]:
        """The brakes that are active."""
        return self._brakes.active()

    def unsettled(self, frontend: str) -> bool:
        """Whether a frontend waits for verdicts of its servers whose holds have just ended."""
        return frontend in self._together

    def configure(self, brake: Brake | None) -> None:
        """Another configuration is in force."""
        self._looks.clear()
        rule = None if brake is None else Rule(brake.share, brake.at_least, brake.hold)
        self._end(self._brakes.configure(rule), "the configuration has turned the brake off")

    # ----------------------------------------------------------------------------------------------------- verdicts

    def hold(self, live: LiveBackend) -> bool:
        """Hold the verdict "down" by silence that has just come of this backend; False: it takes effect."""
        if live.state is not State.UP and not live.presumed:
            return False
        now = self._clock.monotonic_ns()
        self.follow()
        origin, up, silent = self._engine.silence(live.target)
        active = len(self._brakes.active())
        if not self._brakes.holds(origin, up, silent, now):
            return False
        if len(self._brakes.active()) > active:
            self._begin(origin)
        if live.drained or not any(self._needed(name, live.name, now) for name in self._frontends.users_of(live.name)):
            return False
        try:
            self._engine.hold(live.target, live.state)
        except RuntimeError as error:
            log.warning(
                "hold-refused",
                f"backend {live.name} goes down at once: the probe engine cannot hold its verdict: {error}",
                backend=live.name,
            )
            return False
        live.held = BRAKE
        self._held[live.name] = (live, origin)
        return True

    def drop(self, live: LiveBackend) -> None:
        """The backend is held no longer, since its state or its target is another one."""
        if live.held:
            live.held = ""
            self._held.pop(live.name, None)
        self._ending.pop(live.name, None)
        if self._together.awaits(live.name):
            self._together.came(live.name, self._clock.monotonic_ns())

    def _needed(self, name: str, backend: str, now: int) -> bool:
        """Whether a frontend would lose too much with this backend."""
        frontend = self._frontend(name)
        own = [i for i, pool in enumerate(frontend.pools) if any(m.backend == backend for m in pool.members)]
        until, pools = self._looks.get(name, (0, []))
        if now >= until:
            pools = self._look(frontend)
            self._looks[name] = (now + LOOK_NS, pools)
        return not spared(pools, own)

    def _look(self, frontend: Frontend) -> list[PoolHealth]:
        weights = self._frontends.weights(frontend.name)
        healthy = [0] * len(frontend.pools)
        whole = [0] * len(frontend.pools)
        count = [0] * len(frontend.pools)
        for member in weights.members:
            if member.drained or member.weight == 0 or member.state in (State.DISABLED, State.PAUSED):
                continue
            whole[member.pool_index] += member.weight
            live = self._backend(member.backend)
            if live.state is State.UP and not live.held and not self.failing(live):
                healthy[member.pool_index] += member.weight
                count[member.pool_index] += 1
        needs = pool_counts(frontend, weights)
        return [
            PoolHealth(healthy[i], whole[i], healthy[i] > 0 and count[i] >= needs[i].min_up)
            for i in range(len(frontend.pools))
        ]

    def failing(self, live: LiveBackend) -> bool:
        """Whether its last probe failed. A static backend has none."""
        return live.target >= 0 and self._engine.failing(live.target)

    # --------------------------------------------------------------------------------------------------------- ends

    def release(self, by: str) -> int:
        """End all brakes at once, as an operator wants; returns how many verdicts were held."""
        held = len(self._held)
        self._end(self._brakes.release(), f"released by {by}")
        return held

    def follow(self) -> None:
        """End what is over by now."""
        self._end(self._brakes.end(self._clock.monotonic_ns()), "its time is over")
        self._give_back()
        self.settle()

    def settle(self) -> None:
        """Hand frontends on of which all verdicts are read by now that the end of a brake has brought."""
        self._frontends.settled(self._together.settle(self._clock.monotonic_ns()))

    async def wait(self) -> None:
        """Wait until something is due, or may be due sooner than it was."""
        self._sooner.clear()
        now = self._clock.monotonic_ns()
        due = [at for at in (self._brakes.due(), self._together.due()) if at is not None]
        left = max(0, min(due) - now) if due else None
        if self._ending:
            left = AGAIN_NS if left is None else min(left, AGAIN_NS)
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._sooner.wait())]
        if left is not None:
            waits.append(asyncio.ensure_future(self._clock.sleep(left / 1e9)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _begin(self, origin: int) -> None:
        brake = next(one for one in self._brakes.active() if one.origin == origin)
        self.begun += 1
        self._looks.clear()
        self._sooner.set()
        log.warning(
            "brake-begun",
            f"{brake.silent} of {brake.up} backends are silent at once: their failures are held for"
            f" {format_duration(brake.until_ns - brake.since_ns)}",
            silent=brake.silent,
            up=brake.up,
        )

    def _end(self, origins: list[int], why: str) -> None:
        for origin in origins:
            held = [live for live, its in self._held.values() if its == origin]
            words = f"the brake ends, {logs.counted(len(held), 'held backend')}: {why}"
            log.warning("brake-ended", words, held=len(held))
            now = self._clock.monotonic_ns()
            for live in held:
                self.drop(live)
                self._ending[live.name] = live
                self._together.begin(live.name, self._frontends.users_of(live.name), now)
        if origins:
            self._give_back()
            self._sooner.set()

    def _give_back(self) -> None:
        """Tell the engine which holds have ended; a command that it does not take is repeated."""
        for name, live in list(self._ending.items()):
            try:
                if live.target >= 0:
                    self._engine.release(live.target)
            except RuntimeError as error:
                log.warning("hold-refused", f"the probe engine does not end the hold of {name}: {error}", backend=name)
                return
            del self._ending[name]
