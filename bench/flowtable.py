"""The cost of building a VIP's new-flow table as VPP builds it."""

from __future__ import annotations

from ipaddress import IPv4Address

from bench.harness import Figure, cpu_ms
from maglev import _flowtable

QUESTION = "How long does a new-flow table take?"

ASES = 500
WEIGHT = 10
LENGTH = 65536


def run() -> list[Figure]:
    """Target 12, and the counts alone, which need no table."""
    ases = [(_flowtable.address_key(IPv4Address(0x0A000000 + number)), WEIGHT) for number in range(ASES)]
    taken = cpu_ms(
        {
            "table": lambda: _flowtable.build(ases, LENGTH),
            "counts": lambda: _flowtable.bucket_counts(ases, LENGTH),
        },
        repeat=5,
    )
    what = f"{ASES} ASes at weight {WEIGHT}, length {LENGTH}"
    return [Figure(f"{what}: table", taken["table"], "ms", 3.0), Figure(f"{what}: counts", taken["counts"], "ms")]
