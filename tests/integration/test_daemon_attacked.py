"""maglevd on ports that strangers can reach: what they do costs it a counter, and keeps no operator out.

Every attack is bounded and ends by itself. Behind each, an operator asks on the Unix socket and is answered, the probed
server goes down and comes back within the checks' own time, and descriptors and memory are what they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc.server import MAX_CALLS, MAX_CONNECTIONS
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port

ONE = "127.0.14.1"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
# Memory that a process keeps for the next time is no leak, and the first of each kind of thing makes some.
MEMORY = 64 << 20


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Attacked:
    """A daemon with one probed server, and what strangers do to its ports."""

    def __init__(self, directory: Path) -> None:
        self.web = HttpTarget(ONE, reserved_port())
        self.grpc = reserved_port()
        self.daemon = DaemonProcess(
            directory,
            f"maglev: {{healthchecks: {{web: {{type: http, port: {self.web.port}, interval: 100ms, rise: 1}}}},"
            f" backends: {{one: {{address: {ONE}, healthcheck: web}}}}}}",
            "--vpp-api-addr=",
            f"--grpc-addr=127.0.0.1:{self.grpc}",
        )
        self.open: list[socket.socket] = []

    @property
    def ports(self) -> dict[str, tuple[int, str | tuple[str, int]]]:
        """Family and address of everything that listens."""
        return {
            "grpc": (socket.AF_INET, ("127.0.0.1", self.grpc)),
            "metrics": (socket.AF_INET, ("127.0.0.1", self.daemon.metrics_port)),
            "unix": (socket.AF_UNIX, str(self.daemon.socket)),
        }

    def dial(self, port: str, data: bytes = b"") -> socket.socket:
        """A connection, which says ``data``; a full backlog, or a reset, is the daemon's good right."""
        family, address = self.ports[port]
        sock = socket.socket(family)
        sock.settimeout(0.1)
        with contextlib.suppress(OSError):
            sock.connect(address)
            sock.sendall(data)
        return sock

    def hold(self, port: str, many: int, data: bytes = b"") -> None:
        """Connections that stay open."""
        self.open += [self.dial(port, data) for _ in range(many)]

    def drop(self) -> None:
        """Close what was held."""
        for sock in self.open:
            sock.close()
        self.open.clear()

    def reset(self, port: str, many: int, data: bytes = b"") -> None:
        """Connections that are reset as soon as they stand."""
        for _ in range(many):
            with self.dial(port, data) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def descriptors(self) -> int:
        """How many files the daemon has open."""
        assert self.daemon.process is not None
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))

    def resident(self) -> int:
        """Its memory, in bytes."""
        assert self.daemon.process is not None
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    async def serves(self, watcher: Watcher) -> None:
        """An operator is answered, and verdicts are made."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self.daemon.socket}", options=options) as channel:
            info = await MaglevStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        assert info.role == pb.ROLE_OPERATOR
        for status, state in ((500, "down"), (200, "up")):
            self.web.status = status
            await watcher.states(one=state)

    async def descriptors_fall_to(self, most: int) -> None:
        """Wait until no more are open."""
        async with asyncio.timeout(DEADLINE):
            while self.descriptors() > most:
                await self.daemon.metrics()

    async def counted(self, series: str) -> int:
        """A counter of the daemon."""
        found = re.search(rf"^{re.escape(series)} (\d+)$", await self.daemon.metrics(), re.MULTILINE)
        return int(found[1]) if found is not None else 0


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Attacked]:
    one = Attacked(tmp_path)
    await one.web.start()
    async with one.daemon:
        yield one
        one.drop()
        assert await one.daemon.stop() == 0
    await one.web.stop()
    assert not any(" error " in line or " warning " in line for line in one.daemon.log), one.daemon.log


async def test_port_scans_garbage_and_resets_leave_nothing_behind(attacked: Attacked) -> None:
    endless = PREFACE + SETTINGS + frame(1, 0, 1, b"\x40" + b"\x7f\xff\xff\xff\x0f")
    hostile = (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        os.urandom(65_536),
        PREFACE,
        PREFACE + os.urandom(65_536),
        PREFACE + frame(0, 0, 0, bytes(16_384)),  # data of no stream
        PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # a frame of 16 MiB, which does not come
        PREFACE + SETTINGS + frame(4, 0, 0, b"\x00\x04\xff\xff\xff\xff") * 100,  # a window beyond what there is
        PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 1_000,  # pings
        PREFACE + SETTINGS + frame(3, 0, 1, bytes(4)) * 1_000,  # resets of streams that never were
        endless + frame(9, 0, 1, bytes(1_000)) * 200,  # headers without an end
        b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
    )
    async with attacked.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        await attacked.serves(watcher)
        before, memory = attacked.descriptors(), attacked.resident()

        def strike() -> None:
            for port in attacked.ports:
                for data in hostile:
                    attacked.hold(port, 1, data)
                attacked.drop()
                attacked.reset(port, 200)
                attacked.reset(port, 200, PREFACE + SETTINGS)

        await asyncio.gather(asyncio.to_thread(strike), attacked.serves(watcher))
        await attacked.descriptors_fall_to(before + 2)
        await attacked.serves(watcher)
        assert attacked.resident() < memory + MEMORY
        assert await attacked.counted('maglev_metrics_refused_total{reason="request"}') > 0


@pytest.mark.parametrize(("port", "many"), [("grpc", 1_000), ("metrics", 100), ("unix", 1_000)])
async def test_thousands_of_connections_that_say_little_are_bounded(attacked: Attacked, port: str, many: int) -> None:
    async with attacked.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        before, memory = attacked.descriptors(), attacked.resident()

        def strike() -> None:
            for data in (b"", PREFACE + SETTINGS, b"GET /metr"):
                attacked.hold(port, many, data)

        await asyncio.to_thread(strike)
        assert attacked.descriptors() <= before + MAX_CONNECTIONS + 16
        assert attacked.resident() < memory + MEMORY
        # Who says nothing on the port of the metrics makes room: Prometheus is answered all the while.
        assert "maglev_backend_state" in await attacked.daemon.metrics()
        if port != "unix":
            await attacked.serves(watcher)
        attacked.drop()
        await attacked.descriptors_fall_to(before + 2)
        await attacked.serves(watcher)


Flood = Callable[[grpc.aio.Channel], Awaitable[object]]


async def _watch_health(channel: grpc.aio.Channel) -> object:
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    return await call.read()


async def _watch_events(channel: grpc.aio.Channel) -> object:
    return await MaglevStub(channel).WatchEvents(pb.WatchEventsRequest()).read()


@pytest.mark.parametrize(
    ("flood", "series"),
    [
        (_watch_health, 'maglev_grpc_refused_total{reason="calls"}'),
        (_watch_events, 'maglev_grpc_refused_total{reason="watchers"}'),
    ],
    ids=["health", "events"],
)
async def test_strangers_who_use_up_all_calls_keep_no_operator_out(
    attacked: Attacked, flood: Flood, series: str
) -> None:
    async with attacked.daemon.api() as stub, contextlib.AsyncExitStack() as stack:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        memory = attacked.resident()
        channels = []
        for _ in range(8):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{attacked.grpc}", options=options)
            channels.append(await stack.enter_async_context(channel))
        calls = [asyncio.ensure_future(flood(channel)) for channel in channels for _ in range(MAX_CALLS // 8 + 50)]
        async with asyncio.timeout(DEADLINE):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        turned_away = [one for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
        assert {one.code() for one in turned_away} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert await attacked.counted(series) == len(turned_away)
        # He may do everything, watching included.
        await attacked.serves(watcher)
        await Watcher(stub).states(one="up")
        assert attacked.resident() < memory + MEMORY


async def test_calls_as_fast_as_they_can_be_made_hold_up_no_verdict(attacked: Attacked) -> None:
    async with attacked.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        over = asyncio.Event()

        async def call(channel: grpc.aio.Channel) -> int:
            made = 0
            while not over.is_set():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await MaglevStub(channel).ListBackends(pb.ListBackendsRequest(), timeout=DEADLINE)
                made += 1
            return made

        async with grpc.aio.insecure_channel(f"127.0.0.1:{attacked.grpc}") as channel:
            callers = [asyncio.ensure_future(call(channel)) for _ in range(64)]
            for _ in range(3):
                await attacked.serves(watcher)
            over.set()
            assert sum(await asyncio.gather(*callers)) > 0
