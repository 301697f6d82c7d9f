"""Taking over a VPP that forwards already: what is presumed, which scales stay, what was lost, what is read back."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from maglev.base.pace import at_once
from maglev.base.states import State
from maglev.config.model import SECOND, LbConfig
from maglev.vpp.planning.model import ActualAs, ActualVip
from maglev.vpp.state.adoption import Adoption, Found, look_at
from maglev.vpp.state.warmup import LEAST_PATIENCE_NS
from maglev.vpp.sync.verification import WINDOW_NS, Verification
from maglev.vpp.wire.messages import Encap, VipKey
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import FakeStates, make_config

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
A, B, C = (bytes((10, 0, 0, last)) for last in (1, 2, 3))


class Checker:
    """Remembers what it was told to presume good."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []

    def settle(self, names: Iterable[str], pools: object) -> None:
        self.told.append(set(names))


def vip(weights: dict[bytes, int], key: VipKey = WWW) -> ActualVip:
    return ActualVip(key, Encap.GRE4, 1024, ases={address: ActualAs(weight) for address, weight in weights.items()})


def look(vips: dict[VipKey, ActualVip]) -> Found:
    """What a VPP is found like where a, b and the standby c are configured, and their weights are 1 each."""
    return at_once(look_at(vips, FakeStates(make_config({"p": {"a": 10, "b": 10}, "q": {"c": 10}}))))


def test_backends_that_vpp_sends_traffic_to_are_found_serving() -> None:
    assert look({WWW: vip({A: 1, B: 0, C: 1})}) == Found({"a", "c"}, {}, [])


def test_a_vip_whose_weights_are_one_multiple_is_found_in_its_scale() -> None:
    assert look({WWW: vip({A: 10, B: 10, C: 0})}).scales == {WWW: 10}
    assert look({WWW: vip({A: 10, B: 5, C: 0})}).scales == {}


def test_the_weight_of_a_server_that_starts_slowly_is_no_scale() -> None:
    for slow_start, weight, scales in (
        (0, 3, {WWW: Fraction(3, 10)}),
        (60 * SECOND, 3, {}),
        (60 * SECOND, 30, {WWW: 3}),
    ):
        config = make_config({"p": {"a": 10, "b": 10}}, weight_unit=1, slow_start=slow_start)
        found = at_once(look_at({WWW: vip({A: weight, B: 0})}, FakeStates(config)))
        assert found.scales == scales


def test_a_configured_vip_that_vpp_does_not_have_is_missing() -> None:
    assert look({API: vip({A: 0}, API)}) == Found(set(), {}, [WWW])


def test_backends_that_serve_a_vip_which_the_file_lacks_are_presumed_good_too() -> None:
    assert look({WWW: vip({A: 1, B: 0}), API: vip({A: 0, B: 1, b"\x0a\x00\x00\x09": 1}, API)}).serving == {"a", "b"}
    assert look({API: vip({C: 1}, API)}) == Found({"c"}, {}, [WWW])


def test_only_the_first_vpp_has_its_scales_adopted_and_says_what_is_presumed() -> None:
    checker = Checker()
    adoption = Adoption(FakeClock(), 0, checker)
    assert adoption.adopt(Found({"a"}, {WWW: Fraction(10)}, [])) == {WWW: 10}
    assert adoption.multiples == {WWW: 10}
    assert adoption.adopt(Found({"b"}, {API: Fraction(10)}, [])) == {}
    assert adoption.multiples == {WWW: 10}, "a reconnect ends no scale, and begins none"
    assert adoption.adopt(Found(set(), {}, [WWW])) == {}
    assert adoption.multiples == {}, "it is created again, in our scale"
    assert checker.told == [{"a"}]


def test_a_presumption_that_has_ended_without_a_vpp_is_not_taken_up_again() -> None:
    checker = Checker()
    adoption = Adoption(FakeClock(), 0, checker)
    adoption.settle(())
    adoption.adopt(Found({"a"}, {}, []))
    assert checker.told == [set()]


def test_a_plan_may_keep_the_scales_that_it_was_given() -> None:
    adoption = Adoption(FakeClock(), 0, None)
    adoption.adopt(Found(set(), {WWW: Fraction(10), API: Fraction(5)}, []))
    before = adoption.multiples
    adoption.unscale([WWW])
    adoption.unscale_all()
    assert before == {WWW: 10, API: 5}
    assert adoption.multiples == {}


def test_weights_that_are_lost_are_remembered_on_our_own_scale() -> None:
    adoption = Adoption(FakeClock(), 0, None)
    adoption.adopt(Found(set(), {WWW: Fraction(10)}, []))
    adoption.lose(vip({A: 30, B: 0}))
    assert [adoption.lost.recall(WWW, address, present=False) for address in (A, B)] == [3, 0]
    adoption.recreate(vip({A: 7}, API))
    assert adoption.lost.recall(API, A, present=True) == 7


def test_a_vpp_is_given_five_seconds_or_the_warm_up_to_say_what_it_holds() -> None:
    clock = FakeClock()
    started = clock.monotonic_ns()
    config = make_config({"p": {"a": 10}}, lb=LbConfig(startup_min_delay=0, startup_max_delay=0))
    adoption = Adoption(clock, started, None)
    adoption.begin(config, lambda _: State.UP)
    assert adoption.done
    assert adoption.patience_ns == LEAST_PATIENCE_NS
    assert adoption.due_in() == LEAST_PATIENCE_NS
    clock.advance(5)
    assert adoption.patience_ns == 0
    adoption.settle(())
    assert adoption.due_in() is None


def test_while_the_warm_up_lasts_its_next_phase_is_due() -> None:
    clock = FakeClock()
    lb = LbConfig(startup_min_delay=5 * SECOND, startup_max_delay=30 * SECOND)
    adoption = Adoption(clock, clock.monotonic_ns(), None)
    adoption.begin(make_config({"p": {"a": 10}}, lb=lb), lambda _: State.UNKNOWN)
    assert adoption.silent
    assert adoption.due_in() == 5 * SECOND
    clock.advance(6)
    assert not adoption.silent
    assert adoption.due_in() == 24 * SECOND
    assert adoption.patience_ns == 24 * SECOND
    clock.advance(24)
    assert adoption.done
    assert adoption.warmup.unresolved == {"a"}


def test_what_was_written_is_read_back_once_in_the_order_of_the_writes() -> None:
    verification = Verification()
    assert verification.take() is None
    verification.written([API, WWW])
    verification.written([API])
    assert verification.due
    assert [verification.take(), verification.take(), verification.take()] == [API, WWW, None]
    verification.written([WWW])
    verification.forget()
    assert not verification.due


def test_a_vip_that_two_controllers_write_is_repaired_at_once_but_once_in_ten_minutes() -> None:
    verification = Verification()
    assert verification.contest(WWW, 5)
    assert verification.contest(API, 6)
    assert not verification.contest(WWW, 4 + WINDOW_NS)
    assert verification.contest(WWW, 5 + WINDOW_NS)
