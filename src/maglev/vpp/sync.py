"""The diff: wanted VIPs and what VPP holds, turned into an ordered plan of calls that can be printed before it runs.

Pure. The order is the point: raises before drops, so that a frontend that can be served is served at every moment; a
flush together with its drop, when all raises are done, so that flows spread over everything that took over; VIPs that
serve nobody first. What must not be done now (a flush with nowhere for the flows to go, a recreation outside a full
sync) is in the plan as a note or as a debt, never dropped silently.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from maglev.base.states import State
from maglev.config.model import LbConfig, Prune
from maglev.judgement.weights import flush_owed
from maglev.vpp.desired import DesiredAs, DesiredVip
from maglev.vpp.lost import NOTHING_LOST, LostWeights
from maglev.vpp.messages import KEEP, Encap, LbConf, VipKey, address_text, source_text
from maglev.vpp.model import DEFAULT_TABLE_LENGTH, MAX_WEIGHT, Actual, ActualAs, ActualVip, address_order

SECOND = 1_000_000_000


class Op(enum.Enum):
    """What a step does; the values are the words of the API."""

    SET_CONF = "conf"
    CREATE_VIP = "vip_add"
    DELETE_VIP = "vip_remove"
    ADD_AS = "as_add"
    DELETE_AS = "as_remove"
    SET_WEIGHT = "as_weight"
    FLUSH_VIP = "vip_flush"

    # By identity: Enum's own hash is a call into Python, several times for each step.
    __hash__ = object.__hash__


COUNTED: Mapping[Op, str] = {
    Op.CREATE_VIP: "vip_added",
    Op.DELETE_VIP: "vip_removed",
    Op.ADD_AS: "as_added",
    Op.DELETE_AS: "as_removed",
    Op.SET_WEIGHT: "as_weight_updated",
}
"""The ``kind`` of ``maglev_vpp_lbsync_total`` that a step counts as, once VPP has acknowledged it."""

_CALLS: Mapping[Op, str] = {
    Op.SET_CONF: "lb_conf",
    Op.CREATE_VIP: "lb_add_del_vip_v2",
    Op.DELETE_VIP: "lb_add_del_vip_v2 del",
    Op.ADD_AS: "lb_add_del_as_v2",
    Op.DELETE_AS: "lb_add_del_as_v2 del",
    Op.SET_WEIGHT: "lb_as_set_weight",
    Op.FLUSH_VIP: "lb_flush_vip",
}


class Cause(enum.Enum):
    """Why a flush is owed. Only that of a failure may wait."""

    DOWN = "down"
    OPERATOR = "operator"  # disabled, or a weight set with flush


class FlushKey(NamedTuple):
    """The AS whose flows are to be evicted."""

    vip: VipKey
    address: bytes


class Owed(NamedTuple):
    """A flush that VPP has not acknowledged yet. ``waited``: a plan had to put it off, for want of another AS.

    ``serial`` tells a debt from a later one of the same AS, so that an acknowledgement settles no newer debt.
    """

    cause: Cause
    waited: bool = False
    serial: int = 0


@dataclass(frozen=True, slots=True)
class CostModel:
    """Estimated time that VPP's main thread spends on a call, and that its workers stand still. Nanoseconds.

    Each weight, add or delete call rebuilds the new-flow table of its VIP; a flush walks the sticky table of every
    worker; a read of a VIP's ASes counts its buckets. The constants were measured on a real VPP; ``factor`` is the
    calibration against measured reply times.
    """

    per_bucket: float = 17.0
    per_weight: float = 125.0
    per_sticky_bucket: float = 7.0
    per_call: float = 5_000.0
    per_read_bucket: float = 30.0
    per_read_as: float = 2_500.0
    sticky_buckets: int = 1024
    workers: int = 1
    factor: float = 1.0

    def rebuild(self, length: int, total: int) -> int:
        """A call on a VIP with a table of ``length`` buckets, its weights adding up to ``total`` afterwards."""
        return int(self.factor * (self.per_call + self.per_bucket * length + self.per_weight * total))

    def flush(self) -> int:
        """The walk through the sticky tables that a flush adds."""
        return int(self.factor * self.per_sticky_bucket * self.sticky_buckets * max(1, self.workers))

    def read(self, length: int, ases: int) -> int:
        """A read of the ASes of a VIP with a table of ``length`` buckets."""
        return int(self.factor * (self.per_call + self.per_read_bucket * length + self.per_read_as * ases))

    def plain(self) -> int:
        """A call that rebuilds nothing."""
        return int(self.factor * self.per_call)


class Step(NamedTuple):
    """One call to VPP. ``str()`` is the step in words. A named tuple, since a mass failure makes thousands at once.

    ``cost_ns``: estimated stall. ``settles``: the debts, with their serials, that its acknowledgement settles.
    ``guarded``: a drop that would leave its VIP empty had the raises before it been refused; it is sent only when at
    least one of them was accepted. ``conf`` is set for ``SET_CONF`` only, with KEEP where VPP's value stays.
    """

    op: Op
    vip: VipKey | None = None
    frontend: str = ""
    backend: str = ""
    address: bytes = b""
    old_weight: int = 0
    weight: int = 0
    flush: bool = False
    cost_ns: int = 0
    settles: tuple[tuple[FlushKey, int], ...] = ()
    guarded: bool = False
    encap: int = 0
    length: int = 0
    sticky: bool = False
    conf: LbConf | None = None
    reason: str = ""

    @property
    def call(self) -> str:
        """Name of the API message."""
        return _CALLS[self.op].partition(" ")[0]

    def __str__(self) -> str:
        words = [_CALLS[self.op]]
        if self.vip is not None:
            words.append(str(self.vip))
        if self.address:
            words.append(f"as {address_text(self.address)}")
        if self.op is Op.SET_WEIGHT:
            words.append(f"weight {self.old_weight} -> {self.weight}")
        elif self.op is Op.ADD_AS:
            words.append(f"weight {self.weight}")
        elif self.op is Op.CREATE_VIP:
            words.append(f"encap {Encap(self.encap)} length {self.length}")
            if self.sticky:
                words.append("src-ip-sticky")
        elif self.conf is not None:
            words.append(f"ipv4-src {source_text(self.conf.ip4_src_address) or 'unset'}")
            words.append(f"ipv6-src {source_text(self.conf.ip6_src_address) or 'unset'}")
            if self.conf.sticky_buckets_per_core != KEEP:
                words.append(f"sticky-buckets {self.conf.sticky_buckets_per_core}")
            if self.conf.flow_timeout != KEEP:
                words.append(f"flow-timeout {self.conf.flow_timeout}s")
        if self.flush and self.op is not Op.FLUSH_VIP:
            words.append("flush")
        if self.reason:
            words.append(f"({self.reason})")
        return " ".join(words)


@dataclass(slots=True)
class Plan:
    """Calls in their order, and what the plan could not or must not do.

    ``waiting``: debts that stay, since there is nowhere for the flows to go. ``incurred``: flushes that a drop of this
    plan makes owed and that must wait. ``settled``: debts that are void, because VPP has no such AS, or because the AS
    serves again before there was anywhere else for its flows. ``recreated``: VIPs that are taken down by this plan and
    created again; ``restored``: VIPs that were halfway down and can stay after all. ``unmanaged``: VIPs in VPP that are
    left alone.
    """

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: list[FlushKey] = field(default_factory=list)
    incurred: dict[FlushKey, Owed] = field(default_factory=dict)
    settled: list[FlushKey] = field(default_factory=list)
    recreated: list[VipKey] = field(default_factory=list)
    restored: list[VipKey] = field(default_factory=list)
    unmanaged: list[VipKey] = field(default_factory=list)

    def join(self, other: Plan) -> None:
        """Put another plan behind this one, of other VIPs of the same VPP. Steps, notes and what is left alone only."""
        self.steps.extend(other.steps)
        self.notes.extend(other.notes)
        self.unmanaged.extend(other.unmanaged)

    @property
    def stall_ns(self) -> int:
        """Estimated stall of all steps together."""
        return sum(step.cost_ns for step in self.steps)

    def __str__(self) -> str:
        lines = [str(step) for step in self.steps] + [f"note: {note}" for note in self.notes]
        return "\n".join(lines) if lines else "nothing to do"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a plan may do beside weights.

    ``full``: global conf, deletion and recreation of VIPs are allowed. ``prune_rest``: remove what is not configured
    anywhere, not only on the addresses of the wanted VIPs. ``frozen``: VIPs whose recreation was given up; ``stuck``:
    VIPs that VPP has refused to delete since the last full sync began.
    ``multiples``: VIPs that keep the scale that was found in VPP. ``lost``: what keeps the weight it has keeps this one
    where VPP has been emptied. ``first``: VIPs whose steps come before all others, with their places: what budgets have
    cut off before.
    """

    full: bool = True
    prune_rest: bool = True
    force: bool = False
    lb: LbConfig = field(default_factory=LbConfig)
    configured: Collection[VipKey] = frozenset()
    owned: Collection[VipKey] = frozenset()
    frozen: Collection[VipKey] = frozenset()
    stuck: Collection[VipKey] = frozenset()
    multiples: Mapping[VipKey, Fraction] = field(default_factory=dict)
    lost: LostWeights = NOTHING_LOST
    first: Mapping[VipKey, int] = field(default_factory=dict)
    cost: CostModel = CostModel()

    def place(self, key: VipKey) -> int:
        """Where the steps of a VIP come; at one place, VIPs that serve nobody come first, then in numeric order."""
        return self.first.get(key, len(self.first))

    def may_remove(self, key: VipKey) -> bool:
        """Whether ``prune`` allows a VIP that is not configured to be removed."""
        return self.lb.prune is Prune.ALL or (self.lb.prune is Prune.OWNED and key in self.owned)


