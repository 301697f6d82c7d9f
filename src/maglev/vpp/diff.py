"""The diff: wanted VIPs and what VPP holds, turned into an ordered plan of calls that can be printed before it runs.

Pure. The order is the point:

- global settings come first, and VIPs that are not configured anywhere go last;
- between VIPs, what an earlier batch deferred comes first, then VIPs that serve nothing, then numeric order;
- within a VIP, raises come before drops, so that a frontend that can be served is served at every moment;
- a flush comes together with its drop, when all raises are done, so that flows spread over everything that took over;
- a VIP that must go before others on its address can come is removed right before they are created.

What must not be done now (a flush with nowhere for the flows to go, a recreation outside a full sync) is in the plan as
a note or as a debt, never dropped silently.

``diff`` joins what its neighbours decide: ``prefix`` (which VIPs stay, go, come), ``context`` (the weights of a VIP),
``flushes`` (which of its ASes are flushed), ``calls`` (its calls in their order).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from maglev.config.model import SECOND
from maglev.vpp.calls import create_vip, delete_vip, write_vip
from maglev.vpp.context import Terms, context_of
from maglev.vpp.desired import DesiredVip
from maglev.vpp.flushes import NO_FLUSHES, Flushes, flushes_of
from maglev.vpp.lost import LostWeights
from maglev.vpp.messages import KEEP, LbConf, VipKey
from maglev.vpp.model import Actual, ActualVip
from maglev.vpp.plan import FlushKey, Op, Owed, Plan, Step
from maglev.vpp.policy import Policy
from maglev.vpp.prefix import Found, PrefixVerdicts, Wanted, judge_prefix

_Order = tuple[int, bool, tuple[int, bytes, int, int, int]]
"""Place in the policy; whether the VIP serves, so that those that do not come first; numeric order."""


class _Block(NamedTuple):
    """Steps that nothing may come between, behind what orders them."""

    order: _Order
    steps: list[Step]


class _VipPlan(NamedTuple):
    """What a plan does with one wanted VIP."""

    steps: list[Step]
    flushes: Flushes


_NOTHING = _VipPlan([], NO_FLUSHES)
"""Of nearly every VIP in a full sync. Shared, and so never changed."""


class _PrefixPlan(NamedTuple):
    """What a plan does on one address. ``vips``: plans of the wanted VIPs, in numeric order."""

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

    A second diff against the result of the first has no steps. Frontends that share an address should come together:
    VPP has one encap per prefix.
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
        removed = {
            key for part in parts for key, verdict in part.verdicts.found.items() if verdict.fate is Found.REMOVE
        }
        rest = [key for key in actual.vips if key not in policy.configured and key not in removed]
        for key in sorted(rest, key=lambda key: key.sort_key):
            if policy.may_remove(key):
                plan.steps.extend(delete_vip(actual.vips[key], "", "not configured", policy.cost))
            else:
                plan.unmanaged.append(key)
    return plan


def _join(plan: Plan, part: _PrefixPlan, lost: LostWeights) -> None:
    """Enter in the plan what is decided on one address, but for the steps."""
    for key, verdict in part.verdicts.found.items():
        if verdict.note:
            plan.notes.append(verdict.note)
        if verdict.fate is Found.RECREATE:
            plan.recreated.append(key)
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
        # By address first: of thousands of VIPs, a batch is about a few.
        if key.address in addresses and (prefix := (key.address, key.prefix_length)) in groups:
            found.setdefault(prefix, {})[key] = vip
    return found


def _plan_prefix(group: Sequence[DesiredVip], found: Mapping[VipKey, ActualVip], terms: Terms) -> _PrefixPlan:
    """The VIPs on one address. What must go before others can come goes in one block with them."""
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
    """One wanted VIP. ``before``: the VIP as VPP has it, also where the plan removes it."""
    if fate is Wanted.BLOCKED:
        return _NOTHING if before is None else _VipPlan([], _still_owed(before, terms.owed))
    if fate is not Wanted.UPDATE:
        return _create(vip, before, terms)
    context = context_of(vip, before, before, terms)
    if context is None:
        return _NOTHING
    flushes = flushes_of(context, terms.owed)
    return _VipPlan(write_vip(context, flushes.due, terms.policy.cost), flushes)


def _create(vip: DesiredVip, before: ActualVip | None, terms: Terms) -> _VipPlan:
    """A VIP that is created, or removed and created again."""
    cost = terms.policy.cost
    context = context_of(vip, None, before, terms)
    assert context is not None
    steps = [create_vip(vip, context.length, cost), *write_vip(context, {}, cost)]
    if before is not None:
        # What is owed stays owed until VPP has acknowledged that the old VIP is gone.
        return _VipPlan(steps, NO_FLUSHES)
    # Whatever was owed to the ASes of a VIP that is gone went with it.
    void = [key for ours in vip.ases if (key := FlushKey(vip.key, ours.address)) in terms.owed]
    return _VipPlan(steps, NO_FLUSHES._replace(settled=void))


def _still_owed(found: ActualVip, owed: Mapping[FlushKey, Owed]) -> Flushes:
    """The debts of a VIP that cannot be touched now: they all wait."""
    waiting = [key for address in found.ases if (key := FlushKey(found.key, address)) in owed]
    return NO_FLUSHES._replace(waiting=waiting)


def _conf_steps(actual: Actual, policy: Policy) -> Iterator[Step]:
    """Set the global settings that are configured and differ; never a value that is not configured."""
    conf = _conf_wanted(actual, policy)
    if conf is not None and policy.full:
        yield Step(Op.SET_CONF, conf=conf, cost_ns=policy.cost.plain())


def _conf_notes(actual: Actual, policy: Policy) -> Iterator[str]:
    """What the plan leaves of the global settings as it is."""
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
    """The global settings that VPP is to be given, with KEEP where its own stay; None where nothing is to be set."""
    have, lb = actual.conf, policy.lb
    if have is None:
        return None
    ip4 = lb.ipv4_src_address.packed if lb.ipv4_src_address is not None else have.ip4_src_address
    ip6 = lb.ipv6_src_address.packed if lb.ipv6_src_address is not None else have.ip6_src_address
    buckets = timeout = KEEP
    # Under existing VIPs, another number of sticky buckets loses every flow.
    buckets_may_change = not actual.vips or policy.force
    if lb.sticky_buckets_per_core is not None and buckets_may_change and _sticky_buckets_differ(have, policy):
        buckets = lb.sticky_buckets_per_core
    if lb.flow_timeout is not None and lb.flow_timeout // SECOND != have.flow_timeout:
        timeout = lb.flow_timeout // SECOND
    conf = LbConf(ip4, ip6, buckets, timeout)
    return None if conf == LbConf(have.ip4_src_address, have.ip6_src_address, KEEP, KEEP) else conf


def _sticky_buckets_differ(have: LbConf, policy: Policy) -> bool:
    return policy.lb.sticky_buckets_per_core not in (None, have.sticky_buckets_per_core)
