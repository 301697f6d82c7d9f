"""Parts of all dataplane benchmarks: checker, reconciler and client in this process, a stand-in in another.

The probe engine is a fake one, so that a benchmark decides which verdict comes when; everything after it is real.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import uvloop

from bench.harness import Figure
from maglev._probe import Transition
from maglev.base.clock import SystemClock
from maglev.base.events import Bus
from maglev.base.logs import LogControl
from maglev.base.states import Code, State
from maglev.checker import Checker
from maglev.config.model import Backend, Config, Frontend, LbConfig, Pool, PoolMember, Protocol
from maglev.daemon.process import settle_collector
from maglev.vpp.planning.desired import desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.lost import NOTHING_LOST
from maglev.vpp.planning.model import Actual
from maglev.vpp.planning.plan import Plan, acknowledge
from maglev.vpp.planning.policy import Policy
from maglev.vpp.sync.reconciler import Reconciler
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import MESSAGES
from maglev.vpp.wire.transport import Reply, Request
from tests.helpers.checker import FakeClock, FakeEngine, check
from tests.helpers.vpp import FakeStates

PATIENCE = 120.0
"""Seconds after which a benchmark that got stuck fails instead of hanging."""


class Verdicts(FakeEngine):
    """An engine whose verdicts a benchmark makes, announced through a descriptor as by the native engine."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    @property
    def waiting(self) -> bool:
        """Whether unread verdicts wait."""
        return bool(self._transitions)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def all_become(self, state: State) -> None:
        """Every target changes to ``state`` at this moment."""
        self.become(self.targets, state)

    def become(self, targets: Iterable[int], state: State) -> None:
        """These targets change to ``state`` at this moment."""
        now = time.time_ns()
        code = Code.L3OK if state is State.UP else Code.L3TOUT
        for number in targets:
            target = self.targets[number]
            self._transitions.append(
                Transition(target.id, target.generation, target.state, state, code, "", now, target.counter)
            )
            target.state = state
        os.eventfd_write(self._fd, 1)

    def transitions(self, most: int = 4096) -> list[Transition]:
        taken = super().transitions(most)
        if not self._transitions:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        return taken


@dataclass
class Rig:
    """A daemon's worth of checker and dataplane."""

    engine: Verdicts
    bus: Bus
    checker: Checker
    client: VppClient
    reconciler: Reconciler

    async def become(self, state: State) -> int:
        """Every backend changes to ``state``, and VPP is programmed; returns the time of the last verdict."""
        self.engine.all_become(state)
        last_verdict_ns = time.monotonic_ns()
        while self.engine.waiting:  # noqa: ASYNC110 - what it waits for is many events
            await asyncio.sleep(0.002)
        await self.settled()
        return last_verdict_ns

    async def empty(self) -> None:
        """Take every VIP away again."""
        await self.checker.apply(Config(lb=replace(self.checker.config().lb, max_duty=1.0)), by="bench", force=True)
        await self.settled()

    async def settled(self) -> None:
        """Wait until VPP has what it should have."""
        async with asyncio.timeout(PATIENCE):
            while self.reconciler.actual is None or not self.client.usable:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await self.reconciler.settled()


def config_of(
    frontends: int, members: int, *, pools: int = 1, weight: int = 100, lb: LbConfig | None = None, **options: object
) -> Config:
    """``frontends`` VIPs with ``members`` backends of their own in each of ``pools`` pools."""
    backends: dict[str, Backend] = {}
    made: dict[str, Frontend] = {}
    first = int(ip_address("10.0.0.1"))
    for number in range(frontends):
        of_frontend = []
        for pool in range(pools):
            names = []
            for _ in range(members):
                name = f"b{len(backends)}"
                backends[name] = Backend(name, ip_address(first + len(backends)), "ping")
                names.append(PoolMember(name, weight))
            of_frontend.append(Pool(f"p{pool}", tuple(names)))
        address = ip_address("192.0.2.0") + number
        values: dict[str, object] = {"protocol": Protocol.TCP, "port": 80, **options}
        made[f"f{number}"] = Frontend(f"f{number}", address, tuple(of_frontend), **values)  # type: ignore[arg-type]
    return Config(
        lb=lb or LbConfig(startup_min_delay=0, startup_max_delay=0),
        backends=backends,
        frontends=made,
        healthchecks={"ping": check()},
    )


