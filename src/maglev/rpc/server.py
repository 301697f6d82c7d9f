"""The gRPC server: where it listens, who gets in, what a failure becomes, and how it ends.

Each listener has a server of its own, so that strangers on TCP who use up what there is do not keep an operator from
the Unix socket. That one lies in a directory of mode 0750, and whoever can open it is operator; callers on TCP have the
role that the daemon was started with, or with TLS and client certificates the role that their certificate gives them
(``maglev.rpc.access``, ``maglev.rpc.tls``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from maglev.base import background, errors, logs
from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.rpc.access import OPERATOR_CALLS, SERVICE, Role, address_of, caller_of, is_local
from maglev.rpc.service import MaglevService
from maglev.rpc.services import Services
from maglev.rpc.tls import Certificates, TlsFiles, Unusable
from maglev.rpc.watch import GoingAway, TooMany, Watchers

log = logs.get(__name__)

# Generic in the type stubs only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TooSlow(errors.MaglevError):
    """A reader that does not read: gRPC ``RESOURCE_EXHAUSTED``."""


STATUS: dict[type[errors.MaglevError], grpc.StatusCode] = {
    errors.UnknownName: grpc.StatusCode.NOT_FOUND,
    errors.BadValue: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# A request is some names and numbers. An answer is a page, or the plan for everything.
MAX_REQUEST_BYTES = 1 << 20
MAX_ANSWER_BYTES = 64 << 20
# Percent-encoding can triple it.
MAX_WORDS = 2_000
MAX_STREAMS_PER_CONNECTION = 128
# Of each listener.
MAX_CONNECTIONS = 1_024
MAX_CALLS = 512
# Calls beyond that are refused by us, and counted; so many can be on their way out at once.
MAX_REFUSALS = 128
# Who connects and says nothing is turned away after this; who was there and is dead is found by pings.
HANDSHAKE_MS = 10_000
# Who connects, shakes hands and calls nothing makes room for others after this; clients connect again by themselves.
IDLE_MS = 60_000
PING_MS = 30_000
PING_TIMEOUT_MS = 10_000
# A reader that takes no message for so long is dropped: he is there, as he answers pings, but does not read.
PATIENCE_SECONDS = 60.0
# To tell somebody who does not read that he is dropped: he hears of it when he reads on.
FAREWELL_SECONDS = 0.2

OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
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


class CannotListen(Exception):
    """An address or a socket cannot be listened on; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen and for whom. ``unix_socket`` None and an empty ``tcp_address`` turn that listener off.

    ``tcp_address`` is ``host:port``, ``[v6]:port`` or ``:port`` (all addresses); port 0 takes a free one. ``tls`` None:
    TCP is in the clear. With authorities for clients, their certificates decide and not ``tcp_role``.
    """

    unix_socket: Path | None = None
    tcp_address: str = ""
    tcp_role: Role = Role.VIEWER
    tls: TlsFiles | None = None
    reflection: bool = True
    patience_seconds: float = PATIENCE_SECONDS


def prepare_socket(path: Path) -> None:
    """Make the directory (mode 0750) and clear a stale socket away.

    Only a socket that nobody answers on is removed. Raises ``CannotListen`` for anything else that is in the way.
    """
    if len(os.fsencode(path)) > 107:
        raise CannotListen(f"{path}: a socket's path may have 107 bytes")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, mode=0o750)
            # mkdir's mode passes through the umask, which may take away more than we want.
            path.parent.chmod(0o750)
        there = path.parent.stat().st_mode
        if there & stat.S_IWOTH and not there & stat.S_ISVTX:
            log.warning(
                "api-exposed",
                f"anybody may write to {path.parent}: he can put a socket of his own in the place of {path.name}, and "
                "operators would tell him what they do",
                address=str(path),
            )
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotListen(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path} is in the way and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # Time-out with a full backlog, no permission: somebody may well be there.
            raise CannotListen(f"{path}: {error.strerror or error}") from error
    raise CannotListen(f"{path}: another process answers there")


def tcp_target(address: str) -> tuple[str, bool]:
    """gRPC's form of ``host:port``, and whether it is loopback only. Raises ``CannotListen`` for a malformed one."""
    host, separator, port = address.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise CannotListen(f"{address!r} is no address: host:port, [address]:port or :port")
    if not host:
        return (f"[::]:{port}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{port}"), False
    if host == "localhost":
        return address, True
    try:
        ip = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise CannotListen(f"{address!r} is no address: {host!r} is neither an IP address nor localhost") from None
    if ip.version == 6 and not host.startswith("["):
        raise CannotListen(f"{address!r}: an IPv6 address is written in brackets, as in [{host}]:{port}")
    return address, ip.is_loopback