SAME = Fraction(1)
"""The scale of nearly every VIP."""


def common_multiple(wanted: DesiredVip, found: ActualVip) -> Fraction:
    """The scale of the weights in VPP against ours, when all that are above 0 have the same one; else 1.

    Other controllers write weights as they are configured (100 where we write 1). The shares are the same, and moving
    to our scale would move flows for nothing.
    """
    ratios = {
        Fraction(present.weight, ours.nominal)
        for ours in wanted.ases
        if (present := found.ases.get(ours.address)) is not None and present.weight > 0 and ours.nominal > 0
    }
    if len(ratios) != 1:
        return Fraction(1)
    ratio = ratios.pop()
    most = max((ours.nominal for ours in wanted.ases), default=0)
    least = min((ours.nominal for ours in wanted.ases if ours.nominal > 0), default=1)
    # A scale in which some weight would not fit, or two weights would become one, is no scale to go on with.
    return ratio if most * ratio <= MAX_WEIGHT and least * ratio >= 1 else Fraction(1)


def scaled(weight: int, multiple: Fraction) -> int:
    """A programmed weight on a VIP's own scale: at least 1 where it was above 0, and what a u8 holds."""
    if weight <= 0:
        return 0
    if multiple is SAME:
        return weight
    return min(MAX_WEIGHT, max(1, math.floor(weight * multiple + Fraction(1, 2))))


