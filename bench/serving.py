"""Large lists, many watchers and large scrapes, and for how long the event loop is held by them.

The checker is the real one; lists and scrapes are of an engine that does not run, as a list of what never changes is
as long as any other, and for the watchers verdicts are made by hand and a stand-in takes what they lead to. Server, bus
and metrics are the daemon's own, on real sockets. Clients live in processes of their own.

A loop can be held by its own work, or by a machine that does something else. So beside the wall clock stands for how
long it was held at most while it had a CPU, and how late a timer was that does nothing, in another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop

from bench._dataplane import Rig, Writes, config_of, rig
from bench.config import tree
from bench.harness import Figure, LoopWatch, held
from maglev._probe import Engine
from maglev.base.clock import SystemClock
from maglev.base.events import Bus
from maglev.base.logs import LogControl
from maglev.base.states import State
from maglev.checker import Checker
from maglev.checker.preview import Previews
from maglev.config.model import LbConfig
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.process import settle_collector
from maglev.daemon.sdnotify import Notifier
from maglev.events.causes import Causes
from maglev.events.ring import EventRing
from maglev.metrics.checker import CheckerFamilies
from maglev.metrics.engine import EngineFamilies
from maglev.metrics.exposition import Exposition
from maglev.metrics.server import MetricsServer
from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc.server import RpcServer, ServerOptions
from maglev.rpc.services import Identity, Services

QUESTION = "How long do lists, watches and scrapes of 50,000 backends take, and for how long do they hold the loop?"

ROUNDS = 5
BACKENDS = 50_000
# Pauses and resumptions of each backend, which leave two transitions each in its history.
PAUSES = 2
SUBSCRIBERS = 100
BURST = 10_000
PAGE = 5_000
# Events that the engine reports in one go.
AT_ONCE = 256
# A backend fails so often beside a burst, to see how long that takes to reach VPP.
REACTION_SECONDS = 0.02
# Bursts that watchers do not read, in one go. What waits for them is full after the first go; the allocator's pools, in
# which it lies among what comes and goes, have their size after the second. The third is to take no more memory.
UNREAD = 8
DEADLINE = 120.0
"""Seconds: a client that takes longer has come to grief."""
CALM_FRONTENDS = {"flush_on_down": False, "new_flows_table_length": 16}
CALM_LB = LbConfig(startup_min_delay=0, startup_max_delay=0, max_duty=1.0, sync_interval=3600 * 10**9)


def api_of(directory: Path, checker: Checker, bus: Bus, file: Path) -> RpcServer:
    """The API of a checker, on ``maglevd.sock`` in ``directory``."""
    clock = SystemClock()
    causes = Causes(clock, checker.frontends_of, lambda: checker.config().frontends)
    services = Services(
        identity=Identity("bench", clock.time_ns(), clock.monotonic_ns()),
        clock=clock,
        bus=bus,
        checker=checker,
        previews=Previews(checker),
        tracer=checker,
        loader=ConfigFile(file, checker, Notifier(), clock),
        logs=LogControl(),
        events=EventRing(clock, causes),
        causes=causes,
    )
    return RpcServer(services, ServerOptions(unix_socket=directory / "maglevd.sock"))


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[RpcServer, MetricsServer]]:
    """The API and the metrics of 50,000 backends, each with a history."""
    file = directory / "maglev.json"
    file.write_text(json.dumps(tree()), encoding="utf-8")
    bus = Bus()
    # Never started: it would probe addresses of others.
    engine = Engine()
    checker = Checker(engine, bus, SystemClock())
    checker.settle(())
    loaded = ConfigFile(file, checker, Notifier(), SystemClock())
    assert (await loaded.start()).config is not None
    for _ in range(PAUSES):
        for live in checker.backends():
            checker.pause(live.name, by="bench")
            checker.resume(live.name, by="bench")
    api = api_of(directory, checker, bus, file)
    exposition = Exposition()
    exposition.add(CheckerFamilies(checker).families())
    exposition.add(EngineFamilies(engine).families())
    metrics = MetricsServer(exposition)
    await api.start()
    await metrics.start("127.0.0.1:0")
    settle_collector()
    try:
        yield api, metrics
    finally:
        await metrics.stop()
        await api.stop(0.2)


def _pages(stub: Any, *, whole: bool) -> int:
    request = pb.ListBackendsRequest(page_size=PAGE, omit_transitions=not whole)
    count = 0
    while True:
        page = stub.ListBackends(request, timeout=DEADLINE)
        count += len(page.backends)
        if not page.next_page_token:
            return count
        request.page_token = page.next_page_token


def _answer(pipe: Connection, what: str) -> None:
    """In a separate process: do ``what`` on request; answer with the seconds, and its own CPU seconds.

    ``what``: ``list SOCKET``, ``list-whole SOCKET``, ``check SOCKET`` or ``scrape URL``.
    """
    import urllib.request

    verb, _, where = what.partition(" ")
    channel = grpc.insecure_channel(f"unix:{where}", [("grpc.max_receive_message_length", 64 << 20)])
    stub: Any = MaglevStub(channel)

    def once() -> None:
        if verb == "scrape":
            with urllib.request.urlopen(where, timeout=DEADLINE) as answer:
                assert answer.read().endswith(b"\n")
        elif verb == "check":
            assert stub.CheckConfig(pb.CheckConfigRequest(), timeout=DEADLINE).ok
        else:
            assert _pages(stub, whole=verb == "list-whole") == BACKENDS

    while pipe.recv():
        began, cpu = time.perf_counter(), time.process_time()
        once()
        pipe.send((time.perf_counter() - began, time.process_time() - cpu))


def _late(pipe: Connection, _: str) -> None:
    """In a separate process: a timer that is due each millisecond; answers how late it was since the last answer."""
    worst = 0.0
    while True:
        due = time.perf_counter() + 0.001
        time.sleep(0.001)
        worst = max(worst, time.perf_counter() - due)
        if pipe.poll():
            pipe.recv()
            pipe.send(worst)
            worst = 0.0


def _watch(pipe: Connection, socket: str) -> None:
    """In a separate process: ``SUBSCRIBERS`` watches; say when all stand, and when each has the burst.

    Only events of one kind are asked for, those that the burst is made of and that nothing else makes.
    """

    async def one(stub: Any, ready: asyncio.Semaphore) -> int:
        lost = seen = 0
        async for batch in stub.WatchEvents(pb.WatchEventsRequest(omit_state=True)):
            if batch.state_complete:
                ready.release()
            seen += sum(event.backend.code == pb.CHECK_CODE_L3TOUT for event in batch.events)
            lost += batch.lost
            if seen + lost >= BURST:
                break
        return lost

    async def all_of_them() -> None:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            stub = MaglevStub(channel)
            ready = asyncio.Semaphore(0)
            watches = [asyncio.create_task(one(stub, ready)) for _ in range(SUBSCRIBERS)]
            for _ in range(SUBSCRIBERS):
                await ready.acquire()
            pipe.send(True)
            pipe.send((sum(await asyncio.gather(*watches)), time.monotonic()))

    asyncio.run(all_of_them())


def _stare(pipe: Connection, socket: str) -> None:
    """In a separate process: ``SUBSCRIBERS`` watches of which nothing is read once they stand."""
    with grpc.insecure_channel(f"unix:{socket}", [("grpc.http2.bdp_probe", 0)]) as channel:
        stub: Any = MaglevStub(channel)
        watches = [stub.WatchEvents(pb.WatchEventsRequest(omit_state=True)) for _ in range(SUBSCRIBERS)]
        for watch in watches:
            assert next(watch).state_complete
        pipe.send(True)
        pipe.recv()


class Client:
    """A process that is asked through a pipe, without holding the loop."""

    def __init__(self, target: Callable[[Connection, str], None], where: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, where), daemon=True)
        self._process.start()
        theirs.close()

    async def answer(self, *, ask: bool = True) -> Any:
        """Its next line."""
        if ask:
            self._pipe.send(True)
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._pipe.fileno(), ready.set)
        try:
            async with asyncio.timeout(DEADLINE):
                await ready.wait()
        finally:
            loop.remove_reader(self._pipe.fileno())
        return self._pipe.recv()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


@dataclass
class Round:
    """Seconds that it took, the CPU of the loop's thread, how the loop was held, how late (ms) the bare timer was."""

    seconds: float
    cpu: float
    watch: LoopWatch
    timer: float


