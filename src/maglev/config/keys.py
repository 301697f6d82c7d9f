"""Every key of the configuration in one table: its type, its default, its purpose.

The loader walks the file along this table; the configuration guide and the JSON schema for editors are made from it.
``attribute`` is the field of ``maglev.config.model`` that receives the value. The default of that field is the default
of the key: ``default`` repeats it in the words of the file, and a test compares the two. The keys that depend on the
type of a health check are in ``maglev.kinds``.
"""

from __future__ import annotations

from maglev.config.model import MS, SECOND, MassChanges, OnAllDown, PanicAction, Protocol, Prune
from maglev.kinds.registry import KINDS, KindName, port_help
from maglev.schema import types
from maglev.schema.section import Key, Listed, Named, Section, Variants

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

_INTERVAL = types.Duration(10 * MS, HOUR)

HEALTHCHECK = Section(
    "a health check",
    (
        Key(
            "type",
            "type",
            KindName(KINDS),
            "What the check speaks.",
            required=True,
            example="http",
        ),
        Key(
            "port",
            "port",
            types.Integer(1, 65535),
            port_help(),
            example="80",
        ),
        Key("params", "params", Variants("type", KINDS), "What depends on the type."),
        Key(
            "interval",
            "interval",
            _INTERVAL,
            "Time between probes while the backend is fully up.",
            default="2s",
            example="1s",
        ),
        Key(
            "fast-interval",
            "fast_interval",
            _INTERVAL,
            "The same while it is unknown, or on its way up or down. Default: interval.",
            example="500ms",
        ),
        Key(
            "down-interval",
            "down_interval",
            _INTERVAL,
            "The same while it is fully down. Default: interval.",
            example="10s",
        ),
        Key(
            "timeout",
            "timeout",
            types.Duration(MS, HOUR),
            "A probe without an answer has failed after this time, or after the present interval if that is shorter. "
            "Default: interval.",
            example="1s",
        ),
        Key(
            "rise", "rise", types.Integer(1, 100), "Passes in a row that bring a backend up.", default="2", example="3"
        ),
        Key(
            "fall",
            "fall",
            types.Integer(1, 100),
            "Failures in a row that bring a backend down.",
            default="3",
            example="2",
        ),
        Key(
            "probe-ipv4-src",
            "probe_ipv4_src",
            types.Address(4),
            "Source address of probes to IPv4 backends. Default: the kernel chooses.",
            example="192.0.2.10",
        ),
        Key(
            "probe-ipv6-src",
            "probe_ipv6_src",
            types.Address(6),
            "Source address of probes to IPv6 backends. Default: the kernel chooses.",
            example='"2001:db8::10"',
        ),
        Key(
            "netns",
            "netns",
            types.Name("network namespace"),
            "Network namespace that the probes are sent from. Default: that of healthchecker.netns.",
            example="dataplane",
        ),
    ),
)

BACKEND = Section(
    "a backend",
    (
        Key("address", "address", types.Address(), "The server's address.", required=True, example='"2001:db8:1::10"'),
        Key(
            "healthcheck",
            "healthcheck",
            types.Name("health check"),
            "Check that decides whether the backend is up. Without one it is static: always up.",
            example="web",
        ),
        Key(
            "enabled",
            "enabled",
            types.Boolean(),
            "false: the backend starts disabled, without probes and without weight.",
            default="true",
            example="false",
        ),
    ),
)

MEMBER = Section(
    "a pool's backend",
    (
        Key(
            "weight",
            "weight",
            types.Integer(0, 100),
            "Share of new flows, relative to the pool's other backends. 0: none.",
            default="100",
            example="50",
        ),
    ),
)

POOL = Section(
    "a pool",
    (
        Key("name", "name", types.Name("pool"), "The pool's name, unique in its frontend.", required=True, example="a"),
        Key(
            "backends",
            "members",
            Named("the pool's backends", MEMBER),
            "The pool's backends by name, at least one.",
            required=True,
        ),
        Key(
            "min-up",
            "min_up",
            types.Members(),
            "Backends that must be up for the pool to be usable: as many, or a share of those that no operator took "
            "out. The first usable pool serves. If none is usable, the first pool with any backend up does.",
            default="1",
            example="40%",
        ),
        Key(
            "resume-up",
            "resume_up",
            types.Members(),
            "Backends that must be up before the pool takes over again from a later one. Default: min-up.",
            example="60%",
        ),
        Key(
            "resume-after",
            "resume_after",
            types.Duration(0, HOUR),
            "How long resume-up must hold before the pool takes over again.",
            default="0s",
            example="30s",
        ),
    ),
)

PANIC = Section(
    "the section panic",
    (
        Key(
            "below",
            "below",
            types.Percent(1, 100),
            "Share of the pool's weight that must be healthy. With less, the frontend is in panic.",
            default="50%",
            example="30%",
        ),
        Key(
            "action",
            "action",
            types.Choice({action.value: action for action in PanicAction}),
            "`all`: backends that failed their checks get their weights back. `keep`: no weight falls. `drain`: the "
            "weights are those without panic.",
            default="all",
            example="keep",
        ),
    ),
)