def diff(wanted: Iterable[DesiredVip], actual: Actual, owed: Mapping[FlushKey, Owed], policy: Policy) -> Plan:
    """The plan that turns ``actual`` into ``wanted``, in the order in which it must be carried out.

    A second diff against the result of the first has no steps. Frontends that share an address should come together:
    VPP has one encap per prefix.
    """
    plan = Plan()
    _plan_conf(actual, policy, plan)
    wanted_by_prefix: dict[tuple[bytes, int], list[DesiredVip]] = {}
    for vip in wanted:
        wanted_by_prefix.setdefault((vip.key.address, vip.key.prefix_length), []).append(vip)
    found_by_prefix: dict[tuple[bytes, int], list[ActualVip]] = {}
    addresses = {address for address, _ in wanted_by_prefix}
    for key, found in actual.vips.items():
        if key.address in addresses and (prefix := (key.address, key.prefix_length)) in wanted_by_prefix:
            found_by_prefix.setdefault(prefix, []).append(found)

    blocks: list[_Block] = []
    seen: set[VipKey] = set()
    for prefix, group in wanted_by_prefix.items():
        group.sort(key=lambda vip: vip.key.sort_key)
        blocks.extend(_plan_prefix(group, found_by_prefix.get(prefix, []), owed, policy, plan, seen))
    blocks.sort(key=lambda block: block[0])
    for _, steps in blocks:
        plan.steps.extend(steps)

    if policy.full and policy.prune_rest:
        rest = [f for f in actual.vips.values() if f.key not in policy.configured and f.key not in seen]
        for found in sorted(rest, key=lambda f: f.key.sort_key):
            if policy.may_remove(found.key):
                plan.steps.extend(_delete_vip(found, "", "not configured", policy))
            else:
                plan.unmanaged.append(found.key)
    return plan


