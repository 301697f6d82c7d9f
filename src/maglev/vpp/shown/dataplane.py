"""The dataplane as the rest of the daemon sees it: state, plans, syncs and counters, as values of ``maglev.views``.

Nothing here decides or remembers anything. The reconciler is asked through ``reconciler_api``; ``comparison`` sets VPP
beside what is wanted, ``forecast`` shows a plan and its buckets, ``whatif`` is the state after a reload.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import Unavailable, UnknownName
from maglev.base.events import Event
from maglev.base.pace import Pace
from maglev.config.model import Config
from maglev.judgement.weights import StateSource
from maglev.views.dataplane import (
    BackendFlows,
    ConnectionInfo,
    DataplaneFigures,
    DataplaneInfo,
    FlowAnswer,
    FlowQuestion,
    FrontendFlows,
    FrontendTable,
    LbState,
    TrafficReport,
    VipFingerprint,
    VipTraffic,
    WarmupInfo,
)
from maglev.views.plans import PlanReport, SyncReport
from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.model import Actual, vip_key
from maglev.vpp.planning.plan import Op, Plan
from maglev.vpp.shown.comparison import Comparison, conf_state, protocol_name
from maglev.vpp.shown.forecast import forecast, plan_report
from maglev.vpp.shown.reconciler_api import ReconcilerApi
from maglev.vpp.shown.stats import StatsPoller, VipCounters
from maglev.vpp.shown.tables import TableViews
from maglev.vpp.shown.whatif import AfterReload
from maglev.vpp.state.reader import parse_flows
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)


class Dataplane:
    """VPP, for the API and the metrics.

    While VPP is away ``connection``, ``warmup``, ``waiting_vips``, ``figures``, ``traffic``, ``table`` and
    ``fingerprints`` answer; all others raise ``Unavailable``.
    An unknown frontend raises ``UnknownName``.
    """

    def __init__(
        self,
        client: VppClient,
        reconciler: ReconcilerApi,
        states: StateSource,
        clock: Clock,
        stats: StatsPoller | None = None,
    ) -> None:
        self.client = client
        self.reconciler = reconciler
        self.stats = stats
        self._states = states
        self._clock = clock
        self._tables = TableViews(reconciler, states)

    def connection(self) -> ConnectionInfo:
        """The connection as it is now."""
        client = self.client
        return ConnectionInfo(client.connected, client.socket, client.since_ns, client.problem)

    def warmup(self) -> WarmupInfo:
        """Where the warm-up stands."""
        warmup = self.reconciler.warmup_state
        return WarmupInfo(warmup.phase.value, warmup.remaining_ns)

    def waiting_vips(self) -> int:
        """VIPs that have left the configuration, and that are not deleted before an operator agrees."""
        return len(self.reconciler.waiting)

    def info(self) -> DataplaneInfo:
        """The VPP at the other end."""
        info = self._info()
        if info is None:
            raise Unavailable(self.client.excuse)
        return info

    def _info(self) -> DataplaneInfo | None:
        """The VPP at the other end; None while it is away."""
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
        """Counters of VPP and of the calls to it. Answers from memory, also while VPP is away."""
        reconciler, counters = self.reconciler, self.reconciler.counters
        return DataplaneFigures(
            vpp=self._info(),
            unlocked=self.client.unlocked,
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
            waiting_vips=len(reconciler.waiting),
            cost_factor=reconciler.pacer.factor,
            estimated_work_ns=reconciler.pacer.spent_ns,
            mass_changes=reconciler.mass_changes,
            commands_failed=counters.commands_failed,
        )

    def traffic(self) -> Iterator[VipTraffic]:
        """Packet counters of every VIP as last read, one by one; none while VPP is away or counters are turned off."""
        if self.stats is None or self.client.info() is None:
            return
        names = self._frontends_by_key(self._states.config().frontends)
        for counters in self.stats.vips:
            yield _traffic(names.get(counters.key, ""), counters)

    async def lb_state(self, frontend: str | None) -> LbState:
        """Read VPP, paced, and set it beside what is wanted: VIPs in the order of the file, then what is not wanted."""
        names = self._names(frontend)
        actual = await self.reconciler.refresh(None if frontend is None else names)
        # Comparing a thousand VIPs takes long. Verdicts are programmed between two of them.
        pace = Pace()
        wanted: dict[VipKey, DesiredVip] = {}
        for name in names:
            if name in self._states.config().frontends:
                wanted.update((vip.key, vip) for vip in self.reconciler.desired([name]))
            await pace.breathe()
        rest = () if frontend is not None else sorted(set(actual.vips) - set(wanted), key=lambda key: key.sort_key)
        compare = Comparison(self.reconciler)
        vips = []
        for key in (*wanted, *rest):
            vips.append(compare.vip(key, wanted.get(key), actual.vips.get(key)))
            await pace.breathe()
        return LbState(conf_state(actual.conf), vips, self._clock.time_ns())

    async def plan(
        self, frontend: str | None, *, force: bool, prune: bool = False, config: Config | None = None
    ) -> PlanReport:
        """The plan of a sync, now or after a reload to ``config``. Writes nothing."""
        source: StateSource = self._states
        new: frozenset[str] = frozenset()
        if config is not None:
            source = after = AfterReload(self._states, config)
            new = after.new()
        if frontend is not None and frontend not in source.config().frontends:
            raise UnknownName("frontend", frontend, among=source.config().frontends)
        names = list(source.config().frontends) if frontend is None else [frontend]
        actual = await self.reconciler.refresh()
        # A reload during the read may have taken frontends away.
        after_it = source.config()
        names = [name for name in names if name in after_it.frontends]
        policy = self.reconciler.policy(
            full=frontend is None,
            prune_rest=False,
            force=force,
            prune=prune,
            config=after_it,
            unscaled=frozenset(vip_key(after_it.frontends[name]) for name in names) if config is None else frozenset(),
        )
        # Piece by piece as a full sync does it: the settings, the VIPs, the removals. Verdicts go on between two.
        pace = Pace()
        owed, lost = self.reconciler.owed, self.reconciler.lost
        plan = diff([], actual, owed, policy, lost=lost)
        backends: dict[tuple[VipKey, bytes], str] = {}
        for piece in await self.reconciler.pieces(names, after_it):
            wanted = self.reconciler.desired(piece, source, new=new)
            plan.join(diff(wanted, Actual(None, actual.vips), owed, policy, lost=lost))
            backends.update(_names_of(wanted))
            await pace.breathe()
        if frontend is None:
            removed = {step.vip for step in plan.steps if step.op is Op.DELETE_VIP}
            left = {key: vip for key, vip in actual.vips.items() if key not in removed}
            plan.join(diff([], Actual(None, left), owed, replace(policy, prune_rest=True), lost=lost))
        if config is None:
            plan.notes.extend(self._warmup_notes(names))
        return await plan_report(plan, await forecast(plan, actual, backends))

    async def preview(self, names: Sequence[str], after: StateSource, events: Sequence[Event]) -> PlanReport:
        """The plan for these frontends if a change were made now, of which ``after`` has the states. Writes nothing.

        ``events``: what the change would publish, from which follow the flushes that it owes. Unlike ``plan``, it
        compares with the known state of VPP: the change itself would not read VPP first either.
        """
        actual = await self.reconciler.certain(names)
        config = after.config()
        names = [name for name in names if name in config.frontends]
        policy = self.reconciler.policy(full=False, prune_rest=False, force=False)
        owed, lost = self.reconciler.would_owe(events), self.reconciler.lost
        plan, pace = Plan(), Pace()
        backends: dict[tuple[VipKey, bytes], str] = {}
        for piece in await self.reconciler.pieces(names, config):
            wanted = self.reconciler.desired(piece, after)
            plan.join(diff(wanted, Actual(None, actual.vips), owed, policy, lost=lost))
            backends.update(_names_of(wanted))
            await pace.breathe()
        plan.notes.extend(self._warmup_notes(names))
        return await plan_report(plan, await forecast(plan, actual, backends))

    def _warmup_notes(self, names: Sequence[str]) -> Iterator[str]:
        """The frontends that the warm-up keeps a sync from programming."""
        held = [name for name in names if not self.reconciler.released(name)]
        if held:
            seconds = self.reconciler.warmup_state.remaining_ns / 1e9
            yield f"the warm-up holds {logs.counted(len(held), 'frontend')} for {seconds:.1f} s more at most"

    async def sync(self, frontend: str | None, *, force: bool, by: str, prune: bool = False) -> SyncReport:
        """Bring VPP to the desired state; ``prune`` agrees to all deletions. Raises ``NotAllowed`` in the warm-up."""
        result = await self.reconciler.sync(frontend, force=force, by=by, prune=prune)
        return SyncReport(await plan_report(result.plan, ()), tuple(result.failures))

    def table(self, frontend: str, *, with_buckets: bool) -> FrontendTable | None:
        """The new-flow table of a frontend as VPP showed it last; None while VPP is away, or has not shown it."""
        return self._tables.table(frontend, with_buckets=with_buckets)

    def fingerprints(self) -> Iterator[VipFingerprint]:
        """The fingerprint of each frontend whose table is known, one by one."""
        return self._tables.fingerprints()

    def flow(self, question: FlowQuestion) -> FlowAnswer:
        """The server of a flow, from memory. Raises ``BadValue`` for addresses or ports that make no flow."""
        return self._tables.flow(question)

    async def flows(self, backend: str) -> BackendFlows:
        """Flows of one backend. Raises ``NotAllowed`` where reading them would stop VPP for too long."""
        self._states.backend_state(backend)
        reading = await self.reconciler.flows()
        uses = self.reconciler.uses(backend)
        flows = parse_flows(reading.text, {use.flush for use in uses})
        vips = await self.reconciler.refresh([use.frontend for use in uses])
        found: list[FrontendFlows] = []
        for use in uses:
            vip = vips.vips.get(use.flush.vip)
            have = vip.ases.get(use.flush.address) if vip is not None else None
            weight = have.weight if have is not None else 0
            found.append(FrontendFlows(use.frontend, str(use.flush.vip), flows.get(use.flush), weight))
        # Asked again: a reload during the reading may have taken the backend away.
        state = self._states.backend_state(backend)
        total = sum(one.flows or 0 for one in found)
        empty = not total and not any(one.weight for one in found)
        if empty and state.drained:
            log.info("backend-empty", f"backend {backend} is drained and has no flow left", backend=backend)
        address = str(self._states.config().backends[backend].address)
        return BackendFlows(backend, address, state.drained, total, empty, found, reading.at_ns, reading.stall_ns)

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


def _names_of(wanted: Iterable[DesiredVip]) -> Iterator[tuple[tuple[VipKey, bytes], str]]:
    """The backend of each AS."""
    return (((vip.key, one.address), one.backend) for vip in wanted for one in vip.ases)


def _traffic(frontend: str, counters: VipCounters) -> VipTraffic:
    return VipTraffic(
        frontend=frontend,
        prefix=str(counters.key.prefix),
        protocol=protocol_name(counters.key),
        port=counters.key.port,
        existing_session=counters.existing_session,
        first_session=counters.first_session,
        untracked=counters.untracked,
        no_server=counters.no_server,
        route_packets=counters.route_packets,
        route_bytes=counters.route_bytes,
    )
