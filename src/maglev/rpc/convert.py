"""Model to wire: the only place where the daemon's objects become protobuf messages, and wire enums become ours.

Functions without I/O. The tables of our enums are complete (a test holds that); a word of another part that has
no number on the wire yet becomes ``_UNSPECIFIED`` rather than an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from maglev.base import events
from maglev.base.errors import BadValue
from maglev.base.pace import Pace
from maglev.base.states import CheckType, Code, FrontendState, State
from maglev.config import model
from maglev.config.diff import ChangeKind, ConfigChange
from maglev.config.load import CheckResult, LoadResult
from maglev.events.causes import Cause, CauseKind
from maglev.judgement.weights import FrontendWeights, MemberWeight, pool_counts
from maglev.kinds import wire
from maglev.kinds.registry import kind_of
from maglev.pb import maglev_pb2 as pb
from maglev.schema.problems import Problem
from maglev.views.backends import BackendStatus, Override, OverrideKind, ValueChange
from maglev.views.dataplane import (
    BackendFlows,
    ConfState,
    ConnectionInfo,
    DataplaneInfo,
    FlowAnswer,
    FlowQuestion,
    FlowServer,
    FrontendTable,
    VipState,
    VipTraffic,
)
from maglev.views.effects import FrontendEffect
from maglev.views.plans import PlanReport
from maglev.views.previews import FrontendForecast

STATES: Mapping[State, pb.BackendState.ValueType] = {
    State.UNKNOWN: pb.BACKEND_STATE_UNKNOWN,
    State.UP: pb.BACKEND_STATE_UP,
    State.DOWN: pb.BACKEND_STATE_DOWN,
    State.PAUSED: pb.BACKEND_STATE_PAUSED,
    State.DISABLED: pb.BACKEND_STATE_DISABLED,
    State.REMOVED: pb.BACKEND_STATE_REMOVED,
}
FRONTEND_STATES: Mapping[FrontendState, pb.FrontendState.ValueType] = {
    FrontendState.UNKNOWN: pb.FRONTEND_STATE_UNKNOWN,
    FrontendState.UP: pb.FRONTEND_STATE_UP,
    FrontendState.DOWN: pb.FRONTEND_STATE_DOWN,
    FrontendState.PANIC: pb.FRONTEND_STATE_PANIC,
}
CODES: Mapping[Code, pb.CheckCode.ValueType] = {
    code: pb.CheckCode.Value("CHECK_CODE_" + ("UNSPECIFIED" if code is Code.NONE else code.name)) for code in Code
}
CHECK_TYPES: Mapping[CheckType, pb.CheckType.ValueType] = {
    check_type: pb.CheckType.Value(f"CHECK_TYPE_{check_type.name}") for check_type in CheckType
}
PANIC_ACTIONS: Mapping[model.PanicAction, pb.PanicAction.ValueType] = {
    model.PanicAction.ALL: pb.PANIC_ACTION_ALL,
    model.PanicAction.KEEP: pb.PANIC_ACTION_KEEP,
    model.PanicAction.DRAIN: pb.PANIC_ACTION_DRAIN,
}
PROTOCOLS: Mapping[str, pb.Protocol.ValueType] = {
    "any": pb.PROTOCOL_ANY,
    "tcp": pb.PROTOCOL_TCP,
    "udp": pb.PROTOCOL_UDP,
}
_FLOW_PROTOCOLS: Mapping[pb.Protocol.ValueType, model.Protocol] = {
    pb.PROTOCOL_ANY: model.Protocol.ANY,
    pb.PROTOCOL_TCP: model.Protocol.TCP,
    pb.PROTOCOL_UDP: model.Protocol.UDP,
}
ON_ALL_DOWN: Mapping[model.OnAllDown, pb.OnAllDown.ValueType] = {
    model.OnAllDown.DRAIN: pb.ON_ALL_DOWN_DRAIN,
    model.OnAllDown.KEEP: pb.ON_ALL_DOWN_KEEP,
}
OVERRIDE_KINDS: Mapping[OverrideKind, pb.OverrideKind.ValueType] = {
    OverrideKind.DRAIN: pb.OVERRIDE_KIND_DRAIN,
    OverrideKind.DISABLE: pb.OVERRIDE_KIND_DISABLE,
    OverrideKind.ENABLE: pb.OVERRIDE_KIND_ENABLE,
    OverrideKind.PAUSE: pb.OVERRIDE_KIND_PAUSE,
    OverrideKind.WEIGHT: pb.OVERRIDE_KIND_WEIGHT,
}
ENCAPS: Mapping[str, pb.Encap.ValueType] = {
    "gre4": pb.ENCAP_GRE4,
    "gre6": pb.ENCAP_GRE6,
    "l3dsr": pb.ENCAP_L3DSR,
    "nat4": pb.ENCAP_NAT4,
    "nat6": pb.ENCAP_NAT6,
}
STEP_KINDS: Mapping[str, pb.PlanStepKind.ValueType] = {
    "conf": pb.PLAN_STEP_KIND_CONF,
    "vip_add": pb.PLAN_STEP_KIND_VIP_ADD,
    "vip_remove": pb.PLAN_STEP_KIND_VIP_REMOVE,
    "as_add": pb.PLAN_STEP_KIND_AS_ADD,
    "as_remove": pb.PLAN_STEP_KIND_AS_REMOVE,
    "as_weight": pb.PLAN_STEP_KIND_AS_WEIGHT,
    "vip_flush": pb.PLAN_STEP_KIND_VIP_FLUSH,
    "as_commands": pb.PLAN_STEP_KIND_AS_COMMANDS,
}
CHANGE_KINDS: Mapping[ChangeKind, pb.ChangeKind.ValueType] = {
    ChangeKind.ADDED: pb.CHANGE_KIND_ADDED,
    ChangeKind.REMOVED: pb.CHANGE_KIND_REMOVED,
    ChangeKind.CHANGED: pb.CHANGE_KIND_CHANGED,
}
PHASES: Mapping[str, pb.WarmupPhase.ValueType] = {
    "silent": pb.WARMUP_PHASE_SILENT,
    "releasing": pb.WARMUP_PHASE_RELEASING,
    "done": pb.WARMUP_PHASE_DONE,
}
LEVELS: Mapping[str, pb.LogLevel.ValueType] = {
    "debug": pb.LOG_LEVEL_DEBUG,
    "info": pb.LOG_LEVEL_INFO,
    "warning": pb.LOG_LEVEL_WARNING,
    "error": pb.LOG_LEVEL_ERROR,
}
_STATES_BACK = {number: state for state, number in STATES.items()}
_FRONTEND_STATES_BACK = {number: state for state, number in FRONTEND_STATES.items()}
_LEVELS_BACK = {number: level for level, number in LEVELS.items()}

MAX_STEPS = 10_000
"""Steps of a plan, and changes of a diff, in one answer, which stays within a few megabytes; the rest is counted."""


# ------------------------------------------------------------------------------------------------- wire to model


def backend_states(wanted: Iterable[pb.BackendState.ValueType]) -> frozenset[State]:
    """The states of a filter. Raises ``BadValue`` for a number that names none."""
    try:
        return frozenset(_STATES_BACK[state] for state in wanted)
    except KeyError as error:
        raise BadValue(f"{error.args[0]} is no state of a backend") from None


def frontend_states(wanted: Iterable[pb.FrontendState.ValueType]) -> frozenset[FrontendState]:
    """The states of a filter. Raises ``BadValue`` for a number that names none."""
    try:
        return frozenset(_FRONTEND_STATES_BACK[state] for state in wanted)
    except KeyError as error:
        raise BadValue(f"{error.args[0]} is no state of a frontend") from None


def log_level(wanted: pb.LogLevel.ValueType) -> str:
    """``debug`` .. ``error``; unspecified is ``info``. Raises ``BadValue``."""
    if wanted == pb.LOG_LEVEL_UNSPECIFIED:
        return "info"
    try:
        return _LEVELS_BACK[wanted]
    except KeyError:
        raise BadValue(f"{wanted} is no log level") from None


# ------------------------------------------------------------------------------------------------- model to wire


# Lists of 50,000 are made of the messages that the functions named ``fill_`` make. Protobuf copies a message that is
# appended to a list, and a constructor with keywords parses its arguments. Setting the fields of a new element one by
# one is what costs least.


def fill_transition(info: pb.Transition, view: events.BackendEvent) -> None:
    """A remembered change of state."""
    info.from_state = STATES[view.from_state]
    info.to_state = STATES[view.to_state]
    info.code = CODES[view.code]
    info.detail = view.detail
    info.at_ns = view.at_ns
    info.by = view.by
    info.reason = view.reason


def fill_backend(
    info: pb.BackendInfo,
    configured: model.Backend,
    status: BackendStatus,
    *,
    with_transitions: bool = True,
    overrides: Sequence[Override] = (),
    frontends: Sequence[str] = (),
) -> None:
    """A backend as it is configured and as it is."""
    info.name = configured.name
    info.address = status.address
    info.state = STATES[status.state]
    info.enabled = status.enabled
    info.healthcheck = configured.healthcheck or ""
    info.counter = status.counter
    info.rise = status.rise
    info.fall = status.fall
    info.last_code = CODES[status.last_code]
    info.state_since_ns = status.state_since_ns
    info.probes_passed = status.probes_passed
    info.probes_failed = status.probes_failed
    if status.last_rtt_ns is not None:
        info.last_rtt_ns = status.last_rtt_ns
    if status.last_result_age_ns is not None:
        info.last_result_age_ns = status.last_result_age_ns
    if status.last_detail:
        info.last_detail = status.last_detail
    if status.drained:
        info.drained = True
    if status.unprobed_since_ns:
        info.unprobed_since_ns = status.unprobed_since_ns
        info.unprobed_reason = status.unprobed_reason
    if status.presumed:
        info.presumed = True
    if status.held:
        info.held = status.held
    if with_transitions:
        for view in status.transitions:
            fill_transition(info.transitions.add(), view)
    for one in overrides:
        fill_override(info.overrides.add(), one)
    if frontends:
        info.frontends.extend(frontends)


def fill_override(info: pb.Override, view: Override) -> None:
    """A setting of an operator."""
    info.kind = OVERRIDE_KINDS[view.kind]
    info.backend = view.backend
    info.frontend = view.frontend
    info.pool = view.pool
    info.weight = view.weight
    info.file_weight = view.file_weight
    info.file_enabled = view.file_enabled
    info.address = view.address
    info.since_ns = view.since_ns
    info.until_ns = view.until_ns
    info.by = view.by
    info.reason = view.reason


def value_change(view: ValueChange) -> pb.ValueChange:
    """One value that a verb changed."""
    return pb.ValueChange(what=view.what, before=view.before, after=view.after)


def frontend_effect(view: FrontendEffect) -> pb.FrontendEffect:
    """The effect of a verb on a frontend."""
    return pb.FrontendEffect(
        frontend=view.frontend,
        pool_before=view.pool_before,
        pool_after=view.pool_after,
        keeps=view.keeps,
        text=str(view),
    )


def fill_forecast(info: pb.FrontendForecast, view: FrontendForecast, most: int) -> None:
    """One frontend before and after a change, with ``most`` members at most."""
    info.frontend = view.frontend
    info.state_before, info.state_after = FRONTEND_STATES[view.state_before], FRONTEND_STATES[view.state_after]
    info.pool_before, info.pool_after = view.pool_before, view.pool_after
    for member in view.members[:most]:
        info.members.add(
            pool=member.pool,
            backend=member.backend,
            effective_before=member.effective_before,
            effective_after=member.effective_after,
            programmed_before=member.programmed_before,
            programmed_after=member.programmed_after,
            keeps=member.keeps,
        )


def fill_member(info: pb.PoolBackendInfo, weight: MemberWeight, buckets: int | None = None) -> None:
    """A pool member with its weights, and its buckets in VPP where they are known."""
    if buckets is not None:
        info.buckets = buckets
    info.name = weight.backend
    info.weight = weight.weight
    info.effective_weight = weight.effective
    info.programmed_weight = weight.programmed
    info.state = STATES[weight.state]
    info.enabled = weight.enabled
    info.drained = weight.drained
    info.configured_weight = weight.configured
    info.slow_start_percent = weight.share if weight.share < 100 else 0


def away_since(view: ConnectionInfo | None) -> int:
    """Since when VPP does not follow the daemon: it is away, or is left alone; 0: it does, or there is none."""
    return view.since_ns if view is not None and (view.problem or not view.connected) else 0


def fill_frontend(
    info: pb.FrontendInfo,
    configured: model.Frontend,
    weights: FrontendWeights,
    state: FrontendState,
    *,
    vpp_away_since_ns: int = 0,
    with_pools: bool = True,
    table: FrontendTable | None = None,
) -> None:
    """A frontend as it is configured, with the weights that its members have now; ``table``: as VPP showed it."""
    info.vpp_away_since_ns = vpp_away_since_ns
    info.name = configured.name
    info.address = str(configured.address)
    info.protocol = PROTOCOLS.get(str(configured.protocol), pb.PROTOCOL_UNSPECIFIED)
    info.port = configured.port
    info.description = configured.description
    info.src_ip_sticky = configured.src_ip_sticky
    info.flush_on_down = configured.flush_on_down
    info.on_all_down = ON_ALL_DOWN[configured.on_all_down]
    info.state = FRONTEND_STATES[state]
    info.active_pool = configured.pools[weights.active_pool].name
    info.active_pool_index = weights.active_pool
    info.unit = weights.unit
    info.slow_start_ns = configured.slow_start
    if configured.panic is not None:
        info.panic_below = configured.panic.below
        info.panic_action = PANIC_ACTIONS[configured.panic.action]
    info.new_flows_table_length = configured.new_flows_table_length or 0
    info.backends = len(weights.members)
    info.backends_usable = sum(1 for one in weights.members if one.effective > 0)
    info.backends_wanted = sum(1 for one in weights.members if one.pool_index == weights.active_pool and one.weight > 0)
    if with_pools:
        counts = pool_counts(configured, weights)
        for pool, count in zip(configured.pools, counts, strict=True):
            info.pools.add(
                name=pool.name,
                up=count.up,
                min_up=count.min_up,
                resume_up=count.resume_up,
                resume_after_ns=pool.resume_after,
                usable=count.usable,
                healthy_weight=count.healthy,
                whole_weight=count.whole,
            )
        for one in weights.members:
            buckets = None if table is None else table.buckets.get(one.backend, 0)
            fill_member(info.pools[one.pool_index].backends.add(), one, buckets)
    if table is not None:
        info.fingerprint = table.fingerprint
        info.vpp_table_length = table.length


def healthcheck(check: model.HealthCheck, backends: int) -> pb.HealthCheckInfo:
    """A health check, and how many backends use it."""
    info = pb.HealthCheckInfo(
        name=check.name,
        type=CHECK_TYPES.get(check.type, pb.CHECK_TYPE_UNSPECIFIED),
        port=check.port,
        interval_ns=check.interval,
        fast_interval_ns=check.fast_interval,
        down_interval_ns=check.down_interval,
        timeout_ns=check.timeout,
        rise=check.rise,
        fall=check.fall,
        probe_ipv4_src=str(check.probe_ipv4_src or ""),
        probe_ipv6_src=str(check.probe_ipv6_src or ""),
        netns=check.netns or "",
        backends=backends,
    )
    message = kind_of(check.type).message
    if message in info.DESCRIPTOR.fields_by_name:
        wire.fill(getattr(info, message), check.params)
    return info


# -------------------------------------------------------------------------------------------------------- events


def event(item: events.Event) -> pb.Event:
    """An event of the bus."""
    match item:
        case events.BackendEvent():
            return pb.Event(backend=_backend_event(item))
        case events.FrontendEvent():
            return pb.Event(frontend=_frontend_event(item))
        case events.PoolEvent():
            return pb.Event(pool=_pool_event(item))
        case events.WeightEvent():
            return pb.Event(weight=_weight_event(item))
        case events.DrainEvent():
            return pb.Event(drain=_drain_event(item))
        case events.ConfigEvent():
            return pb.Event(config=pb.ConfigEvent(at_ns=item.at_ns, by=item.by))
        case events.LogEvent():
            return pb.Event(log=_log_event(item))


def _backend_event(item: events.BackendEvent) -> pb.BackendEvent:
    return pb.BackendEvent(
        name=item.name,
        address=item.address,
        from_state=STATES[item.from_state],
        to_state=STATES[item.to_state],
        code=CODES[item.code],
        detail=item.detail,
        at_ns=item.at_ns,
        by=item.by,
        reason=item.reason,
        drained=item.drained,
        duration_ns=item.duration_ns,
    )


def _frontend_event(item: events.FrontendEvent) -> pb.FrontendEvent:
    return pb.FrontendEvent(
        name=item.name,
        from_state=FRONTEND_STATES[item.from_state],
        to_state=FRONTEND_STATES[item.to_state],
        at_ns=item.at_ns,
        cause=item.cause,
    )


def _pool_event(item: events.PoolEvent) -> pb.PoolEvent:
    return pb.PoolEvent(
        frontend=item.frontend,
        from_pool=item.from_pool,
        to_pool=item.to_pool,
        fallback=item.fallback,
        at_ns=item.at_ns,
        cause=item.cause,
    )


def _weight_event(item: events.WeightEvent) -> pb.WeightEvent:
    return pb.WeightEvent(
        frontend=item.frontend,
        pool=item.pool,
        backend=item.backend,
        old_weight=item.old,
        new_weight=item.new,
        to_default=item.to_default,
        flush=item.flush,
        at_ns=item.at_ns,
        by=item.by,
        reason=item.reason,
        duration_ns=item.duration_ns,
    )


def _drain_event(item: events.DrainEvent) -> pb.DrainEvent:
    return pb.DrainEvent(
        name=item.name,
        address=item.address,
        state=STATES[item.state],
        drained=item.drained,
        at_ns=item.at_ns,
        by=item.by,
        reason=item.reason,
        duration_ns=item.duration_ns,
    )


def _log_event(item: events.LogEvent) -> pb.LogEvent:
    return pb.LogEvent(
        level=LEVELS.get(item.level, pb.LOG_LEVEL_UNSPECIFIED),
        event=item.event,
        message=_text(item.message),
        at_ns=item.at_ns,
        fields={key: _text(value) for key, value in item.fields.items()},
    )


def _text(value: str) -> str:
    # A log record may quote what came from the network; protobuf takes no lone surrogate.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


# ------------------------------------------------------------------------------------------------- configuration


def problems(views: Iterable[Problem]) -> list[pb.ConfigProblem]:
    """Errors or warnings of the configuration file."""
    return [
        pb.ConfigProblem(path=_text(view.path), message=_text(view.message), line=view.line, column=view.column)
        for view in views
    ]


def check_result(view: CheckResult | LoadResult, file: str) -> pb.CheckConfigResponse:
    """Problems of the configuration file."""
    return pb.CheckConfigResponse(
        ok=not (view.parse_errors or view.semantic_errors),
        parse_errors=problems(view.parse_errors),
        semantic_errors=problems(view.semantic_errors),
        warnings=problems(view.warnings),
        file=file,
    )


def reload_result(view: LoadResult, file: str) -> pb.ReloadConfigResponse:
    """Result of a reload."""
    return pb.ReloadConfigResponse(
        ok=view.config is not None,
        parse_errors=problems(view.parse_errors),
        semantic_errors=problems(view.semantic_errors),
        warnings=problems(view.warnings),
        file=file,
    )


def config_change(view: ConfigChange) -> pb.ConfigChange:
    """One difference between two configurations."""
    return pb.ConfigChange(
        path=_text(view.path),
        kind=CHANGE_KINDS[view.kind],
        old=_text(view.old),
        new=_text(view.new),
    )


# ----------------------------------------------------------------------------------------------------------- VPP


def connection(view: ConnectionInfo | None) -> pb.VPPConnection:
    """The connection to VPP; None: the daemon runs without one."""
    if view is None:
        return pb.VPPConnection()
    return pb.VPPConnection(
        configured=True,
        connected=view.connected,
        socket=view.socket,
        since_ns=view.since_ns,
        problem=view.problem,
    )


def vpp_info(view: DataplaneInfo, link: ConnectionInfo) -> pb.VPPInfo:
    """The VPP at the other end."""
    return pb.VPPInfo(
        version=view.version,
        build_date=view.build_date,
        build_directory=view.build_directory,
        pid=view.pid,
        uptime_ns=view.uptime_ns,
        connected_ns=view.connected_ns,
        socket=link.socket,
        lb_supported=view.lb_supported,
        problem=link.problem,
        last_full_sync_at_ns=view.last_full_sync_at_ns,
        last_full_sync_changes=view.last_full_sync_changes,
        calls_failed=view.calls_failed,
        cost_ns_per_bucket=view.cost_ns_per_bucket,
        cost_ns_per_weight=view.cost_ns_per_weight,
        workers=view.workers,
    )


def lb_conf(view: ConfState, wanted: model.LbConfig) -> pb.VPPLBConf:
    """The global configuration in VPP beside the file's."""
    return pb.VPPLBConf(
        ipv4_src_address=view.ipv4_src_address,
        ipv6_src_address=view.ipv6_src_address,
        sticky_buckets_per_core=view.sticky_buckets_per_core,
        flow_timeout_ns=view.flow_timeout_ns,
        wanted_ipv4_src_address=str(wanted.ipv4_src_address or ""),
        wanted_ipv6_src_address=str(wanted.ipv6_src_address or ""),
        wanted_sticky_buckets_per_core=wanted.sticky_buckets_per_core or 0,
        wanted_flow_timeout_ns=wanted.flow_timeout or 0,
    )


