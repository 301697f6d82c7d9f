"""The VIPs on one prefix: a verdict on each that VPP has there, and on each that is wanted there. Pure.

All VIPs of a prefix share one encap in VPP (-73 otherwise), and VPP refuses an any-port VIP beside one with a port
(-81). So a VIP in VPP can block a wanted one, and the VIPs of a prefix are judged together.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.model import ActualVip
from maglev.vpp.planning.policy import Policy
from maglev.vpp.wire.messages import Encap, VipKey


class Found(enum.Enum):
    """The fate of a VIP that VPP has on the prefix."""

    KEEP = "it is as wanted"
    KEEP_UNLIKE = "it differs from what is wanted, and stays for now"
    HALFWAY = "it differs, and an earlier plan began to remove it: nothing is written before a full sync resumes that"
    RECREATE = "it differs: the plan removes it and creates it again"
    UNRECORDED = "it differs, and its weights must be in the state file before it is removed: nothing is written"
    REMOVE = "it is not wanted: the plan removes it"
    BESIDE = "the plan is not about it, and it blocks nothing"
    IN_THE_WAY = "the plan is not about it, and it blocks wanted VIPs"


class Wanted(enum.Enum):
    """The fate of a VIP that is wanted on the prefix."""

    UPDATE = "VPP has it: the plan writes its ASes"
    CREATE = "VPP does not have it: the plan creates it"
    RECREATE = "the plan removes it and creates it again"
    BLOCKED = "the plan can neither create it nor write to it"


class Verdict(NamedTuple):
    """The verdict on a VIP in VPP. ``reason``: why the plan removes it. ``note``: the plan's note about it, if any.

    ``hinders``: wanted VIPs that cannot be created while this one exists.
    """

    fate: Found
    reason: str = ""
    note: str = ""
    hinders: Collection[VipKey] = ()


_KEEP = Verdict(Found.KEEP)
_BESIDE = Verdict(Found.BESIDE)


class PrefixVerdicts(NamedTuple):
    """The verdicts on all VIPs of a prefix: those found, in numeric order, and those wanted."""

    found: Mapping[VipKey, Verdict]
    wanted: Mapping[VipKey, Wanted]


def judge_prefix(
    group: Sequence[DesiredVip], found: Mapping[VipKey, ActualVip], halfway: Collection[VipKey], policy: Policy
) -> PrefixVerdicts:
    """Judge all VIPs of a prefix. ``group``: the wanted ones, in numeric order; ``found``: those that VPP has.

    ``halfway``: VIPs that an earlier plan began to remove, to create them again.
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
        # While the old encap stays, VPP refuses every new VIP: one that is removed could not be created again.
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
    """Whether VPP has exactly the wanted VIPs, each as wanted: the case of nearly every prefix, and a fast path."""
    if len(found) != len(group):
        return False
    for vip in group:
        have = found.get(vip.key)
        if have is None or have.encap != group[0].encap or why_recreate(vip, have):
            return False
    return True


def _judge_wanted(vip: DesiredVip, found: ActualVip, halfway: Collection[VipKey], policy: Policy) -> Verdict:
    """A VIP that is found and wanted. If it differs from what is wanted: may this plan create it again?"""
    reason = why_recreate(vip, found)
    if not reason:
        return _KEEP
    key = found.key
    if key in policy.frozen and not policy.force:
        note = f"{key}: {reason}; given up, since creating it again did not last twice"
    elif key in policy.stuck:
        note = f"{key}: {reason}; VPP refused to delete it, the next full sync tries again"
    elif policy.full:
        recorded = policy.recorded is None or key in policy.recorded
        return Verdict(Found.RECREATE if recorded else Found.UNRECORDED, reason=reason)
    else:
        note = f"{key}: {reason}; only a full sync creates it again"
        # The full sync that resumes the removal would only take out again what this plan wrote.
        if key in halfway:
            return Verdict(Found.HALFWAY, note=note)
    return Verdict(Found.KEEP_UNLIKE, note=note)


def _judge_other(found: ActualVip, first: DesiredVip, missing: Sequence[DesiredVip], policy: Policy) -> Verdict:
    """A VIP that is found and not wanted by this plan. May the plan remove it? If not, does it block wanted ones?

    ``first``: the first wanted VIP of the prefix; the others have the same encap.
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
    elif policy.waits(key):
        why = "waits for an operator: `sync vpp lb state prune` deletes it"
    elif policy.may_remove(key):
        why = "can be removed by a full sync only"
    else:
        why = f"is not ours to remove (prune: {policy.lb.prune.value})"
    note = f"{key} ({_encap_name(found.encap)}) is in the way of {first.key} and {why}"
    return Verdict(Found.IN_THE_WAY, note=note, hinders=hinders)


def _other_encap_stays(encap: Encap, found: Mapping[VipKey, ActualVip], verdicts: Mapping[VipKey, Verdict]) -> bool:
    """Whether a VIP with an encap other than ``encap``, the wanted one, stays on the prefix."""
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
    # A VIP that keeps the old encap refuses ASes of the new encap's family.
    return Wanted.BLOCKED if fate in (Found.HALFWAY, Found.UNRECORDED) or found.encap != encap else Wanted.UPDATE


def why_recreate(vip: DesiredVip, found: ActualVip) -> str:
    """The difference between a VIP and the wanted one that no call can repair, in words; empty if there is none."""
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
