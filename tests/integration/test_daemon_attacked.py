"""maglevd on ports that strangers can reach: what they do costs it a counter, and keeps no operator out.

Every attack is bounded and ends by itself. Behind each, an operator asks on the Unix socket and is answered, the probed
server goes down and comes back within the checks' own time, and descriptors and memory are what they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc.gate import MAX_CALLS
from maglev.rpc.server import MAX_CONNECTIONS, MAX_STREAMS_PER_CONNECTION
from tests.helpers.certs import Authority, Pair
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port

ONE = "127.0.14.1"
OUTAGE = re.compile(r"event=(backend-transition|frontend-transition|frontend-without-servers) ")
"""Records of the outage that the tests make to see verdicts."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
# Memory that a process keeps for the next time is not a leak, and the first of each kind of thing makes some.
MEMORY = 64 << 20


AttackedT = TypeVar("AttackedT", bound="Attacked")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Attacked:
    """A daemon with one probed server, and what strangers do to its ports."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.web = HttpTarget(ONE, reserved_port())
        self.grpc = reserved_port()
        self.daemon = DaemonProcess(
            directory,
            "maglev: {vpp: {lb: {ipv4-src-address: 192.0.2.1}},"
            f" healthchecks: {{web: {{type: http, port: {self.web.port}, interval: 100ms, rise: 1}}}},"
            f" backends: {{one: {{address: {ONE}, healthcheck: web}}}},"
            " frontends: {www: {address: 192.0.2.80, pools: [{name: p, backends: {one: {}}}]}}}",
            "--vpp-api-addr=",
            f"--grpc-addr=127.0.0.1:{self.grpc}",
            *flags,
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

    async def serves(self, watcher: Watcher, *, after: bool = False) -> None:
        """An operator is answered, and verdicts are made.

        ``after`` an attack on the Unix socket itself: dead connections may still wait in its backlog, where the daemon
        meets them first, and the operator's client connects again.
        """
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self.daemon.socket}", options=options) as channel:
            info = await MaglevStub(channel).GetServerInfo(
                pb.GetServerInfoRequest(), timeout=DEADLINE, wait_for_ready=after
            )
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


class Secured(Attacked):
    """The same with TLS on TCP, where clients need a certificate."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "tls")
        pair = self.authority.server("maglevd")
        self.ann = self.authority.issue("ann", "/OU=operator/CN=ann")
        files = (f"--grpc-tls-cert={pair.cert}", f"--grpc-tls-key={pair.key}", f"--grpc-client-ca={self.authority.ca}")
        super().__init__(directory, *files)

    def context(self, pair: Pair | None = None, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        """A client that has this certificate, or none."""
        context = ssl.create_default_context(cafile=os.fspath(self.authority.ca))
        context.maximum_version = newest
        context.set_alpn_protocols(["h2"])
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return context

    def hello(self) -> bytes:
        """The first bytes of a client."""
        said = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            self.context().wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
        return said.read()

    def session(self, context: ssl.SSLContext) -> ssl.SSLSocket | None:
        """A connection whose handshake is done; None: the daemon wants none of it."""
        sock = self.dial("grpc")
        sock.settimeout(DEADLINE)
        try:
            return context.wrap_socket(sock, server_hostname="localhost")
        except OSError:
            sock.close()
            return None


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Attacked]:
    async with running(Attacked(tmp_path)) as one:
        yield one


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[Secured]:
    async with running(Secured(tmp_path)) as one:
        yield one


@contextlib.asynccontextmanager
async def running(one: AttackedT) -> AsyncIterator[AttackedT]:
    """Both servers of it, and at the end what the daemon must not have said."""
    await one.web.start()
    async with one.daemon:
        yield one
        one.drop()
        assert await one.daemon.stop() == 0
    await one.web.stop()
    told = [line for line in one.daemon.log if " error " in line or " warning " in line]
    assert not [line for line in told if not OUTAGE.search(line)], one.daemon.log


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
        await attacked.serves(watcher, after=port == "unix")


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


