"""A backend with a verdict per frontend: every reader follows the source, which alone knows the paths.

Today all frontends share one path to a backend. This source has two, to show that no reader would have to change.
"""

from __future__ import annotations

from ipaddress import ip_address

from maglev.base.states import FrontendState, State
from maglev.config.model import Config, Frontend, Pool, PoolMember
from maglev.judgement.weights import TargetState
from maglev.vpp.planning.desired import desired_vips
from maglev.vpp.planning.model import vip_key
from maglev.vpp.state.announced import Announced, Before
from maglev.vpp.state.warmup import WarmUp
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import FakeBackend, FakeStates, make_config


class TwoPaths(FakeStates):
    """Backend ``a`` has a verdict of its own for the frontend ``far``."""

    far: State = State.DOWN

    def target_state(self, frontend: str, backend: str) -> TargetState:
        if (frontend, backend) == ("far", "a"):
            return FakeBackend(self.far)
        return super().target_state(frontend, backend)


def configured() -> Config:
    far = Frontend("far", ip_address("192.0.2.2"), (Pool("p", (PoolMember("a", 10),)),))
    return make_config({"p": {"a": 10}}, frontends=[far])


def test_weights_and_states_are_those_of_the_frontends_own_target() -> None:
    states = TwoPaths(configured())
    weights = {name: states.weights(frontend) for name, frontend in states.config().frontends.items()}
    assert {name: one.state for name, one in weights.items()} == {"www": FrontendState.UP, "far": FrontendState.DOWN}
    assert {name: one.members[0].effective for name, one in weights.items()} == {"www": 10, "far": 0}


def test_what_vpp_should_hold_is_by_the_frontends_own_target() -> None:
    states = TwoPaths(configured())
    www, far = desired_vips(["www", "far"], states)
    assert [(vip.usable, vip.ases[0].state) for vip in (www, far)] == [(True, State.UP), (False, State.DOWN)]


def test_a_weight_is_kept_only_where_the_frontends_own_target_has_no_verdict() -> None:
    states = TwoPaths(configured())
    states.far = State.UNKNOWN
    www, far = desired_vips(["www", "far"], states, unresolved=frozenset({"a"}))
    assert www.ases[0].weight == 1
    assert far.ases[0].weight is None


def test_warm_up_waits_for_the_verdict_of_the_frontends_own_target() -> None:
    states, clock = TwoPaths(configured()), FakeClock()
    announced = Announced(states, clock)
    warmup = WarmUp(clock, min_delay_ns=0, max_delay_ns=10**9)
    frontends = states.config().frontends
    states.far = State.UNKNOWN
    assert warmup.released(frontends["www"], announced.state_for)
    assert not warmup.released(frontends["far"], announced.state_for)


def test_during_a_reload_the_old_configuration_is_judged_by_the_same_targets() -> None:
    states = TwoPaths(configured())
    before = Before(states.config(), states)
    states.load(make_config({"p": {"a": 20}}))
    far = before.config().frontends["far"]
    assert before.target_state("far", "a").state is State.DOWN
    assert before.weights(far).state is FrontendState.DOWN
    (wanted,) = desired_vips(["far"], before)
    assert wanted.key == vip_key(far)
    assert not wanted.usable
