"""Changes that are only tried: what a verb would do, without doing it.

A *trial* is a copy of the checker's state, of the backends and frontends that a change concerns, and of nothing else.
The verb runs on it, by the very code that a real one runs by: settings, alignment, the weight rule, and the mechanisms
with their memory. So a preview cannot follow another rule than the change that it announces. The trial answers as a
``StateSource``, from which the dataplane makes its plan, and holds the events that the change would publish, from which
the dataplane learns which flushes it would owe.

A trial has no other effect: its events go to a separate bus, the log is muted, the probe engine gets no command,
and no setting is kept. A trial is made in one turn of the event loop, after its table was filled in slices. It is true
of that moment: verdicts that come later are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from maglev.base import logs
from maglev.base.errors import Unavailable
from maglev.base.events import Bus, Event
from maglev.base.pace import Pace
from maglev.checker.checker import Checker
from maglev.judgement.weights import MemberWeight, WeightTable
from maglev.views.previews import FrontendForecast, MemberForecast

T = TypeVar("T")

TRIES = 5
"""How often a trial begins again because a reload or other held backends came while its tables were filled."""


class Trial:
    """``checker``: the copy. ``backends`` and ``frontends``: those that the change may concern.

    ``events``: what it would publish.
    """

    def __init__(
        self, checker: Checker, backends: Sequence[str], frontends: Sequence[str], before: WeightTable, bus: Bus
    ) -> None:
        self.checker = checker
        self.backends = backends
        self.frontends = frontends
        self.events: list[Event] = []
        self._before = before
        bus.listen(self.events.append)

    def run(self, change: Callable[[Checker], T]) -> T:
        """Make a change to the copy. Raises what the real change would raise."""
        with logs.muted():
            return change(self.checker)

    def release_brake(self) -> tuple[int, int]:
        """Try the end of all brakes: how many backends are held, and how many of them fail at this moment.

        Failing backends go down, as if each had failed ``fall`` times since its hold began. Only the probe engine
        counts these failures, and it reports them when the hold ends.
        """
        failing = [name for name in self.backends if self.checker.failing(name)]
        self.run(lambda checker: checker.fail(failing))
        return len(self.backends), len(failing)

    async def forecasts(self) -> list[FrontendForecast]:
        """The frontends for which the change would make a difference. Lets the loop run between slices."""
        pace = Pace()
        found: list[FrontendForecast] = []
        for name in self.frontends:
            before, after = self._before.frontend(name), self.checker.frontend_weights(name)
            members: list[MemberForecast] = []
            for old, new in zip(before.members, after.members, strict=True):
                if (old.effective, old.programmed, old.keep) != (new.effective, new.programmed, new.keep):
                    members.append(_member(old, new))
                if pace.due():
                    await pace.rest()
            pools = [pool.name for pool in self.checker.frontend(name).pools]
            pool_before = pools[before.active_pool] if before.usable else ""
            pool_after = pools[after.active_pool] if after.usable else ""
            # Where only the state of a standby differs, nothing follows from it.
            if members or (before.state, pool_before) != (after.state, pool_after):
                found.append(FrontendForecast(name, before.state, after.state, pool_before, pool_after, members))
        return found


def _member(old: MemberWeight, new: MemberWeight) -> MemberForecast:
    return MemberForecast(
        pool=new.pool,
        backend=new.backend,
        effective_before=old.effective,
        effective_after=new.effective,
        programmed_before=old.programmed,
        programmed_after=new.programmed,
        keeps=new.keep,
    )


class Previews:
    """Makes trials of the changes to ``checker``."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    async def of_backend(self, name: str) -> Trial:
        """To try a verb on a backend. Raises ``UnknownName``, and ``Unavailable`` where reloads follow one another."""
        return await self._trial(lambda: [name], self._checker.frontends_of)

    async def of_weight(self, frontend: str, backend: str) -> Trial:
        """To try a weight of a backend in a frontend. Raises as ``of_backend``."""

        def frontends(_: str) -> list[str]:
            return [self._checker.frontend(frontend).name]

        return await self._trial(lambda: [backend], frontends)

    async def of_brake(self) -> Trial:
        """To try the end of all brakes. Raises ``Unavailable``, as ``of_backend``."""
        return await self._trial(self._checker.held_backends, self._checker.frontends_of)

    async def _trial(
        self, backends: Callable[[], Sequence[str]], frontends_of: Callable[[str], Sequence[str]]
    ) -> Trial:
        def concerned() -> list[str]:
            return list(dict.fromkeys(name for backend in backends() for name in frontends_of(backend)))

        checker = self._checker
        for _ in range(TRIES):
            names = concerned()
            try:
                before, after = await checker.blank(names), await checker.blank(names)
                if concerned() == names:
                    checker.copied(before)
                    bus, copied = Bus(), list(backends())
                    return Trial(checker.apart(copied, names, after, bus), copied, names, before, bus)
            except KeyError:
                continue  # A reload has put other frontends in force.
        raise Unavailable("the configuration changes too often to try anything: ask again")
