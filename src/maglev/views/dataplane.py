"""VPP as it is shown: the connection, what VPP holds beside what is wanted, and counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maglev.config.model import Protocol


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """The connection to VPP. ``problem``: why it is away, or why VPP is left alone."""

    connected: bool
    socket: str
    since_ns: int
    problem: str


@dataclass(frozen=True, slots=True)
class WarmupInfo:
    """``phase`` is silent, releasing or done; ``remaining_ns`` until all frontends are released."""

    phase: str
    remaining_ns: int


@dataclass(frozen=True, slots=True)
class DataplaneInfo:
    """The VPP at the other end, and how it is driven.

    ``uptime_ns`` of VPP and ``connected_ns`` of the connection are spans; ``last_full_sync_at_ns`` 0: none yet.
    ``cost_ns_per_*``: the cost model, calibrated against VPP's replies.
    """

    version: str
    build_date: str
    build_directory: str
    pid: int
    uptime_ns: int
    connected_ns: int
    lb_supported: bool
    last_full_sync_at_ns: int
    last_full_sync_changes: int
    calls_failed: int
    cost_ns_per_bucket: float
    cost_ns_per_weight: float
    workers: int


@dataclass(frozen=True, slots=True)
class ConfState:
    """The plugin's global settings; an address that was never set is empty."""

    ipv4_src_address: str
    ipv6_src_address: str
    sticky_buckets_per_core: int
    flow_timeout_ns: int


@dataclass(frozen=True, slots=True)
class AsState:
    """One AS in VPP beside what is wanted. Weights in units.

    ``vpp_weight`` None: not in VPP. ``backend`` is empty for an AS that is not configured.
    """

    address: str
    backend: str
    pool: str
    programmed_weight: int
    vpp_weight: int | None
    buckets: int
    predicted_buckets: int
    live: bool
    flush_owed: bool


@dataclass(frozen=True, slots=True)
class VipState:
    """One VIP in VPP beside what is wanted.

    ``protocol`` is tcp, udp or any; ``encap`` is gre4, gre6, l3dsr, nat4 or nat6 (of both, the number as VPP has it
    where it has no name). ``frontend`` is empty for a VIP that is not configured. ``index`` is VPP's own, None where
    it is not known. ``held``: the warm-up holds it. ``waiting``: it has left the configuration, and is not deleted
    before an operator agrees.
    """

    frontend: str
    prefix: str
    protocol: str
    port: int
    encap: str
    new_flows_table_length: int
    src_ip_sticky: bool
    index: int | None
    present: bool
    wanted: bool
    in_sync: bool
    held: bool
    waiting: bool
    unit: int
    lingering: int
    notes: Sequence[str]
    ases: Sequence[AsState]


@dataclass(frozen=True, slots=True)
class LbState:
    """State of the lb plugin in VPP, beside the desired state."""

    conf: ConfState
    vips: Sequence[VipState]
    read_at_ns: int


@dataclass(frozen=True, slots=True)
class VipTraffic:
    """Packet counters of one VIP; ``frontend`` and ``protocol`` as in ``VipState``."""

    frontend: str
    prefix: str
    protocol: str
    port: int
    existing_session: int
    first_session: int
    untracked: int
    no_server: int
    route_packets: int
    route_bytes: int


@dataclass(frozen=True, slots=True)
class VipFingerprint:
    """The high 53 bits of the fingerprint of a VIP's table, which a float holds exactly; names as in ``VipState``."""

    frontend: str
    prefix: str
    protocol: str
    port: int
    value: int


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """Packet counters of some or all VIPs, as last read."""

    vips: Sequence[VipTraffic]
    read_at_ns: int


@dataclass(frozen=True, slots=True)
class FrontendFlows:
    """Flows of one backend in one frontend. ``flows`` None: VPP has no such AS. ``weight``: in VPP, in units."""

    frontend: str
    vip: str
    flows: int | None
    weight: int


@dataclass(frozen=True, slots=True)
class BackendFlows:
    """Flows of one backend in VPP. ``flows`` are entries of the sticky table: an upper bound of the flows that live.

    ``empty``: it gets no new flows and has none, so VPP sends it nothing. ``stall_ns``: what the reading cost VPP.
    """

    backend: str
    address: str
    drained: bool
    flows: int
    empty: bool
    frontends: Sequence[FrontendFlows]
    read_at_ns: int
    stall_ns: int


@dataclass(frozen=True, slots=True)
class FrontendTable:
    """The new-flow table of a frontend's VIP as VPP showed it last.

    ``fingerprint``: 16 hexadecimal digits, equal on nodes with equal tables. ``buckets``: of each backend that has
    any, by name; empty where they were not asked for.
    """

    length: int
    fingerprint: str
    buckets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """A flow as a caller names it.

    ``source_port`` None: no port. ``protocol`` None: the VIP's own, or TCP on a VIP for any protocol; ``ANY``: one
    without ports.
    """

    source: str
    source_port: int | None
    address: str
    port: int
    protocol: Protocol | None = None


@dataclass(frozen=True, slots=True)
class FlowServer:
    """A server of a VIP; ``backend`` is empty where no backend of the frontend has the address."""

    address: str
    backend: str


@dataclass(frozen=True, slots=True)
class FlowAnswer:
    """The bucket and the server of a flow, from the table that VPP showed at ``read_at_ns`` (wall clock).

    ``by_address``: the ports make no difference. ``server`` None: no server has a weight. ``server_before``: before
    the last change of the table, which was read at ``changed_at_ns``; 0: the daemon has seen none.
    """

    frontend: str
    vip: str
    by_address: bool
    hash: int
    bucket: int
    table_length: int
    server: FlowServer | None
    server_before: FlowServer | None
    changed_at_ns: int
    read_at_ns: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class DataplaneFigures:
    """Counters of VPP and of the calls to it, since the daemon started.

    ``vpp`` is None while VPP is away. ``unlocked``: VPP is driven without a lock. ``api_total`` counts messages by
    name, direction and result; ``lbsync`` counts changes by scope (all, one) and kind; ``drift`` counts changes that
    something else made, by kind. ``unmanaged_vips`` are VIPs in VPP that are not configured and are left alone;
    ``waiting_vips`` those that are not deleted before an operator agrees. ``cost_factor`` is measured cost against the
    formula. ``mass_changes``: many servers may change by commands of VPP's CLI; ``commands_failed`` counts those that
    failed.
    """

    vpp: DataplaneInfo | None
    unlocked: bool
    connects: int
    api_total: Mapping[tuple[str, str, str], int]
    lbsync: Mapping[tuple[str, str], int]
    drift: Mapping[str, int]
    batches: int
    full_syncs: int
    failed_syncs: int
    suppressed_syncs: int
    recreations_given_up: int
    bucket_mismatches: int
    refused_calls: int
    unmanaged_vips: int
    waiting_vips: int
    cost_factor: float
    estimated_work_ns: int
    mass_changes: bool
    commands_failed: int