async def watched(work: Callable[[], Awaitable[float]], timer: Client) -> Round:
    """Do ``work``, which says how many seconds it took, and watch the loop meanwhile."""
    await timer.answer()
    cpu = time.thread_time()
    with LoopWatch() as watch:
        seconds = await work()
    cpu = time.thread_time() - cpu
    return Round(seconds, cpu, watch, await timer.answer() * 1e3)


def told(what: str, target: float | None, rounds: list[Round]) -> list[Figure]:
    """The figures of some rounds."""
    return [
        Figure(what, statistics.median(one.seconds for one in rounds), "s", target),
        Figure("  CPU of the daemon's loop", statistics.median(one.cpu for one in rounds), "s"),
        *held([one.watch for one in rounds]),
        Figure("  a bare timer beside it was late by at most", statistics.median(one.timer for one in rounds), "ms"),
    ]


async def _measure(directory: Path) -> list[Figure]:
    timer = Client(_late)
    try:
        return await _lists(directory, timer) + await _watched(directory, timer)
    finally:
        timer.end()


async def _lists(directory: Path, timer: Client) -> list[Figure]:
    socket = directory / "maglevd.sock"
    figures: list[Figure] = []
    async with served(directory) as (_, metrics):
        url = f"http://127.0.0.1:{metrics.port}/metrics"
        for what, target, client in (
            ("list 50,000 backends, all pages", 1.0, Client(_answer, f"list {socket}")),
            ("the same with four transitions each", None, Client(_answer, f"list-whole {socket}")),
            ("scrape /metrics", 1.0, Client(_answer, f"scrape {url}")),
            ("check a file of 50,000 backends", None, Client(_answer, f"check {socket}")),
        ):
            theirs: list[float] = []

            async def once(client: Client = client, theirs: list[float] = theirs) -> float:
                seconds, cpu = await client.answer()
                theirs.append(cpu)
                return float(seconds)

            try:
                await once()
                rounds = [await watched(once, timer) for _ in range(ROUNDS)]
            finally:
                client.end()
            figures += told(what, target, rounds)
            figures.append(Figure("  CPU of the client", statistics.median(theirs), "s"))

        async def command() -> float:
            began = time.monotonic()
            words = [sys.executable, "-m", "maglev.cli.main", "--server", f"unix:{socket}", "show", "backends"]
            await asyncio.to_thread(subprocess.run, words, check=True, stdout=subprocess.DEVNULL)
            return time.monotonic() - began

        figures += told("maglevc show backends, from its start to its end", None, [await watched(command, timer)])
    return figures


