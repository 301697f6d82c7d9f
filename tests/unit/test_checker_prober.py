"""The prober: its commands to the engine, and the answers that count."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from maglev._probe import Transition
from maglev.base.states import Code, State
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.prober import Prober, Spread
from maglev.config.model import SECOND, Backend, HealthCheck
from tests.helpers.checker import FakeClock, FakeEngine, check

A = "192.0.2.1"


class Rig:
    def __init__(self, *, capacity: int = 100) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine(self.clock, capacity=capacity)
        self.prober = Prober(self.engine, self.clock)
        self.use(check())

    def use(self, *specs: HealthCheck) -> None:
        self.prober.use(self.prober.checks_for({spec.name: spec for spec in specs}))

    @property
    def ping(self) -> Check:
        return self.prober.checks["ping"]

    def backend(self, name: str = "a", address: str = A) -> LiveBackend:
        live = LiveBackend(Backend(name, ip_address(address), "ping"), self.ping, 0)
        live.state = State.UNKNOWN
        return live

    def probed(self, name: str = "a", address: str = A) -> LiveBackend:
        live = self.backend(name, address)
        self.prober.start(live, self.ping, 0)
        return live


def verdict(target: int, generation: int) -> Transition:
    return Transition(target, generation, State.UNKNOWN, State.UP, Code.L3OK, "", 1, 0)


def test_first_probes_are_spread_evenly_and_none_is_later_than_the_span() -> None:
    spread = Spread(SECOND, count=4)
    assert [spread.next() for _ in range(6)] == [0, SECOND // 4, SECOND // 2, 3 * SECOND // 4, SECOND, SECOND]


def test_a_check_that_did_not_change_stays_the_same_object_and_is_given_to_the_engine_once() -> None:
    rig = Rig()
    before = rig.ping
    rig.probed("a")
    rig.probed("b", "192.0.2.2")
    assert len(rig.engine.checks) == 1
    rig.use(check(), check("other"))
    assert rig.ping is before
    rig.prober.release_old_checks()
    assert list(rig.engine.checks) == [before.id]


def test_an_old_check_is_released_only_when_it_is_said_to_be_out_of_use() -> None:
    rig = Rig()
    live = rig.probed()
    old = rig.ping
    rig.use(check(fall=9))
    assert old.id in rig.engine.checks
    rig.prober.change_check(live, rig.ping, None)
    rig.prober.release_old_checks()
    assert list(rig.engine.checks) == [rig.ping.id]
    assert old.id == -1
    rig.prober.release_old_checks()


def test_a_pause_keeps_the_target_and_a_start_goes_on_with_it() -> None:
    rig = Rig()
    live = rig.probed()
    target = live.target
    rig.prober.halt(live, forget=False)
    assert live.target == target
    assert not rig.engine.is_probed(A)
    live.state = State.PAUSED
    rig.prober.start(live, rig.ping, 5)
    assert live.target == target
    assert rig.engine.is_probed(A)
    assert rig.engine.probed(A).first_delay == 5


def test_a_halt_that_forgets_gives_the_target_back() -> None:
    rig = Rig()
    live = rig.probed()
    rig.prober.halt(live, forget=True)
    assert live.target == -1
    assert not rig.engine.targets
    rig.prober.halt(live, forget=True)


@pytest.mark.parametrize("state", [State.PAUSED, State.DISABLED])
def test_a_backend_that_is_not_probed_is_not_paused_again(state: State) -> None:
    rig = Rig()
    live = rig.probed()
    rig.prober.halt(live, forget=False)
    live.state = state
    generation = rig.engine.generation(live.target)
    rig.prober.halt(live, forget=False)
    assert rig.engine.generation(live.target) == generation


def test_a_verdict_counts_until_a_command_makes_it_obsolete() -> None:
    rig = Rig()
    live = rig.probed()
    target, generation = live.target, rig.engine.generation(live.target)
    assert rig.prober.backend_of(verdict(target, generation)) is live
    assert rig.prober.backend_of(verdict(target + 1, generation)) is None
    rig.use(check(rise=9))
    rig.prober.change_check(live, rig.ping, None)
    assert rig.prober.backend_of(verdict(target, generation)) is None
    generation = rig.engine.generation(target)
    live.state = State.PAUSED
    assert rig.prober.backend_of(verdict(target, generation)) is None
    live.state = State.UP
    rig.prober.stop(live)
    assert rig.prober.backend_of(verdict(target, generation)) is None


def test_a_refused_check_is_trouble_from_when_it_was_first_refused_and_asked_for_once() -> None:
    rig = Rig()
    rig.engine.refuse = "no such namespace"
    first, second = rig.backend(), rig.backend("b", "192.0.2.2")
    rig.prober.start(first, rig.ping, 0)
    since = rig.clock.time_ns()
    assert first.target == -1
    assert first.trouble == "health check ping: no such namespace"
    assert first.trouble_since_ns == since
    rig.engine.refuse = ""
    rig.clock.advance(5)
    rig.prober.start(first, rig.ping, 0)
    rig.prober.start(second, rig.ping, 0)
    assert first.trouble_since_ns == since
    assert second.trouble
    rig.use(check(fall=9))
    rig.prober.change_check(first, rig.ping, None)
    assert first.target >= 0
    assert not first.trouble
    assert first.trouble_since_ns == 0


def test_a_changed_check_that_is_refused_leaves_the_state_and_says_why() -> None:
    rig = Rig()
    live = rig.probed()
    live.state = State.UP
    rig.engine.refuse = "no"
    rig.use(check(fall=9))
    rig.prober.change_check(live, rig.ping, None)
    assert live.state is State.UP
    assert live.target == -1
    assert "no" in live.trouble


def test_a_full_engine_is_trouble_and_ends_with_a_halt() -> None:
    rig = Rig(capacity=1)
    rig.probed()
    live = rig.probed("b", "192.0.2.2")
    assert live.target == -1
    assert live.trouble == "the probe engine cannot take it: the table of targets is full"
    rig.prober.halt(live, forget=False)
    assert not live.trouble


def test_a_backend_that_was_static_joins_in_its_present_state_with_a_spread_first_probe() -> None:
    rig = Rig()
    live = rig.backend()
    live.state = State.UP
    spread = Spread(SECOND, count=2)
    spread.next()
    rig.prober.change_check(live, rig.ping, spread)
    target = rig.engine.probed(A)
    assert target.state is State.UP
    assert target.first_delay == SECOND // 2


def test_only_a_backend_with_a_target_is_presumed_good() -> None:
    rig = Rig(capacity=1)
    live, refused = rig.probed(), rig.probed("b", "192.0.2.2")
    rig.prober.presume(live, True)
    rig.prober.presume(refused, True)
    assert live.presumed
    assert rig.engine.probed(A).presumed
    assert not refused.presumed


def test_single_probes_are_reported_while_a_trace_lasts() -> None:
    rig = Rig()
    live = rig.probed()
    end = rig.prober.trace(live, lambda name: live)
    rig.engine.result(A, True)
    (result,) = rig.engine.results()
    event = rig.prober.traced(result)
    assert event is not None
    assert event.fields["backend"] == "a"
    assert event.fields["code"] == "L3OK"
    end()
    assert not rig.engine.probed(A).traced
    assert rig.prober.traced(result) is None


def test_a_backend_that_joins_again_is_traced_again() -> None:
    rig = Rig()
    live = rig.probed()
    end = rig.prober.trace(live, lambda name: live)
    rig.prober.stop(live)
    rig.prober.start(live, rig.ping, 0)
    assert rig.engine.probed(A).traced
    end()
    end()
    assert not rig.engine.probed(A).traced