def _plan_conf(actual: Actual, policy: Policy, plan: Plan) -> None:
    """Sets what is configured and differs; never a value that is not configured."""
    if actual.conf is None:
        return
    have, lb = actual.conf, policy.lb
    ip4 = lb.ipv4_src_address.packed if lb.ipv4_src_address is not None else have.ip4_src_address
    ip6 = lb.ipv6_src_address.packed if lb.ipv6_src_address is not None else have.ip6_src_address
    buckets = timeout = KEEP
    if lb.sticky_buckets_per_core is not None and lb.sticky_buckets_per_core != have.sticky_buckets_per_core:
        if not actual.vips or policy.force:
            buckets = lb.sticky_buckets_per_core
        elif policy.full:
            plan.notes.append(
                f"sticky-buckets-per-core stays {have.sticky_buckets_per_core} instead of {lb.sticky_buckets_per_core}:"
                " changing it under existing VIPs loses every flow; it waits for a forced sync"
            )
    if lb.flow_timeout is not None and lb.flow_timeout // SECOND != have.flow_timeout:
        timeout = lb.flow_timeout // SECOND
    if (ip4, ip6, buckets, timeout) == (have.ip4_src_address, have.ip6_src_address, KEEP, KEEP):
        return
    if not policy.full:
        plan.notes.append("the global settings differ from what is configured; only a full sync sets them")
    else:
        plan.steps.append(Step(Op.SET_CONF, conf=LbConf(ip4, ip6, buckets, timeout), cost_ns=policy.cost.plain()))


def _why_recreate(vip: DesiredVip, found: ActualVip) -> str:
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


_Block = tuple[tuple[int, bool, tuple[int, bytes, int, int, int]], list[Step]]
"""Steps that belong together, behind what orders them: place, whether somebody serves there, numeric order."""


def _plan_prefix(
    group: Sequence[DesiredVip],
    found: Sequence[ActualVip],
    owed: Mapping[FlushKey, Owed],
    policy: Policy,
    plan: Plan,
    seen: set[VipKey],
) -> list[_Block]:
    """The VIPs on one address. What must go before others can come goes in one block with them."""
    wanted = {vip.key: vip for vip in group}
    by_key = {f.key: f for f in found}
    encap = group[0].encap
    missing = [vip for vip in group if vip.key not in by_key]
    doomed: dict[VipKey, str] = {}
    blocked: set[VipKey] = set()  # VIPs of the group that cannot be touched now
    for f in sorted(found, key=lambda f: f.key.sort_key):
        vip = wanted.get(f.key)
        if vip is not None:
            reason = _why_recreate(vip, f)
            if not reason:
                continue
            if f.key in policy.frozen and not policy.force:
                plan.notes.append(f"{f.key}: {reason}; given up, since creating it again did not last twice")
            elif f.key in policy.stuck:
                plan.notes.append(f"{f.key}: {reason}; VPP refused to delete it, the next full sync tries again")
            elif not policy.full:
                plan.notes.append(f"{f.key}: {reason}; only a full sync creates it again")
                if f.key in policy.lost.recreated:
                    # One has begun with it: what was put back into it would only be taken out again.
                    blocked.add(f.key)
            else:
                doomed[f.key] = reason
            continue
        configured = f.key in policy.configured
        if not configured and policy.full and policy.may_remove(f.key):
            doomed[f.key] = "not configured"
            seen.add(f.key)
            continue
        # It stays, and matters here only if it stands in the way of one that is wanted.
        hindered = [vip for vip in missing if f.encap != encap or (f.key.port == 0) != (vip.key.port == 0)]
        if hindered or f.encap != encap:
            if configured:
                why = "is not in this sync"
            elif policy.may_remove(f.key):
                why = "can be removed by a full sync only"
            else:
                why = f"is not ours to remove (prune: {policy.lb.prune.value})"
            plan.notes.append(f"{f.key} ({_encap_name(f.encap)}) is in the way of {group[0].key} and {why}")
            blocked.update(vip.key for vip in hindered)

    if any(f.encap != encap for f in found if f.key not in doomed):
        # VPP has one encap per prefix: with the old one still there nothing can come, and so nothing should go.
        blocked.update(vip.key for vip in missing)
        for key in [key for key in doomed if key in wanted]:
            del doomed[key]
    blocked.update(f.key for f in found if f.key in wanted and f.key not in doomed and f.encap != encap)

    blocks: list[_Block] = []
    removals: list[Step] = []
    for key, reason in doomed.items():
        if key in wanted:
            plan.recreated.append(key)
        name = wanted[key].frontend if key in wanted else ""
        removals.extend(_delete_vip(by_key[key], name, reason, policy))
    creations: list[Step] = []
    for vip in group:
        if vip.key in blocked:
            if vip.key in by_key:
                _keep_debts(by_key[vip.key], owed, plan)
            continue
        present = None if vip.key in doomed else by_key.get(vip.key)
        if present is not None and vip.key in policy.lost.recreated:
            plan.restored.append(vip.key)
        steps = _plan_vip(vip, present, owed, policy, plan, before=by_key.get(vip.key))
        if removals and present is None:
            creations.extend(steps)
        elif steps:
            serves = present is not None and present.serves
            blocks.append(((policy.place(vip.key), serves, vip.key.sort_key), steps))
    if removals:
        serving = all(by_key[key].serves for key in doomed) and not missing
        place = min(policy.place(vip.key) for vip in group)
        blocks.append(((place, serving, group[0].key.sort_key), removals + creations))
    return blocks


