"""The gRPC server: where it listens, with which limits, and how it ends.

Each listener has its own server, so that strangers on TCP who use up its limits do not keep an operator from the
Unix socket. The socket's directory has mode 0750, and every caller that can open it is an operator. Callers on TCP have
the role that the daemon was started with, or with TLS and client certificates the role that their certificate gives
them (``maglev.rpc.access``, ``maglev.rpc.tls``).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from maglev.base import background, logs
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.rpc.access import SERVICE, Role
from maglev.rpc.gate import MAX_CALLS, Gate
from maglev.rpc.listeners import CannotListen, cut_connections, prepare_socket, tcp_target, warn_of_directory, why_not
from maglev.rpc.reflect import add_reflection
from maglev.rpc.service import MaglevService
from maglev.rpc.services import Services
from maglev.rpc.tls import Certificates, TlsFiles, Unusable
from maglev.rpc.watch import MAX_WATCHERS, Watchers

log = logs.get(__name__)

UNIX = "grpc-unix"
TCP = "grpc-tcp"
"""Names of the listeners in metrics."""

MAX_REQUEST_BYTES = 1 << 20
"""A request holds some names and numbers."""

MAX_ANSWER_BYTES = 64 << 20
"""An answer is one page, or the plan for all VIPs."""

MAX_STREAMS_PER_CONNECTION = 128

MAX_CONNECTIONS = 1_024
"""Connections of each listener."""

MAX_REFUSALS = 128
"""Calls that the gate may be refusing at once. gRPC's own limit is ``MAX_CALLS`` plus these: what exceeds it is refused
by gRPC, without a count."""

HANDSHAKE_MS = 10_000
"""A connection that does not finish its handshake is closed after this time."""

IDLE_MS = 60_000
"""A connection without a call is closed after this time, to make room for others; clients reconnect by themselves."""

PING_MS = 30_000
PING_TIMEOUT_MS = 10_000
"""Connections are pinged, and closed when no answer comes: that finds peers that died without closing."""

PATIENCE_SECONDS = 60.0
"""A reader that takes no message for this time is dropped. It is alive, as it answers pings, but does not read."""

CUT_SECONDS = 0.2
"""Between two attempts to cut the connections of a listener that is closed at once; some were just being accepted."""

OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.http2.settings_timeout", 1000),
    ("grpc.max_metadata_size", 4096),
    ("grpc.absolute_max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.max_connection_idle_ms", IDLE_MS),
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # A second daemon on one port must fail, not share it.
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen and for whom. ``unix_socket`` None and an empty ``tcp_address`` turn that listener off.

    ``tcp_address`` is ``host:port``, ``[v6]:port`` or ``:port`` (all addresses); port 0 takes a free one. ``tls`` None:
    TCP is not encrypted. With authorities for clients, their certificates decide and not ``tcp_role``. ``watchers``
    limits the open watches of all callers together.
    """

    unix_socket: Path | None = None
    tcp_address: str = ""
    tcp_role: Role = Role.VIEWER
    tls: TlsFiles | None = None
    reflection: bool = True
    patience_seconds: float = PATIENCE_SECONDS
    watchers: int = MAX_WATCHERS