@asynccontextmanager
async def stand_in(directory: Path, told: Path | None = None) -> AsyncIterator[Path]:
    """A stand-in in a separate process, which reports weight calls in the file ``told``."""
    path = directory / "api.sock"
    words = [str(path), *([str(told)] if told is not None else [])]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench._instant", *words, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while b"listening" not in await process.stderr.readline():
            if process.returncode is not None:
                raise RuntimeError("the stand-in did not start")
    draining = asyncio.create_task(process.stderr.read())
    try:
        yield path
    finally:
        process.terminate()
        await process.wait()
        draining.cancel()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        control = LogControl(stream=nowhere)
        control.start()
        yield
        control.end()


@asynccontextmanager
async def rig(config: Config, socket: str = "") -> AsyncIterator[Rig]:
    """Checker, reconciler and client on a stand-in, or on the VPP at ``socket``; every backend is up and programmed.

    The log is written as by the daemon, and thrown away.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_logged())
        if not socket:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            socket = str(await stack.enter_async_context(stand_in(directory)))
        clock = SystemClock()
        engine = Verdicts()
        stack.callback(engine.close)
        bus = Bus()
        checker = Checker(engine, bus, clock)
        client = VppClient(socket, clock)
        reconciler = Reconciler(client, bus, checker, clock, presumption=checker)
        loop = asyncio.get_running_loop()
        loop.add_reader(engine.fileno(), checker.read_engine)
        stack.callback(loop.remove_reader, engine.fileno())
        await checker.apply(config, by="bench")
        engine.all_become(State.UP)
        tasks = [asyncio.create_task(client.run()), asyncio.create_task(reconciler.run())]
        made = Rig(engine, bus, checker, client, reconciler)
        try:
            await made.settled()
            settle_collector()
            yield made
            gc.unfreeze()
        finally:
            tasks[1].cancel()
            await asyncio.wait(tasks[1:])
            await client.close()
            await tasks[0]


def plan_of_failure(config: Config, failed: Iterable[str]) -> Plan:
    """The calls when these backends go down in a VPP where all are up, with their costs by the formula."""
    states, actual = FakeStates(config), Actual(None, {})
    policy = Policy(full=True, prune_rest=False, commands=True)
    for step in diff(desired_vips(config.frontends, states), actual, {}, policy, lost=NOTHING_LOST).steps:
        acknowledge(actual, step)
    for name in failed:
        states.backends[name].state = State.DOWN
    return diff(desired_vips(config.frontends, states), actual, {}, replace(policy, full=False), lost=NOTHING_LOST)


class Writes:
    """Remembers what was written to VPP, and when (monotonic, ns) the last of it was; ``each``: the last of an AS.

    ``counts``: how often each AS of each VIP got a weight, by a call or by a command.
    """

    def __init__(self, client: VppClient) -> None:
        self.last_ns = 0
        self.calls: list[Request] = []
        self.each: dict[bytes, int] = {}
        self.counts: Counter[tuple[str, bytes]] = Counter()
        self.wrote = asyncio.Event()
        self._send = client.send
        client.send = self._watched  # type: ignore[method-assign]

    async def _watched(self, requests: Sequence[Request]) -> list[Reply]:
        sending = asyncio.ensure_future(self._send(requests))
        await asyncio.sleep(0)
        self.last_ns = time.monotonic_ns()
        self.calls += requests
        for request in requests:
            for vip, address in weighed(request):
                self.each[address] = self.last_ns
                self.counts[vip, address] += 1
        self.wrote.set()
        return await sending


def weighed(request: Request) -> Iterator[tuple[str, bytes]]:
    """The ASes to which a request gives a weight, each with its VIP."""
    if request.weight is not None:
        yield str(request.weight.vip.prefix), request.weight.address
    if request.name != "cli_inband":
        return
    for line in MESSAGES["cli_inband"].unpack(request.payload)["cmd"].split("\n"):
        words = line.split()
        if words[:2] == ["lb", "as"] and words[-2] == "weight":
            first = 7 if words[3] == "protocol" else 3
            for text in words[first:-2]:
                yield words[2], ip_address(text).packed


def run(question: Callable[[], Coroutine[None, None, list[Figure]]]) -> list[Figure]:
    """Run a coroutine function on the loop that the daemon uses."""
    return uvloop.run(question())
