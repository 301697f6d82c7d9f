"""The calls of the API. Each is a few lines: look at the request, ask the part that knows, convert the answer.

Errors are raised as ``maglev.base.errors``; the server's gate turns them into a status. Long answers are made in slices
(``Pace``), so that no answer holds the event loop. Between two slices a reload may remove what is being listed: such
names are left out.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import grpc

from maglev.base import errors
from maglev.base.limits import check_duration, check_reason, check_weight
from maglev.base.pace import Pace
from maglev.base.states import FrontendState
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import FrontendWeights, MemberWeight, applied_weight
from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.rpc import convert, explain, history, paging, preview
from maglev.rpc.access import Caller, Role, is_local
from maglev.rpc.callers import Callers
from maglev.rpc.filters import name_matcher
from maglev.rpc.logins import Logins
from maglev.rpc.readings import Readings
from maglev.rpc.services import CheckerApi, DataplaneApi, Services, TrialApi, Verb
from maglev.rpc.turns import Changes, Shared, Turnstile, bounded
from maglev.rpc.watch import Watchers
from maglev.views.backends import Override
from maglev.views.dataplane import ConnectionInfo, FrontendTable

T = TypeVar("T")
R = TypeVar("R", pb.ChangeBackendResponse, pb.SetWeightResponse, pb.ReleaseBrakeResponse)
# Generic in the type stubs only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MAX_MEMBERS = 20_000
"""Pool members on one page of frontends: some 40 bytes each, so that a page stays well within 4 MiB."""

_ROLES = {Role.VIEWER: pb.ROLE_VIEWER, Role.OPERATOR: pb.ROLE_OPERATOR}


class MaglevService(pb_grpc.MaglevServicer):
    """The service ``Maglev`` over ``Services``."""

    def __init__(self, services: Services, *, callers: Callers | None = None, watchers: Watchers | None = None) -> None:
        self._services = services
        self._checker = services.checker
        self._callers = callers if callers is not None else Callers(Role.VIEWER, Logins())
        self.watchers = watchers if watchers is not None else Watchers(services)
        self._orders = paging.Orders()
        # Apart from reloads: callers that only look must not delay an operator's reload.
        self._checks = Shared(lambda: bounded(services.loader.check()))
        self._diffs = Shared(lambda: bounded(self._diff()))
        self._reloads = Turnstile("a reload")
        self._flows = Turnstile("a reading of flows", most=2)
        self._previews = Turnstile("a preview")
        self._readings = Readings(services.clock)
        self._changes = Changes()

    # ------------------------------------------------------------------------------------------------- frontends

    async def ListFrontends(self, request: pb.ListFrontendsRequest, context: Context) -> pb.ListFrontendsResponse:
        """All frontends, page by page."""
        states = convert.frontend_states(request.states)
        matches = name_matcher(request.name_regexp)
        order = self._order("frontends")
        connection = self._connection()
        answer = pb.ListFrontendsResponse(total=len(order.names), vpp=convert.connection(connection))
        away = convert.away_since(connection)
        left = paging.page_size(request.page_size)
        members = 0
        pace = Pace()
        for at in range(order.start(request.page_token), len(order.names)):
            await pace.breathe()
            name = order.names[at]
            if not matches(name):
                continue
            try:
                if states and self._checker.frontend_state(name) not in states:
                    continue
                if left == 0 or members >= MAX_MEMBERS:
                    answer.next_page_token = paging.make_token(at, order.names[at - 1])
                    break
                parts = self._frontend(name)
            except errors.UnknownName:
                # A reload took it away while this page was made.
                continue
            info = answer.frontends.add()
            with_pools = not request.omit_pools
            table = self._table(name, with_buckets=with_pools)
            convert.fill_frontend(info, *parts, vpp_away_since_ns=away, with_pools=with_pools, table=table)
            left -= 1
            members += 0 if request.omit_pools else info.backends
        return answer

    async def GetFrontend(self, request: pb.GetFrontendRequest, context: Context) -> pb.FrontendInfo:
        """One frontend with its pools."""
        info = pb.FrontendInfo()
        away = convert.away_since(self._connection())
        parts = self._frontend(request.name)
        table = self._table(request.name, with_buckets=True)
        convert.fill_frontend(info, *parts, vpp_away_since_ns=away, table=table)
        return info

    def _table(self, frontend: str, *, with_buckets: bool) -> FrontendTable | None:
        """The frontend's table as VPP showed it last; None: it is not known."""
        dataplane = self._services.dataplane
        return dataplane.table(frontend, with_buckets=with_buckets) if dataplane is not None else None

    async def GetFlow(self, request: pb.GetFlowRequest, context: Context) -> pb.FlowInfo:
        """The server that VPP chooses for a new flow."""
        return convert.flow(self._dataplane().flow(convert.flow_question(request)))

    def _connection(self) -> ConnectionInfo | None:
        """The connection to VPP; None: the daemon runs without it."""
        dataplane = self._services.dataplane
        return dataplane.connection() if dataplane is not None else None

    def _frontend(self, name: str) -> tuple[Frontend, FrontendWeights, FrontendState]:
        configured = _named("frontend", self._checker.config().frontends, name)
        return configured, self._checker.frontend_weights(name), self._checker.frontend_state(name)

    # -------------------------------------------------------------------------------------------------- backends

    async def ListBackends(self, request: pb.ListBackendsRequest, context: Context) -> pb.ListBackendsResponse:
        """All backends, page by page."""
        states = convert.backend_states(request.states)
        matches = name_matcher(request.name_regexp)
        order = self._order("backends")
        answer = pb.ListBackendsResponse(total=len(order.names))
        left = paging.page_size(request.page_size)
        pace = Pace()
        for at in range(order.start(request.page_token), len(order.names)):
            await pace.breathe()
            name = order.names[at]
            if not matches(name):
                continue
            configured = self._checker.config().backends.get(name)
            if configured is None or (request.healthcheck and configured.healthcheck != request.healthcheck):
                continue
            try:
                status = self._checker.backend_status(name)
            except errors.UnknownName:
                continue
            if (states and status.state not in states) or (request.drained and not status.drained):
                continue
            if left == 0:
                answer.next_page_token = paging.make_token(at, order.names[at - 1])
                break
            convert.fill_backend(
                answer.backends.add(),
                configured,
                status,
                with_transitions=not request.omit_transitions,
                overrides=self._checker.overrides_of(name),
                frontends=() if request.omit_frontends else self._checker.frontends_of(name),
            )
            left -= 1
        return answer

    async def GetBackend(self, request: pb.GetBackendRequest, context: Context) -> pb.BackendInfo:
        """One backend with its history and the frontends that use it."""
        return _backend(self._checker, request.name)

    async def GetBackendFlows(self, request: pb.GetBackendFlowsRequest, context: Context) -> pb.BackendFlows:
        """Flows of one backend in VPP, read now or some seconds ago."""
        name = _named("backend", self._checker.config().backends, request.name).name
        dataplane = self._dataplane()
        role = self._caller(context).role
        return convert.backend_flows(await bounded(self._flows.run(role, lambda: dataplane.flows(name))))

    # --------------------------------------------------------------------------------------------- health checks

    async def ListHealthChecks(
        self, request: pb.ListHealthChecksRequest, context: Context
    ) -> pb.ListHealthChecksResponse:
        """All health checks, page by page."""
        matches = name_matcher(request.name_regexp)
        config = self._checker.config()
        order = self._order("healthchecks")
        answer = pb.ListHealthChecksResponse(total=len(order.names))
        left = paging.page_size(request.page_size)
        counts = await self._check_users(config)
        pace = Pace()
        for at in range(order.start(request.page_token), len(order.names)):
            await pace.breathe()
            name = order.names[at]
            if not matches(name):
                continue
            if left == 0:
                answer.next_page_token = paging.make_token(at, order.names[at - 1])
                break
            if name in config.healthchecks:
                answer.healthchecks.append(convert.healthcheck(config.healthchecks[name], counts.get(name, 0)))
                left -= 1
        return answer

    async def GetHealthCheck(self, request: pb.GetHealthCheckRequest, context: Context) -> pb.HealthCheckInfo:
        """One health check."""
        config = self._checker.config()
        check = _named("health check", config.healthchecks, request.name)
        return convert.healthcheck(check, (await self._check_users(config)).get(request.name, 0))

    async def _check_users(self, config: Config) -> dict[str, int]:
        counts: dict[str, int] = {}
        pace = Pace()
        for backend in config.backends.values():
            if backend.healthcheck is not None:
                counts[backend.healthcheck] = counts.get(backend.healthcheck, 0) + 1
            await pace.breathe()
        return counts

    # --------------------------------------------------------------------------------------------------- changes

    async def PauseBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Stop probing a backend."""
        return await self._change(lambda checker: checker.pause, request, context, may_expire=True)

    async def ResumeBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Probe a paused backend again."""
        return await self._change(lambda checker: checker.resume, request, context)

    async def EnableBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Take a disabled backend back into service."""
        return await self._change(lambda checker: checker.enable, request, context)

    async def DisableBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Take a backend out at once."""
        return await self._change(lambda checker: checker.disable, request, context, may_expire=True)

    async def DrainBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Give a backend no new flows."""
        return await self._change(lambda checker: checker.drain, request, context, may_expire=True)

    async def UndrainBackend(self, request: pb.ChangeBackendRequest, context: Context) -> pb.ChangeBackendResponse:
        """Take a drain back."""
        return await self._change(lambda checker: checker.undrain, request, context)

    async def _change(
        self,
        verb: Callable[[CheckerApi], Verb],
        request: pb.ChangeBackendRequest,
        context: Context,
        *,
        may_expire: bool = False,
    ) -> pb.ChangeBackendResponse:
        if request.duration_ns and not may_expire:
            raise errors.BadValue("only pause, disable and drain take a duration")
        caller = self._caller(context)
        reason, duration_ns = check_reason(request.reason), check_duration(request.duration_ns)

        def changed(checker: CheckerApi) -> pb.ChangeBackendResponse:
            change = verb(checker)(request.name, by=caller.name, reason=reason, duration_ns=duration_ns)
            answer = pb.ChangeBackendResponse(backend=_backend(checker, request.name), changed=change.changed)
            answer.changes.extend(map(convert.value_change, change.values))
            answer.effects.extend(map(convert.frontend_effect, change.effects.listed))
            answer.effects_omitted = change.effects.omitted
            return answer

        if request.dry_run:
            trial = self._services.previews.of_backend
            return await self._tried(caller, lambda: trial(request.name), lambda trial: trial.run(changed))
        answer = changed(self._checker)
        answer.warnings.extend(await self._kept())
        return answer

    async def _tried(
        self, caller: Caller, trial: Callable[[], Awaitable[TrialApi]], change: Callable[[TrialApi], R]
    ) -> R:
        """The answer to a change that is only tried, with the effects that it would have."""

        async def answered() -> R:
            made = await trial()
            answer = change(made)
            answer.preview.CopyFrom(await preview.preview(self._services, made))
            return answer

        return await self._previews.run(caller.role, answered)

    async def _kept(self) -> list[str]:
        """Wait until a change is on the disk; words for the caller on what it has not reached: the disk, or VPP."""
        warnings = []
        if convert.away_since(self._connection()):
            warnings.append("VPP is away or left alone: it gets the change once it is there (show version)")
        try:
            if self._services.keep is not None:
                await self._services.keep()
        except errors.MaglevError as error:
            warnings.append(f"the change is in force, but would not survive a restart: {error}")
        return warnings

    async def SetFrontendPoolBackendWeight(
        self, request: pb.SetWeightRequest, context: Context
    ) -> pb.SetWeightResponse:
        """Set the run-time weight of one pool member, or go back to the file's."""
        weight = request.weight if request.HasField("weight") else None
        if weight is not None:
            check_weight(weight)
        elif request.duration_ns:
            raise errors.BadValue("only a weight takes a duration, the file's does not")
        caller = self._caller(context)
        reason, duration_ns = check_reason(request.reason), check_duration(request.duration_ns)

        def changed(checker: CheckerApi) -> pb.SetWeightResponse:
            change = checker.set_weight(
                request.frontend,
                request.pool,
                request.backend,
                weight,
                flush=request.flush,
                by=caller.name,
                reason=reason,
                duration_ns=duration_ns,
            )
            weights = checker.frontend_weights(request.frontend)
            member = _member(weights, request.pool, request.backend)
            applied = applied_weight(member.weight, weights.unit)
            answer = pb.SetWeightResponse(
                unit=weights.unit,
                applied_weight=applied,
                rounded=applied != (member.weight if weight is None else weight),
                previous_weight=change.previous,
            )
            convert.fill_member(answer.backend, member)
            answer.changes.extend(map(convert.value_change, change.values))
            answer.effects.extend(map(convert.frontend_effect, change.effects.listed))
            return answer

        if request.dry_run:
            trial = self._services.previews.of_weight
            return await self._tried(
                caller, lambda: trial(request.frontend, request.backend), lambda trial: trial.run(changed)
            )
        answer = changed(self._checker)
        answer.warnings.extend(await self._kept())
        return answer

    async def ListOverrides(self, request: pb.ListOverridesRequest, context: Context) -> pb.ListOverridesResponse:
        """Settings of operators, oldest first."""
        overrides = self._checker.overrides()
        order = paging.Order([_override_key(one) for one in overrides])
        answer = pb.ListOverridesResponse(total=len(overrides))
        first = order.start(request.page_token)
        last = min(first + paging.page_size(request.page_size), len(overrides))
        pace = Pace()
        for override in overrides[first:last]:
            convert.fill_override(answer.overrides.add(), override)
            await pace.breathe()
        if last < len(overrides):
            answer.next_page_token = paging.make_token(last, order.names[last - 1])
        return answer

    # ---------------------------------------------------------------------------------------------------- events

    def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[Any]:
        """Events as they happen. The messages are encoded already; the server's gate sends them as they are."""
        return self.watchers.watch(request, local=is_local(context.peer()))

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """Recent events, newest first, page by page."""
        return await history.page(self._services.events, self._checker.config(), request)

    async def ListCauses(self, request: pb.ListCausesRequest, context: Context) -> pb.ListCausesResponse:
        """The causes of recent events, newest first, page by page."""
        services = self._services
        return await history.causes_page(services.events, services.causes, self._checker.config(), request)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        """Why a backend or a frontend is as it is now."""
        checker, causes, clock = self._checker, self._services.causes, self._services.clock
        config = checker.config()
        match request.WhichOneof("subject"):
            case "backend":
                name = _named("backend", config.backends, request.backend).name
                subject, sentences = f"backend {name}", explain.of_backend(checker, clock, name)
                found = explain.causes_of_backend(causes, name)
            case "frontend":
                name = _named("frontend", config.frontends, request.frontend).name
                subject, sentences = f"frontend {name}", explain.of_frontend(checker, clock, name)
                found = explain.causes_of_frontend(checker, causes, name)
            case _:
                raise errors.BadValue("name a backend or a frontend")
        answer = pb.Explanation(subject=subject, sentences=sentences, causes=map(convert.cause, found))
        if convert.away_since(self._connection()):
            answer.sentences.append("VPP is away or left alone: it does not have these weights yet.")
        return answer

    # --------------------------------------------------------------------------------------------- configuration

    async def CheckConfig(self, request: pb.CheckConfigRequest, context: Context) -> pb.CheckConfigResponse:
        """Read the file and say what is wrong with it."""
        return convert.check_result(await bounded(self._checks.run()), self._services.loader.file)

    async def DiffConfig(self, request: pb.DiffConfigRequest, context: Context) -> pb.DiffConfigResponse:
        """The changes that a reload would make."""
        return await bounded(self._diffs.run())

    async def _diff(self) -> pb.DiffConfigResponse:
        loader = self._services.loader
        loaded = await loader.load()
        answer = pb.DiffConfigResponse(check=convert.check_result(loaded, loader.file))
        if loaded.config is None:
            return answer
        changes = await loader.diff(loaded.config)
        answer.changes.extend(convert.config_change(change) for change in changes[: convert.MAX_STEPS])
        answer.changes_omitted = max(0, len(changes) - convert.MAX_STEPS)
        answer.needs_force = loader.needs_force(loaded.config)
        dataplane = self._services.dataplane
        if dataplane is not None and dataplane.connection().connected:
            try:
                plan = await dataplane.plan(None, force=False, config=loaded.config)
                answer.plan.CopyFrom(await convert.plan(plan))
            except errors.Unavailable:
                # VPP went away meanwhile. The diff of the file is still an answer, without a plan.
                answer.ClearField("plan")
        return answer

    async def ReloadConfig(self, request: pb.ReloadConfigRequest, context: Context) -> pb.ReloadConfigResponse:
        """Put the file into effect."""
        loader = self._services.loader
        caller = self._caller(context)
        loaded = await self._changes.finish(
            self._reloads.run(caller.role, lambda: loader.reload(force=request.force, by=caller.name))
        )
        return convert.reload_result(loaded, loader.file)

    # ---------------------------------------------------------------------------------------------------- server

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.ServerInfo:
        """The daemon, and the caller's role in its eyes."""
        services = self._services
        config = self._checker.config()
        caller = self._caller(context)
        dataplane = services.dataplane
        warmup = dataplane.warmup() if dataplane is not None else None
        return pb.ServerInfo(
            version=services.identity.version,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_at_ns=services.identity.started_at_ns,
            uptime_ns=services.clock.monotonic_ns() - services.identity.started_monotonic_ns,
            config_file=services.loader.file,
            config_loaded_at_ns=services.loader.loaded_at_ns,
            config_loaded_by=services.loader.loaded_by,
            config_error=services.loader.last_error,
            frontends=len(config.frontends),
            backends=len(config.backends),
            healthchecks=len(config.healthchecks),
            backend_states=[
                pb.BackendStateCount(state=convert.STATES[state], backends=count)
                for state, count in sorted(self._checker.state_counts().items())
                if count
            ],
            vpp=convert.connection(self._connection()),
            warmup=convert.PHASES.get(warmup.phase, pb.WARMUP_PHASE_UNSPECIFIED)
            if warmup is not None
            else pb.WARMUP_PHASE_DONE,
            warmup_remaining_ns=warmup.remaining_ns if warmup is not None else 0,
            brakes=[
                pb.BrakeInfo(
                    silent=brake.silent,
                    up=brake.up,
                    remaining_ns=max(0, brake.until_ns - services.clock.monotonic_ns()),
                )
                for brake in self._checker.brakes()
            ],
            held_backends=self._checker.held(),
            engine=self._checker.engine_stats(),
            watchers=len(self.watchers),
            events_lost=services.bus.lost,
            waiting_vips=dataplane.waiting_vips() if dataplane is not None else 0,
            caller=caller.name,
            role=_ROLES[caller.role],
            listeners=[
                pb.ListenerInfo(name=one.name, address=one.address, up=one.up, problem=one.problem)
                for one in services.listeners()
            ],
        )

    # ------------------------------------------------------------------------------------------------------- VPP

    async def GetVPPInfo(self, request: pb.GetVPPInfoRequest, context: Context) -> pb.VPPInfo:
        """The VPP at the other end."""
        dataplane = self._dataplane()
        return convert.vpp_info(dataplane.info(), dataplane.connection())

    async def GetVPPLBState(self, request: pb.GetVPPLBStateRequest, context: Context) -> pb.GetVPPLBStateResponse:
        """The state of VPP beside the desired state."""
        dataplane = self._dataplane()
        wanted = self._wanted(request.frontend)
        role = self._caller(context).role
        reading = await self._readings.read(dataplane, wanted, role, further_page=bool(request.page_token))
        order = paging.Order([f"{vip.prefix} {vip.protocol} {vip.port}" for vip in reading.vips])
        answer = pb.GetVPPLBStateResponse(
            conf=convert.lb_conf(reading.conf, self._checker.config().lb),
            total=len(reading.vips),
            read_at_ns=reading.read_at_ns,
        )
        left = paging.page_size(request.page_size)
        servers = 0
        pace = Pace()
        for at in range(order.start(request.page_token), len(reading.vips)):
            if left == 0 or servers >= MAX_MEMBERS:
                answer.next_page_token = paging.make_token(at, order.names[at - 1])
                break
            view = reading.vips[at]
            answer.vips.append(convert.vip(view, self._members(view.frontend)))
            left -= 1
            servers += len(view.ases)
            await pace.breathe()
        return answer

    def _members(self, frontend: str) -> Sequence[MemberWeight]:
        if not frontend:
            return ()
        try:
            return self._checker.frontend_weights(frontend).members
        except errors.UnknownName:
            # No longer configured, still in the reading.
            return ()

    async def SyncVPPLBState(self, request: pb.SyncVPPLBStateRequest, context: Context) -> pb.SyncVPPLBStateResponse:
        """Bring VPP to the desired state, or say how."""
        dataplane = self._dataplane()
        wanted = self._wanted(request.frontend)
        if request.prune and wanted is not None:
            raise errors.BadValue(
                "VIPs that are not configured belong to no frontend: only a sync of everything prunes"
            )
        if request.dry_run:
            plan = await bounded(dataplane.plan(wanted, force=request.force, prune=request.prune))
            return pb.SyncVPPLBStateResponse(plan=await convert.plan(plan))
        by = self._caller(context).name
        done = await self._changes.finish(dataplane.sync(wanted, force=request.force, prune=request.prune, by=by))
        return pb.SyncVPPLBStateResponse(plan=await convert.plan(done.plan), applied=True, failures=done.failures)

    async def ReleaseBrake(self, request: pb.ReleaseBrakeRequest, context: Context) -> pb.ReleaseBrakeResponse:
        """End all brakes."""
        caller = self._caller(context)

        def tried(trial: TrialApi) -> pb.ReleaseBrakeResponse:
            released, failing = trial.release_brake()
            return pb.ReleaseBrakeResponse(released=released, failing=failing)

        if request.dry_run:
            return await self._tried(caller, self._services.previews.of_brake, tried)
        return pb.ReleaseBrakeResponse(released=self._checker.release_brake(by=caller.name))

    async def GetVPPLBCounters(
        self, request: pb.GetVPPLBCountersRequest, context: Context
    ) -> pb.GetVPPLBCountersResponse:
        """Packet counters of the VIPs."""
        dataplane = self._dataplane()
        counters = await bounded(dataplane.counters(self._wanted(request.frontend)))
        order = paging.Order([f"{vip.prefix} {vip.protocol} {vip.port}" for vip in counters.vips])
        first = order.start(request.page_token)
        last = min(first + paging.page_size(request.page_size), len(counters.vips))
        answer = pb.GetVPPLBCountersResponse(total=len(counters.vips), read_at_ns=counters.read_at_ns)
        pace = Pace()
        for view in counters.vips[first:last]:
            answer.vips.append(convert.vip_counters(view))
            await pace.breathe()
        if last < len(counters.vips):
            answer.next_page_token = paging.make_token(last, order.names[last - 1])
        return answer

    def _dataplane(self) -> DataplaneApi:
        dataplane = self._services.dataplane
        if dataplane is None:
            raise errors.Unavailable("the daemon runs without VPP")
        connection = dataplane.connection()
        if not connection.connected:
            because = f": {connection.problem}" if connection.problem else ""
            raise errors.Unavailable(f"VPP is away ({connection.socket}){because}")
        return dataplane

    def _wanted(self, frontend: str) -> str | None:
        if not frontend:
            return None
        return _named("frontend", self._checker.config().frontends, frontend).name

    # --------------------------------------------------------------------------------------------------- helpers

    def _caller(self, context: Context) -> Caller:
        return self._callers.of(context)

    def _order(self, of: Literal["frontends", "backends", "healthchecks"]) -> paging.Order:
        return self._orders.of(self._checker.config(), of)

    async def settle(self, seconds: float) -> None:
        """End: cancel checks and diffs, and wait that long for changes that were begun before cancelling them."""
        self._checks.cancel()
        self._diffs.cancel()
        await self._changes.settle(seconds)


def _named(kind: str, among: Mapping[str, T], name: str) -> T:
    try:
        return among[name]
    except KeyError:
        raise errors.UnknownName(kind, name, among=among) from None


def _backend(checker: CheckerApi, name: str) -> pb.BackendInfo:
    info = pb.BackendInfo()
    convert.fill_backend(
        info,
        _named("backend", checker.config().backends, name),
        checker.backend_status(name),
        overrides=checker.overrides_of(name),
        frontends=checker.frontends_of(name),
    )
    return info


def _override_key(override: Override) -> str:
    return f"{override.since_ns}/{override.backend}/{override.frontend}/{override.pool}"


def _member(weights: FrontendWeights, pool: str, backend: str) -> MemberWeight:
    for member in weights.members:
        if member.pool == pool and member.backend == backend:
            return member
    among = [member.backend for member in weights.members if member.pool == pool]
    raise errors.UnknownName("pool member", backend, among=among)
