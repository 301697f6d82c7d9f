"""VPP beside the desired state, VIP by VIP and AS by AS, for operators to look at."""

from __future__ import annotations

from collections.abc import Mapping

from maglev.config.model import SECOND, Protocol
from maglev.views.dataplane import AsState, ConfState, VipState
from maglev.vpp.planning.buckets import predicted as predicted_buckets
from maglev.vpp.planning.desired import DesiredAs, DesiredVip
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.model import DEFAULT_TABLE_LENGTH, Actual, ActualAs, ActualVip, address_order
from maglev.vpp.planning.plan import FlushKey, Plan
from maglev.vpp.planning.scale import scaled
from maglev.vpp.shown.reconciler_api import ReconcilerApi
from maglev.vpp.wire.messages import Encap, LbConf, VipKey, address_text, source_text


class Comparison:
    """Compares VIPs under the policies of one moment, with and without pruning."""

    def __init__(self, reconciler: ReconcilerApi) -> None:
        self._reconciler = reconciler
        self._policy = reconciler.policy(full=True, prune_rest=False, force=False)
        self._pruning = reconciler.policy(full=True, prune_rest=True, force=False)

    def vip(self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None) -> VipState:
        """One VIP that is wanted, in VPP, or both."""
        notes = self._notes(key, wanted, found)
        planned = self._planned(key, wanted, found)
        length = _length(wanted, found)
        return VipState(
            frontend=wanted.frontend if wanted is not None else "",
            prefix=str(key.prefix),
            protocol=protocol_name(key),
            port=key.port,
            encap=_encap(found.encap if found is not None else (wanted.encap if wanted is not None else 0)),
            new_flows_table_length=length,
            src_ip_sticky=bool(found.sticky) if found is not None else (wanted is not None and wanted.sticky),
            index=found.index if found is not None else None,
            present=found is not None,
            wanted=wanted is not None,
            in_sync=planned is not None and not planned.steps and not planned.notes,
            held=wanted is not None and not self._reconciler.released(wanted.frontend),
            waiting=wanted is None and self._pruning.waits(key),
            unit=wanted.unit if wanted is not None else 0,
            lingering=found.lingering if found is not None else 0,
            notes=[*(planned.notes if planned is not None else ()), *notes],
            ases=self._ases(key, wanted, found, length),
        )

    def _planned(self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None) -> Plan | None:
        """The plan that would bring the VIP to its desired state; None if it has none."""
        if wanted is None:
            return None
        actual = Actual(None, {} if found is None else {key: found})
        return diff([wanted], actual, self._reconciler.owed, self._policy, lost=self._reconciler.lost)

    def _notes(self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None) -> list[str]:
        """Notes that are in no plan for the VIP."""
        if wanted is None:
            if self._pruning.waits(key):
                return ["not configured; waits for an operator: `sync vpp lb state prune` deletes it"]
            return [] if self._pruning.may_remove(key) else ["not configured, and left alone"]
        notes: list[str] = []
        if (multiple := self._reconciler.multiples.get(key)) is not None:
            notes.append(f"weights are {multiple} times ours, as they were found; a sync changes them to ours")
        if wanted.held and found is not None and any(address in wanted.held for address in found.ases):
            notes.append("an old address stays until something else serves")
        return notes

    def _ases(self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None, length: int) -> list[AsState]:
        ours: Mapping[bytes, DesiredAs] = {} if wanted is None else {one.address: one for one in wanted.ases}
        present: Mapping[bytes, ActualAs] = {} if found is None else found.ases
        predicted = predicted_buckets({address: have.weight for address, have in present.items()}, length)
        multiple = self._reconciler.multiples.get(key)
        states: list[AsState] = []
        for address in sorted(set(ours) | set(present), key=address_order):
            one, have = ours.get(address), present.get(address)
            weight = one.weight if one is not None else 0
            if weight is None:
                weight = have.weight if have is not None else 0
            elif multiple is not None:
                weight = scaled(weight, multiple)
            states.append(
                AsState(
                    address=address_text(address),
                    backend=one.backend if one is not None else "",
                    pool=one.pool if one is not None else "",
                    programmed_weight=weight,
                    vpp_weight=have.weight if have is not None else None,
                    buckets=have.buckets if have is not None else 0,
                    predicted_buckets=predicted.get(address, 0),
                    live=have is not None,
                    flush_owed=FlushKey(key, address) in self._reconciler.owed,
                )
            )
        return states


def protocol_name(key: VipKey) -> str:
    """``tcp``, ``udp``, ``any``, or the number of a protocol that no frontend can have."""
    try:
        return str(Protocol(key.protocol))
    except ValueError:
        return str(key.protocol)


def conf_state(conf: LbConf | None) -> ConfState:
    """The plugin's global settings as they are shown; None: not known."""
    if conf is None:
        return ConfState("", "", 0, 0)
    return ConfState(
        ipv4_src_address=source_text(conf.ip4_src_address),
        ipv6_src_address=source_text(conf.ip6_src_address),
        sticky_buckets_per_core=conf.sticky_buckets_per_core,
        flow_timeout_ns=conf.flow_timeout * SECOND,
    )


def _length(wanted: DesiredVip | None, found: ActualVip | None) -> int:
    if found is not None:
        return found.length
    if wanted is not None and wanted.length is not None:
        return wanted.length
    return DEFAULT_TABLE_LENGTH


def _encap(encap: int) -> str:
    try:
        return str(Encap(encap))
    except ValueError:
        return str(encap)