def _keep_debts(found: ActualVip, owed: Mapping[FlushKey, Owed], plan: Plan) -> None:
    plan.waiting.extend(key for address in found.ases if (key := FlushKey(found.key, address)) in owed)


def _indebted(vip: DesiredVip, owed: Mapping[FlushKey, Owed]) -> bool:
    """Whether a flush is owed to any AS of the VIP. Debts exist for configured ASes only."""
    return bool(owed) and any(FlushKey(vip.key, ours.address) in owed for ours in vip.ases)


class _Writer:
    """Appends the steps of one VIP and keeps the sum of its weights, which is what a call costs."""

    def __init__(self, key: VipKey, frontend: str, length: int, weights: dict[bytes, int], cost: CostModel) -> None:
        self.steps: list[Step] = []
        self.weights = weights
        self._key = key
        self._frontend = frontend
        self._length = length
        self._total = sum(weights.values())
        self._cost = cost

    def weight(
        self, address: bytes, weight: int, backend: str = "", *, owed: int | None = None, guarded: bool = False
    ) -> None:
        """Add the AS, or set its weight; with flush when ``owed`` is the serial of a debt (0: of none)."""
        old = self.weights.get(address)
        self._total += weight - (old or 0)
        self.weights[address] = weight
        flush = owed is not None and old is not None
        self.steps.append(
            Step(
                Op.ADD_AS if old is None else Op.SET_WEIGHT,
                self._key,
                self._frontend,
                backend,
                address,
                old_weight=old or 0,
                weight=weight,
                flush=flush,
                cost_ns=self._call_cost(flush),
                settles=((FlushKey(self._key, address), owed),) if owed else (),
                guarded=guarded,
            )
        )

    def delete(self, address: bytes, *, flush: bool, guarded: bool = False) -> None:
        """Delete the AS."""
        old = self.weights.pop(address)
        self._total -= old
        self.steps.append(
            Step(
                Op.DELETE_AS,
                self._key,
                self._frontend,
                "",
                address,
                old_weight=old,
                flush=flush,
                cost_ns=self._call_cost(flush),
                guarded=guarded,
            )
        )

    def flush(self, debts: Mapping[bytes, int]) -> None:
        """Evict every flow of the VIP; ``debts`` as of ``_plan_flushes``."""
        settles = tuple((FlushKey(self._key, address), serial) for address, serial in debts.items() if serial)
        cost = self._cost.plain() + self._cost.flush()
        self.steps.append(Step(Op.FLUSH_VIP, self._key, self._frontend, flush=True, cost_ns=cost, settles=settles))

    def _call_cost(self, flush: bool) -> int:
        return self._cost.rebuild(self._length, self._total) + (self._cost.flush() if flush else 0)


