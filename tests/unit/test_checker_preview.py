"""Changes that are only tried: what nothing else may learn of, and moments at which they cannot be made."""

from __future__ import annotations

import asyncio
import logging

import pytest

from maglev.base.errors import NotAllowed, Unavailable, UnknownName
from maglev.base.pace import Pace
from maglev.base.states import FrontendState, State
from maglev.checker.preview import Previews, Trial
from maglev.config.model import SECOND, Brake
from tests.helpers.checker import config
from tests.unit import test_checker_holds as holds
from tests.unit.test_checker_verbs import A, B, Rig


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 100}, {"b": 50}]}), by="start")
    rig.checker.settle(())
    rig.result(A, True)
    rig.result(B, True)
    rig.seen.take()
    return rig


async def test_nothing_learns_of_a_change_that_is_tried(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    saved, generation = rig.saved, rig.engine.generation(0)
    for verb in ("pause", "disable", "drain"):
        trial = await Previews(rig.checker).of_backend("a")
        assert trial.run(lambda checker, verb=verb: getattr(checker, verb)("a", by="op")).changed  # type: ignore[misc]
        assert trial.events
        (forecast,) = await trial.forecasts()
        assert (forecast.pool_before, forecast.pool_after) == ("pool0", "pool1")
        assert [(one.backend, one.effective_after) for one in forecast.members] == [("a", 0), ("b", 50)]
    trial = await Previews(rig.checker).of_weight("www", "a")
    trial.run(lambda checker: checker.set_weight("www", "pool0", "a", 0, by="op"))
    assert (rig.seen.take(), caplog.records, rig.saved) == ([], [], saved)
    assert (rig.checker.overrides(), rig.state("a"), rig.engine.generation(0)) == ([], State.UP, generation)
    rig.checker.pause("a", by="op")
    assert caplog.records


async def test_a_stopped_backend_that_comes_back_is_unknown_until_its_first_verdict(rig: Rig) -> None:
    rig.checker.disable("a", by="op")
    trial = await Previews(rig.checker).of_backend("a")
    trial.run(lambda checker: checker.enable("a", by="op"))
    assert trial.checker.backend_status("a").state is State.UNKNOWN
    assert await trial.forecasts() == []
    assert rig.state("a") is State.DISABLED


async def test_a_refused_change_is_refused_when_it_is_tried(rig: Rig) -> None:
    previews = Previews(rig.checker)
    rig.checker.disable("a", by="op")
    trial = await previews.of_backend("a")
    with pytest.raises(NotAllowed, match="disabled"):
        trial.run(lambda checker: checker.pause("a", by="op"))
    trial = await previews.of_backend("nil")
    with pytest.raises(UnknownName, match="nil"):
        trial.run(lambda checker: checker.pause("nil", by="op"))
    with pytest.raises(UnknownName, match="frontend"):
        await previews.of_weight("nil", "a")
    trial = await previews.of_weight("www", "a")
    with pytest.raises(UnknownName, match="pool"):
        trial.run(lambda checker: checker.set_weight("www", "nil", "a", 1, by="op"))


async def test_a_reload_while_the_tables_are_filled_makes_the_trial_begin_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "due", lambda self: True)
    other = config({"a": A, "b": B}, {"www": [{"b": 50}], "more": [{"a": 10}]})
    reload = asyncio.create_task(rig.checker.apply(other, by="op", force=True))
    trial = await Previews(rig.checker).of_backend("a")
    trial.run(lambda checker: checker.drain("a", by="op"))
    await reload
    # Whichever came first, the trial is of one configuration, and whole.
    assert list(trial.frontends) in (["www"], ["more"])
    assert trial.checker.config().frontends.keys() >= set(trial.frontends)
    assert [one.frontend for one in await trial.forecasts()] == list(trial.frontends)
    trial = await Previews(rig.checker).of_backend("a")
    trial.run(lambda checker: checker.drain("a", by="op"))
    (forecast,) = await trial.forecasts()
    assert (forecast.frontend, forecast.state_after) == ("more", FrontendState.DOWN)


async def test_a_configuration_that_never_rests_is_an_error_and_no_endless_loop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise KeyError("www")

    monkeypatch.setattr(rig.checker, "copied", gone)
    with pytest.raises(Unavailable, match="ask again"):
        await Previews(rig.checker).of_backend("a")


async def test_the_end_of_a_brake_is_tried_with_those_that_still_fail() -> None:
    rig = holds.Rig()
    await rig.apply(holds.made(Brake(0.5, 3, 15 * SECOND)))
    rig.checker.settle(())
    for name in holds.NAMES:
        rig.probe(name, passed=True, times=2)
    rig.silence(holds.NAMES[:6], times=3)
    rig.silence(holds.NAMES[:6], times=3)

    trial: Trial = await Previews(rig.checker).of_brake()
    assert trial.release_brake() == (6, 6)
    (forecast,) = await trial.forecasts()
    assert [one.backend for one in forecast.members] == holds.NAMES[:6]
    assert rig.checker.held() == 6
    assert {rig.state(name) for name in holds.NAMES} == {State.UP}

    foreseen = trial.checker.frontend_weights("www")
    rig.checker.release_brake(by="op")
    rig.follow()
    assert rig.checker.frontend_weights("www") == foreseen


async def test_without_a_brake_its_end_changes_nothing(rig: Rig) -> None:
    trial = await Previews(rig.checker).of_brake()
    assert trial.release_brake() == (0, 0)
    assert await trial.forecasts() == []