def backend_flows(view: BackendFlows) -> pb.BackendFlows:
    """Flows of a backend."""
    return pb.BackendFlows(
        backend=view.backend,
        address=view.address,
        drained=view.drained,
        flows=view.flows,
        empty=view.empty,
        frontends=[
            pb.FrontendFlows(frontend=one.frontend, vip=one.vip, flows=one.flows, vpp_weight=one.weight)
            for one in view.frontends
        ],
        read_at_ns=view.read_at_ns,
        stall_ns=view.stall_ns,
    )


def flow_question(request: pb.GetFlowRequest) -> FlowQuestion:
    """The flow that a caller asks about."""
    return FlowQuestion(
        source=request.source,
        source_port=request.source_port if request.HasField("source_port") else None,
        address=request.address,
        port=request.port,
        protocol=_FLOW_PROTOCOLS.get(request.protocol),
    )


def flow(view: FlowAnswer) -> pb.FlowInfo:
    """The server of a flow."""
    return pb.FlowInfo(
        frontend=view.frontend,
        vip=view.vip,
        by_address=view.by_address,
        hash=view.hash,
        bucket=view.bucket,
        table_length=view.table_length,
        server=_flow_server(view.server),
        server_before=_flow_server(view.server_before),
        changed_at_ns=view.changed_at_ns,
        read_at_ns=view.read_at_ns,
        fingerprint=view.fingerprint,
    )


