"""The compiled flow table equals the plain model, whatever the servers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maglev._flowtable import bucket_counts, build, moved_share
from tests.helpers.flowtable import plain_table, xxh64

ASES = st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, 30), max_size=12).map(
    lambda found: list(found.items())
)
LENGTH = st.integers(0, 8).map(lambda power: 1 << power)


@given(ases=ASES, length=LENGTH)
def test_table_equals_the_plain_model(ases: list[tuple[bytes, int]], length: int) -> None:
    counts, table = build(ases, length)
    assert list(table) == plain_table(ases, length)
    assert counts == [table.count(index) for index in range(len(ases))]
    assert bucket_counts(ases, length) == counts


@given(before=ASES, after=ASES, length=LENGTH)
def test_moved_share_is_a_share(before: list[tuple[bytes, int]], after: list[tuple[bytes, int]], length: int) -> None:
    assert 0.0 <= moved_share(before, after, length) <= 1.0
    assert moved_share(before, before, length) == 0.0


@given(ases=ASES, length=LENGTH)
def test_servers_at_weight_zero_change_nothing(ases: list[tuple[bytes, int]], length: int) -> None:
    alive = [(key, weight) for key, weight in ases if weight]
    _, table = build(ases, length)
    _, without = build(alive, length)
    assert [ases[index][0] if index >= 0 else None for index in table] == [
        alive[index][0] if index >= 0 else None for index in without
    ]


def test_hash_is_xxh64() -> None:
    # Reference value of the xxHash library: XXH64 of eight zero bytes with seed 0.
    assert xxh64(0, seed=0) == 0x34C96ACDCADB1BBB
