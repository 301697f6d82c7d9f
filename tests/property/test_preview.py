"""A change that is only tried: what it says is what the change then does, and nothing is changed by it.

Brake, pools, panic, slow start and presumption act on two frontends, with verdicts, verbs and time in any order
(``test_mechanisms``). Each change is tried before it is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from maglev.base.errors import NotAllowed
from maglev.base.events import BackendEvent, DrainEvent, Event, WeightEvent
from maglev.checker import Checker
from maglev.checker.preview import Previews, Trial
from maglev.views.backends import Change, WeightChange
from maglev.vpp.planning.desired import DesiredVip, desired_vip
from tests.property.test_mechanisms import FRONTENDS, HISTORIES, NAMES, Daemon, Life, Mechanisms, mechanisms

Answer = Change | WeightChange | str
MADE = (BackendEvent, DrainEvent, WeightEvent)
"""The events from which the dataplane learns of a change."""


def wanted(daemon: Daemon, checker: Checker, frontends: Iterable[str]) -> list[DesiredVip]:
    """The weights for VPP in these frontends, by the states of ``checker``."""
    warmup = daemon.warmup
    return [
        desired_vip(
            checker.frontend(name),
            checker,
            unresolved=warmup.unresolved,
            awaited=warmup.awaited,
            found=daemon.vips[name],
        )
        for name in frontends
    ]


def state(daemon: Daemon) -> object:
    """Everything that a try could have changed."""
    checker = daemon.checker
    lives = [(one.state, one.drained, one.held, one.presumed, one.history, one.target) for one in checker.backends()]
    transitions = [dict(one.transitions) for one in checker.backends()]
    targets = {number: repr(target) for number, target in daemon.engine.targets.items()}
    frontends = checker.config().frontends.values()
    memories = [checker.memory(frontend) for frontend in frontends]
    published = [checker.frontend_state(name) for name in FRONTENDS]
    return lives, transitions, targets, memories, published, checker.overrides(), daemon.weights(), checker.held()


def answer(change: Callable[[], Answer]) -> Answer:
    try:
        return change()
    except NotAllowed as error:
        return str(error)


async def tried(daemon: Daemon, trial: Trial, change: Callable[[Checker], Change | WeightChange]) -> None:
    """Try a change, then make it, and compare."""
    before, heard = state(daemon), list[Event]()
    weights = {name: daemon.checker.frontend_weights(name) for name in FRONTENDS}
    stop = daemon.bus.listen(heard.append)
    said = answer(lambda: trial.run(change))
    forecasts = {one.frontend: one for one in await trial.forecasts()}
    planned = wanted(daemon, trial.checker, trial.frontends)
    foreseen = weights | {name: trial.checker.frontend_weights(name) for name in trial.frontends}
    assert (state(daemon), heard) == (before, [])

    assert answer(lambda: change(daemon.checker)) == said
    assert [one for one in heard if isinstance(one, MADE)] == [one for one in trial.events if isinstance(one, MADE)]
    stop()
    assert {name: daemon.checker.frontend_weights(name) for name in FRONTENDS} == foreseen
    assert wanted(daemon, daemon.checker, trial.frontends) == planned
    for name, new in foreseen.items():
        old = weights[name]
        moved = {
            (b.pool, b.backend): (a.effective, b.effective, a.programmed, b.programmed, b.keep)
            for a, b in zip(old.members, new.members, strict=True)
            if (a.effective, a.programmed, a.keep) != (b.effective, b.programmed, b.keep)
        }
        said_of = forecasts[name].members if name in forecasts else ()
        assert moved == {
            (one.pool, one.backend): (
                one.effective_before,
                one.effective_after,
                one.programmed_before,
                one.programmed_after,
                one.keeps,
            )
            for one in said_of
        }
        if name in forecasts:
            assert (forecasts[name].state_before, forecasts[name].state_after) == (old.state, new.state)
        else:
            assert (old.state, old.active_pool, old.usable) == (new.state, new.active_pool, new.usable)


def verb(name: str, word: str) -> Callable[[Checker], Change]:
    def change(checker: Checker) -> Change:
        made: Change = getattr(checker, word)(name, by="x", reason="why")
        return made

    return change


def weight(frontend: str, pool: str, name: str, value: int | None, flush: bool) -> Callable[[Checker], WeightChange]:
    return lambda checker: checker.set_weight(frontend, pool, name, value, flush=flush, by="x", duration_ns=10**9)


VERBS = st.sampled_from(["pause", "resume", "disable", "enable", "drain", "undrain"])
MEMBERS = [
    (frontend, at, name) for frontend, pools in FRONTENDS.items() for at, pool in enumerate(pools) for name in pool
]
CHANGES = st.tuples(st.sampled_from(NAMES), VERBS) | st.tuples(
    st.sampled_from(MEMBERS), st.sampled_from([None, 0, 7, 10, 55, 100]), st.booleans()
)


@settings(max_examples=150)
@given(mechanisms(), HISTORIES, st.lists(CHANGES, min_size=1, max_size=6))
def test_a_preview_says_what_the_change_does_and_changes_nothing(
    how: Mechanisms, history: list[tuple[object, ...]], changes: list[tuple[object, ...]]
) -> None:
    async def live() -> None:
        life = Life(how)
        await life.serve()
        for action in history:
            await life.step(action)
            await one(life, changes[len(repr(action)) % len(changes)])
        for change in changes:
            await one(life, change)

    async def one(life: Life, change: tuple[object, ...]) -> None:
        daemon = life.daemon
        previews = Previews(daemon.checker)
        match change:
            case str() as name, str() as word:
                await tried(daemon, await previews.of_backend(name), verb(name, word))
            case (str() as frontend, int() as at, str() as name), (int() | None) as value, bool() as flush:
                trial = await previews.of_weight(frontend, name)
                await tried(daemon, trial, weight(frontend, f"pool{at}", name, value, flush))
        daemon.program()

    asyncio.run(live())
