"""The dataplane as the rest of the daemon sees it: state, plans, syncs and counters, in plain values.

What VPP holds is set beside what is wanted here, with the bucket counts that VPP's own algorithm gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from maglev._flowtable import moved_share
from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import Unavailable, UnknownName
from maglev.base.pace import Pace
from maglev.base.states import State
from maglev.config.model import Config, Protocol
from maglev.judgement.weights import StateSource, TargetState
from maglev.views.dataplane import (
    AsState,
    ConfState,
    ConnectionInfo,
    DataplaneFigures,
    DataplaneInfo,
    LbState,
    TrafficReport,
    VipState,
    VipTraffic,
    WarmupInfo,
)
from maglev.views.plans import AsForecast, PlanReport, PlanStep, SyncReport, VipForecast
from maglev.vpp.buckets import padded
from maglev.vpp.buckets import predicted as predicted_buckets
from maglev.vpp.client import VppClient
from maglev.vpp.desired import DesiredAs, DesiredVip
from maglev.vpp.diff import diff
from maglev.vpp.messages import Encap, LbConf, VipKey, address_text, source_text
from maglev.vpp.model import DEFAULT_TABLE_LENGTH, Actual, ActualAs, ActualVip, address_order, vip_key
from maglev.vpp.plan import FlushKey, Op, Plan, Step, acknowledge
from maglev.vpp.policy import Policy
from maglev.vpp.programmer import SyncResult
from maglev.vpp.reconciler import Reconciler
from maglev.vpp.scale import scaled
from maglev.vpp.stats import StatsPoller, VipCounters

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Standing:
    """A backend that a new configuration brings: nothing is known of it."""

    state: State = State.UNKNOWN
    drained: bool = False


class _After(StateSource):
    """The state source as it would be after a reload to another configuration."""

    def __init__(self, now: StateSource, config: Config) -> None:
        self._now = now
        self._config = config

    def config(self) -> Config:
        return self._config

    def backend_state(self, name: str) -> TargetState:
        backend = self._config.backends.get(name)
        if backend is None:
            raise UnknownName("backend", name)
        before = self._now.config().backends.get(name)
        if before is not None and before.address == backend.address:
            return self._now.backend_state(name)
        if not backend.enabled:
            return _Standing(State.DISABLED)
        return _Standing(State.UP if backend.healthcheck is None else State.UNKNOWN)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self._now.weight_override(frontend, pool, backend)

    def new(self) -> frozenset[str]:
        """Backends that it brings, or moves to another address: what VPP sends there already goes on."""
        before = self._now.config().backends
        return frozenset(
            name
            for name, backend in self._config.backends.items()
            if (was := before.get(name)) is None or was.address != backend.address
        )


class Dataplane:
    """VPP, for the API and the metrics. Everything but ``connection`` and ``warmup`` raises ``Unavailable`` while VPP
    is away; an unknown frontend raises ``UnknownName``.
    """

    def __init__(
        self,
        client: VppClient,
        reconciler: Reconciler,
        states: StateSource,
        clock: Clock,
        stats: StatsPoller | None = None,
    ) -> None:
        self.client = client
        self.reconciler = reconciler
        self.stats = stats
        self._states = states
        self._clock = clock

    def connection(self) -> ConnectionInfo:
        """The connection as it is now."""
        client = self.client
        return ConnectionInfo(client.connected, client.socket, client.since_ns, client.problem)

    def warmup(self) -> WarmupInfo:
        """Where the warm-up stands."""
        warmup = self.reconciler.warmup_state
        return WarmupInfo(warmup.phase.value, warmup.remaining_ns)

    def info(self) -> DataplaneInfo:
        """Who is at the other end."""
        info = self._info()
        if info is None:
            raise Unavailable(self.client.excuse)
        return info

    def _info(self) -> DataplaneInfo | None:
        """Who is at the other end; None while VPP is away."""
        info = self.client.info()
        if info is None:
            return None
        reconciler = self.reconciler
        cost = reconciler.cost()
        now = self._clock.monotonic_ns()
        return DataplaneInfo(
            version=info.version,
            build_date=info.build_date,
            build_directory=info.build_directory,
            pid=info.pid,
            uptime_ns=now - info.started_ns,
            connected_ns=now - info.connected_ns,
            lb_supported=not info.problem,
            last_full_sync_at_ns=reconciler.last_full_sync_at_ns,
            last_full_sync_changes=reconciler.last_full_sync_changes,
            calls_failed=reconciler.refusals,
            cost_ns_per_bucket=cost.per_bucket * cost.factor,
            cost_ns_per_weight=cost.per_weight * cost.factor,
            workers=info.workers,
        )

    def figures(self) -> DataplaneFigures:
        """What is counted of VPP and of the calls to it. Answers from memory, also while VPP is away."""
        reconciler, counters = self.reconciler, self.reconciler.counters
        return DataplaneFigures(
            vpp=self._info(),
            connects=self.client.connects,
            api_total=dict(self.client.api_total),
            lbsync=dict(counters.lbsync),
            drift=dict(counters.drift),
            batches=counters.batches,
            full_syncs=counters.full_syncs,
            failed_syncs=counters.failed_syncs,
            suppressed_syncs=counters.suppressed,
            recreations_given_up=counters.recreations_given_up,
            bucket_mismatches=counters.bucket_mismatches,
            refused_calls=reconciler.refusals,
            unmanaged_vips=len(reconciler.unmanaged),
            cost_factor=reconciler.pacer.factor,
            estimated_work_ns=reconciler.pacer.spent_ns,
        )

    def traffic(self) -> Iterator[VipTraffic]:
        """Packet counters of every VIP as last read, one by one; nothing while VPP is away or nobody reads them."""
        if self.stats is None or self.client.info() is None:
            return
        names = self._frontends_by_key(self._states.config().frontends)
        for counters in self.stats.vips:
            yield _traffic(names.get(counters.key, ""), counters)

    async def lb_state(self, frontend: str | None) -> LbState:
        """Read VPP, paced, and set it beside what is wanted: VIPs in the order of the file, then what is not wanted."""
        names = self._names(frontend)
        actual = await self.reconciler.refresh(None if frontend is None else names)
        # A thousand VIPs take their time: verdicts go on between two of them.
        pace = Pace()
        wanted: dict[VipKey, DesiredVip] = {}
        for name in names:
            if name in self._states.config().frontends:
                wanted.update((vip.key, vip) for vip in self.reconciler.desired([name]))
            await pace.breathe()
        rest = () if frontend is not None else sorted(set(actual.vips) - set(wanted), key=lambda key: key.sort_key)
        policy = self.reconciler.policy(full=True, prune_rest=False, force=False)
        pruning = self.reconciler.policy(full=True, prune_rest=True, force=False)
        vips = []
        for key in (*wanted, *rest):
            vips.append(self._vip_state(key, wanted.get(key), actual.vips.get(key), policy, pruning))
            await pace.breathe()
        return LbState(_conf_state(actual.conf), vips, self._clock.time_ns())

    async def plan(self, frontend: str | None, *, force: bool, config: Config | None = None) -> PlanReport:
        """What a sync would do now; with ``config`` what it would do after a reload to it. Writes nothing."""
        source: StateSource = self._states
        new: frozenset[str] = frozenset()
        if config is not None:
            source = after = _After(self._states, config)
            new = after.new()
        if frontend is not None and frontend not in source.config().frontends:
            raise UnknownName("frontend", frontend)
        names = list(source.config().frontends) if frontend is None else [frontend]
        actual = await self.reconciler.refresh()
        after_it = source.config()
        policy = self.reconciler.policy(
            full=frontend is None,
            prune_rest=False,
            force=force,
            config=after_it,
            unscaled=frozenset(vip_key(after_it.frontends[name]) for name in names) if config is None else frozenset(),
        )
        # Piece by piece as a full sync does it: the settings, the VIPs, and what is to be removed. Verdicts go on.
        pace = Pace()
        owed, lost = self.reconciler.owed, self.reconciler.lost
        plan = diff([], actual, owed, policy, lost=lost)
        backends: dict[tuple[VipKey, bytes], str] = {}
        for piece in await self.reconciler.pieces(names, after_it):
            wanted = self.reconciler.desired(piece, source, new=new)
            plan.join(diff(wanted, Actual(None, actual.vips), owed, policy, lost=lost))
            backends.update({(vip.key, one.address): one.backend for vip in wanted for one in vip.ases})
            await pace.breathe()
        if frontend is None:
            removed = {step.vip for step in plan.steps if step.op is Op.DELETE_VIP}
            left = {key: vip for key, vip in actual.vips.items() if key not in removed}
            plan.join(diff([], Actual(None, left), owed, replace(policy, prune_rest=True), lost=lost))
        if config is None and (held := [name for name in names if not self.reconciler.released(name)]):
            seconds = self.reconciler.warmup_state.remaining_ns / 1e9
            plan.notes.append(
                f"the warm-up holds {logs.counted(len(held), 'frontend')} for {seconds:.1f} s more at most"
            )
        return await _report(plan, await _forecasts(plan, actual, backends))

    async def sync(self, frontend: str | None, *, force: bool, by: str) -> SyncReport:
        """Bring VPP to the desired state. Raises ``NotAllowed`` during the warm-up."""
        result: SyncResult = await self.reconciler.sync(frontend, force=force, by=by)
        return SyncReport(await _report(result.plan, ()), tuple(result.failures))

    async def counters(self, frontend: str | None) -> TrafficReport:
        """Packet counters, as read within the last seconds."""
        names = self._names(frontend)
        if not self.client.usable:
            raise Unavailable(self.client.excuse)
        if self.stats is None or self.stats.problem:
            why = self.stats.problem if self.stats is not None else "they are turned off (--vpp-stats-addr is empty)"
            raise Unavailable(f"no counters: {why}")
        by_key = self._frontends_by_key(names)
        found = {counters.key: counters for counters in self.stats.vips}
        rest = () if frontend is not None else sorted(found.keys() - by_key.keys(), key=lambda key: key.sort_key)
        rows = [_traffic(by_key.get(key, ""), found[key]) for key in (*by_key, *rest) if key in found]
        return TrafficReport(rows, self.stats.read_at_ns)

    # ------------------------------------------------------------------------------------------------------- within

    def _names(self, frontend: str | None) -> list[str]:
        if frontend is None:
            return list(self._states.config().frontends)
        self.reconciler.frontend(frontend)
        return [frontend]

    def _frontends_by_key(self, names: Iterable[str]) -> dict[VipKey, str]:
        frontends = self._states.config().frontends
        return {vip_key(frontends[name]): name for name in names}

    def _vip_state(
        self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None, policy: Policy, pruning: Policy
    ) -> VipState:
        reconciler = self.reconciler
        notes: list[str] = []
        in_sync = False
        if wanted is not None:
            actual = Actual(None, {} if found is None else {key: found})
            plan = diff([wanted], actual, reconciler.owed, policy, lost=reconciler.lost)
            in_sync = not plan.steps and not plan.notes
            notes += plan.notes
            if (multiple := reconciler.multiples.get(key)) is not None:
                notes.append(f"weights are {multiple} times ours, as they were found; a sync changes them to ours")
            if wanted.held and found is not None and any(address in wanted.held for address in found.ases):
                notes.append("an old address stays until something else serves")
        elif not pruning.may_remove(key):
            notes.append("not configured, and left alone")
        length = _length(wanted, found)
        return VipState(
            frontend=wanted.frontend if wanted is not None else "",
            prefix=str(key.prefix),
            protocol=_protocol(key),
            port=key.port,
            encap=_encap(found.encap if found is not None else (wanted.encap if wanted is not None else 0)),
            new_flows_table_length=length,
            src_ip_sticky=bool(found.sticky) if found is not None else (wanted is not None and wanted.sticky),
            index=found.index if found is not None else None,
            present=found is not None,
            wanted=wanted is not None,
            in_sync=in_sync,
            held=wanted is not None and not reconciler.released(wanted.frontend),
            unit=wanted.unit if wanted is not None else 0,
            lingering=found.lingering if found is not None else 0,
            notes=notes,
            ases=self._as_states(key, wanted, found, length),
        )

    def _as_states(self, key: VipKey, wanted: DesiredVip | None, found: ActualVip | None, length: int) -> list[AsState]:
        ours: Mapping[bytes, DesiredAs] = {} if wanted is None else {one.address: one for one in wanted.ases}
        present: Mapping[bytes, ActualAs] = {} if found is None else found.ases
        predicted = predicted_buckets({address: have.weight for address, have in present.items()}, length)
        multiple = self.reconciler.multiples.get(key)
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
                    flush_owed=FlushKey(key, address) in self.reconciler.owed,
                )
            )
        return states


async def _forecasts(plan: Plan, actual: Actual, backends: Mapping[tuple[VipKey, bytes], str]) -> list[VipForecast]:
    """Buckets before and after, for each VIP that the plan touches."""
    steps: dict[VipKey, list[Step]] = {}
    for step in plan.steps:
        if step.vip is not None:
            steps.setdefault(step.vip, []).append(step)
    forecasts: list[VipForecast] = []
    pace = Pace()
    for key, of_vip in steps.items():
        found = actual.vips.get(key)
        scratch = Actual(None, {})
        if found is not None:
            scratch.vips[key] = ActualVip(key, found.encap, found.length, ases=dict(found.ases))
        for step in of_vip:
            acknowledge(scratch, step)
        after = scratch.vips.get(key)
        before_weights = {} if found is None else {a: have.weight for a, have in found.ases.items()}
        after_weights = {} if after is None else {a: have.weight for a, have in after.ases.items()}
        before_length = found.length if found is not None else DEFAULT_TABLE_LENGTH
        after_length = after.length if after is not None else before_length
        before, then = predicted_buckets(before_weights, before_length), predicted_buckets(after_weights, after_length)
        moved = 0.0
        if any(before_weights.values()) and any(after_weights.values()):
            moved = 1.0
            if before_length == after_length:
                moved = moved_share(padded(before_weights), padded(after_weights), after_length)
        forecasts.append(
            VipForecast(
                frontend=next((step.frontend for step in of_vip if step.frontend), ""),
                vip=str(key),
                moved_share=moved,
                stall_ns=sum(step.cost_ns for step in of_vip),
                ases=[
                    AsForecast(address_text(a), backends.get((key, a), ""), before.get(a, 0), then.get(a, 0))
                    for a in sorted(set(before_weights) | set(after_weights), key=address_order)
                ],
            )
        )
        await pace.breathe()
    return forecasts


def _length(wanted: DesiredVip | None, found: ActualVip | None) -> int:
    if found is not None:
        return found.length
    if wanted is not None and wanted.length is not None:
        return wanted.length
    return DEFAULT_TABLE_LENGTH


def _protocol(key: VipKey) -> str:
    try:
        return str(Protocol(key.protocol))
    except ValueError:
        return str(key.protocol)


def _encap(encap: int) -> str:
    try:
        return str(Encap(encap))
    except ValueError:
        return str(encap)


def _conf_state(conf: LbConf | None) -> ConfState:
    if conf is None:
        return ConfState("", "", 0, 0)
    return ConfState(
        ipv4_src_address=source_text(conf.ip4_src_address),
        ipv6_src_address=source_text(conf.ip6_src_address),
        sticky_buckets_per_core=conf.sticky_buckets_per_core,
        flow_timeout_ns=conf.flow_timeout * SECOND,
    )


async def _report(plan: Plan, forecasts: Sequence[VipForecast]) -> PlanReport:
    pace = Pace()
    steps: list[PlanStep] = []
    for step in plan.steps:
        steps.append(
            PlanStep(
                kind=step.op.value,
                frontend=step.frontend,
                vip=str(step.vip or ""),
                backend=step.backend,
                address=address_text(step.address) if step.address else "",
                old_weight=step.old_weight,
                new_weight=step.weight,
                flush=step.flush,
                stall_ns=step.cost_ns,
                text=str(step),
            )
        )
        await pace.breathe()
    notes = [*plan.notes, *(f"VIP {key} is not configured, and left alone" for key in plan.unmanaged)]
    return PlanReport(steps, forecasts, plan.stall_ns, notes)


def _traffic(frontend: str, counters: VipCounters) -> VipTraffic:
    return VipTraffic(
        frontend=frontend,
        prefix=str(counters.key.prefix),
        protocol=_protocol(counters.key),
        port=counters.key.port,
        existing_session=counters.existing_session,
        first_session=counters.first_session,
        untracked=counters.untracked,
        no_server=counters.no_server,
        route_packets=counters.route_packets,
        route_bytes=counters.route_bytes,
    )
