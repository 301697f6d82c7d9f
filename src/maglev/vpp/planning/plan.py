"""The plan as an object: the calls to VPP in their order, which can be printed before any of them is sent.

Pure. ``diff`` makes plans, ``maglev.vpp.sync.executor`` carries them out. ``acknowledge`` says what a call changes in
VPP once VPP has accepted it; the mirror of VPP and every forecast follow VPP by it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from maglev.vpp.planning.model import Actual, ActualAs, ActualVip
from maglev.vpp.wire.commands import delete_line, weight_line
from maglev.vpp.wire.messages import KEEP, Encap, LbConf, VipKey, address_text, source_text


class Op(enum.Enum):
    """The kinds of calls; the values are the words of the API."""

    SET_CONF = "conf"
    CREATE_VIP = "vip_add"
    DELETE_VIP = "vip_remove"
    ADD_AS = "as_add"
    DELETE_AS = "as_remove"
    SET_WEIGHT = "as_weight"
    FLUSH_VIP = "vip_flush"
    COMMANDS = "as_commands"  # many ASes of one VIP at once, by VPP's CLI

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
    Op.COMMANDS: "cli_inband",
}


class Cause(enum.Enum):
    """Why a flush is owed. Only a flush for a failure may be deferred."""

    DOWN = "down"
    OPERATOR = "operator"  # disabled, or a weight set with flush


class FlushKey(NamedTuple):
    """The AS whose flows are to be evicted."""

    vip: VipKey
    address: bytes


class Owed(NamedTuple):
    """A flush that VPP has not acknowledged yet. ``waited``: a plan deferred it, since no other AS took the flows.

    ``serial`` distinguishes a debt from a newer one of the same AS: an acknowledgement settles only the debt that its
    step was planned for.
    """

    cause: Cause
    waited: bool = False
    serial: int = 0


Settles = tuple[tuple[FlushKey, int], ...]
"""The debts that a step settles, each with its serial."""


class Step(NamedTuple):
    """One call to VPP. ``str()`` is the step in words. A named tuple, since a mass failure makes thousands at once.

    ``cost_ns``: estimated stall. ``settles``: the debts, with their serials, that its acknowledgement settles.
    ``guarded``: a drop that would leave its VIP empty if VPP refused every raise before it; the executor sends it
    only after VPP has accepted at least one of them. ``conf`` is set for ``SET_CONF`` only, with KEEP where VPP's value
    stays.

    ``members``: for ``COMMANDS`` only, the changes of single ASes that its commands make together. All of them add ASes
    (``ADD_AS``), or all set weights (``SET_WEIGHT``) and all or none flush.
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
    settles: Settles = ()
    guarded: bool = False
    encap: int = 0
    length: int = 0
    sticky: bool = False
    conf: LbConf | None = None
    reason: str = ""
    members: tuple[Step, ...] = ()

    @property
    def call(self) -> str:
        """Name of the API message."""
        return _CALLS[self.op].partition(" ")[0]

    @property
    def commands(self) -> str:
        """The text of ``COMMANDS``: a line that deletes live ASes, and one for each weight that adds or revives."""
        assert self.vip is not None
        by_weight: dict[int, list[bytes]] = {}
        for member in self.members:
            by_weight.setdefault(member.weight, []).append(member.address)
        lines = [weight_line(self.vip, addresses, weight) for weight, addresses in by_weight.items()]
        if self.members[0].op is Op.SET_WEIGHT:
            lines.insert(0, delete_line(self.vip, [member.address for member in self.members], flush=self.flush))
        return "\n".join(lines)

    def __str__(self) -> str:
        if self.op is Op.COMMANDS:
            return " ".join(["cli_inband", *(f'"{line}"' for line in self.commands.split("\n"))])
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
            words += _conf_words(self.conf)
        if self.flush and self.op is not Op.FLUSH_VIP:
            words.append("flush")
        if self.reason:
            words.append(f"({self.reason})")
        return " ".join(words)


def _conf_words(conf: LbConf) -> Iterator[str]:
    yield f"ipv4-src {source_text(conf.ip4_src_address) or 'unset'}"
    yield f"ipv6-src {source_text(conf.ip6_src_address) or 'unset'}"
    if conf.sticky_buckets_per_core != KEEP:
        yield f"sticky-buckets {conf.sticky_buckets_per_core}"
    if conf.flow_timeout != KEEP:
        yield f"flow-timeout {conf.flow_timeout}s"


RefusalKey = tuple[Op, VipKey | None, bytes]
Refusals = Mapping[VipKey | None, Collection[RefusalKey]]
NO_REFUSALS: Refusals = {}


