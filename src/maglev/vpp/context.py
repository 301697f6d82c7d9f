"""One VIP as a plan sees it: what is wanted, what VPP has, and the weight that each AS is to get. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from maglev.vpp.desired import DesiredAs, DesiredVip
from maglev.vpp.lost import LostWeights
from maglev.vpp.messages import Encap
from maglev.vpp.model import DEFAULT_TABLE_LENGTH, ActualAs, ActualVip, address_order
from maglev.vpp.plan import FlushKey, Owed
from maglev.vpp.policy import Policy
from maglev.vpp.scale import SAME, scaled


class Terms(NamedTuple):
    """What all VIPs of a plan share: what is owed, what was lost, what the plan may do. Read, never changed."""

    owed: Mapping[FlushKey, Owed]
    lost: LostWeights
    policy: Policy


class VipContext(NamedTuple):
    """One wanted VIP on its way from what VPP has to what is wanted. A named tuple: a mass failure makes thousands.

    ``found``: the VIP as VPP has it; None where it is missing, or where the plan removes it to create it again.
    ``present``: the live ASes of ``found``. ``targets``: weight of each AS that the VIP is to have. ``extra``: ASes
    that are to be deleted, in numeric order. ``held``: ASes that are configured no longer and stay as they are.
    """

    wanted: DesiredVip
    found: ActualVip | None
    present: Mapping[bytes, ActualAs]
    targets: Mapping[bytes, int]
    extra: list[bytes]
    held: list[bytes]

    @property
    def length(self) -> int:
        """Buckets of the new-flow table, also of one that is only created."""
        if self.found is not None:
            return self.found.length
        return self.wanted.length if self.wanted.length is not None else DEFAULT_TABLE_LENGTH

    @property
    def ghosts(self) -> bool:
        """Whether deleted ASes linger in the VIP. Another controller may have deleted them, with flows that stay."""
        return self.found is not None and self.found.lingering > 0


def context_of(
    wanted: DesiredVip, found: ActualVip | None, before: ActualVip | None, terms: Terms
) -> VipContext | None:
    """The context of one VIP, as of ``targets_of``; None where there is nothing to do, as in nearly every full sync."""
    targets = targets_of(wanted, found, before, terms)
    if found is None:
        return VipContext(wanted, None, {}, targets, [], [])
    present = found.ases
    if _alike(targets, present) and not _indebted(wanted, terms.owed):
        return None
    kept = wanted.held
    extra = sorted((a for a in present if a not in targets and a not in kept), key=address_order)
    held = [address for address in present if address in kept] if kept else []
    return VipContext(wanted, found, present, targets, extra, held)


def targets_of(
    wanted: DesiredVip, found: ActualVip | None, before: ActualVip | None, terms: Terms
) -> Mapping[bytes, int]:
    """The weight that each AS of a VIP is to have, by address.

    ``before``: the VIP as VPP has it, also where the plan removes it (``found`` is None then) to create it again: an
    AS that keeps the weight it has in VPP keeps it through the recreation too.

    A VIP that is created gets the daemon's own scale, also for the weights that are kept: an adopted scale ends with
    its VIP.
    """
    adopted = terms.policy.multiples.get(wanted.key, SAME)
    scale = adopted if found is not None else SAME
    targets: dict[bytes, int] = {}
    for ours in wanted.ases:
        weight = ours.weight
        if weight is None:
            targets[ours.address] = _kept_weight(wanted, ours, found, before, terms)
        else:
            targets[ours.address] = weight if scale is SAME else scaled(weight, scale)
    if found is None:
        targets.update(_regained(wanted, before, terms.lost, adopted))
    return targets


def _kept_weight(
    wanted: DesiredVip, ours: DesiredAs, found: ActualVip | None, before: ActualVip | None, terms: Terms
) -> int:
    """The weight of an AS that keeps the one it has: the last one that is known, where VPP shows it no longer."""
    adopted = terms.policy.multiples.get(wanted.key, SAME)
    have = before.ases.get(ours.address) if before is not None else None
    last = terms.lost.recall(wanted.key, ours.address, present=have is not None)
    if last is not None:
        return scaled(last, adopted if found is not None else SAME)
    if have is None:
        return 0
    return have.weight if found is not None else scaled(have.weight, 1 / adopted)


def _regained(
    wanted: DesiredVip, before: ActualVip | None, lost: LostWeights, adopted: Fraction
) -> Iterator[tuple[bytes, int]]:
    """The held addresses that a VIP is created with as well: those that served in it before."""
    for address in sorted(wanted.held, key=address_order):
        have = before.ases.get(address) if before is not None else None
        last = lost.recall(wanted.key, address, present=have is not None)
        if last is None:
            last = scaled(have.weight, 1 / adopted) if have is not None else 0
        # VPP refuses an AS of the other family than the encap's.
        if last > 0 and (wanted.encap is Encap.GRE4) == (len(address) == 4):
            yield address, last


def _alike(targets: Mapping[bytes, int], present: Mapping[bytes, ActualAs]) -> bool:
    """Whether VPP has exactly these weights."""
    if len(targets) != len(present):
        return False
    for address, target in targets.items():
        have = present.get(address)
        if have is None or have.weight != target:
            return False
    return True


def _indebted(wanted: DesiredVip, owed: Mapping[FlushKey, Owed]) -> bool:
    """Whether a flush is owed to any AS of the VIP. Debts exist for configured ASes only."""
    return bool(owed) and any(FlushKey(wanted.key, ours.address) in owed for ours in wanted.ases)