async def test_handshakes_that_come_to_nothing_leave_nothing_behind(secured: Secured) -> None:
    hello = secured.hello()
    hostile = (
        b"",
        PREFACE + SETTINGS,  # in the clear
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(65_536),
        b"\x16\x03\x01" + os.urandom(65_536),
        b"\x16\x03\x01\xff\xff",  # a record of more than there may be, which does not come
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",  # a greeting of 16 MiB
        b"\x16\x03\x01\x00\x01\x01" * 10_000,  # in pieces of a byte
        b"\x14\x03\x03\x00\x01\x01" * 10_000,  # changes of a cipher that there is not
        b"\x15\x03\x03\x00\x02\x01\x00" * 10_000,  # alerts
        b"\x80\x2e\x01\x00\x02" + bytes(64),  # as SSL 2 begins
        hello[:5],
        hello[: len(hello) // 2],
        hello,
        hello * 100,
        hello + os.urandom(16_384),
    )
    stranger = Authority(secured.authority.directory / "other").issue("eve", "/OU=operator/CN=eve")
    async with secured.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        await secured.serves(watcher)
        before, memory = secured.descriptors(), secured.resident()

        def refused(context: ssl.SSLContext) -> None:
            """With TLS 1.3 a client learns last whether its certificate is accepted."""
            if (session := secured.session(context)) is not None:
                with session, contextlib.suppress(ssl.SSLError, ConnectionError):
                    session.sendall(PREFACE + SETTINGS)
                    # Nothing but the end, or an alert.
                    assert session.recv(1) == b""

        def strike() -> None:
            for _ in range(20):
                for data in hostile:
                    secured.hold("grpc", 1, data)
                secured.drop()
            secured.reset("grpc", 200, hello)
            for _ in range(50):
                for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                    refused(secured.context(newest=newest))
                    refused(secured.context(stranger, newest=newest))

        await asyncio.gather(asyncio.to_thread(strike), secured.serves(watcher))
        await secured.descriptors_fall_to(before + 2)
        await secured.serves(watcher)
        assert secured.resident() < memory + MEMORY


async def test_thousands_of_handshakes_that_go_no_further_are_bounded_and_ended(secured: Secured) -> None:
    hello = secured.hello()
    async with secured.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        before, memory = secured.descriptors(), secured.resident()

        def strike() -> None:
            for data in (b"", hello[:100], hello):
                secured.hold("grpc", 1_000, data)

        await asyncio.to_thread(strike)
        assert secured.descriptors() <= before + MAX_CONNECTIONS + 16
        assert secured.resident() < memory + MEMORY
        await secured.serves(watcher)
        # They stay; it is the daemon that has enough of them.
        await secured.descriptors_fall_to(before + 2)
        await secured.serves(watcher)
        session = await asyncio.to_thread(secured.session, secured.context(secured.ann))
        assert session is not None
        session.close()


async def test_who_may_come_in_and_resets_all_that_he_asks_for_holds_up_no_verdict(secured: Secured) -> None:
    # As RFC 7541 writes headers that are in no table: a call that answers, and one that would go on.
    def asked(stream: int, method: bytes) -> bytes:
        headers = b"\x83\x87"  # POST, https
        for name, value in (
            (b":path", b"/maglev.Maglev/" + method),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ):
            headers += b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        return frame(1, 4, stream, headers) + frame(0, 1, stream, bytes(5))

    async with secured.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        await secured.serves(watcher)
        before, memory = secured.descriptors(), secured.resident()

        def strike() -> None:
            context = secured.context(secured.ann)
            for turn in range(40):
                session = secured.session(context)
                assert session is not None
                # Some it refuses, and at some time the daemon ends the connection.
                with session, session.makefile("rb") as answers, contextlib.suppress(OSError):
                    session.sendall(PREFACE + SETTINGS)
                    for first in range(1, 4_000, 2 * MAX_STREAMS_PER_CONNECTION):
                        streams = range(first, first + 2 * MAX_STREAMS_PER_CONNECTION, 2)
                        method = b"WatchEvents" if turn % 2 else b"ListBackends"
                        calls = [asked(one, method) for one in streams]
                        resets = [frame(3, 0, one, b"\x00\x00\x00\x08") for one in streams]
                        if turn % 4 < 2:
                            session.sendall(b"".join(itertools.chain(*zip(calls, resets, strict=True))))
                            continue
                        session.sendall(b"".join(calls))
                        while (head := answers.read(9)) and head[3] not in (0, 1, 3, 7):
                            answers.read(int.from_bytes(head[:3]))
                        answers.read(int.from_bytes(head[:3]))
                        session.sendall(b"".join(resets))
            # Sessions that are over before a word is said.
            for _ in range(200):
                session = secured.session(context)
                assert session is not None
                session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                session.close()

        await asyncio.gather(asyncio.to_thread(strike), secured.serves(watcher))
        await secured.descriptors_fall_to(before + 2)
        await secured.serves(watcher)
        assert secured.resident() < memory + MEMORY
        async with asyncio.timeout(DEADLINE):
            while not await secured.counted('maglev_grpc_calls_total{call="WatchEvents",status="CANCELLED"}'):
                pass


async def test_a_session_is_not_negotiated_again(secured: Secured) -> None:
    async with secured.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        process = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{secured.grpc}", "-tls1_2", "-alpn", "h2"),
            *("-cert", os.fspath(secured.ann.cert), "-key", os.fspath(secured.ann.key)),
            *("-CAfile", os.fspath(secured.authority.ca)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(DEADLINE):
            said, _ = await process.communicate(b"R\n" * 10)
        assert b"Verification: OK" in said
        assert b"RENEGOTIATING" in said
        assert process.returncode != 0, said
        await secured.serves(watcher)