def refusal_key(step: Step) -> RefusalKey:
    """The identity of a step among those that VPP has refused: the same call about the same VIP and AS."""
    return (step.op, step.vip, step.address)


@dataclass(slots=True)
class Plan:
    """Calls in their order, and what the plan could not or must not do.

    ``waiting``: debts that stay, since no other AS can take the flows. ``incurred``: flushes that a drop of this plan
    makes owed, and that are deferred for the same reason. ``settled``: debts that are void, because VPP has no such AS,
    or because the AS serves again and its flows never left it. ``recreated``: VIPs that this plan removes and creates
    again. ``restored``: VIPs that an earlier plan began to remove and that can stay after all. ``unmanaged``: VIPs in
    VPP that the plan leaves alone. ``undecided``: VIPs that the plan would remove if an operator agreed.
    ``unrecorded``: VIPs that the plan would create again if their weights were in the state file. ``halfway``: VIPs
    that an earlier plan began to remove, and that a full sync has to create again.
    """

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: list[FlushKey] = field(default_factory=list)
    incurred: dict[FlushKey, Owed] = field(default_factory=dict)
    settled: list[FlushKey] = field(default_factory=list)
    recreated: list[VipKey] = field(default_factory=list)
    restored: list[VipKey] = field(default_factory=list)
    unmanaged: list[VipKey] = field(default_factory=list)
    undecided: list[VipKey] = field(default_factory=list)
    unrecorded: list[VipKey] = field(default_factory=list)
    halfway: list[VipKey] = field(default_factory=list)

    def join(self, other: Plan) -> None:
        """Append a plan for other VIPs of the same VPP: its steps and notes, VIPs that it leaves, and nothing else."""
        self.steps.extend(other.steps)
        self.notes.extend(other.notes)
        self.unmanaged.extend(other.unmanaged)
        self.undecided.extend(other.undecided)

    @property
    def stall_ns(self) -> int:
        """Estimated stall of all steps together."""
        return sum(step.cost_ns for step in self.steps)

    def __str__(self) -> str:
        lines = [str(step) for step in self.steps] + [f"note: {note}" for note in self.notes]
        return "\n".join(lines) if lines else "nothing to do"


def acknowledge(actual: Actual, step: Step) -> None:
    """Change ``actual`` as VPP did when it accepted ``step``.

    The bucket counts of an AS are unknown after a call about it and read as 0. A call about a VIP that ``actual`` does
    not have changes nothing: the VIP went while the call was on its way.
    """
    if step.op is Op.SET_CONF:
        _acknowledge_conf(actual, step)
        return
    assert step.vip is not None
    if step.op is Op.COMMANDS:
        for member in step.members:
            acknowledge(actual, member)
        return
    if step.op is Op.CREATE_VIP:
        actual.vips[step.vip] = ActualVip(step.vip, step.encap, step.length, sticky=step.sticky)
        return
    found = actual.vips.get(step.vip)
    if found is None:
        return
    if step.op is Op.DELETE_VIP:
        del actual.vips[step.vip]
    elif step.op is Op.FLUSH_VIP:
        _acknowledge_flush(found)
    elif step.op is Op.DELETE_AS:
        # VPP keeps a deleted AS until no flow refers to it. Without a flush, it lingers together with its flows.
        if found.ases.pop(step.address, None) is not None:
            found.lingering += 1
    else:
        _acknowledge_weight(found, step)


def _acknowledge_conf(actual: Actual, step: Step) -> None:
    if step.conf is None or actual.conf is None:
        return
    buckets, timeout = step.conf.sticky_buckets_per_core, step.conf.flow_timeout
    actual.conf = LbConf(
        step.conf.ip4_src_address,
        step.conf.ip6_src_address,
        actual.conf.sticky_buckets_per_core if buckets == KEEP else buckets,
        actual.conf.flow_timeout if timeout == KEEP else timeout,
    )


def _acknowledge_flush(found: ActualVip) -> None:
    """Every flow of the VIP is gone; an AS that takes new ones may have some again by now."""
    found.flushed = not found.serves
    for address, present in found.ases.items():
        if present.weight == 0:
            found.ases[address] = present._replace(clean=True)


def _acknowledge_weight(found: ActualVip, step: Step) -> None:
    """An AS was added, or its weight set. It is clean at weight 0, if it had no flows or has lost them by this call."""
    found.flushed = False
    if step.op is Op.ADD_AS:
        # The call may revive an AS that lingers with its flows.
        emptied = found.lingering == 0
    else:
        before = found.ases.get(step.address)
        emptied = step.flush or (before is not None and before.clean)
    found.ases[step.address] = ActualAs(step.weight, 0, clean=step.weight == 0 and emptied)
