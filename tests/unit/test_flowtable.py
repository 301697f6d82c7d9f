"""The new-flow table: against recordings of a real VPP, and against a plain model of the same text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from maglev._flowtable import address_key, bucket_counts, build, moved_share
from tests.helpers.flowtable import plain_table

TRANSCRIPTS = Path(__file__).parent.parent / "data" / "transcripts"
RECORDED = sorted(TRANSCRIPTS.glob("buckets-*.jsonl"))


def recorded_tables(file: Path) -> Iterator[tuple[int, list[tuple[bytes, int]], list[int]]]:
    """Each dump of a recording as (length, [(key, weight)], buckets); the ASes in the order of the dump."""
    length = 0
    for line in file.read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if record["call"] == "lb_add_del_vip_v2":
            length = record["args"]["new_flows_table_length"]
        elif record["call"] == "lb_as_v2_dump":
            found = [reply["fields"] for reply in record["replies"] if reply["message"] == "lb_as_v2_details"]
            live = [fields for fields in found if fields["flags"]]
            yield (
                length,
                [(address_key(ip_address(fields["app_srv"])), fields["weight"]) for fields in live],
                [fields["num_buckets"] for fields in live],
            )


def equal_servers(count: int, weight: int) -> list[tuple[bytes, int]]:
    return [(address_key(ip_address(f"10.0.{index // 256}.{index % 256}")), weight) for index in range(count)]


def test_recordings_are_there() -> None:
    assert len(RECORDED) >= 24


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_counts_are_those_that_vpp_reported(file: Path) -> None:
    tables = list(recorded_tables(file))
    assert len(tables) >= 2
    for length, ases, buckets in tables:
        assert bucket_counts(ases, length) == buckets
        counts, table = build(ases, length)
        assert counts == buckets
        assert [table.count(index) for index in range(len(ases))] == buckets


@pytest.mark.parametrize("length", [1, 2, 16, 1024])
@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [0, 3, 1], [100, 7, 255], [0, 0], [], [9] * 40])
def test_table_is_that_of_the_plain_model(weights: Sequence[int], length: int) -> None:
    ases = [
        (address_key(ip_address(f"2001:db8::{index * 7919 % 40:x}")), weight) for index, weight in enumerate(weights)
    ]
    counts, table = build(ases, length)
    assert list(table) == plain_table(ases, length)
    assert counts == bucket_counts(ases, length)
    assert sum(counts) == (length if any(weights) else 0)


def test_order_of_the_ases_does_not_matter() -> None:
    ases = [(address_key(ip_address(f"10.0.0.{index}")), index % 4) for index in range(20)]
    counts, table = build(ases, 256)
    turned_counts, turned_table = build(ases[::-1], 256)
    assert turned_counts == counts[::-1]
    assert [ases[::-1][index][0] for index in turned_table] == [ases[index][0] for index in table]


def test_without_weight_every_bucket_is_empty() -> None:
    assert build([], 16) == ([], build([], 16)[1])
    assert set(build(equal_servers(3, 0), 16)[1]) == {-1}
    assert bucket_counts(equal_servers(3, 0), 16) == [0, 0, 0]


def test_more_weight_than_buckets_saturates() -> None:
    # Measured on VPP: 40 servers in 1,024 buckets get 26 or 25 each at any weight from 26 to 100.
    for weight in (26, 50, 100):
        counts = bucket_counts(equal_servers(40, weight), 1024)
        assert set(counts) == {25, 26}
        assert sum(counts) == 1024
        assert build(equal_servers(40, weight), 1024)[0] == counts


def test_ipv4_key_has_twelve_zero_bytes_in_front() -> None:
    assert address_key(ip_address("192.0.2.1")) == bytes(12) + bytes([192, 0, 2, 1])
    assert address_key(ip_address("2001:db8::1")) == ip_address("2001:db8::1").packed


@pytest.mark.parametrize("length", [0, -1, 3, 1000, (1 << 24) + 1, 1 << 25])
def test_bad_length_is_refused(length: int) -> None:
    for function in (build, bucket_counts):
        with pytest.raises(ValueError, match="power of two"):
            function(equal_servers(2, 1), length)


@pytest.mark.parametrize(
    ("ases", "message"),
    [
        ([(b"short", 1)], "16 bytes"),
        ([(bytes(16), -1)], "weight is 0 to 255"),
        ([(bytes(16), 256)], "weight is 0 to 255"),
        ([(bytes(16), 1), (bytes(16), 2)], "same key"),
    ],
)
def test_bad_servers_are_refused(ases: list[tuple[bytes, int]], message: str) -> None:
    for function in (build, bucket_counts):
        with pytest.raises(ValueError, match=message):
            function(ases, 16)


@pytest.mark.parametrize(
    ("count", "length", "weight", "measured"),
    [(5, 1024, 1, 0.020), (5, 1024, 100, 0.167), (20, 16384, 10, 0.028), (20, 16384, 100, 0.093)],
)
def test_larger_weights_move_more_flows_of_others(count: int, length: int, weight: int, measured: float) -> None:
    # The shares in docs/architecture.md; they depend a little on the addresses.
    before = equal_servers(count, weight)
    shares = []
    for drained in range(count):
        after = [(key, 0 if index == drained else weight) for index, (key, _) in enumerate(before)]
        shares.append(moved_share(before, after, length))
    assert sum(shares) / count == pytest.approx(measured, rel=0.35)


def test_moved_share_counts_only_buckets_that_could_have_stayed() -> None:
    servers = equal_servers(4, 1)
    assert moved_share(servers, servers, 64) == 0.0
    assert moved_share(servers, [], 64) == 0.0
    assert moved_share([], servers, 64) == 0.0
    gone = servers[:-1]
    old, new = build(servers, 64)[1], build(gone, 64)[1]
    others = [bucket for bucket in range(64) if old[bucket] != 3]
    moved = [bucket for bucket in others if old[bucket] != new[bucket]]
    assert moved_share(servers, gone, 64) == len(moved) / len(others)
    # The same set in another order is the same set.
    assert moved_share(servers, gone[::-1], 64) == len(moved) / len(others)