def _flow_server(view: FlowServer | None) -> pb.FlowServer | None:
    return None if view is None else pb.FlowServer(address=view.address, backend=view.backend)


def vip(view: VipState, members: Sequence[MemberWeight]) -> pb.VPPVip:
    """A VIP in VPP beside what is wanted; ``members`` of its frontend, empty when it is not configured."""
    by_name = {one.backend: one for one in members}
    info = pb.VPPVip(
        frontend=view.frontend,
        prefix=view.prefix,
        protocol=PROTOCOLS.get(view.protocol, pb.PROTOCOL_UNSPECIFIED),
        port=view.port,
        encap=ENCAPS.get(view.encap, pb.ENCAP_UNSPECIFIED),
        new_flows_table_length=view.new_flows_table_length,
        src_ip_sticky=view.src_ip_sticky,
        index=view.index,
        present=view.present,
        wanted=view.wanted,
        in_sync=view.in_sync,
        unit=view.unit,
        lingering=view.lingering,
        notes=view.notes,
        held=view.held,
        waiting=view.waiting,
    )
    for one in view.ases:
        weights = by_name.get(one.backend) if one.backend else None
        info.ases.add(
            address=one.address,
            backend=one.backend,
            pool=one.pool,
            state=STATES[weights.state] if weights else pb.BACKEND_STATE_UNSPECIFIED,
            drained=weights.drained if weights else False,
            configured_weight=weights.configured if weights else 0,
            effective_weight=weights.effective if weights else 0,
            programmed_weight=one.programmed_weight,
            vpp_weight=one.vpp_weight,
            buckets=one.buckets,
            predicted_buckets=one.predicted_buckets,
            live=one.live,
            flush_owed=one.flush_owed,
        )
    return info