def _delete_vip(found: ActualVip, frontend: str, reason: str, policy: Policy) -> list[Step]:
    """Empty a VIP, flush it, and delete it. Deleting alone would leave flows on ghosts that nothing can address."""
    weights = {address: present.weight for address, present in found.ases.items()}
    writer = _Writer(found.key, frontend, found.length, weights, policy.cost)
    addresses = sorted(found.ases, key=address_order)
    for address in addresses:
        if weights[address] > 0:
            writer.weight(address, 0)
    if (found.ases or found.lingering) and not found.flushed:
        writer.flush({})
    for address in addresses:
        writer.delete(address, flush=False)
    cost = policy.cost.plain()
    return [*writer.steps, Step(Op.DELETE_VIP, found.key, frontend, cost_ns=cost, reason=reason)]


def _plan_vip(
    vip: DesiredVip,
    found: ActualVip | None,
    owed: Mapping[FlushKey, Owed],
    policy: Policy,
    plan: Plan,
    *,
    before: ActualVip | None,
) -> list[Step]:
    """One VIP: create it if it is missing, raises, drops with their flushes, then what comes at weight 0.

    ``before``: the VIP as it is, also where the plan has removed it (``found`` is None then) to create it again. What
    keeps the weight it has in VPP keeps it through that, too.
    """
    steps: list[Step] = []
    if found is None:
        length = vip.length if vip.length is not None else DEFAULT_TABLE_LENGTH
        steps.append(
            Step(
                Op.CREATE_VIP,
                vip.key,
                vip.frontend,
                encap=vip.encap,
                length=length,
                sticky=vip.sticky,
                cost_ns=policy.cost.rebuild(length, 0),
            )
        )
        if before is None:
            # Whatever was owed to the ASes of a VIP that is gone went with it.
            plan.settled.extend(key for ours in vip.ases if (key := FlushKey(vip.key, ours.address)) in owed)
        present: Mapping[bytes, ActualAs] = {}
    else:
        length, present = found.length, found.ases

    # What is created comes on our scale, also what keeps its weight: an adopted scale ends with its VIP.
    adopted = policy.multiples.get(vip.key, SAME)
    multiple = adopted if found is not None else SAME
    targets: dict[bytes, int] = {}
    for ours in vip.ases:
        if ours.weight is None:
            have = before.ases.get(ours.address) if before is not None else None
            last = policy.lost.recall(vip.key, ours.address, present=have is not None)
            if last is not None:
                targets[ours.address] = scaled(last, multiple)
            elif have is None:
                targets[ours.address] = 0
            else:
                targets[ours.address] = have.weight if found is not None else scaled(have.weight, 1 / adopted)
        else:
            targets[ours.address] = scaled(ours.weight, multiple)
    if found is None:
        targets.update(_regained(vip, before, policy.lost, adopted))
    if found is not None and _alike(targets, present) and not _indebted(vip, owed):
        return []
    extra = sorted((a for a in present if a not in targets and a not in vip.held), key=address_order)
    held = [a for a in present if a in vip.held]

    ghosts = found is not None and found.lingering > 0
    flushes: Mapping[bytes, int] = {}
    if found is not None:
        flushes = _plan_flushes(vip, present, targets, held, owed, plan, ghosts=ghosts)
    writer = _Writer(vip.key, vip.frontend, length, {a: p.weight for a, p in present.items()}, policy.cost)
    _write(vip, writer, present, targets, extra, held, flushes, ghosts=ghosts)
    steps.extend(writer.steps)
    return steps


def _regained(
    vip: DesiredVip, before: ActualVip | None, lost: LostWeights, adopted: Fraction
) -> Iterator[tuple[bytes, int]]:
    """What else comes with a VIP that is created: the old addresses that it is held at, where they served."""
    for address in sorted(vip.held, key=address_order):
        have = before.ases.get(address) if before is not None else None
        last = lost.recall(vip.key, address, present=have is not None)
        if last is None:
            last = scaled(have.weight, 1 / adopted) if have is not None else 0
        if last > 0 and (vip.encap is Encap.GRE4) == (len(address) == 4):
            yield address, last


def _alike(targets: Mapping[bytes, int], present: Mapping[bytes, ActualAs]) -> bool:
    """Whether VPP has just these weights: what nearly every VIP of a periodic sync is found like."""
    if len(targets) != len(present):
        return False
    for address, target in targets.items():
        have = present.get(address)
        if have is None or have.weight != target:
            return False
    return True


