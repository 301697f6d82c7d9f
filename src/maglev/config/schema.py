"""Every key of the configuration in one table: its type, its default, what it is for.

The loader walks the file along this table; the configuration guide and the JSON schema for editors are made from it.
``attribute`` is the field of ``maglev.config.model`` that the value ends up in, and that field's default is the
key's: ``default`` only says it in the words of the file (a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from maglev.base.states import CheckType
from maglev.config import types
from maglev.config.model import MS, SECOND, OnAllDown, Protocol, Prune, TcpMode
from maglev.config.problems import Path, Report, quote
from maglev.config.types import BAD, Bad, Type

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section. ``default`` and ``example`` are in the words of the file; None: there is none."""

    name: str
    attribute: str
    type: Type | Section | Named | Listed | Variants
    help: str
    default: str | None = None
    required: bool = False
    example: str | None = None


@dataclass(frozen=True)
class Section:
    """A mapping with known keys. Reads into a dict of those that are there, by attribute."""

    what: str
    keys: tuple[Key, ...]
    by_name: dict[str, Key] = field(init=False, repr=False, compare=False)
    required: tuple[Key, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {key.name: key for key in self.keys})
        object.__setattr__(self, "required", tuple(key for key in self.keys if key.required))

    def read(self, value: object, path: Path, report: Report) -> dict[str, object] | Bad:
        """The section's values by attribute. An empty section may also be left empty."""
        if value is None:
            value = {}
        elif not isinstance(value, dict):
            report.parse(path, f"expected a mapping ({self.what}), got {quote(value)}")
            return BAD
        found: dict[str, object] = {}
        later: list[Key] = []
        by_name = self.by_name
        for name, item in value.items():
            key = by_name.get(name)
            if key is None:
                report.parse((path, name), f"unknown key in {self.what}{report.suggest(name, by_name)}", at_key=True)
                continue
            if isinstance(key.type, Variants):
                later.append(key)
                continue
            read = key.type.read(item, (path, name), report)
            if read is not BAD:
                found[key.attribute] = read
        for key in later:
            assert isinstance(key.type, Variants)
            section = key.type.sections.get(found.get(key.type.selector))
            # Without a selector, which is an error already, nobody can say what belongs here.
            if section is not None:
                read = section.read(value[key.name], (path, key.name), report)
                if read is not BAD:
                    found[key.attribute] = read
        for key in self.required:
            if key.name not in value:
                report.parse(path, f"{self.what} needs the key {key.name}", at_key=True)
        return found


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names, which the operator chooses, to sections of one kind."""

    what: str
    section: Section

    def read(self, value: object, path: Path, report: Report) -> dict[str, dict[str, object]] | Bad:
        """The sections by name, in the order of the file."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            report.parse(path, f"expected a mapping from names ({self.what}), got {quote(value)}")
            return BAD
        found: dict[str, dict[str, object]] = {}
        for name, item in value.items():
            place = (path, name)
            types.check_name(name, place, report)
            read = self.section.read(item, place, report)
            if not isinstance(read, Bad):
                found[name] = read
        return found


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of sections of one kind."""

    what: str
    section: Section

    def read(self, value: object, path: Path, report: Report) -> list[dict[str, object]] | Bad:
        """The sections, in order. One that could not be read is left out; its error is in the report."""
        if value is None:
            return []
        if not isinstance(value, list):
            report.parse(path, f"expected a list ({self.what}), got {quote(value)}")
            return BAD
        read = (self.section.read(item, (path, index), report) for index, item in enumerate(value))
        return [values for values in read if not isinstance(values, Bad)]


@dataclass(frozen=True, slots=True)
class Variants:
    """A section whose keys depend on the value of another key beside it, the one with attribute ``selector``."""

    selector: str
    sections: Mapping[object, Section]


_SERVER_NAME = types.Text(253, r"[A-Za-z0-9_.:-]+", "a host name")
_CA_FILE = types.Text(4095, "/.+", "an absolute path")

_TLS = (
    Key(
        "server-name",
        "server_name",
        _SERVER_NAME,
        "Server name sent in the handshake (SNI), and the name that the certificate is verified against. "
        "An address is verified as one and not sent. Default: `host`, else the backend's address.",
        example="www.example.org",
    ),
    Key(
        "insecure-skip-verify",
        "insecure_skip_verify",
        types.Boolean(),
        "Accept any certificate: the check then tests the handshake, not the identity.",
        default="false",
        example="true",
    ),
    Key(
        "ca-file",
        "ca_file",
        _CA_FILE,
        "PEM file with the certificate authorities to trust, in place of the system's.",
        example="/etc/vpp-maglev/ca.pem",
    ),
)

_HTTP = (
    Key(
        "path",
        "path",
        types.Text(2048, "/[!-~]*", "a path: printable ASCII without spaces, beginning with /"),
        "What is requested, with its query.",
        default="/",
        example="/healthz",
    ),
    Key(
        "method",
        "method",
        types.Choice({"GET": "GET", "HEAD": "HEAD"}),
        "Request method. HEAD gets no body, so response-regexp cannot go with it.",
        default="GET",
        example="HEAD",
    ),
    Key(
        "host",
        "host",
        types.Text(259, r"[A-Za-z0-9_.:\[\]-]+", "a host name or address, with a port if need be"),
        "The Host header. Default: the backend's address.",
        example="www.example.org",
    ),
    Key(
        "response-code",
        "response_codes",
        types.ResponseCodes(),
        "Status codes that pass.",
        default="200",
        example='"200-299,304"',
    ),
    Key(
        "response-regexp",
        "response_regexp",
        types.Text(1024, None, "a regular expression (RE2)"),
        "Must be found in the first 64 KiB of the body.",
        example='"^ok"',
    ),
)

_ICMP = (
    Key("size", "size", types.Integer(16, 1452), "Bytes of payload of the echo request.", default="56", example="1400"),
)

_TCP = (
    Key(
        "mode",
        "mode",
        types.Choice({mode.value: mode for mode in TcpMode}),
        "`syn` is half-open, by raw socket: it tests that the port listens, not that the server accepts. "
        "`connect` completes the handshake.",
        default="syn",
        example="connect",
    ),
    Key("tls", "tls", types.Boolean(), "Do a TLS handshake too. Implies connect.", default="false", example="true"),
    *_TLS,
)

PARAMS: Mapping[object, Section] = {
    CheckType.ICMP: Section("the parameters of an icmp check", _ICMP),
    CheckType.TCP: Section("the parameters of a tcp check", _TCP),
    CheckType.HTTP: Section("the parameters of an http check", _HTTP),
    CheckType.HTTPS: Section("the parameters of an https check", _HTTP + _TLS),
}

_INTERVAL = types.Duration(10 * MS, HOUR)

HEALTHCHECK = Section(
    "a health check",
    (
        Key(
            "type",
            "type",
            types.Choice({str(kind): kind for kind in CheckType}),
            "What the check speaks.",
            required=True,
            example="http",
        ),
        Key(
            "port",
            "port",
            types.Integer(1, 65535),
            "Port that is probed. Required for tcp, http and https; icmp has none.",
            example="80",
        ),
        Key("params", "params", Variants("type", PARAMS), "What depends on the type."),
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