def vip_counters(view: VipTraffic) -> pb.VPPVipCounters:
    """Packet counters of one VIP."""
    return pb.VPPVipCounters(
        frontend=view.frontend,
        prefix=view.prefix,
        protocol=PROTOCOLS.get(view.protocol, pb.PROTOCOL_UNSPECIFIED),
        port=view.port,
        existing_session=view.existing_session,
        first_session=view.first_session,
        untracked=view.untracked,
        no_server=view.no_server,
        route_packets=view.route_packets,
        route_bytes=view.route_bytes,
    )


async def plan(view: PlanReport) -> pb.Plan:
    """A plan, with at most ``MAX_STEPS`` steps and forecasts of as many ASes."""
    message = pb.Plan(
        steps_omitted=max(0, len(view.steps) - MAX_STEPS),
        stall_ns=view.stall_ns,
        notes=view.notes,
        waiting_vips=view.waiting_vips[:MAX_STEPS],
    )
    pace = Pace()
    for step in view.steps[:MAX_STEPS]:
        await pace.breathe()
        message.steps.add(
            kind=STEP_KINDS.get(step.kind, pb.PLAN_STEP_KIND_UNSPECIFIED),
            frontend=step.frontend,
            vip=step.vip,
            backend=step.backend,
            address=step.address,
            old_weight=step.old_weight,
            new_weight=step.new_weight,
            flush=step.flush,
            stall_ns=step.stall_ns,
            text=step.text,
        )
    left = MAX_STEPS
    for forecast in view.forecasts:
        await pace.breathe()
        if left <= 0:
            break
        message.vips.add(
            frontend=forecast.frontend,
            vip=forecast.vip,
            moved_share=forecast.moved_share,
            stall_ns=forecast.stall_ns,
            ases=[
                pb.AsForecast(
                    address=one.address,
                    backend=one.backend,
                    buckets_before=one.buckets_before,
                    buckets_after=one.buckets_after,
                )
                for one in forecast.ases[:left]
            ],
        )
        left -= len(forecast.ases)
    return message


# -------------------------------------------------------------------------------------------------------- causes

_CAUSE_KINDS = {kind: pb.CauseKind.Value(f"CAUSE_KIND_{kind.name}") for kind in CauseKind}


def cause(found: Cause) -> pb.Cause:
    """A decision record."""
    return pb.Cause(
        id=found.number,
        kind=_CAUSE_KINDS[found.kind],
        text=str(found),
        at_ns=found.at_ns,
        last_ns=found.last_ns,
        backends=found.backends,
        backend_names=found.backend_names,
        frontends=found.frontends,
        frontend_names=found.frontend_names,
        frontends_down=found.frontends_down,
        pools_left=found.pools_left,
        changes=found.changes,
        planned_ns=found.planned_ns,
        accepted_ns=found.accepted_ns,
        confirmed_ns=found.confirmed_ns,
        by=found.by,
        reason=found.reason,
    )
