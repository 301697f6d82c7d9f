"""The configuration as frozen dataclasses: a file that was read, checked and completed with defaults.

Durations are integers in nanoseconds. Mappings keep the order of the file. A ``Config`` is immutable and may be
shared between tasks; a reload makes a new one. Equal parts of two configurations compare equal: by that a
reload finds the changes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from maglev.base.states import CheckType
from maglev.kinds.http import HttpParams
from maglev.kinds.icmp import IcmpParams
from maglev.kinds.params import Params
from maglev.kinds.tcp import TcpMode, TcpParams
from maglev.kinds.tls import TlsParams
from maglev.schema.addresses import IPAddress
from maglev.schema.types import Threshold

# The parameters of a check are the kinds' own classes; they are part of a configuration and so have names here too.
__all__ = [
    "MS",
    "SECOND",
    "Backend",
    "Brake",
    "Config",
    "Frontend",
    "HealthCheck",
    "HttpParams",
    "IPAddress",
    "IcmpParams",
    "LbConfig",
    "MassChanges",
    "OnAllDown",
    "Panic",
    "PanicAction",
    "Params",
    "Pool",
    "PoolMember",
    "Protocol",
    "Prune",
    "TcpMode",
    "TcpParams",
    "Threshold",
    "TlsParams",
]

MS = 1_000_000
SECOND = 1_000_000_000


class Protocol(enum.IntEnum):
    """IP protocol of a frontend; ``ANY`` has no port (and is 255 in VPP's API)."""

    TCP = 6
    UDP = 17
    ANY = 255

    def __str__(self) -> str:
        return self.name.lower()


class OnAllDown(enum.Enum):
    """The weights of a frontend in VPP while none of its backends is usable."""

    DRAIN = "drain"
    KEEP = "keep"


class PanicAction(enum.Enum):
    """The weights of a frontend in panic."""

    ALL = "all"
    KEEP = "keep"
    DRAIN = "drain"


class Prune(enum.Enum):
    """Which VIPs that are not configured a full sync may remove from VPP."""

    OWNED = "owned"
    ALL = "all"
    NONE = "none"


class MassChanges(enum.Enum):
    """Whether many ASes of a VIP may change by commands of VPP's CLI."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One health check. All times in nanoseconds, with the defaults already filled in."""

    name: str
    type: CheckType
    params: Params
    port: int = 0
    interval: int = 2 * SECOND
    fast_interval: int = 2 * SECOND
    down_interval: int = 2 * SECOND
    timeout: int = 2 * SECOND
    rise: int = 2
    fall: int = 3
    probe_ipv4_src: IPv4Address | None = None
    probe_ipv6_src: IPv6Address | None = None
    netns: str | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """One server. ``healthcheck`` None: static, always up. ``enabled`` False: starts disabled."""

    name: str
    address: IPAddress
    healthcheck: str | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A backend in a pool, with its configured weight 0..100."""

    backend: str
    weight: int = 100


RAMP = (25, 50, 75, 100)
"""The parts of its weight, in percent, that a backend has one after the other while it starts slowly."""

ONE_MEMBER = Threshold(1)
"""The least that a pool needs unless the file says more."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Backends of one priority.

    ``min_up``: what it needs to be usable. ``resume_up`` and ``resume_after``: what it needs, and for how long, to take
    over from a pool of lower priority. ``resume_up`` is ``min_up`` unless the file says otherwise.
    """

    name: str
    members: tuple[PoolMember, ...]
    min_up: Threshold = ONE_MEMBER
    resume_up: Threshold = ONE_MEMBER
    resume_after: int = 0

    @property
    def returns_late(self) -> bool:
        """Whether it needs more to take over again than to go on."""
        return self.resume_up != self.min_up or self.resume_after > 0


@dataclass(frozen=True, slots=True)
class Panic:
    """When health is believed no longer: ``below`` is a share of the healthy weight, 0..1."""

    below: float = 0.5
    action: PanicAction = PanicAction.ALL


@dataclass(frozen=True, slots=True)
class Frontend:
    """One VIP. ``port`` is 0 when ``protocol`` is ``ANY``; ``weight_unit`` None means auto; pools by priority.

    ``panic`` None: never. ``slow_start`` 0: weights come back at once.
    """

    name: str
    address: IPAddress
    pools: tuple[Pool, ...]
    protocol: Protocol = Protocol.ANY
    port: int = 0
    description: str = ""
    src_ip_sticky: bool = False
    flush_on_down: bool = True
    on_all_down: OnAllDown = OnAllDown.DRAIN
    new_flows_table_length: int | None = None
    weight_unit: int | None = None
    panic: Panic | None = None
    slow_start: int = 0

    @property
    def follows_pools(self) -> bool:
        """Whether the active pool depends on the one before, and not on the states of the backends alone."""
        # A share depends on which pool serves while servers have no verdict (maglev.judgement.pools).
        late = any(pool.returns_late for pool in self.pools[:-1])
        return late or (len(self.pools) > 1 and any(pool.min_up.percent for pool in self.pools))


@dataclass(frozen=True, slots=True)
class LbConfig:
    """The ``maglev.vpp.lb`` section. None where VPP's own value stays."""

    ipv4_src_address: IPv4Address | None = None
    ipv6_src_address: IPv6Address | None = None
    sticky_buckets_per_core: int | None = None
    flow_timeout: int | None = None
    sync_interval: int = 30 * SECOND
    startup_min_delay: int = 5 * SECOND
    startup_max_delay: int = 30 * SECOND
    max_stall: int = 5 * MS
    max_duty: float = 0.5
    prune: Prune = Prune.OWNED
    mass_changes: MassChanges = MassChanges.AUTO


@dataclass(frozen=True, slots=True)
class Brake:
    """When failures by silence are held: ``share`` 0..1 of the targets that were up, and how many at least."""

    share: float = 0.5
    at_least: int = 20
    hold: int = 15 * SECOND


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, valid configuration. Every reference between its parts has been checked. ``brake`` None: off."""

    transition_history: int = 5
    netns: str | None = None
    brake: Brake | None = Brake()
    lb: LbConfig = LbConfig()
    healthchecks: Mapping[str, HealthCheck] = field(default_factory=dict)
    backends: Mapping[str, Backend] = field(default_factory=dict)
    frontends: Mapping[str, Frontend] = field(default_factory=dict)