def _lenient(deserializer: Any) -> Any:
    """The deserializer, with None for what it cannot read: gRPC itself would log a traceback for each."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return None

    return deserialize


def _refuse_garbage(request: Any) -> None:
    if request is None:
        raise errors.BadValue("the request is no message of this API")


def _words(error: errors.MaglevError) -> str:
    """What a status says. It travels in a header, and headers beyond 8 KiB lose the whole status."""
    text = str(error)
    return text if len(text) <= MAX_WORDS else text[:MAX_WORDS] + "..."


def _origin(error: errors.MaglevError) -> tuple[tuple[str, str], ...]:
    """Tells a VPP that is away from a daemon that is: both are ``UNAVAILABLE``."""
    if isinstance(error, errors.Unavailable) and not isinstance(error, GoingAway):
        return (("maglev-away", "vpp"),)
    return ()


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before every call of ours: checks the role, turns errors into a status, counts, logs changes.

    ``calls`` counts ended calls by method ("PauseBackend") and status ("OK", "NOT_FOUND"), ``slow`` the readers that
    were dropped because they did not read, ``crowded`` the calls that there was no room for.
    """

    def __init__(self, tcp_role: Role, patience_seconds: float) -> None:
        self._tcp_role = tcp_role
        self._patience = patience_seconds
        self.slow = 0
        self.crowded = 0
        # Calls that go on, by listener: those of the Unix socket, and the others.
        self._open: dict[bool, int] = {True: 0, False: 0}
        self.calls: dict[tuple[str, str], int] = {}
        # Set when the server ends: the streams of others end with it.
        self.closing = asyncio.Event()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap our own handlers; streams of the health service and of reflection only get an end."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            # Not by name: what strangers call is theirs to choose, and the count would grow with it.
            self._count("unknown", grpc.StatusCode.UNIMPLEMENTED)
            return handler
        if not method.startswith(f"/{SERVICE}/"):
            return self._foreign(handler)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                request_deserializer=_lenient(handler.request_deserializer),
                # Watches hand out messages that are encoded already.
                response_serializer=bytes,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _foreign(self, handler: Handler) -> Handler:
        """A handler of another service, whose streams end with ``UNAVAILABLE`` when the server does."""
        make: Any
        inner: Any
        if handler.request_streaming and handler.response_streaming:
            inner, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        elif handler.response_streaming:
            inner, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        else:
            return handler

        async def drive(request: Any, context: Context) -> None:
            stream: Any = inner(request, context)
            if inspect.isawaitable(stream):
                await stream
                return
            async with aclosing(stream) as messages:
                async for message in messages:
                    await context.write(message)

        async def watched(request: Any, context: Context) -> Any:
            work = asyncio.ensure_future(drive(request, context))
            end = asyncio.ensure_future(self.closing.wait())
            try:
                await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return await work
            finally:
                end.cancel()
                work.cancel()
            await asyncio.wait((work,))
            return await context.abort(grpc.StatusCode.UNAVAILABLE, "the daemon is on its way out")

        async def call(request: Any, context: Context) -> Any:
            try:
                with self._room(context.peer()):
                    return await watched(request, context)
            except TooMany as error:
                return await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

        wrapped: Handler = make(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    @contextlib.contextmanager
    def _room(self, peer: str) -> Iterator[None]:
        """Take up the room of one call. Raises ``TooMany`` where there is none."""
        local = is_local(peer)
        if self._open[local] >= MAX_CALLS:
            self.crowded += 1
            raise TooMany(f"{MAX_CALLS} calls are open, which is the limit")
        self._open[local] += 1
        try:
            yield
        finally:
            self._open[local] -= 1

    def _unary(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async def run() -> Any:
                _refuse_garbage(request)
                return await inner(request, context)

            return await self._guarded(method, context, run)

        return call

    def _stream(self, method: str, inner: Any) -> Any:
        async def call(request: Any, context: Context) -> None:
            async def run() -> None:
                _refuse_garbage(request)
                messages: AsyncIterator[bytes] = inner(request, context)
                # aclosing: the subscription ends when the caller goes away, not when the collector comes by.
                async with aclosing(messages) as stream:  # type: ignore[type-var]
                    async for message in stream:
                        await self._write(context, message)

            await self._guarded(method, context, run)

        return call

    async def _write(self, context: Context, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await context.write(message)
        except TimeoutError:
            self.slow += 1
            name = caller_of(context.peer(), self._tcp_role, context.auth_context()).name
            log.warning("api-reader-dropped", f"{name} does not read what it watches", by=name)
            raise TooSlow(f"nothing was read for {self._patience:.0f} s") from None

    async def _guarded(self, method: str, context: Context, run: Callable[[], Awaitable[Any]]) -> Any:
        peer = context.peer()
        caller = caller_of(peer, self._tcp_role, context.auth_context())
        call = method.rpartition("/")[2]
        if not caller.may(method):
            self._count(call, grpc.StatusCode.PERMISSION_DENIED)
            self._log_change(method, caller.name, peer, grpc.StatusCode.PERMISSION_DENIED, "")
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"{call} is for operators, and {caller.name} is {caller.role.value}"
            )
        try:
            with self._room(peer):
                answer = await run()
        except errors.MaglevError as error:
            code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), grpc.StatusCode.UNKNOWN)
            self._count(call, code)
            self._log_change(method, caller.name, peer, code, _words(error))
            if isinstance(error, TooSlow):
                # Behind what he has not read, which may take for ever.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_SECONDS):
                        await context.abort(code, _words(error))
                return None
            await context.abort(code, _words(error), _origin(error))
        except asyncio.CancelledError:
            self._count(call, grpc.StatusCode.CANCELLED)
            raise
        except grpc.aio.InternalError:
            # The connection broke in the middle of a message: he is gone, and there is nobody to answer.
            self._count(call, grpc.StatusCode.CANCELLED)
            raise asyncio.CancelledError from None
        except Exception as error:
            self._count(call, grpc.StatusCode.INTERNAL)
            log.exception("api-failure", f"{call} failed", error, call=call, by=caller.name)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, see the daemon's log")
        else:
            self._count(call, grpc.StatusCode.OK)
            # A file with errors is an answer to the caller, but no change.
            refused = isinstance(answer, pb.ReloadConfigResponse) and not answer.ok
            problem = "the file has errors, nothing was changed" if refused else ""
            self._log_change(method, caller.name, peer, grpc.StatusCode.OK, problem)
            return answer

    @staticmethod
    def _log_change(method: str, by: str, peer: str, code: grpc.StatusCode, problem: str) -> None:
        if method in OPERATOR_CALLS:
            call = method.rpartition("/")[2]
            address = address_of(peer)
            log.info(
                "api-change",
                f"{by} called {call}",
                call=call,
                by=by,
                address=address,
                status=code.name,
                problem=problem,
            )

    def _count(self, call: str, code: grpc.StatusCode) -> None:
        key = (call, code.name)
        self.calls[key] = self.calls.get(key, 0) + 1