class RpcServer:
    """The API on its listeners, on the daemon's loop.

    Each listener is opened by itself (``open_unix``, ``open_tcp``), or all together (``start``).
    """

    def __init__(self, services: Services, options: ServerOptions) -> None:
        self._options = options
        self._gate = Gate(options.tcp_role, options.patience_seconds)
        self.watchers = Watchers(services, most=options.watchers)
        self._service = MaglevService(services, tcp_role=options.tcp_role, watchers=self.watchers)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._servers: dict[str, grpc.aio.Server] = {}
        self._ended = False
        # None: TCP is not encrypted.
        self.certificates: Certificates | None = None
        # The TCP port that was bound, 0 without one.
        self.port = 0

    @property
    def calls(self) -> dict[tuple[str, str], int]:
        """Ended calls by method and status, since the start."""
        return self._gate.calls

    @property
    def refused(self) -> dict[str, int]:
        """Refusals since the start: ``watchers`` and ``calls`` beyond their limits, ``slow`` readers dropped."""
        return {"watchers": self.watchers.refused, "calls": self._gate.crowded, "slow": self._gate.slow}

    async def start(self) -> None:
        """Open all listeners. Raises ``CannotListen``; then none is left open."""
        try:
            if self._options.unix_socket is not None:
                await self.open_unix()
            if self._options.tcp_address:
                await self.open_tcp()
        except BaseException:
            servers, self._servers = list(self._servers.values()), {}
            await asyncio.gather(*(server.stop(None) for server in servers))
            raise

    async def open_unix(self) -> None:
        """Listen on the Unix socket and serve. Raises ``CannotListen``; it can be called again then."""
        path = self._options.unix_socket
        assert path is not None
        prepare_socket(path)
        server = self._make()
        # Connecting takes write permission on the socket. Set by the umask, it is never there for others, not even
        # between bind and a chmod.
        before = os.umask(0o117)
        try:
            self._bind(server, f"unix:{path}")
        finally:
            os.umask(before)
        await self._serve(UNIX, server)
        warn_of_directory(path)

    async def open_tcp(self) -> None:
        """Listen on the TCP address and serve. Raises ``CannotListen``; it can be called again then."""
        target, loopback = tcp_target(self._options.tcp_address)
        # gRPC would retry on its own, and does not say why it fails.
        problem = why_not(target)
        if problem:
            raise CannotListen(f"cannot listen on {target}: {problem}")
        credentials = None
        if self._options.tls is not None:
            files = self._options.tls
            if self.certificates is None:
                try:
                    self.certificates = await background.start("certificates", lambda: Certificates(files))
                except Unusable as error:
                    raise CannotListen(str(error)) from error
            credentials = self.certificates.credentials()
        server = self._make()
        port = self._bind(server, target, credentials)
        await self._serve(TCP, server)
        self.port = port
        if not loopback:
            self._warn_exposed(target)

    async def close_tcp(self) -> None:
        """Stop listening on TCP: all its calls and connections end at once."""
        server = self._servers.pop(TCP, None)
        if server is None:
            return
        stopping = asyncio.ensure_future(server.stop(None))
        while not stopping.done():
            cut_connections(self.port)
            await asyncio.wait([stopping], timeout=CUT_SECONDS)

    async def _serve(self, listener: str, server: grpc.aio.Server) -> None:
        if self._ended:
            raise CannotListen("the daemon is on its way out")
        self._servers[listener] = server
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()

    def _make(self) -> grpc.aio.Server:
        """A server with our services, for one listener."""
        server = grpc.aio.server(
            interceptors=[self._gate],
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS + MAX_REFUSALS,
        )
        pb_grpc.add_MaglevServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._options.reflection:
            add_reflection((SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name), server)
        return server

    def _warn_exposed(self, target: str) -> None:
        """Warn at every start that strangers can reach the API without encryption, or as operators."""
        role, tls = self._options.tcp_role, self._options.tls
        if tls is None:
            how = "without TLS"
        elif tls.client_ca is None and role is Role.OPERATOR:
            how = "without client certificates"
        else:
            return
        log.warning(
            "api-exposed",
            f"the API listens on {target} {how}: anybody who reaches it is {role.value}",
            address=target,
            role=role.value,
        )

    async def reread_certificates(self, *, force: bool = True) -> None:
        """Read the certificate's files again, or only if they changed.

        A problem with them is logged, and the certificate in force stays.
        """
        certificates = self.certificates
        if certificates is not None:
            await background.start("certificates", lambda: certificates.reread(force=force))

    @staticmethod
    def _bind(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
        try:
            port = (
                server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
            )
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {target}: {why_not(target) or error}") from error
        if port == 0:
            raise CannotListen(f"cannot listen on {target}: {why_not(target)}")
        return port

    async def stop(self, seconds: float = 1.5) -> None:
        """End: no new calls, watches end with ``UNAVAILABLE``, calls still open after ``seconds`` are cut off."""
        servers, self._servers = list(self._servers.values()), {}
        self._ended = True
        await self._health.enter_graceful_shutdown()
        self.watchers.close()
        self._gate.closing.set()
        await asyncio.gather(*(server.stop(seconds) for server in servers), self._service.settle(seconds))
