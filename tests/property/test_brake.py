"""The brake for any sequence of failures and any order of them, with a simulated clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maglev.judgement.brake import REST_NS, Brakes, PoolHealth, Rule, spared

SECOND = 1_000_000_000
RULES = st.builds(
    Rule,
    share=st.sampled_from([0.1, 0.5, 0.9]),
    at_least=st.integers(1, 30),
    hold_ns=st.integers(1, 300).map(lambda seconds: seconds * SECOND),
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 40 * SECOND),  # how much later
        st.integers(0, 2),  # the origin
        st.integers(0, 100),  # up
        st.integers(0, 100),  # silent, at most as many
    ),
    max_size=60,
)


@given(RULES, STEPS)
def test_every_hold_ends_and_an_origin_rests_between_two_brakes(
    rule: Rule, steps: list[tuple[int, int, int, int]]
) -> None:
    brakes = Brakes()
    brakes.configure(rule)
    now = 0
    begun: dict[int, int] = {}
    for later, origin, up, silent in steps:
        now += later
        silent = min(silent, up)
        brakes.end(now)
        if not brakes.holds(origin, up, silent, now):
            assert origin not in {one.origin for one in brakes.active()}
            continue
        active = next(one for one in brakes.active() if one.origin == origin)
        assert active.since_ns <= now < active.until_ns == active.since_ns + rule.hold_ns
        if begun.get(origin) != active.since_ns:
            assert active.silent > rule.at_least
            assert active.silent > rule.share * active.up
            assert now - begun.get(origin, -REST_NS) >= REST_NS
            begun[origin] = active.since_ns
    due = brakes.due()
    if due is not None:
        brakes.end(now + rule.hold_ns)
    assert brakes.due() is None
    # What is silent still goes down now.
    assert not any(brakes.holds(origin, 100, 100, now + rule.hold_ns) for origin in begun if now < begun[origin] + 300)


@given(RULES, STEPS)
def test_origins_do_not_depend_on_each_other(rule: Rule, steps: list[tuple[int, int, int, int]]) -> None:
    """The answers about an origin are the same without all others, and in any order of those at one moment."""
    together = Brakes()
    alone = {origin: Brakes() for origin in range(3)}
    for brakes in (together, *alone.values()):
        brakes.configure(rule)
    now = 0
    for later, origin, up, silent in steps:
        now += later
        silent = min(silent, up)
        together.end(now)
        alone[origin].end(now)
        assert together.holds(origin, up, silent, now) == alone[origin].holds(origin, up, silent, now)


@given(RULES, st.booleans())
def test_a_brake_that_is_released_or_off_holds_nothing(rule: Rule, off: bool) -> None:
    brakes = Brakes()
    brakes.configure(rule)
    assert brakes.holds(0, 100, 100, 0)
    assert brakes.configure(None) == [0] if off else brakes.release() == [0]
    assert brakes.active() == []
    assert not brakes.holds(0, 100, 100, 1)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=4), st.data())
def test_a_frontend_is_spared_only_where_something_healthy_is_left(
    shares: list[tuple[int, int]], data: st.DataObject
) -> None:
    pools = [PoolHealth(min(pair), max(pair), min(pair) > 0) for pair in shares]
    own = data.draw(st.sampled_from(range(len(pools))))
    if spared(pools, [own]):
        assert any(pool.healthy for pool in pools)
    assert spared(pools, [own]) or all(not pool.usable for index, pool in enumerate(pools) if index != own)
