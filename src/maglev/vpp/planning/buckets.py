"""How many buckets of the new-flow table each AS gets, by VPP's own algorithm."""

from __future__ import annotations

from collections.abc import Mapping

from maglev._flowtable import bucket_counts
from maglev.vpp.planning.model import ActualVip


def padded(weights: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    """Addresses as the flow table wants them: 16 bytes each, IPv4 at the end."""
    return [(address.rjust(16, b"\0"), weight) for address, weight in weights.items()]


def predicted(weights: Mapping[bytes, int], length: int) -> dict[bytes, int]:
    """Buckets by address in a table of ``length``, a power of two; all 0 where every weight is."""
    if not any(weights.values()):
        return dict.fromkeys(weights, 0)
    return dict(zip(weights, bucket_counts(padded(weights), length), strict=True))


def differing(vip: ActualVip) -> dict[bytes, tuple[int, int]]:
    """Where a VIP that was just read back has other buckets than its weights give: address -> (has, predicted)."""
    wanted = predicted({address: have.weight for address, have in vip.ases.items()}, vip.length)
    return {
        address: (have.buckets, wanted[address])
        for address, have in vip.ases.items()
        if have.buckets != wanted[address]
    }
