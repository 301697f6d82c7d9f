"""A reconciler and its client on a stand-in's socket, with states that the test sets and events as the checker sends
them. Every wait has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from maglev.base.clock import Clock, SystemClock
from maglev.base.events import BackendEvent, Bus, ConfigEvent, DrainEvent, WeightEvent
from maglev.base.states import Code, State
from maglev.config.model import Config, LbConfig, MassChanges
from maglev.vpp.shown.dataplane import Dataplane
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.sync.executor import Executor, Pacer
from maglev.vpp.sync.reconciler import Reconciler
from maglev.vpp.wire.client import Timing, VppClient
from maglev.vpp.wire.messages import VipKey, address_text
from maglev.vppsim.journal import Entry
from maglev.vppsim.model import Vip, embed, extract
from maglev.vppsim.server import StandIn
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import FakeStates, make_config

DEADLINE = 10.0
WWW = VipKey.parse("192.0.2.1/32", 6, 80)
AT_ONCE = LbConfig(startup_min_delay=0, startup_max_delay=0)
"""No warm-up delays."""
SINGLY = replace(AT_ONCE, mass_changes=MassChanges.OFF)
"""The same, and each AS changes by a separate call."""
HASTY = Timing(deadline=1.0, ping=0.5, backoff=0.01, backoff_most=0.02)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a state that no event announces."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - what sets it knows nothing of tests
            await asyncio.sleep(0.002)


class PacedClock(FakeClock):
    """Time that the test moves, but for the short waits of the pacing, which pass by themselves."""

    async def sleep(self, seconds: float) -> None:
        if seconds >= 0.5:
            await super().sleep(seconds)
            return
        self.now += int(seconds * 1e9) + 1
        await asyncio.sleep(0)


class Presumed:
    """Remembers which backends were said to serve already; None: nothing was said."""

    def __init__(self) -> None:
        self.names: set[str] | None = None

    def settle(self, names: object, pools: object) -> None:
        assert self.names is None
        self.names = set(names)  # type: ignore[call-overload]


class Rig:
    """One daemon's worth of dataplane."""

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        clock: Clock | None = None,
        timing: Timing = HASTY,
        store: MemoryStore | None = None,
        state: State = State.UP,
        executor: Callable[[VppClient, Pacer], Executor] = Executor,
    ) -> None:
        self.clock = clock or SystemClock()
        self.bus = Bus()
        self.states = FakeStates(config)
        for backend in self.states.backends.values():
            backend.state = state
        self.store = store or MemoryStore()
        self.presumed = Presumed()
        self.client = VppClient(str(path), SystemClock(), timing=timing, chance=random.Random(1))
        self.reconciler = Reconciler(
            self.client,
            self.bus,
            self.states,
            self.clock,
            presumption=self.presumed,
            store=self.store,
            executor=executor,
        )
        self.dataplane = Dataplane(self.client, self.reconciler, self.states, self.clock)

    def load(self, config: Config | None = None, *, forced: bool = False) -> None:
        """A configuration takes effect."""
        if config is not None:
            self.states.load(config)
        self.bus.publish(ConfigEvent(0, forced=forced))

    def backend(self, name: str, state: State, *, by: str = "") -> None:
        """A backend changes its state."""
        backend = self.states.backends[name]
        before, backend.state = backend.state, state
        address = str(self.states.config().backends[name].address)
        self.bus.publish(BackendEvent(name, address, before, state, Code.NONE, "", 0, by=by))

    def drain(self, name: str, drained: bool = True) -> None:
        """An operator drains a backend."""
        backend = self.states.backends[name]
        backend.drained = drained
        address = str(self.states.config().backends[name].address)
        self.bus.publish(DrainEvent(name, address, backend.state, drained, 0))

    def weight(self, backend: str, weight: int, *, flush: bool = False, frontend: str = "www", pool: str = "p") -> None:
        """An operator sets a weight."""
        self.states.overrides[frontend, pool, backend] = weight
        self.bus.publish(WeightEvent(frontend, pool, backend, 0, weight, flush, 0))

    def _known(self) -> bool:
        return self.client.usable and self.reconciler.actual is not None

    async def settled(self) -> None:
        """VPP is there, has been read, and nothing is left to do."""
        async with asyncio.timeout(DEADLINE):
            while True:
                await eventually(self._known)
                await self.reconciler.settled()
                if self._known():
                    break  # else the connection was lost meanwhile
        # The reconciler's tasks go to sleep on the clock now: a test may move it only when they do.
        for _ in range(5):
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        """Run client and reconciler; the end is orderly."""
        client = asyncio.create_task(self.client.run())
        reconciler = asyncio.create_task(self.reconciler.run())
        try:
            yield self
            if reconciler.done():
                reconciler.result()
        finally:
            reconciler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reconciler
            await self.client.close()
            async with asyncio.timeout(DEADLINE):
                await client


