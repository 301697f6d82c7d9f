"""Taking over a VPP that already forwards, without disturbing its traffic. Pure, except for the clock.

Four rules keep traffic where it is. The *warm-up* holds frontends until their backends have verdicts. Backends that VPP
sends traffic to at the start are *presumed* good, and need ``fall`` failures. A VIP whose weights are one multiple of
this daemon's keeps that *scale* until an operator asks for a sync. Weights that VPP had and *lost*, because
it was restarted or the VIP was deleted, come back where nothing better is known.

With slow start, smaller weights than this daemon's do not count as a scale: a server that was starting slowly, and
served alone when the daemon ended, has a part of its weight. A restart ends a slow start, so the server gets all of it.

Owned by the event loop. The scales are an immutable mapping, replaced on change: a plan may keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Protocol

from maglev.base.clock import Clock
from maglev.base.states import State
from maglev.config.model import Config
from maglev.judgement.weights import StateSource
from maglev.vpp.planning.desired import desired_vips
from maglev.vpp.planning.lost import NOTHING_LOST, LostWeights
from maglev.vpp.planning.model import ActualVip
from maglev.vpp.planning.scale import common_multiple, scaled
from maglev.vpp.state.warmup import Phase, WarmUp, verdict_ns
from maglev.vpp.wire.messages import VipKey


class ServingListener(Protocol):
    """Learns which backends VPP already sends traffic to; the checker is one."""

    def settle(self, names: Iterable[str], pools: Mapping[str, str]) -> None:
        """Only these are presumed good from now on. Called once. ``pools``: the pool that VPP serves, by frontend."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A VPP that was just read, compared with the configuration.

    ``serving``: backends to whose address VPP sends traffic, by whatever VIP. ``scales``: VIPs whose weights are a
    multiple of the daemon's. ``missing``: wanted VIPs that VPP does not have. ``pools``: the pool that VPP serves, of
    frontends for which that matters (``Frontend.follows_pools``).
    """

    serving: Collection[str]
    scales: Mapping[VipKey, Fraction]
    missing: Collection[VipKey]
    pools: Mapping[str, str] = field(default_factory=dict)


def look_at(
    vips: Mapping[VipKey, ActualVip], states: StateSource, lost: LostWeights = NOTHING_LOST
) -> Generator[None, None, Found]:
    """Compare VPP with the configuration, frontend by frontend: to be driven in slices.

    ``lost``: weights that VPP had, and that count where it shows none.
    """
    config = states.config()
    serving: set[str] = set()
    scales: dict[VipKey, Fraction] = {}
    missing: list[VipKey] = []
    pools: dict[str, str] = {}
    others = dict(vips)
    for name in config.frontends:
        yield
        for wanted in desired_vips([name], states):
            found = others.pop(wanted.key, None)
            traffic = _traffic(wanted.key, found, lost)
            serving.update(_serving(config, name, traffic))
            if config.frontends[name].follows_pools and (pool := _pool(config, name, traffic)):
                pools[name] = pool
            if found is None:
                missing.append(wanted.key)
                continue
            multiple = common_multiple(wanted, found)
            if multiple != 1 and not (multiple < 1 and config.frontends[name].slow_start):
                scales[wanted.key] = multiple
    # A VIP that the file lacks may be back with the next reload. Its servers have to fail as often as any other that
    # serves before they lose it: a file that was cut off and one lost probe are no reason.
    elsewhere: set[bytes] = set()
    for vip in others.values():
        yield
        elsewhere.update(address for address, have in vip.ases.items() if have.weight > 0)
    if elsewhere:
        for name, backend in config.backends.items():
            yield
            if backend.address.packed in elsewhere:
                serving.add(name)
    return Found(serving, scales, missing, pools)


def _traffic(key: VipKey, found: ActualVip | None, lost: LostWeights) -> dict[bytes, int]:
    """The addresses to which VPP sends traffic in a VIP, or did so before it was emptied, with their weights."""
    ases = found.ases if found is not None else {}
    traffic = {address: have.weight for address, have in ases.items() if have.weight > 0}
    for address, weight in lost.weights(key).items():
        if weight > 0 and lost.recall(key, address, present=address in ases) is not None:
            traffic[address] = weight
    return traffic


def _serving(config: Config, name: str, traffic: Mapping[bytes, int]) -> Iterable[str]:
    """The backends of a frontend that have traffic."""
    for pool in config.frontends[name].pools:
        for member in pool.members:
            if config.backends[member.backend].address.packed in traffic:
                yield member.backend


def _pool(config: Config, name: str, traffic: Mapping[bytes, int]) -> str:
    """The pool of a frontend with most traffic, the first one of equals; empty where none has any."""
    most, serving = 0, ""
    for pool in config.frontends[name].pools:
        weight = sum(traffic.get(config.backends[member.backend].address.packed, 0) for member in pool.members)
        if weight > most:
            most, serving = weight, pool.name
    return serving


class Adoption:
    """Where the take-over stands.

    ``started_ns``: the clock's monotonic time at the start of the process, from which the warm-up counts.
    ``settled``: the presumption is over, one way or the other. ``multiples``: VIPs that keep the scale in which they
    were found, and it.
    """

    def __init__(self, clock: Clock, started_ns: int, presumption: ServingListener | None) -> None:
        self.started_ns = started_ns
        self.warmup = WarmUp(clock, min_delay_ns=0, max_delay_ns=0, started_ns=started_ns)
        self.lost = LostWeights()
        self.multiples: Mapping[VipKey, Fraction] = {}
        self.settled = False
        self._clock = clock
        self._presumption = presumption
        self._adopted = False

    # -------------------------------------------------------------------------------------------------- configurations

    def begin(self, config: Config, state_of: Callable[[str], State]) -> None:
        """The first configuration is in force: the warm-up's delays are known."""
        lb = config.lb
        self.warmup = WarmUp(
            self._clock,
            min_delay_ns=lb.startup_min_delay,
            max_delay_ns=lb.startup_max_delay,
            verdict_ns=verdict_ns(config.healthchecks.values()),
            started_ns=self.started_ns,
        )
        self.warmup.begin(config.backends, state_of)

    def reload(
        self,
        backends: Container[str],
        inherited: Iterable[str],
        rescaled: Collection[VipKey],
        state_of: Callable[[str], State],
    ) -> None:
        """Another configuration is in force; ``inherited`` and ``rescaled`` as of its transition."""
        self.warmup.forget(backends)
        self.warmup.inherit(inherited, state_of)
        self.unscale(rescaled)

    # ----------------------------------------------------------------------------------------------------- presumption

    @property
    def silent(self) -> bool:
        """Whether nothing may be written at all."""
        return self.warmup.phase is Phase.SILENT

    @property
    def done(self) -> bool:
        """Whether the warm-up is over."""
        return self.warmup.phase is Phase.DONE

    @property
    def patience_ns(self) -> int:
        """How much longer to wait for a VPP to say what it holds."""
        return self.warmup.patience_ns

    def due_in(self) -> int | None:
        """Until something changes by itself: a phase of the warm-up, or the end of a wait; None: nothing will."""
        due = [] if self.done else [self.warmup.next_change_ns]
        if not self.settled:
            due.append(self.patience_ns)
        if (awaits := self.warmup.awaits_ns) is not None:
            due.append(awaits)
        return min(due, default=None)

    def settle(self, names: Iterable[str], pools: Mapping[str, str] = MappingProxyType({})) -> None:
        """Only these backends are presumed good from now on. Said once: nothing that is read later changes it.

        ``pools``: the pool that VPP serves, by frontend.
        """
        if self.settled:
            return
        self.settled = True
        if self._presumption is not None:
            self._presumption.settle(names, pools)

    def adopt(self, found: Found) -> Mapping[VipKey, Fraction]:
        """A VPP was read; returns the scales that are adopted with it. Only the first VPP since the start has any."""
        self.unscale(found.missing)
        adopted: Mapping[VipKey, Fraction] = {}
        if not self._adopted:
            adopted = {key: multiple for key, multiple in found.scales.items() if key not in self.multiples}
            self.multiples = {**self.multiples, **adopted}
        self._adopted = True
        self.settle(found.serving, found.pools)
        return adopted

    # ---------------------------------------------------------------------------------------------------------- scales

    def unscale(self, keys: Iterable[VipKey]) -> None:
        """These VIPs no longer keep the scale in which they were found."""
        if self.multiples and (gone := self.multiples.keys() & set(keys)):
            self.multiples = {key: multiple for key, multiple in self.multiples.items() if key not in gone}

    def unscale_all(self) -> None:
        """An operator asked for a sync: every VIP goes over to the daemon's own scale."""
        self.multiples = {}

    def own_scale(self, vip: ActualVip) -> Mapping[bytes, int]:
        """The weights of a VIP in VPP, on the daemon's scale."""
        multiple = self.multiples.get(vip.key)
        if multiple is None:
            return {address: have.weight for address, have in vip.ases.items()}
        return {address: scaled(have.weight, 1 / multiple) for address, have in vip.ases.items()}

    # ----------------------------------------------------------------------------------------------------------- losses

    def lose(self, vip: ActualVip) -> None:
        """VPP had this configured VIP and has it no longer."""
        self.lost.lose(vip.key, self.own_scale(vip))

    def recreate(self, vip: ActualVip) -> None:
        """This VIP is taken down from now on, to be created again."""
        self.lost.recreate(vip.key, self.own_scale(vip))