async def _watched(directory: Path, timer: Client) -> list[Figure]:
    """A burst of standby backends, which means nothing to VPP; beside it some fail that do."""
    async with rig(config_of(1000, 10, pools=2, lb=CALM_LB, **CALM_FRONTENDS)) as made:
        writes = Writes(made.client)
        api = api_of(directory, made.checker, made.bus, directory / "none.json")
        await api.start()
        try:
            figures = await _bursts(made, writes, str(directory / "maglevd.sock"), timer)
            return figures + await _unread(made, writes, str(directory / "maglevd.sock"))
        finally:
            await api.stop(0.2)


def _standby(made: Rig) -> list[int]:
    config = made.checker.config()
    return [
        made.checker.backend_state(member.backend).target
        for frontend in config.frontends.values()
        for member in frontend.pools[1].members
    ]


async def _quiet(made: Rig) -> None:
    """Wait until every verdict is through, to VPP."""
    async with asyncio.timeout(DEADLINE):
        while made.engine.waiting:  # noqa: ASYNC110 - the engine is one of the benchmark's own
            await asyncio.sleep(0.001)
        await made.settled()


async def _bursts(made: Rig, writes: Writes, socket: str, timer: Client) -> list[Figure]:
    rounds, losses = [], 0
    # Verdicts while the watchers are served, and those that came after the burst's own.
    reactions: list[float] = []
    queued: list[float] = []
    standby = _standby(made)
    frontends = list(made.checker.config().frontends.values())
    for _ in range(ROUNDS):
        client = Client(_watch, socket)
        try:
            await client.answer(ask=False)

            async def burst(client: Client = client) -> float:
                nonlocal losses
                began = time.monotonic()
                for at in range(0, len(standby), AT_ONCE):
                    made.engine.become(standby[at : at + AT_ONCE], State.DOWN)
                    await asyncio.sleep(0)
                delivered = asyncio.create_task(client.answer(ask=False))
                among = queued
                for frontend in frontends:
                    among.append(await _reaction(made, writes, frontend.pools[0].members[0].backend))
                    among = reactions
                    if delivered.done():
                        break
                    await asyncio.sleep(REACTION_SECONDS)
                lost, ended = await delivered
                losses += lost
                return float(ended - began)

            rounds.append(await watched(burst, timer))
        finally:
            client.end()
        made.engine.all_become(State.UP)
        await _quiet(made)
    reactions.sort()
    return [
        *told("10,000 transitions to 100 watchers", 5, rounds),
        Figure("  lost, all rounds", losses, "events", 0),
        Figure("  verdict to write while they are told, median", statistics.median(reactions), "ms"),
        Figure("  verdict to write while they are told, p99", reactions[int(len(reactions) * 0.99)], "ms", 20),
        Figure("  verdict right behind the 10,000 to its write", statistics.median(queued), "ms"),
    ]