@contextlib.asynccontextmanager
async def stand_in(path: Path) -> AsyncIterator[StandIn]:
    """A stand-in on a socket."""
    server = StandIn(path)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def failover(lb: LbConfig = AT_ONCE, **options: object) -> Config:
    """A frontend with two servers and a standby: 10.0.0.1, .2, and .3."""
    return make_config({"p": {"a": 10, "b": 10}, "fallback": {"c": 10}}, lb=lb, **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def programmed(path: Path, config: Config | None = None, **options: object) -> AsyncIterator[tuple[StandIn, Rig]]:
    """A stand-in that a rig has programmed, with an empty journal."""
    async with stand_in(path) as server:
        rig = Rig(path, config or failover(), **options)  # type: ignore[arg-type]
        rig.load()
        async with rig.running():
            await rig.settled()
            server.journal.clear()
            yield server, rig


def vip_of(server: StandIn, key: VipKey = WWW) -> Vip | None:
    """The live VIP of that key in the stand-in."""
    return server.model.find(embed(key.address), key.prefix_length + 128 - 8 * len(key.address), key.protocol, key.port)


def weights(server: StandIn, key: VipKey = WWW) -> dict[str, int]:
    """The contents of the stand-in: address -> weight of the live ASes of a VIP; nothing if there is no such VIP."""
    vip = vip_of(server, key)
    if vip is None:
        return {}
    return {address_text(extract(one.address)): one.weight for one in server.model.ases_of(vip) if one.used}


def all_weights(server: StandIn) -> dict[str, int]:
    """The same of all VIPs together: address -> weight of every live AS."""
    return {
        address_text(extract(one.address)): one.weight
        for vip in server.model.vips
        for one in server.model.ases_of(vip)
        if one.used
    }


def drift(server: StandIn, address: str, weight: int, key: VipKey = WWW) -> None:
    """Another client sets a weight in VPP."""
    vip = vip_of(server, key)
    assert vip is not None
    assert server.model.set_weight(vip, embed(ip_address(address).packed), weight, flush=False) == 0


def writes(server: StandIn) -> list[str]:
    """The calls that changed VPP, in short: ``weight 10.0.0.1 0 flush``."""
    return [_short(entry) for entry in server.journal.writes()]


def _short(entry: Entry) -> str:
    values = entry.values
    words = {"lb_as_set_weight": "weight", "lb_add_del_as_v2": "as", "lb_add_del_vip_v2": "vip"}
    line = [words.get(entry.message, entry.message)]
    if values.get("is_del"):
        line.append("del")
    if "as_address" in values:
        line.append(address_text(values["as_address"]))
        if not values.get("is_del"):
            line.append(str(values["weight"]))
    elif "pfx" in values:
        line.append(str(values["pfx"]))
    if values.get("is_flush"):
        line.append("flush")
    if entry.retval:
        line.append(f"= {entry.retval}")
    return " ".join(line)
