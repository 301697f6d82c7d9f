"""The diff: turns the wanted VIPs and the state of VPP into an ordered plan of calls.

Pure. The order is the point:

- The global settings come first, and the removal of VIPs that are not configured comes last.
- VIPs deferred by the budget of an earlier batch come first, in the order that the policy gives them. The others
  follow: those in which no AS has a weight before those that serve, and in numeric order, IPv4 before IPv6.
- Within a VIP, raises come before drops, so that a frontend that can be served is served at every moment.
- A flush comes together with its drop, after all raises, so that flows spread over every AS that took over.
- A VIP that blocks others of its prefix is removed right before those are created.

The plan never omits silently what it must not do now: a flush without another AS for the flows is a debt in it, and a
recreation outside a full sync is a note.

``diff`` joins the decisions of other modules: ``prefix`` decides which VIPs stay, go and come, ``context`` the weights
in a VIP, ``flushes`` which ASes are flushed, ``calls`` the order of the calls in a VIP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from maglev.config.model import SECOND
from maglev.vpp.planning.calls import create_vip, delete_vip, write_vip
from maglev.vpp.planning.context import Terms, context_of
from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.flushes import NO_FLUSHES, Flushes, flushes_of
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import Actual, ActualVip
from maglev.vpp.planning.plan import FlushKey, Op, Owed, Plan, Step
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.prefix import Found, PrefixVerdicts, Wanted, judge_prefix
from maglev.vpp.wire.messages import KEEP, LbConf, VipKey

MOST_NAMED = 10
"""VIPs that wait for an operator are named up to this many."""

_Order = tuple[int, bool, tuple[int, bytes, int, int, int]]
"""Place by the policy; whether the VIP has a live AS, False before True; numeric order."""


class _Block(NamedTuple):
    """Steps that stay together, and their place in the plan."""

    order: _Order
    steps: list[Step]


class _VipPlan(NamedTuple):
    """The part of a plan that is about one wanted VIP."""

    steps: list[Step]
    flushes: Flushes


_NOTHING = _VipPlan([], NO_FLUSHES)
"""The value for nearly every VIP of a full sync. It is shared, so nothing may change it."""


class _PrefixPlan(NamedTuple):
    """The part of a plan that is about one prefix. ``vips``: plans of the wanted VIPs, in numeric order."""

    verdicts: PrefixVerdicts
    vips: Mapping[VipKey, _VipPlan]
    blocks: list[_Block]


def diff(
    wanted: Iterable[DesiredVip],
    actual: Actual,
    owed: Mapping[FlushKey, Owed],
    policy: Policy,
    *,
    lost: LostWeights,
) -> Plan:
    """The plan that turns ``actual`` into ``wanted``, in the order in which it must be carried out.

    ``owed``: flushes that VPP has not acknowledged. ``lost``: weights that VPP had before it was emptied.

    A second diff against the result of the first has no steps. Frontends that share an address belong into one call,
    since all VIPs of a prefix share one encap.
    """
    terms = Terms(owed, lost, policy)
    plan = Plan()
    plan.notes.extend(_conf_notes(actual, policy))
    plan.steps.extend(_conf_steps(actual, policy))
    groups = _by_prefix(wanted)
    found = _found_on(groups, actual)
    parts = [_plan_prefix(group, found.get(prefix, {}), terms) for prefix, group in groups.items()]
    for part in parts:
        _join(plan, part, lost)
    for block in sorted((block for part in parts for block in part.blocks), key=lambda block: block.order):
        plan.steps.extend(block.steps)
    if policy.full and policy.prune_rest:
        removed = {key for part in parts for key, have in part.verdicts.found.items() if have.fate is Found.REMOVE}
        plan.join(_prune(actual, removed, policy))
    return plan


def _prune(actual: Actual, removed: Collection[VipKey], policy: Policy) -> Plan:
    """Remove the VIPs that are not configured, except those that the plan has ``removed`` already."""
    plan = Plan()
    rest = [key for key in actual.vips if key not in policy.configured and key not in removed]
    for key in sorted(rest, key=lambda key: key.sort_key):
        if policy.may_remove(key):
            plan.steps.extend(delete_vip(actual.vips[key], "", "not configured", policy.cost))
        elif policy.waits(key):
            plan.undecided.append(key)
        else:
            plan.unmanaged.append(key)
    if plan.undecided:
        plan.notes.append(f"{undecided(plan.undecided)}; `sync vpp lb state prune` deletes them")
    return plan


def undecided(keys: Sequence[VipKey]) -> str:
    """VIPs that wait for an operator, in words: their number, and the first of them."""
    named = ", ".join(str(key) for key in keys[:MOST_NAMED])
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    many = "1 VIP waits" if len(keys) == 1 else f"{len(keys)} VIPs wait"
    return f"{many} for an operator before deletion: {named}{more}"


def _join(plan: Plan, part: _PrefixPlan, lost: LostWeights) -> None:
    """Enter the verdicts and the debts of one prefix in the plan. Its steps are sorted in later."""
    for key, verdict in part.verdicts.found.items():
        if verdict.note:
            plan.notes.append(verdict.note)
        if verdict.fate is Found.RECREATE:
            plan.recreated.append(key)
        elif verdict.fate is Found.UNRECORDED:
            plan.unrecorded.append(key)
        elif verdict.fate is Found.HALFWAY:
            plan.halfway.append(key)
    for key, vip in part.vips.items():
        if key in lost.recreated and part.verdicts.wanted[key] is Wanted.UPDATE:
            plan.restored.append(key)
        if vip.flushes is not NO_FLUSHES:
            plan.waiting.extend(vip.flushes.waiting)
            plan.settled.extend(vip.flushes.settled)
            plan.incurred.update(vip.flushes.incurred)


_Prefix = tuple[bytes, int]


def _by_prefix(wanted: Iterable[DesiredVip]) -> dict[_Prefix, list[DesiredVip]]:
    """The wanted VIPs of each prefix, in numeric order."""
    groups: dict[_Prefix, list[DesiredVip]] = {}
    for vip in wanted:
        groups.setdefault((vip.key.address, vip.key.prefix_length), []).append(vip)
    for group in groups.values():
        group.sort(key=lambda vip: vip.key.sort_key)
    return groups


def _found_on(groups: Mapping[_Prefix, Sequence[DesiredVip]], actual: Actual) -> dict[_Prefix, dict[VipKey, ActualVip]]:
    """The VIPs that VPP has on these prefixes."""
    found: dict[_Prefix, dict[VipKey, ActualVip]] = {}
    addresses = {address for address, _ in groups}
    for key, vip in actual.vips.items():
        # The cheaper test first: VPP has thousands of VIPs, and a batch is about a few of them.
        if key.address in addresses and (prefix := (key.address, key.prefix_length)) in groups:
            found.setdefault(prefix, {})[key] = vip
    return found


def _plan_prefix(group: Sequence[DesiredVip], found: Mapping[VipKey, ActualVip], terms: Terms) -> _PrefixPlan:
    """The VIPs of one prefix. All removals and creations on it form one block, removals first."""
    policy = terms.policy
    verdicts = judge_prefix(group, found, terms.lost.recreated, policy)
    removed = [key for key, verdict in verdicts.found.items() if verdict.fate in (Found.RECREATE, Found.REMOVE)]
    together = _removals(removed, group, found, verdicts, policy) if removed else []
    vips: dict[VipKey, _VipPlan] = {}
    blocks: list[_Block] = []
    for vip in group:
        key, fate = vip.key, verdicts.wanted[vip.key]
        vips[key] = planned = _plan_vip(vip, fate, found.get(key), terms)
        if removed and fate in (Wanted.CREATE, Wanted.RECREATE):
            together += planned.steps
        elif planned.steps:
            serves = fate is Wanted.UPDATE and found[key].serves
            blocks.append(_Block((policy.place(key), serves, key.sort_key), planned.steps))
    if removed:
        serves = all(found[key].serves for key in removed) and all(vip.key in found for vip in group)
        place = min(policy.place(vip.key) for vip in group)
        blocks.append(_Block((place, serves, group[0].key.sort_key), together))
    return _PrefixPlan(verdicts, vips, blocks)


def _removals(
    removed: Iterable[VipKey],
    group: Sequence[DesiredVip],
    found: Mapping[VipKey, ActualVip],
    verdicts: PrefixVerdicts,
    policy: Policy,
) -> list[Step]:
    frontends = {vip.key: vip.frontend for vip in group}
    steps: list[Step] = []
    for key in removed:
        steps += delete_vip(found[key], frontends.get(key, ""), verdicts.found[key].reason, policy.cost)
    return steps


def _plan_vip(vip: DesiredVip, fate: Wanted, before: ActualVip | None, terms: Terms) -> _VipPlan:
    """One wanted VIP. ``before``: the VIP as VPP has it, also if the plan removes it."""
    if fate is Wanted.BLOCKED:
        return _NOTHING if before is None else _VipPlan([], _still_owed(before, terms.owed))
    if fate is not Wanted.UPDATE:
        return _create(vip, before, terms)
    context = context_of(vip, before, before, terms)
    if context is None:
        return _NOTHING
    flushes = flushes_of(context, terms.owed)
    return _VipPlan(write_vip(context, flushes.due, terms.policy), flushes)


def _create(vip: DesiredVip, before: ActualVip | None, terms: Terms) -> _VipPlan:
    """A VIP that the plan creates; ``before`` is set if the plan removes it first."""
    cost = terms.policy.cost
    context = context_of(vip, None, before, terms)
    assert context is not None
    steps = [create_vip(vip, context.length, cost), *write_vip(context, {}, terms.policy)]
    if before is not None:
        # The debts stay until VPP has acknowledged the deletion of the old VIP.
        return _VipPlan(steps, NO_FLUSHES)
    # The VIP is gone from VPP, and its flows with it: the debts of its ASes are void.
    void = [key for ours in vip.ases if (key := FlushKey(vip.key, ours.address)) in terms.owed]
    return _VipPlan(steps, NO_FLUSHES._replace(settled=void))


def _still_owed(found: ActualVip, owed: Mapping[FlushKey, Owed]) -> Flushes:
    """The debts of a VIP that the plan cannot write to: all of them wait."""
    waiting = [key for address in found.ases if (key := FlushKey(found.key, address)) in owed]
    return NO_FLUSHES._replace(waiting=waiting)


def _conf_steps(actual: Actual, policy: Policy) -> Iterator[Step]:
    """The call for global settings that differ from the configured ones. Values that are not configured stay."""
    conf = _conf_wanted(actual, policy)
    if conf is not None and policy.full:
        yield Step(Op.SET_CONF, conf=conf, cost_ns=policy.cost.plain())


def _conf_notes(actual: Actual, policy: Policy) -> Iterator[str]:
    """The differences in global settings that this plan must not change."""
    have, lb = actual.conf, policy.lb
    if have is None:
        return
    if _sticky_buckets_differ(have, policy) and policy.full and actual.vips and not policy.force:
        yield (
            f"sticky-buckets-per-core stays {have.sticky_buckets_per_core} instead of {lb.sticky_buckets_per_core}:"
            " changing it under existing VIPs loses every flow; it waits for a forced sync"
        )
    if _conf_wanted(actual, policy) is not None and not policy.full:
        yield "the global settings differ from what is configured; only a full sync sets them"


def _conf_wanted(actual: Actual, policy: Policy) -> LbConf | None:
    """The arguments of ``lb_conf``, with KEEP for values that stay; None if nothing differs."""
    have, lb = actual.conf, policy.lb
    if have is None:
        return None
    ip4 = lb.ipv4_src_address.packed if lb.ipv4_src_address is not None else have.ip4_src_address
    ip6 = lb.ipv6_src_address.packed if lb.ipv6_src_address is not None else have.ip6_src_address
    buckets = timeout = KEEP
    # A changed number of sticky buckets loses every flow of every VIP.
    buckets_may_change = not actual.vips or policy.force
    if lb.sticky_buckets_per_core is not None and buckets_may_change and _sticky_buckets_differ(have, policy):
        buckets = lb.sticky_buckets_per_core
    if lb.flow_timeout is not None and lb.flow_timeout // SECOND != have.flow_timeout:
        timeout = lb.flow_timeout // SECOND
    conf = LbConf(ip4, ip6, buckets, timeout)
    return None if conf == LbConf(have.ip4_src_address, have.ip6_src_address, KEEP, KEEP) else conf


def _sticky_buckets_differ(have: LbConf, policy: Policy) -> bool:
    return policy.lb.sticky_buckets_per_core not in (None, have.sticky_buckets_per_core)
