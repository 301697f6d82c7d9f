"""The desired state of VPP: the configuration and the states of the backends, turned into VIPs with weighted ASes.

Pure: a snapshot goes in, frozen values come out. ``maglev.judgement`` decides about the weights. This module arranges
its answer by address, since VPP knows no backends.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.judgement.snapshot import NOTHING_PRESUMED, Presumption, judge
from maglev.judgement.weights import StateSource, programmed_weight
from maglev.vpp.planning.lost import NOTHING_LOST, LostWeights
from maglev.vpp.planning.model import ActualVip, address_order, vip_key
from maglev.vpp.wire.messages import Encap, VipKey


class DesiredAs(NamedTuple):
    """One AS as it should be. A named tuple, since a full sync makes tens of thousands of them.

    ``weight``: programmed weight, in units; None: whatever VPP has stays, and an AS that is missing comes at 0.
    ``nominal``: the programmed weight it would have in the active pool, by which a foreign multiple is found.
    ``backend`` is the member that decides where two backends share an address: the one with the larger weight.
    """

    address: bytes
    backend: str
    pool: str
    state: State
    weight: int | None
    nominal: int


@dataclass(frozen=True, slots=True)
class DesiredVip:
    """One VIP as it should be, its ASes in numeric order.

    ``length`` None: an existing VIP keeps its own. ``held``: addresses that are no longer configured and stay with
    the weight they have, because they are all that serves this frontend for now.
    """

    key: VipKey
    frontend: str
    encap: Encap
    length: int | None
    sticky: bool
    unit: int
    usable: bool
    flush_on_down: bool
    ases: tuple[DesiredAs, ...]
    held: frozenset[bytes] = frozenset()


def backends_encap(frontend: Frontend, config: Config) -> Encap:
    """GRE4 or GRE6 by the family of the backends, which the configuration check has made one."""
    first = frontend.pools[0].members[0].backend
    return Encap.GRE4 if config.backends[first].address.version == 4 else Encap.GRE6


def desired_vip(
    frontend: Frontend,
    source: StateSource,
    *,
    unresolved: Container[str] = frozenset(),
    awaited: Container[str] = frozenset(),
    found: ActualVip | None = None,
    lost: LostWeights = NOTHING_LOST,
    held: Iterable[bytes] = (),
) -> DesiredVip:
    """The VIP of one frontend as it should be now.

    ``unresolved``: backends without a verdict; ``awaited``: those of them whose verdict is awaited. What is presumed of
    them follows from ``found``, the VIP as VPP has it, and from the weights that were ``lost``;
    ``maglev.judgement.snapshot`` has the rule.

    ``held``: old addresses of backends that got new ones. They stay only while nothing else of the frontend is usable,
    and not where operators took all of its servers out.
    """
    config = source.config()
    presumption = NOTHING_PRESUMED
    if unresolved:
        presumption = Presumption(unresolved, _serving(frontend, config, unresolved, found, lost), awaited)
    answer = judge(frontend, source, presumption).programmed
    unit, backends = answer.unit, config.backends
    ases: dict[bytes, DesiredAs] = {}
    for member in answer.members:
        address = backends[member.backend].address.packed
        wanted = DesiredAs(
            address=address,
            backend=member.backend,
            pool=member.pool,
            state=member.state,
            weight=None if member.keep else member.programmed,
            nominal=programmed_weight(member.weight, unit),
        )
        present = ases.get(address)
        if present is None or _rank(wanted) > _rank(present):
            ases[address] = wanted
    # Where operators took every server out, the address that one of them had a moment ago serves no longer either.
    holds = not answer.usable and any(
        member.weight > 0 and not member.drained and member.state not in (State.DISABLED, State.PAUSED)
        for member in answer.members
    )
    return DesiredVip(
        key=vip_key(frontend),
        frontend=frontend.name,
        encap=backends_encap(frontend, config),
        length=frontend.new_flows_table_length,
        sticky=frontend.src_ip_sticky,
        unit=unit,
        usable=answer.usable,
        flush_on_down=frontend.flush_on_down,
        ases=tuple(ases[address] for address in sorted(ases, key=address_order)),
        held=frozenset(address for address in held if address not in ases) if holds else frozenset(),
    )


def _serving(
    frontend: Frontend, config: Config, unresolved: Container[str], found: ActualVip | None, lost: LostWeights
) -> frozenset[str]:
    """The unresolved backends of a frontend to which VPP sends traffic, or did so before it was emptied."""
    backends, key = config.backends, vip_key(frontend)
    names: set[str] = set()
    for pool in frontend.pools:
        for member in pool.members:
            if member.backend not in unresolved:
                continue
            address = backends[member.backend].address.packed
            have = found.ases.get(address) if found is not None else None
            weight = lost.recall(key, address, present=have is not None)
            if weight is None:
                weight = have.weight if have is not None else 0
            if weight > 0:
                names.add(member.backend)
    return frozenset(names)


def _rank(wanted: DesiredAs) -> tuple[int, int]:
    """Which of two members on one address decides: traffic wins over keeping, keeping over nothing."""
    if wanted.weight is None:
        return (1, 0)
    return (2, wanted.weight) if wanted.weight > 0 else (0, 0)


def desired_vips(
    frontends: Iterable[str],
    source: StateSource,
    *,
    unresolved: Container[str] = frozenset(),
    awaited: Container[str] = frozenset(),
    found: Mapping[VipKey, ActualVip] | None = None,
    lost: LostWeights = NOTHING_LOST,
    held: Callable[[str], Iterable[bytes]] = lambda _: (),
) -> list[DesiredVip]:
    """The VIPs of the named frontends, as ``desired_vip``; names that are not configured are left out."""
    configured: Mapping[str, Frontend] = source.config().frontends
    vips: list[DesiredVip] = []
    for name in frontends:
        frontend = configured.get(name)
        if frontend is not None:
            present = found.get(vip_key(frontend)) if found is not None and unresolved else None
            vips.append(
                desired_vip(
                    frontend,
                    source,
                    unresolved=unresolved,
                    awaited=awaited,
                    found=present,
                    lost=lost,
                    held=held(name),
                )
            )
    return vips
