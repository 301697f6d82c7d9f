"""A configuration as VPP should hold it, by the contract alone: VIPs, pools, units, and the weights for given states.

Only the reading of the file is the product's. The rule of weights is written here a second time on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from maglev.config.load import load_text
from maglev.config.model import Config, OnAllDown
from maglev.vpp.planning.model import vip_key

GUARD_VIPS = 3
"""A reload or start that deletes this many VIPs or fewer is not held back."""

DEFAULT_TABLE = 16384


@dataclass(frozen=True, slots=True)
class Member:
    """A backend in a pool: its server's address and its weight in the file."""

    backend: str
    address: str
    weight: int


@dataclass(frozen=True, slots=True)
class Vip:
    """A frontend as VPP should have it."""

    key: str
    frontend: str
    flush: bool
    keep: bool
    sticky: bool
    table: int
    unit: int
    pools: tuple[tuple[Member, ...], ...]
    pool_names: tuple[str, ...]
    least: tuple[int, ...] = ()
    """How many servers up make each pool usable: one where nothing is said."""

    def least_of(self, pool: int) -> int:
        """How many servers up make a pool usable."""
        return self.least[pool] if pool < len(self.least) else 1

    def find(self, address: str) -> tuple[int, Member] | None:
        """The pool and the member with that address."""
        for number, pool in enumerate(self.pools):
            for member in pool:
                if member.address == address:
                    return number, member
        return None

    def members(self) -> list[tuple[int, Member]]:
        """All members with the number of their pool."""
        return [(number, member) for number, pool in enumerate(self.pools) for member in pool]

    def programmed(self, weight: int) -> int:
        """A weight in units: the nearest number of them, and at least one for a weight above 0."""
        return max(1, math.floor(weight / self.unit + 0.5)) if weight > 0 else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration: its VIPs by key, and the address and the health check of each backend by name."""

    vips: Mapping[str, Vip] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)


def read(text: str) -> Plan | None:
    """The plan of a YAML file; None where the file is not valid."""
    config = load_text(text).config
    return None if config is None else of(config)


def of(config: Config) -> Plan:
    """The plan of a configuration."""
    vips: dict[str, Vip] = {}
    for frontend in config.frontends.values():
        pools = tuple(
            tuple(Member(m.backend, str(config.backends[m.backend].address), m.weight) for m in pool.members)
            for pool in frontend.pools
        )
        weights = [member.weight for pool in pools for member in pool]
        vip = Vip(
            key=str(vip_key(frontend)),
            frontend=frontend.name,
            flush=frontend.flush_on_down,
            keep=frontend.on_all_down is OnAllDown.KEEP,
            sticky=frontend.src_ip_sticky,
            table=frontend.new_flows_table_length or DEFAULT_TABLE,
            unit=frontend.weight_unit or math.gcd(10, *weights),
            pools=pools,
            pool_names=tuple(pool.name for pool in frontend.pools),
            # Shares, and thresholds for the way back, are not part of the run.
            least=tuple(pool.min_up.value for pool in frontend.pools),
        )
        vips[vip.key] = vip
    backends = {name: str(backend.address) for name, backend in config.backends.items()}
    checks = {name: backend.healthcheck or "" for name, backend in config.backends.items()}
    return Plan(vips, backends, checks)


def guarded(before: Collection[str], after: Collection[str]) -> bool:
    """Whether the step from these VIPs to those is one that the guard refuses: too many go, or all of them."""
    lost = set(before) - set(after)
    return bool(lost) and (not after or (len(lost) > GUARD_VIPS and 2 * len(lost) > len(before)))


def desired(
    vip: Vip, usable: Callable[[Member], bool], weight: Callable[[Member], int], kept: Callable[[Member], bool]
) -> dict[str, int | None]:
    """The weight of each address. None: what VPP has stays (``on-all-down: keep``, nothing is usable).

    ``usable``: up and not taken out. ``weight``: the weight in force. ``kept``: not taken out by an operator.
    """
    up = [sum(usable(m) and weight(m) > 0 for m in pool) for pool in vip.pools]
    enough = [number for number, count in enumerate(up) if count >= vip.least_of(number)]
    some = [number for number, count in enumerate(up) if count]
    active = next(iter(enough or some), None)
    wanted: dict[str, int | None] = {}
    for number, member in vip.members():
        if active is None:
            wanted[member.address] = None if vip.keep and kept(member) and weight(member) > 0 else 0
        else:
            wanted[member.address] = vip.programmed(weight(member)) if number == active and usable(member) else 0
    return wanted