class RpcServer:
    """The API on its listeners. ``start`` and ``stop`` once each, on the daemon's loop."""

    def __init__(self, services: Services, options: ServerOptions) -> None:
        self._options = options
        self._gate = Gate(options.tcp_role, options.patience_seconds)
        self.watchers = Watchers(services)
        self._service = MaglevService(services, tcp_role=options.tcp_role, watchers=self.watchers)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._servers: list[grpc.aio.Server] = []
        # None: TCP is in the clear.
        self.certificates: Certificates | None = None
        # The TCP port that was bound, 0 without one.
        self.port = 0

    @property
    def calls(self) -> dict[tuple[str, str], int]:
        """Ended calls by method and status, since the start."""
        return self._gate.calls

    @property
    def refused(self) -> dict[str, int]:
        """Whom we turned away since the start: ``watchers``, ``calls``: for want of room; ``slow``: for not reading."""
        return {"watchers": self.watchers.refused, "calls": self._gate.crowded, "slow": self._gate.slow}

    async def start(self) -> None:
        """Listen and serve. Raises ``CannotListen``; then nothing is left listening."""
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            self._listen()
            for server in self._servers:
                await server.start()
        except BaseException:
            await asyncio.gather(*(server.stop(None) for server in self._servers))
            self._servers.clear()
            raise

    def _make(self) -> grpc.aio.Server:
        """A server with our services, for one listener."""
        server = grpc.aio.server(
            interceptors=[self._gate],
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS + MAX_REFUSALS,
        )
        self._servers.append(server)
        pb_grpc.add_MaglevServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._options.reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _listen(self) -> None:
        path = self._options.unix_socket
        if path is not None:
            prepare_socket(path)
            # Writing to the socket is what connecting takes: no moment in which others can.
            before = os.umask(0o117)
            try:
                self._bind(self._make(), f"unix:{path}")
            finally:
                os.umask(before)
        if self._options.tcp_address:
            target, loopback = tcp_target(self._options.tcp_address)
            credentials = None
            if self._options.tls is not None:
                try:
                    self.certificates = Certificates(self._options.tls)
                except Unusable as error:
                    raise CannotListen(str(error)) from error
                credentials = self.certificates.credentials()
            self.port = self._bind(self._make(), target, credentials)
            if not loopback:
                self._warn_exposed(target)

    def _warn_exposed(self, target: str) -> None:
        """Say that strangers can reach us, at every start: in the clear, or as operators."""
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

    async def reread_certificates(self) -> None:
        """Read the certificate's files again; what is wrong with them is logged, and what was in force stays."""
        certificates = self.certificates
        if certificates is not None:
            await background.start("certificates", lambda: certificates.reread(force=True))

    @staticmethod
    def _bind(server: grpc.aio.Server, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
        try:
            port = (
                server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
            )
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {target}: {_why(target) or error}") from error
        if port == 0:
            raise CannotListen(f"cannot listen on {target}: {_why(target)}")
        return port

    async def stop(self, seconds: float = 1.5) -> None:
        """End: no new calls, watches end with ``UNAVAILABLE``, what goes on after ``seconds`` is cut off."""
        servers, self._servers = self._servers, []
        if not servers:
            return
        await self._health.enter_graceful_shutdown()
        self.watchers.close()
        self._gate.closing.set()
        await asyncio.gather(*(server.stop(seconds) for server in servers), self._service.settle(seconds))


def _why(target: str) -> str:
    """Why a target cannot be bound: gRPC does not say."""
    if target.startswith("unix:"):
        return "the directory is not ours to write" if not os.access(Path(target[5:]).parent, os.W_OK) else ""
    host, _, port = target.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(found[4])
    except OSError as error:
        return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'error')})"
    return ""
