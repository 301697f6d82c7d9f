"""When the next probe is due, and where a SYN leaves from: for any interval and any delay of our own."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from maglev._cores import next_probe_due, source_port

MS = 1_000_000
OVERDUE = 100 * MS

seeds = st.integers(1, 2**64 - 1)
dues = st.integers(0, 10**18)
intervals = st.integers(MS, 3600 * 1000 * MS)


@given(seeds, dues, intervals, st.floats(-1, 1))
def test_the_next_probe_is_due_an_interval_after_the_last_was_within_a_tenth(
    seed: int, due: int, interval: int, share: float
) -> None:
    # Whenever it was sent or answered, as long as that is not later than what is caught up with: nothing drifts.
    now = due + round(share * (interval * 9 // 10 + OVERDUE))
    after = next_probe_due(seed, due, now, interval) - due
    assert interval - interval // 10 <= after <= interval + interval // 10


@given(seeds, dues, intervals, st.integers(1, 10**12))
def test_what_a_stall_has_delayed_is_spread_and_not_caught_up_with(
    seed: int, due: int, interval: int, late: int
) -> None:
    now = due + interval * 11 // 10 + OVERDUE + late
    after = next_probe_due(seed, due, now, interval)
    assert now <= after < now + interval


def test_the_jitter_uses_all_of_its_range_and_has_no_preference() -> None:
    interval = 1000 * MS
    drawn = [next_probe_due(seed << 20, 0, 0, interval) for seed in range(1, 20_001)]
    tenths = Counter((one - 900 * MS) // (20 * MS) for one in drawn)
    assert sorted(tenths) == list(range(10))
    assert all(1700 < count < 2300 for count in tenths.values())


def test_fifty_thousand_that_a_stall_has_delayed_come_in_no_burst() -> None:
    interval, now = 1000 * MS, 60_000 * MS
    due = [next_probe_due(seed << 20, 1000 * MS, now, interval) for seed in range(1, 50_001)]
    each = Counter((one - now) // (10 * MS) for one in due)
    assert sorted(each) == list(range(100))
    assert max(each.values()) < 700


@given(st.integers(64, 8192), st.integers(0, 2**20 - 1), st.integers(0, 10**17), st.integers(1, 2000), st.randoms())
def test_no_source_port_is_used_again_for_a_target_within_a_minute(
    count: int, target: int, now: int, longest: int, chance: random.Random
) -> None:
    last: dict[int, int] = {}
    sent = -1
    for _ in range(2000):
        now += chance.randint(1, longest) * MS // 4
        position = source_port(count, target, now, sent)
        if position is None:
            continue
        assert 0 <= position < count
        assert position not in last or now - last[position] >= 60_000 * MS
        last[position] = sent = now
    # Whoever probes no more often than once in a turn does not wait at all.
    assert source_port(count, target, sent + 60_000 * MS // (count - 2), sent) is not None
