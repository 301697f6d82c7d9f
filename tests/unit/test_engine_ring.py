"""The rings between the engine's threads: whatever the other side does, an item is whole or is not there yet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from maglev._cores import ItemRing

SECONDS = 2.0  # at most; on a machine with two free CPUs all of it takes half a second


@pytest.mark.parametrize(("size", "count"), [(1, 100_000), (64, 200_000), (8192, 300_000)])
def test_two_threads_hand_over_every_item_whole_and_in_order(size: int, count: int) -> None:
    """Small rings are full and empty all the time: both sides stand right at the place that changes hands. A large ring
    is for machines whose CPUs are busy: the threads run in turn there, and are interrupted in the middle of an item.

    A counter that is published before the item is written, or before it was copied out, gives items here that are
    those of a round before, or parts of two.
    """
    ring = ItemRing(size)
    with ThreadPoolExecutor(2) as threads:
        consumer = threads.submit(ring.consume, count, SECONDS)
        producer = threads.submit(ring.produce, count, SECONDS)
        pushed = producer.result()
        wrong, taken = consumer.result()
    left = pushed - taken
    assert (wrong, ring.consume(left, SECONDS)) == (0, (0, left))
    assert ring.consume(1, 0.0) == (0, 0)
    assert pushed > size


def test_a_full_ring_takes_nothing_and_loses_nothing() -> None:
    ring = ItemRing(4)
    assert ring.produce(10, 0.01) == 4
    assert ring.consume(10, 0.01) == (0, 4)
    assert ring.produce(4, 0.01) == 4
    assert ring.consume(4, 0.01) == (0, 4)


@pytest.mark.parametrize("size", [0, 3, 2**25])
def test_a_ring_that_is_no_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ItemRing(size)
