"""The VIPs on one address: what becomes of each that VPP has there, and of each that is wanted there. Pure.

VPP has one encap per prefix, and takes no any-port VIP beside one with a port. So a VIP that is there can stand in the
way of one that is wanted, and what must go before another can come is one matter with it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from maglev.vpp.desired import DesiredVip
from maglev.vpp.messages import Encap, VipKey
from maglev.vpp.model import ActualVip
from maglev.vpp.policy import Policy


class Found(enum.Enum):
    """What becomes of a VIP that VPP has on the prefix."""

    KEEP = "it is as it is wanted"
    KEEP_UNLIKE = "it is wanted otherwise, and stays as it is for now"
    HALFWAY = "it is wanted otherwise and halfway down: it is not touched before the next full sync goes on with it"
    RECREATE = "it is wanted otherwise: removed and created again"
    REMOVE = "it is not wanted, and removed"
    BESIDE = "it is not in this plan, and hinders nothing"
    IN_THE_WAY = "it is not in this plan, and keeps others from coming"


class Wanted(enum.Enum):
    """What becomes of a VIP that is wanted on the prefix."""

    UPDATE = "VPP has it: its ASes are written"
    CREATE = "VPP has it not: it is created"
    RECREATE = "it is removed and created again"
    BLOCKED = "it can be neither created nor written now"


class Verdict(NamedTuple):
    """What becomes of a VIP that was found. ``reason``: of a removal. ``note``: what the plan says about it.

    ``hinders``: missing VIPs that cannot come while this one is there.
    """

    fate: Found
    reason: str = ""
    note: str = ""
    hinders: Collection[VipKey] = ()


_KEEP = Verdict(Found.KEEP)
_BESIDE = Verdict(Found.BESIDE)


class PrefixVerdicts(NamedTuple):
    """What becomes of all VIPs on a prefix: those found, in numeric order, and those wanted."""

    found: Mapping[VipKey, Verdict]
    wanted: Mapping[VipKey, Wanted]


def judge_prefix(
    group: Sequence[DesiredVip], found: Mapping[VipKey, ActualVip], halfway: Collection[VipKey], policy: Policy
) -> PrefixVerdicts:
    """Decide about all VIPs on a prefix. ``group``: those wanted, in numeric order; ``found``: those that VPP has.

    ``halfway``: VIPs whose recreation has begun.
    """
    if _all_as_wanted(group, found):
        return PrefixVerdicts(dict.fromkeys(found, _KEEP), dict.fromkeys(found, Wanted.UPDATE))
    wanted = {vip.key: vip for vip in group}
    missing = [vip for vip in group if vip.key not in found]
    verdicts: dict[VipKey, Verdict] = {}
    for key in sorted(found, key=lambda key: key.sort_key):
        vip, have = wanted.get(key), found[key]
        if vip is not None:
            verdicts[key] = _judge_wanted(vip, have, halfway, policy)
        else:
            verdicts[key] = _judge_other(have, group[0], missing, policy)

    stays = _other_encap_stays(group[0].encap, found, verdicts)
    if stays:
        # With the old encap still there no VIP can come, and so none should go.
        for key, verdict in verdicts.items():
            if verdict.fate is Found.RECREATE:
                verdicts[key] = Verdict(Found.KEEP_UNLIKE)
    hindered = {key for verdict in verdicts.values() for key in verdict.hinders}
    hindered.update(vip.key for vip in missing if stays)
    return PrefixVerdicts(
        verdicts,
        {vip.key: _fate_of(vip, group[0].encap, found.get(vip.key), verdicts, hindered) for vip in group},
    )


def _all_as_wanted(group: Sequence[DesiredVip], found: Mapping[VipKey, ActualVip]) -> bool:
    """Whether VPP has just the wanted VIPs, each as it is wanted. So it is on nearly every prefix of a batch."""
    if len(found) != len(group):
        return False
    for vip in group:
        have = found.get(vip.key)
        if have is None or have.encap != group[0].encap or why_recreate(vip, have):
            return False
    return True


def _judge_wanted(vip: DesiredVip, found: ActualVip, halfway: Collection[VipKey], policy: Policy) -> Verdict:
    """A VIP that is found, and wanted: is it as it is wanted, and if not, may it be created again now?"""
    reason = why_recreate(vip, found)
    if not reason:
        return _KEEP
    key = found.key
    if key in policy.frozen and not policy.force:
        note = f"{key}: {reason}; given up, since creating it again did not last twice"
    elif key in policy.stuck:
        note = f"{key}: {reason}; VPP refused to delete it, the next full sync tries again"
    elif policy.full:
        return Verdict(Found.RECREATE, reason=reason)
    else:
        note = f"{key}: {reason}; only a full sync creates it again"
        # What was put back into a VIP that is halfway down would only be taken out again.
        if key in halfway:
            return Verdict(Found.HALFWAY, note=note)
    return Verdict(Found.KEEP_UNLIKE, note=note)


def _judge_other(found: ActualVip, first: DesiredVip, missing: Sequence[DesiredVip], policy: Policy) -> Verdict:
    """A VIP that is found, and that the plan is not about: may it be removed, and if not, is it in the way?

    ``first``: the first VIP that is wanted on the prefix, whose encap is that of all.
    """
    key = found.key
    configured = key in policy.configured
    if not configured and policy.full and policy.may_remove(key):
        return Verdict(Found.REMOVE, reason="not configured")
    other_encap = found.encap != first.encap
    hinders = [vip.key for vip in missing if other_encap or (key.port == 0) != (vip.key.port == 0)]
    if not hinders and not other_encap:
        return _BESIDE
    if configured:
        why = "is not in this sync"
    elif policy.may_remove(key):
        why = "can be removed by a full sync only"
    else:
        why = f"is not ours to remove (prune: {policy.lb.prune.value})"
    note = f"{key} ({_encap_name(found.encap)}) is in the way of {first.key} and {why}"
    return Verdict(Found.IN_THE_WAY, note=note, hinders=hinders)


def _other_encap_stays(encap: Encap, found: Mapping[VipKey, ActualVip], verdicts: Mapping[VipKey, Verdict]) -> bool:
    """Whether a VIP with another encap than the wanted one stays on the prefix."""
    return any(
        have.encap != encap and verdicts[key].fate not in (Found.RECREATE, Found.REMOVE) for key, have in found.items()
    )


def _fate_of(
    vip: DesiredVip,
    encap: Encap,
    found: ActualVip | None,
    verdicts: Mapping[VipKey, Verdict],
    hindered: Collection[VipKey],
) -> Wanted:
    if found is None:
        return Wanted.BLOCKED if vip.key in hindered else Wanted.CREATE
    fate = verdicts[vip.key].fate
    if fate is Found.RECREATE:
        return Wanted.RECREATE
    # An AS of the new encap's family does not fit into a VIP that keeps the old one.
    return Wanted.BLOCKED if fate is Found.HALFWAY or found.encap != encap else Wanted.UPDATE


def why_recreate(vip: DesiredVip, found: ActualVip) -> str:
    """What of a VIP differs that no call can change; empty where nothing does."""
    if found.encap != vip.encap:
        return f"encap is {_encap_name(found.encap)} instead of {vip.encap}"
    if found.sticky is not None and found.sticky != vip.sticky:
        return f"src-ip-sticky is {str(found.sticky).lower()} instead of {str(vip.sticky).lower()}"
    if vip.length is not None and vip.length != found.length:
        return f"table length is {found.length} instead of {vip.length}"
    return ""


def _encap_name(encap: int) -> str:
    try:
        return str(Encap(encap))
    except ValueError:
        return str(encap)