FRONTEND = Section(
    "a frontend",
    (
        Key(
            "description",
            "description",
            types.Text(1024),
            "For people.",
            default='""',
            example="public web",
        ),
        Key("address", "address", types.Address(), "The VIP's address.", required=True, example="192.0.2.80"),
        Key(
            "protocol",
            "protocol",
            types.Choice({"tcp": Protocol.TCP, "udp": Protocol.UDP}),
            "Protocol of the VIP. Without it: any protocol, and then no port.",
            example="tcp",
        ),
        Key("port", "port", types.Integer(1, 65535), "Port of the VIP; needs a protocol.", example="80"),
        Key(
            "src-ip-sticky",
            "src_ip_sticky",
            types.Boolean(),
            "Send all flows of one client address to one backend.",
            default="false",
            example="true",
        ),
        Key(
            "flush-on-down",
            "flush_on_down",
            types.Boolean(),
            "When a backend goes down, move its established flows to others too.",
            default="true",
            example="false",
        ),
        Key(
            "on-all-down",
            "on_all_down",
            types.Choice({policy.value: policy for policy in OnAllDown}),
            "`drain`: with nothing usable left all weights are 0. `keep`: the last weights stay until something is up.",
            default="drain",
            example="keep",
        ),
        Key(
            "new-flows-table-length",
            "new_flows_table_length",
            types.Integer(2, 65536, power_of_two=True),
            "Buckets of VPP's new-flow table. Default: 16384 for a new VIP, and an existing one keeps its own.",
            example="65536",
        ),
        Key(
            "weight-unit",
            "weight_unit",
            types.WeightUnit(),
            "What weights are divided by before VPP gets them. `auto`: the greatest common divisor of 10 and the "
            "frontend's non-zero weights. 1: as written. 100: the gentlest where all weights are equal.",
            default="auto",
            example="100",
        ),
        Key(
            "panic",
            "panic",
            PANIC,
            "What happens when so few backends are healthy that their health is believed no longer. Without it: never.",
        ),
        Key(
            "slow-start",
            "slow_start",
            types.Duration(0, HOUR, step=SECOND),
            "A backend that comes back gets its weight in steps of 25, 50, 75 and 100 % within this time. 0s: at once.",
            default="0s",
            example="60s",
        ),
        Key("pools", "pools", Listed("pools", POOL), "Pools by priority, at least one.", required=True),
    ),
)

LB = Section(
    "the section lb",
    (
        Key(
            "ipv4-src-address",
            "ipv4_src_address",
            types.Address(4),
            "Outer source of GRE4. Required as soon as a frontend has IPv4 backends.",
            example="192.0.2.1",
        ),
        Key(
            "ipv6-src-address",
            "ipv6_src_address",
            types.Address(6),
            "Outer source of GRE6. Unset: VPP's value stays.",
            example='"2001:db8::1"',
        ),
        Key(
            "sticky-buckets-per-core",
            "sticky_buckets_per_core",
            types.Integer(1, 1 << 30, power_of_two=True),
            "Size of each worker's table of established flows. Unset: VPP's value stays.",
            example="65536",
        ),
        Key(
            "flow-timeout",
            "flow_timeout",
            types.Duration(SECOND, 120 * SECOND, step=SECOND),
            "Time after which VPP forgets a flow without packets. Unset: VPP's value stays.",
            example="40s",
        ),
        Key(
            "sync-interval",
            "sync_interval",
            types.Duration(SECOND, HOUR),
            "Time between comparisons of all of VPP's state with what it should be.",
            default="30s",
            example="1m",
        ),
        Key(
            "startup-min-delay",
            "startup_min_delay",
            types.Duration(0, HOUR),
            "Time after the start in which nothing is written to VPP.",
            default="5s",
            example="10s",
        ),
        Key(
            "startup-max-delay",
            "startup_max_delay",
            types.Duration(0, HOUR),
            "Time after the start at which frontends with unknown backends are programmed too.",
            default="30s",
            example="1m",
        ),
        Key(
            "max-stall",
            "max_stall",
            types.Duration(MS // 10, SECOND),
            "Work for VPP's main thread that may be in flight at any time, by estimate.",
            default="5ms",
            example="2ms",
        ),
        Key(
            "max-duty",
            "max_duty",
            types.Percent(1, 100),
            "Share of VPP's time that programming may take.",
            default="50%",
            example="25%",
        ),
        Key(
            "prune",
            "prune",
            types.Choice({policy.value: policy for policy in Prune}),
            "Which VIPs that are not configured are removed from VPP: those that this daemon made or had configured "
            "(`owned`), every one (`all`), or `none`.",
            default="owned",
            example="none",
        ),
        Key(
            "mass-changes",
            "mass_changes",
            types.Choice({way.value: way for way in MassChanges}),
            "How many servers of one frontend change together: by commands of VPP's CLI, which rebuild the VIP's table "
            "once for a whole list, wherever they cost less (`auto`), or by an API call for each server (`off`).",
            default="auto",
            example="off",
        ),
    ),
)

HEALTHCHECKER = Section(
    "the section healthchecker",
    (
        Key(
            "transition-history",
            "transition_history",
            types.Integer(1, 100),
            "Transitions that are kept per backend.",
            default="5",
            example="20",
        ),
        Key(
            "netns",
            "netns",
            types.Name("network namespace"),
            "Network namespace of all probes whose check names no other. Default: the daemon's own.",
            example="dataplane",
        ),
    ),
)

VPP = Section("the section vpp", (Key("lb", "lb", LB, "How VPP's load balancer is programmed."),))

MAGLEV = Section(
    "the section maglev",
    (
        Key("healthchecker", "healthchecker", HEALTHCHECKER, "What concerns all checks."),
        Key("vpp", "vpp", VPP, "What concerns VPP."),
        Key("healthchecks", "healthchecks", Named("health checks", HEALTHCHECK), "Health checks by name."),
        Key("backends", "backends", Named("backends", BACKEND), "Backends by name."),
        Key("frontends", "frontends", Named("frontends", FRONTEND), "Frontends (VIPs) by name."),
    ),
)

ROOT = Section("the file", (Key("maglev", "maglev", MAGLEV, "Everything.", required=True),))
