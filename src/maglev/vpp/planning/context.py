"""One VIP as a plan sees it: the wanted VIP, the one in VPP, and the target weight of each AS. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from maglev.vpp.planning.desired import DesiredAs, DesiredVip
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import DEFAULT_TABLE_LENGTH, ActualAs, ActualVip, address_order
from maglev.vpp.planning.plan import FlushKey, Owed
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.scale import SAME, scaled
from maglev.vpp.wire.messages import Encap


class Terms(NamedTuple):
    """The arguments of ``diff`` that all VIPs of a plan share. The planner reads them and changes none."""

    owed: Mapping[FlushKey, Owed]
    lost: LostWeights
    policy: Policy


class VipContext(NamedTuple):
    """All that the planner knows of one wanted VIP. A named tuple, since a mass failure makes thousands of them.

    ``found``: the VIP as VPP has it; None where it is missing, or where the plan removes it to create it again.
    ``present``: the live ASes of ``found``. ``targets``: the wanted weight of each AS. ``extra``: ASes to delete, in
    numeric order. ``held``: ASes that have left the configuration and keep their weight for now.
    """

    wanted: DesiredVip
    found: ActualVip | None
    present: Mapping[bytes, ActualAs]
    targets: Mapping[bytes, int]
    extra: list[bytes]
    held: list[bytes]

    @property
    def length(self) -> int:
        """Buckets of the new-flow table: the present one, or the one that the VIP will be created with."""
        if self.found is not None:
            return self.found.length
        return self.wanted.length if self.wanted.length is not None else DEFAULT_TABLE_LENGTH

    @property
    def ghosts(self) -> bool:
        """Whether deleted ASes linger in the VIP. If another controller deleted them, they may still have flows."""
        return self.found is not None and self.found.lingering > 0


def context_of(
    wanted: DesiredVip, found: ActualVip | None, before: ActualVip | None, terms: Terms
) -> VipContext | None:
    """The context of one VIP; None if VPP already has what is wanted, as for nearly every VIP of a full sync.

    Arguments as in ``targets_of``.
    """
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
    """The wanted weight of each AS of a VIP, by address.

    ``before``: the VIP as VPP has it. It differs from ``found``, which is None then, where the plan removes the VIP to
    create it again: an AS that keeps its weight in VPP keeps it through the recreation too.

    A new VIP gets the daemon's own scale, and kept weights are converted to it: an adopted scale ends with its VIP.
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
    if wanted.held:
        targets.update(_regained(wanted, found, before, terms.lost, adopted))
    return targets


def _kept_weight(
    wanted: DesiredVip, ours: DesiredAs, found: ActualVip | None, before: ActualVip | None, terms: Terms
) -> int:
    """The target of an AS that keeps its weight: the weight in VPP, or the last known one if VPP has lost it."""
    adopted = terms.policy.multiples.get(wanted.key, SAME)
    have = before.ases.get(ours.address) if before is not None else None
    last = terms.lost.recall(wanted.key, ours.address, present=have is not None)
    if last is not None:
        return scaled(last, adopted if found is not None else SAME)
    if have is None:
        return 0
    return have.weight if found is not None else scaled(have.weight, 1 / adopted)


def _regained(
    wanted: DesiredVip, found: ActualVip | None, before: ActualVip | None, lost: LostWeights, adopted: Fraction
) -> Iterator[tuple[bytes, int]]:
    """The held addresses that a new VIP gets as well, with their weights: those that served in the old one.

    A VIP that was created by an earlier plan may lack them still: that plan was cut off in between.
    """
    for address in sorted(wanted.held, key=address_order):
        have = before.ases.get(address) if before is not None else None
        last = lost.recall(wanted.key, address, present=have is not None)
        if last is None:
            last = scaled(have.weight, 1 / adopted) if have is not None and found is None else 0
        # VPP refuses an AS whose address family differs from the family of the encap (-97).
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
