"""The rings between the engine's threads: whatever the other side does, an item is whole or is not there yet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from maglev._cores import EventRing

PATIENCE = 60.0  # seconds; only a failing test takes so long


@pytest.mark.parametrize(("size", "count"), [(1, 300_000), (2, 700_000), (64, 2_000_000)])
def test_two_threads_hand_over_every_event_whole_and_in_order(size: int, count: int) -> None:
    """Small rings are full and empty all the time: both sides stand right at the place that changes hands.

    A counter that is published before the item is written, or before it was copied out, gives events here that are
    those of a round before, or halves of two.
    """
    ring = EventRing(size)
    with ThreadPoolExecutor(2) as threads:
        consumer = threads.submit(ring.consume, count, PATIENCE)
        producer = threads.submit(ring.produce, count, PATIENCE)
        assert producer.result() == count
        assert consumer.result() == (0, count)


def test_a_full_ring_takes_nothing_and_loses_nothing() -> None:
    ring = EventRing(4)
    assert ring.produce(10, 0.01) == 4
    assert ring.consume(10, 0.01) == (0, 4)
    assert ring.produce(4, 0.01) == 4
    assert ring.consume(4, 0.01) == (0, 4)


@pytest.mark.parametrize("size", [0, 3, 2**25])
def test_a_ring_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        EventRing(size)
