"""The scale of a VIP's weights in VPP against the daemon's own, and the way from one scale to another. Pure.

Other controllers write weights as they are configured: 100 where this daemon, in units, writes 1. Both give every
server the same share, so a daemon that takes over such a VIP adopts its scale: rewriting the weights would move flows
for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.model import MAX_WEIGHT, ActualVip

SAME = Fraction(1)
"""The scale of nearly every VIP."""


def common_multiple(wanted: DesiredVip, found: ActualVip) -> Fraction:
    """The one factor between the weights in VPP and the daemon's own; 1 where the weights above 0 have none."""
    ratios = {
        Fraction(present.weight, ours.nominal)
        for ours in wanted.ases
        if (present := found.ases.get(ours.address)) is not None and present.weight > 0 and ours.nominal > 0
    }
    if len(ratios) != 1:
        return SAME
    ratio = ratios.pop()
    most = max((ours.nominal for ours in wanted.ases), default=0)
    least = min((ours.nominal for ours in wanted.ases if ours.nominal > 0), default=1)
    # A scale in which some weight does not fit, or in which two weights become one, cannot be kept up.
    return ratio if most * ratio <= MAX_WEIGHT and least * ratio >= 1 else SAME


def scaled(weight: int, multiple: Fraction) -> int:
    """A programmed weight on a VIP's own scale: at least 1 where it is above 0, and at most what a u8 holds."""
    if weight <= 0:
        return 0
    if multiple is SAME:
        return weight
    return min(MAX_WEIGHT, max(1, math.floor(weight * multiple + Fraction(1, 2))))


def passes(weights: Mapping[bytes, int], targets: Mapping[bytes, int]) -> list[Mapping[bytes, int]]:
    """The goals on the way from ``weights`` to ``targets``, the last of which is ``targets``.

    There is one goal, unless the scale of the VIP changes, which moves many flows at once. Each pass then changes a
    weight by a factor of two at most, and an AS that is new to the VIP gets the scale of the pass.
    """
    goals: list[Mapping[bytes, int]] = []
    now = {address: weight for address, weight in weights.items() if weight > 0 and targets.get(address, 0) > 0}
    if len(now) > 1 and _rescales(now, targets):
        while any(targets[a] > 2 * weight or weight > 2 * targets[a] for a, weight in now.items()):
            now = {a: min(max(targets[a], (weight + 1) // 2), 2 * weight) for a, weight in now.items()}
            scale = Fraction(sum(now.values()), sum(targets[a] for a in now))
            goals.append({a: now[a] if a in now else scaled(target, scale) for a, target in targets.items()})
    goals.append(targets)
    return goals


def _rescales(now: Mapping[bytes, int], targets: Mapping[bytes, int]) -> bool:
    grown = [(weight, targets[address]) for address, weight in now.items()]
    return _grow(grown) or _grow([(after, before) for before, after in grown])


def _grow(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether weights that go from the first to the second of each pair grow to another scale.

    No weight falls then, and either most of them grow by more than a factor of two (a weight that rounding made 1 may
    stay 1), or all of them grow and some by that much: after a plan was cut, some weights lag one pass.
    """
    many = sum(after > 2 * before for before, after in pairs)
    if any(after < before for before, after in pairs):
        return False
    return 2 * many > len(pairs) or (many > 0 and all(after > before for before, after in pairs))
