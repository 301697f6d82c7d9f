"""Fakes for the dataplane's tests: states that a test sets by hand, and a small model of what VPP does with calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from maglev.base.errors import UnknownName
from maglev.base.states import State
from maglev.config.model import Backend, Config, Frontend, LbConfig, Pool, PoolMember, Protocol
from maglev.judgement.weights import StateSource
from maglev.vpp.planning.model import Actual, ActualAs, ActualVip
from maglev.vpp.planning.plan import Op, Step
from maglev.vpp.wire.messages import Encap, LbConf, VipKey

UNSET_CONF = LbConf(b"\xff" * 4, b"\xff" * 16, 1024, 40)


@dataclass
class FakeBackend:
    """A backend as a state source shows it."""

    state: State = State.UP
    drained: bool = False


@dataclass
class FakeStates(StateSource):
    """A ``StateSource`` that a test sets by hand."""

    _config: Config
    backends: dict[str, FakeBackend] = field(default_factory=dict)
    overrides: dict[tuple[str, str, str], int] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name in self._config.backends:
            self.backends.setdefault(name, FakeBackend())

    def config(self) -> Config:
        return self._config

    def load(self, config: Config) -> None:
        """A reload: new backends are unknown, the others stay as they are."""
        for name, backend in config.backends.items():
            old = self._config.backends.get(name)
            if old is None or old.address != backend.address:
                self.backends[name] = FakeBackend(State.UNKNOWN)
        self._config = config

    def backend_state(self, name: str) -> FakeBackend:
        if name not in self._config.backends:
            raise UnknownName("backend", name)
        return self.backends[name]

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self.overrides.get((frontend, pool, backend))

    def unsettled(self, frontend: str) -> bool:
        return frontend in self.waiting

    def set(self, **states: State) -> None:
        for name, state in states.items():
            self.backends[name].state = state


def make_config(
    pools: Mapping[str, Mapping[str, int]] | None = None,
    *,
    address: str = "192.0.2.1",
    backends: Mapping[str, str] | None = None,
    lb: LbConfig | None = None,
    frontends: Iterable[Frontend] = (),
    **options: object,
) -> Config:
    """A configuration with one frontend ``www`` (tcp 80), or with the given ``frontends``.

    ``backends``: name -> address; those of ``pools`` that are not named get 10.0.0.1, 10.0.0.2, ...
    """
    made: dict[str, Backend] = {name: Backend(name, ip_address(text)) for name, text in (backends or {}).items()}
    members = tuple(
        Pool(pool, tuple(PoolMember(name, weight) for name, weight in entries.items()))
        for pool, entries in (pools or {}).items()
    )
    for pool in members:
        for member in pool.members:
            if member.backend not in made:
                made[member.backend] = Backend(member.backend, ip_address(f"10.0.0.{len(made) + 1}"))
    listed = list(frontends)
    if members:
        www = Frontend("www", ip_address(address), members, Protocol.TCP, 80)
        listed.insert(0, replace(www, **options))  # type: ignore[arg-type]
    return Config(lb=lb or LbConfig(), backends=made, frontends={frontend.name: frontend for frontend in listed})


class ModelError(Exception):
    """VPP would have refused the call, or crashed."""


@dataclass
class ModelVpp:
    """Applies the steps of a plan as VPP would. A step that VPP would refuse, or crash on, raises ModelError.

    ``flushed``: the ASes whose flows a call evicted, in order. ``history``: positive weights of each VIP after each
    step.
    """

    actual: Actual = field(default_factory=lambda: Actual(UNSET_CONF))
    flushed: list[tuple[VipKey, bytes]] = field(default_factory=list)
    history: list[dict[VipKey, dict[bytes, int]]] = field(default_factory=list)

    def apply(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._step(step)
            self.history.append(
                {
                    key: {address: found.weight for address, found in vip.ases.items() if found.weight > 0}
                    for key, vip in self.actual.vips.items()
                }
            )

    def _step(self, step: Step) -> None:
        if step.op is Op.SET_CONF:
            self._set_conf(step)
            return
        assert step.vip is not None
        if step.op is Op.CREATE_VIP:
            self._create_vip(step, step.vip)
            return
        vip = self.actual.vips.get(step.vip)
        if vip is None:
            raise ModelError(f"-6: {step}")
        if step.op is Op.DELETE_VIP:
            if vip.ases:
                raise ModelError(f"ghosts: {step}")
            del self.actual.vips[step.vip]
        elif step.op is Op.FLUSH_VIP:
            self.flushed.extend((step.vip, address) for address in vip.ases)
        elif step.op is Op.ADD_AS:
            self._add_as(step, vip)
        else:
            self._change_as(step, vip)

    def _set_conf(self, step: Step) -> None:
        assert step.conf is not None
        have = self.actual.conf
        assert have is not None
        keep = 0xFFFFFFFF  # VPP's mark for "leave this value as it is"
        buckets, timeout = step.conf.sticky_buckets_per_core, step.conf.flow_timeout
        self.actual.conf = LbConf(
            step.conf.ip4_src_address,
            step.conf.ip6_src_address,
            have.sticky_buckets_per_core if buckets == keep else buckets,
            have.flow_timeout if timeout == keep else timeout,
        )

    def _create_vip(self, step: Step, key: VipKey) -> None:
        vips = self.actual.vips
        if key in vips:
            raise ModelError(f"-81: {step}")
        if step.length <= 0 or step.length & (step.length - 1):
            raise ModelError(f"-70: {step}")
        # VIPs of one prefix share a route to the plugin: one encapsulation, and either all ports or single ones.
        for other in vips.values():
            if (other.key.address, other.key.prefix_length) == (key.address, key.prefix_length):
                if other.encap != step.encap:
                    raise ModelError(f"-73: {step}")
                if (other.key.port == 0) != (key.port == 0):
                    raise ModelError(f"-81: {step}")
        vips[key] = ActualVip(key, step.encap, step.length, step.sticky)

    @staticmethod
    def _add_as(step: Step, vip: ActualVip) -> None:
        if step.address in vip.ases:
            raise ModelError(f"-81: {step}")
        if (vip.encap == Encap.GRE4) != (len(step.address) == 4):
            raise ModelError(f"-97: {step}")
        vip.ases[step.address] = ActualAs(step.weight)

    def _change_as(self, step: Step, vip: ActualVip) -> None:
        if step.address not in vip.ases:
            raise ModelError(f"-6: {step}")
        if step.flush:
            self.flushed.append((vip.key, step.address))
        if step.op is Op.DELETE_AS:
            del vip.ases[step.address]
        else:
            vip.ases[step.address] = ActualAs(step.weight)

    def weights(self, key: VipKey) -> dict[str, int]:
        """Address -> weight of the live ASes."""
        return {str(ip_address(address)): found.weight for address, found in self.actual.vips[key].ases.items()}