def _plan_flushes(
    vip: DesiredVip,
    present: Mapping[bytes, ActualAs],
    targets: Mapping[bytes, int],
    held: Sequence[bytes],
    owed: Mapping[FlushKey, Owed],
    plan: Plan,
    *,
    ghosts: bool,
) -> dict[bytes, int]:
    """Which ASes are flushed in this plan: address -> serial of the debt, 0 for drift that is repaired.

    ``ghosts``: deleted ASes linger in the VIP. One that somebody else has deleted keeps its flows and comes back with
    them when it is added, so what is owed to it stays owed until then.

    A failed AS is flushed only while some other AS takes its flows: with none, they would be pinned to nothing for the
    flow time-out, where they now at least come back with the server. A flush that has waited for one waits until it is
    known to be up: that a restart of the daemon knows less than before is no reason.
    """
    up = {ours.address for ours in vip.ases if targets[ours.address] > 0 and ours.state is State.UP}
    up.update(address for address in held if present[address].weight > 0)
    takers = up | {ours.address for ours in vip.ases if targets[ours.address] > 0 and ours.state is State.UNKNOWN}
    flushes: dict[bytes, int] = {}
    for ours in vip.ases:
        key = FlushKey(vip.key, ours.address)
        debt = owed.get(key)
        have = present.get(ours.address)
        if have is None:
            if debt is not None:
                (plan.waiting if ghosts else plan.settled).append(key)
            continue
        target = targets[ours.address]
        if debt is None:
            if have.weight == 0 or target > 0 or not flush_owed(ours.state, flush_on_down=vip.flush_on_down):
                continue
            cause = Cause.DOWN if ours.state is State.DOWN else Cause.OPERATOR
        else:
            cause = debt.cause
        elsewhere = bool((up if debt is not None and debt.waited else takers) - {ours.address})
        if cause is Cause.OPERATOR:
            flushes[ours.address] = debt.serial if debt is not None else 0
        elif target > 0 and (ours.state is State.DOWN or ours.weight is None):
            # It failed but keeps its weight (on-all-down: keep, or not known any more): what a flush evicts would come
            # straight back.
            if debt is not None:
                plan.waiting.append(key)
        elif target > 0 and debt is not None and (debt.waited or not elsewhere):
            # It serves again, and its flows never had anywhere else to go: they are where they belong.
            plan.settled.append(key)
        elif elsewhere:
            flushes[ours.address] = debt.serial if debt is not None else 0
        elif debt is not None:
            plan.waiting.append(key)
        else:
            plan.incurred[key] = Owed(cause, waited=True)
    return flushes


def _write(
    vip: DesiredVip,
    writer: _Writer,
    present: Mapping[bytes, ActualAs],
    targets: Mapping[bytes, int],
    extra: Sequence[bytes],
    held: Sequence[bytes],
    flushes: Mapping[bytes, int],
    *,
    ghosts: bool,
) -> None:
    """The weight calls of one VIP, in passes when its scale changes.

    ``ghosts``: deleted ASes linger in the VIP; where somebody else has deleted them, with flows that may have to stay.
    """
    weights = writer.weights
    ours_by_address: dict[bytes, DesiredAs] = {ours.address: ours for ours in vip.ases}
    # One lb_flush_vip instead of a flush each, where nothing is left in the VIP whose flows are to stay.
    holders = [a for a, have in present.items() if not (have.clean and have.weight == 0 and targets.get(a, 0) == 0)]
    # Only for debts: they stay owed while a plan is cut between a drop and the flush behind it.
    flush_all = (
        len(flushes) > 1
        and all(flushes.values())
        and not extra
        and not ghosts
        and not any(targets.values())
        and all(address in flushes for address in holders)
    )
    stays = any(weights[a] > 0 and targets.get(a, weights[a] if a in held else 0) > 0 for a in weights)

    for number, goal in enumerate(_passes(weights, targets)):
        due = flushes if number == 0 else {}
        raises = [a for a in goal if goal[a] > weights.get(a, 0)]
        guarded = bool(raises) and not stays
        # A raise that also flushes comes last among them: its flows spread over all that was raised before it.
        for address in sorted(raises, key=lambda a: (a in due, address_order(a))):
            ours = ours_by_address.get(address)  # None: an old address
            writer.weight(address, goal[address], ours.backend if ours is not None else "", owed=due.get(address))
        for address in goal:
            old = weights.get(address)
            if old is None or address in raises:
                continue
            owed = None if flush_all else due.get(address)
            if goal[address] < old or owed is not None:
                ours = ours_by_address[address]
                dispensable = goal[address] > 0 or ours.state in (State.DOWN, State.DISABLED)
                writer.weight(address, goal[address], ours.backend, owed=owed, guarded=guarded and not dispensable)
        if number > 0:
            continue
        if flush_all:
            writer.flush(flushes)
        for address in extra:
            writer.delete(address, flush=True, guarded=guarded and weights[address] > 0)
        for address, weight in goal.items():
            if weight == 0 and address not in weights:
                writer.weight(address, 0, ours_by_address[address].backend)


