"""The cost of slow start: flows that each return of a backend moves between other servers. Pure.

A change of one weight also moves some buckets between servers whose weight did not change (Maglev, NSDI 2016, section
5.3). Four steps do so four times, and together they move more of them than a backend that comes back at once. The
figure is computed on VPP's own table (``maglev._flowtable``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from maglev._flowtable import address_key, moved_between_others
from maglev._weights import programmed_weight, ramped_weight, weight_unit
from maglev.config.model import RAMP, Backend, Frontend


class RampCost(NamedTuple):
    """Shares (0..1) of all buckets that move between other servers: in steps, and at once. ``steps``: how many."""

    steps: int
    by_steps: float
    at_once: float


def ramp_cost(frontend: Frontend, backends: Sequence[Backend], length: int) -> RampCost | None:
    """The cost where the heaviest backend of the first pool comes back while all others of the pool serve.

    ``backends``: of the first pool, in its order; ``length``: of the table. None where no other backend has a weight.
    """
    members = frontend.pools[0].members
    unit = weight_unit(frontend)
    heaviest = max(range(len(members)), key=lambda at: members[at].weight)
    ases = [
        (address_key(backend.address), programmed_weight(member.weight, unit))
        for member, backend in zip(members, backends, strict=True)
    ]
    key, whole = ases[heaviest]
    if not whole or not any(weight for at, (_, weight) in enumerate(ases) if at != heaviest):
        return None
    parts = [0]
    for share in RAMP:
        part = programmed_weight(ramped_weight(members[heaviest].weight, share, unit), unit)
        if part != parts[-1]:
            parts.append(part)

    def moved(before: int, after: int) -> float:
        was, becomes = ([*ases[:heaviest], (key, weight), *ases[heaviest + 1 :]] for weight in (before, after))
        return moved_between_others(was, becomes, length, key)

    return RampCost(len(parts) - 1, sum(moved(*pair) for pair in pairwise(parts)), moved(0, whole))