async def _reaction(made: Rig, writes: Writes, name: str) -> float:
    """Milliseconds from the verdict that a backend is down to the write of the call that says so."""
    target = made.engine.targets[made.checker.backend_state(name).target]
    began = time.monotonic_ns()
    made.engine.become([target.id], State.DOWN)
    async with asyncio.timeout(DEADLINE):
        while writes.each.get(target.address, 0) < began:
            writes.wrote.clear()
            await writes.wrote.wait()
    return (writes.each[target.address] - began) / 1e6


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _unread(made: Rig, writes: Writes, socket: str) -> list[Figure]:
    standby = _standby(made)
    writes.calls.clear()

    async def bursts() -> float:
        for number in range(UNREAD):
            made.engine.become(standby, State.UP if number % 2 else State.DOWN)
            await _quiet(made)
            await made.bus.handed_out()
            assert not writes.calls, "the burst means something to VPP"
        return _resident()

    # The first time fills what has room for it whether there are watchers or not: histories, the allocator's pools.
    await bursts()
    client = Client(_stare, socket)
    try:
        await client.answer(ask=False)
        sizes = [_resident(), await bursts(), await bursts(), await bursts()]
    finally:
        client.end()
    return [
        Figure("memory for 100 watchers that do not read 160,000", sizes[2] - sizes[0], "MiB"),
        Figure("  and for 80,000 more", sizes[3] - sizes[2], "MiB", 1),
    ]


def run() -> list[Figure]:
    """Measure. Clients share the machine's processors with the daemon, as they do where this runs."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with (
        tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(Path(directory)))