def _passes(weights: Mapping[bytes, int], targets: Mapping[bytes, int]) -> list[dict[bytes, int]]:
    """The goals on the way to ``targets``: one, unless the VIP's scale changes, which moves many flows at once.

    Then each pass takes it at most a factor of two further, and what comes new comes at the scale of the pass.
    """
    goals: list[dict[bytes, int]] = []
    now = {a: w for a, w in weights.items() if w > 0 and targets.get(a, 0) > 0}
    grown, shrunk = [(w, targets[a]) for a, w in now.items()], [(targets[a], w) for a, w in now.items()]
    if len(now) > 1 and (_rescaled(grown) or _rescaled(shrunk)):
        while any(targets[a] > 2 * w or w > 2 * targets[a] for a, w in now.items()):
            now = {a: min(max(targets[a], (w + 1) // 2), 2 * w) for a, w in now.items()}
            scale = Fraction(sum(now.values()), sum(targets[a] for a in now))
            goals.append({a: now[a] if a in now else scaled(t, scale) for a, t in targets.items()})
    goals.append(dict(targets))
    return goals


def _rescaled(pairs: Sequence[tuple[int, int]]) -> bool:
    """Whether weights that go from the first to the second of each pair grow to another scale.

    None of them falls, and most grow by more than a factor of two (what rounding made 1 may stay 1); or all grow and
    some by so much: a plan that was cut leaves some a pass behind the others.
    """
    many = sum(after > 2 * before for before, after in pairs)
    if any(after < before for before, after in pairs):
        return False
    return 2 * many > len(pairs) or (many > 0 and all(after > before for before, after in pairs))


def acknowledge(actual: Actual, step: Step) -> None:
    """Change ``actual`` as VPP did when it accepted ``step``. Bucket counts are unknown afterwards and read as 0."""
    if step.op is Op.SET_CONF:
        if step.conf is not None and actual.conf is not None:
            buckets, timeout = step.conf.sticky_buckets_per_core, step.conf.flow_timeout
            actual.conf = LbConf(
                step.conf.ip4_src_address,
                step.conf.ip6_src_address,
                actual.conf.sticky_buckets_per_core if buckets == KEEP else buckets,
                actual.conf.flow_timeout if timeout == KEEP else timeout,
            )
        return
    assert step.vip is not None
    if step.op is Op.CREATE_VIP:
        actual.vips[step.vip] = ActualVip(step.vip, step.encap, step.length, sticky=step.sticky)
        return
    found = actual.vips.get(step.vip)
    if found is None:
        return
    if step.op is Op.DELETE_VIP:
        del actual.vips[step.vip]
    elif step.op is Op.DELETE_AS:
        if found.ases.pop(step.address, None) is not None:
            found.lingering += 1
    elif step.op is Op.FLUSH_VIP:
        found.flushed = not found.serves
        for address, present in found.ases.items():
            if present.weight == 0:
                found.ases[address] = present._replace(clean=True)
    elif step.op is Op.ADD_AS:
        found.flushed = False
        # What is added may revive an AS that lingers with its flows.
        clean = step.weight == 0 and found.lingering == 0
        found.ases[step.address] = ActualAs(step.weight, 0, clean=clean)
    else:
        found.flushed = False
        before = found.ases.get(step.address)
        emptied = step.flush or (before is not None and before.clean)
        found.ases[step.address] = ActualAs(step.weight, 0, clean=step.weight == 0 and emptied)
