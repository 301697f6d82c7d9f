"""Large lists, many watchers and large scrapes, and for how long the event loop is held by them.

The checker is the real one over an engine that does not run: a list of what never changes is as long as any other.
Server, bus and metrics are the daemon's own, on real sockets. Clients live in processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop

from bench.config import tree
from bench.harness import Figure
from maglev._probe import Engine
from maglev.checker import Checker
from maglev.clock import SystemClock
from maglev.config.load import load_text
from maglev.configfile import ConfigFile
from maglev.events import BackendEvent, Bus
from maglev.logs import LogControl
from maglev.metrics import CheckerFamilies, EngineFamilies, Exposition, MetricsServer
from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc.server import RpcServer, ServerOptions
from maglev.rpc.services import Identity, Services
from maglev.sdnotify import Notifier
from maglev.states import Code, State

QUESTION = "How long do lists, watches and scrapes of 50,000 backends take, and for how long do they hold the loop?"

ROUNDS = 5
SUBSCRIBERS = 100
BURST = 10_000
# What the checker takes from the engine in one go.
AT_ONCE = 256
PAGE = 5_000
DEADLINE = 120.0
"""Seconds: a client that takes longer has come to grief."""


class Hold:
    """Measures for how long the loop is held: how late a task is woken that asks for it every millisecond."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - due)


async def held(work: Callable[[], Awaitable[float]]) -> tuple[float, float]:
    """Seconds that ``work`` says it took, and milliseconds for which the loop was held at most meanwhile."""
    hold = Hold()
    task = asyncio.create_task(hold.run())
    try:
        return await work(), hold.longest * 1e3
    finally:
        task.cancel()


class Served:
    """The API and the metrics of 50,000 backends."""

    def __init__(self, directory: Path) -> None:
        loaded = load_text(json.dumps(tree()), json=True)
        assert loaded.config is not None
        self.config = loaded.config
        clock = SystemClock()
        self.bus = Bus()
        # Never started: it would probe addresses of others.
        self.engine = Engine()
        self.checker = Checker(self.engine, self.bus, clock)
        self.checker.settle(())
        file = ConfigFile(directory / "maglev.json", self.checker, Notifier(), clock)
        services = Services(
            identity=Identity("bench", clock.time_ns(), clock.monotonic_ns()),
            clock=clock,
            bus=self.bus,
            checker=self.checker,
            tracer=self.checker,
            loader=file,
            logs=LogControl(),
        )
        self.socket = directory / "maglevd.sock"
        self.api = RpcServer(services, ServerOptions(unix_socket=self.socket))
        exposition = Exposition()
        exposition.add(CheckerFamilies(self.checker).families())
        exposition.add(EngineFamilies(self.engine).families())
        self.metrics = MetricsServer(exposition)

    async def fail(self, count: int) -> None:
        """So many transitions as fast as the checker publishes those of a mass failure: so many in one go."""
        now = time.time_ns()
        for at, (name, backend) in enumerate(list(self.config.backends.items())[:count]):
            if at % AT_ONCE == 0:
                await asyncio.sleep(0)
            self.bus.publish(BackendEvent(name, str(backend.address), State.UP, State.DOWN, Code.L4TOUT, "", now))


def _list(pipe: Connection, socket: str) -> None:
    """In a process of its own: list all backends, page by page, when told to; answer with the seconds."""
    with grpc.insecure_channel(f"unix:{socket}", [("grpc.max_receive_message_length", 64 << 20)]) as channel:
        stub = MaglevStub(channel)
        while pipe.recv():
            began = time.perf_counter()
            request = pb.ListBackendsRequest(page_size=PAGE)
            count = 0
            while True:
                page = stub.ListBackends(request, timeout=DEADLINE)
                count += len(page.backends)
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            pipe.send((time.perf_counter() - began, count))


def _watch(pipe: Connection, socket: str) -> None:
    """In a process of its own: ``SUBSCRIBERS`` watches; say when all stand, and when each has the burst."""

    async def one(stub: Any, ready: asyncio.Semaphore) -> int:
        lost = seen = 0
        async for batch in stub.WatchEvents(pb.WatchEventsRequest(omit_state=True)):
            if batch.state_complete:
                ready.release()
            seen += len(batch.events)
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


def _scrape(pipe: Connection, port: int) -> None:
    """In a process of its own: scrape when told to; answer with seconds and bytes."""
    import urllib.request

    while pipe.recv():
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            size = len(answer.read())
        pipe.send((time.perf_counter() - began, size))


class Client:
    """A process that is asked through a pipe, without holding the loop."""

    def __init__(self, target: Callable[..., None], where: str | int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, where), daemon=True)
        self._process.start()
        theirs.close()

    async def answer(self, *, ask: bool = True) -> Any:
        """What it says next."""
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


async def _measure(directory: Path) -> list[Figure]:
    served = Served(directory)
    await served.checker.apply(served.config, by="bench")
    await served.api.start()
    await served.metrics.start("127.0.0.1:0")
    figures = []
    try:
        for what, target, client in (
            ("list 50,000 backends, all pages", 1.0, Client(_list, str(served.socket))),
            ("scrape /metrics", 1.0, Client(_scrape, served.metrics.port)),
        ):
            figures += await _asked(what, target, client)
        figures += await _watched(served)
    finally:
        await served.metrics.stop()
        await served.api.stop(0.2)
    return figures


async def _asked(what: str, target: float, client: Client) -> list[Figure]:
    async def once() -> float:
        seconds, _ = await client.answer()
        return float(seconds)

    try:
        await once()
        rounds = [await held(once) for _ in range(ROUNDS)]
    finally:
        client.end()
    return [
        Figure(what, statistics.median(seconds for seconds, _ in rounds), "s", target),
        Figure("  loop held at most", statistics.median(hold for _, hold in rounds), "ms", 20),
    ]


async def _watched(served: Served) -> list[Figure]:
    rounds, losses = [], 0
    for _ in range(ROUNDS):
        client = Client(_watch, str(served.socket))
        try:
            await client.answer(ask=False)

            async def burst(client: Client = client) -> float:
                nonlocal losses
                began = time.monotonic()
                await served.fail(BURST)
                lost, ended = await client.answer(ask=False)
                losses += lost
                return float(ended - began)

            rounds.append(await held(burst))
        finally:
            client.end()
    return [
        Figure("10,000 transitions to 100 watchers", statistics.median(seconds for seconds, _ in rounds), "s", 5),
        Figure("  lost, all rounds", losses, "events", 0),
        Figure("  loop held at most", statistics.median(hold for _, hold in rounds), "ms", 20),
    ]


def run() -> list[Figure]:
    """Measure. Clients share the machine's processors with the daemon, as they do where this runs."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with (
        tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(Path(directory)))
