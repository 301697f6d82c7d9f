"""Held verdicts in the checker, with an engine and a clock that the test owns."""

from __future__ import annotations

import pytest

from maglev.base.events import Bus
from maglev.base.states import Code, State
from maglev.checker.checker import Checker
from maglev.config.model import SECOND, Brake, Config
from tests.helpers.checker import FakeClock, FakeEngine, config

NAMES = [f"b{number}" for number in range(10)]
ADDRESSES = {name: f"192.0.2.{number}" for number, name in enumerate(NAMES, 1)}


def made(brake: Brake | None) -> Config:
    return config(ADDRESSES, {"www": [dict.fromkeys(NAMES, 100)]}, brake=brake)


class Rig:
    """A checker with backends that are up, on the test's clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine(self.clock)
        self.bus = Bus()
        self.checker = Checker(self.engine, self.bus, self.clock)

    async def apply(self, config: Config) -> None:
        await self.checker.apply(config, by="test")

    def probe(self, name: str, *, passed: bool, times: int = 1, code: Code | None = None) -> None:
        for _ in range(times):
            self.engine.result(ADDRESSES[name], passed, code)
        self.checker.read_engine()

    def silence(self, names: list[str], *, times: int) -> None:
        """All of them miss as many probes, at the same time."""
        for _ in range(times):
            for name in names:
                self.engine.result(ADDRESSES[name], False)
        self.follow()

    def follow(self) -> None:
        self.checker.end_holds()
        while self.engine._transitions:
            self.checker.read_engine()

    def state(self, name: str) -> State:
        return self.checker.backend_status(name).state


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.apply(made(Brake(0.5, 3, 15 * SECOND)))
    rig.checker.settle(())
    for name in NAMES:
        rig.probe(name, passed=True, times=2)
    return rig


async def test_failures_are_held_and_take_effect_together(rig: Rig) -> None:
    rig.silence(NAMES[:6], times=3)
    assert {rig.state(name) for name in NAMES} == {State.UP}
    assert rig.checker.backend_status("b0").held == "brake"
    assert rig.checker.held() == 6
    rig.silence(NAMES[:6], times=3)
    rig.clock.advance(15)
    rig.follow()
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}
    assert {rig.state(name) for name in NAMES[6:]} == {State.UP}
    assert rig.checker.held() == 0


async def test_too_few_failures_since_the_hold_began_count_on(rig: Rig) -> None:
    rig.silence(NAMES[:6], times=3)
    rig.silence(NAMES[:6], times=2)
    rig.clock.advance(15)
    rig.follow()
    assert rig.state("b0") is State.UP
    rig.silence(NAMES[:6], times=1)
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}


async def test_a_pass_ends_a_hold_without_a_transition(rig: Rig) -> None:
    before = rig.checker.backend_status("b0").transitions
    rig.silence(NAMES[:6], times=3)
    rig.probe("b0", passed=True, times=2)
    status = rig.checker.backend_status("b0")
    assert (status.state, status.held, status.transitions) == (State.UP, "", before)


async def test_a_wrong_answer_takes_effect_at_once(rig: Rig) -> None:
    rig.silence(NAMES[:6], times=3)
    rig.probe("b0", passed=False, times=1, code=Code.L4CON)
    assert rig.state("b0") is State.DOWN
    assert rig.checker.held() == 5


async def test_what_an_operator_does_ends_a_hold(rig: Rig) -> None:
    rig.silence(NAMES[:6], times=3)
    rig.checker.pause("b0", by="ann")
    rig.checker.disable("b1", by="ann")
    assert (rig.state("b0"), rig.state("b1")) == (State.PAUSED, State.DISABLED)
    assert rig.checker.backend_status("b0").held == ""
    assert rig.checker.held() == 4


async def test_a_reload_that_turns_the_brake_off_releases_all(rig: Rig) -> None:
    rig.silence(NAMES[:6], times=3)
    rig.silence(NAMES[:6], times=3)
    await rig.apply(made(None))
    rig.follow()
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}


async def test_a_command_that_the_engine_does_not_take_is_given_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.silence(NAMES[:6], times=3)
    rig.silence(NAMES[:6], times=3)

    def refuse(target: int) -> None:
        raise RuntimeError("too many commands wait")

    with monkeypatch.context() as patch:
        patch.setattr(rig.engine, "release", refuse)
        assert rig.checker.release_brake(by="ann") == 6
    assert rig.state("b0") is State.UP
    rig.follow()
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}


async def test_a_hold_that_the_engine_refuses_is_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: int, state: State) -> None:
        raise RuntimeError("too many commands wait")

    monkeypatch.setattr(rig.engine, "hold", refuse)
    rig.silence(NAMES[:6], times=3)
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}


async def test_a_frontend_is_programmed_when_the_last_of_the_held_verdicts_is_read(rig: Rig) -> None:
    """The checker reads verdicts in slices; between two of them nothing is known of the others."""
    settled: list[str] = []
    rig.bus.listen_judgements(lambda name, mechanism: settled.append(name))
    for _ in range(2):
        rig.silence(NAMES[:6], times=3)
    assert not rig.checker.unsettled("www")
    rig.clock.advance(15)
    rig.checker.end_holds()
    assert rig.checker.unsettled("www")
    waiting, rig.engine._transitions = rig.engine._transitions, []
    assert len(waiting) == 6
    for transition in waiting:
        assert rig.checker.unsettled("www")
        assert settled == []
        rig.engine._transitions = [transition]
        rig.checker.read_engine()
    assert {rig.state(name) for name in NAMES[:6]} == {State.DOWN}
    assert not rig.checker.unsettled("www")
    assert settled == ["www"]


async def test_held_verdicts_that_never_come_are_awaited_for_a_tenth_of_a_second(rig: Rig) -> None:
    settled: list[str] = []
    rig.bus.listen_judgements(lambda name, mechanism: settled.append(name))
    rig.silence(NAMES[:6], times=3)
    rig.silence(NAMES[:5], times=3)
    rig.clock.advance(15)
    rig.follow()
    assert [rig.state(name) for name in NAMES[4:6]] == [State.DOWN, State.UP]
    assert rig.checker.unsettled("www")
    rig.clock.advance(0.1)
    rig.follow()
    assert not rig.checker.unsettled("www")
    assert settled == ["www"]
