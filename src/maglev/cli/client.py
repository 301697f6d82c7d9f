"""The way to the daemon: where it is, calls with a deadline, pages, and what a failure means."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any, Protocol

import grpc

from maglev.cli.errors import CommandError, Unreachable, UsageError
from maglev.cli.tls import Tls, failure_words
from maglev.pb.maglev_pb2_grpc import MaglevStub

DEFAULT_SOCKET = "/run/vpp-maglev/maglevd.sock"
DEFAULT_TCP = "localhost:9090"
DEFAULT_PORT = 9090
# Calls that the daemon answers from memory, and calls that read the configuration file or drive VPP (120 s at most).
CALL_SECONDS = 5.0
LONG_SECONDS = 130.0
PAGE = 1_000
# In the trailing metadata of a status that the daemon itself gave: it is there, VPP is not.
AWAY = "maglev-away"
MAX_ANSWER_BYTES = 64 << 20
# The socket beside the API's that proves a login name, the metadata that carries the proof, and the time to wait.
LOGIN_SUFFIX = ".login"
LOGIN_METADATA = "maglev-login"
LOGIN_SECONDS = 2.0
Metadata = tuple[tuple[str, str], ...]
_REASON = re.compile(r"(?:addr: .* error|connect to remote host|lookup failed for \S+): ([^:\]]+)\]?$")


def default_server(path: str = DEFAULT_SOCKET) -> tuple[str, str]:
    """The Unix socket if it can be opened; else the TCP port of this machine, and why the socket cannot be."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            return DEFAULT_TCP, f"{path}: {error.strerror}"
    return f"unix:{path}", ""


def target(server: str) -> str:
    """gRPC's form of a server: ``/path`` and ``unix:/path``, ``host``, ``host:port``, ``[v6]:port``.

    Raises ``UsageError`` for any other text.
    """
    if server.startswith("/"):
        return f"unix:{server}"
    if server.startswith("unix:"):
        return server
    if not server or any(c.isspace() or not c.isprintable() for c in server):
        raise UsageError(f"{server!r} is no server: expected host:port or unix:/path")
    host, separator, port = server.rpartition(":")
    if server.endswith("]") or not separator:
        return f"dns:{server}:{DEFAULT_PORT}"
    if ":" in host and not host.startswith("["):
        # An IPv6 address without brackets has no port.
        return f"dns:[{server}]:{DEFAULT_PORT}"
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65535):
        raise UsageError(f"{server!r} is no server: {port!r} is no port")
    return f"dns:{server}"


class Method(Protocol):
    """A call of the stub with one answer."""

    def __call__(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        """Call and wait. Raises ``grpc.RpcError``."""
        ...


class Login:
    """The proof of the login name that the daemon's log shows, from the socket beside the API's on this machine.

    The daemon asks the kernel which user connects there, and answers with a token that is sent with each call. Without
    that socket, as over TCP, calls go without: then the daemon knows no name.
    """

    def __init__(self, address: str) -> None:
        # The address of a socket in the file system: unix:/run/x.sock, or unix:///run/x.sock.
        path = address.removeprefix("unix:") if address.startswith("unix:") else ""
        self._path = f"{path.removeprefix('//')}{LOGIN_SUFFIX}" if path else ""
        self._socket: socket.socket | None = None
        self._token = ""

    def metadata(self) -> Metadata | None:
        """The metadata of the next call; None without a token."""
        if self._path and not self._holds():
            self.close()
            self._token = self._ask()
        return ((LOGIN_METADATA, self._token),) if self._token else None

    def _holds(self) -> bool:
        """Whether the token is still good: it ends with its connection, as when the daemon starts again."""
        if self._socket is None:
            return False
        try:
            return bool(self._socket.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _ask(self) -> str:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(LOGIN_SECONDS)
        try:
            connection.connect(self._path)
            token = connection.makefile("rb").readline(64).decode().strip()
        except (OSError, ValueError):
            # An older daemon, none at all, or no right to open it: the call itself shows what is wrong.
            connection.close()
            return ""
        # Only to be asked whether it is still open: a socket with a time-out would wait for the answer.
        connection.setblocking(False)
        self._socket = connection
        return token

    def close(self) -> None:
        """End the token."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Client:
    """A connection to the daemon. It connects with the first call, and again whenever it was lost.

    ``instead``: why this server is asked and not another, for what fails because of that.
    """

    def __init__(self, server: str, tls: Tls | None = None, instead: str = "") -> None:
        self.server = server
        self.tls = tls
        self._login = Login(target(server))
        self._instead = f" (not asked: {instead})" if instead else ""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            # A proxy of the environment is for the web.
            ("grpc.enable_http_proxy", 0),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if tls is not None:
            if target(server).startswith("unix:"):
                raise UsageError(f"{server} speaks no TLS: leave the TLS flags out, or name a --server host:port")
            if tls.name:
                options.append(("grpc.ssl_target_name_override", tls.name))
            self.channel = grpc.secure_channel(target(server), tls.credentials(), options)
        else:
            self.channel = grpc.insecure_channel(target(server), options)
        self.stub = MaglevStub(self.channel)

    def call(self, method: Method, request: Any, *, seconds: float = CALL_SECONDS) -> Any:
        """One call. Raises ``CommandError`` with the daemon's words, or ``Unreachable``."""
        try:
            return method(request, timeout=seconds, metadata=self._login.metadata())
        except grpc.RpcError as error:
            raise self.failure(error) from None

    def pages(self, method: Method, request: Any, *, seconds: float = CALL_SECONDS) -> Iterator[Any]:
        """All pages of a list, one after the other. ``request`` is changed on the way."""
        request.page_size = PAGE
        while True:
            page = self.call(method, request, seconds=seconds)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def failure(self, error: grpc.RpcError) -> CommandError:
        """A failed call in words, with its exit status."""
        code: grpc.StatusCode = error.code()
        words: str = error.details() or code.name
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable(f"{self.server} does not answer in time")
        if code is grpc.StatusCode.UNAVAILABLE and not _answered(error):
            # gRPC prints the whole chain down to the system's error, with the address three times.
            told = _REASON.search(words)
            why = failure_words(words) or (told[1] if told is not None else words)
            return Unreachable(f"cannot reach {self.server}: {why}{self._instead}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(f"{self.server} does not know this call: it is another version, or no maglevd")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return CommandError(words + self._instead)
        return CommandError(words)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()
        self._login.close()


def _answered(error: grpc.RpcError) -> bool:
    """Whether the daemon itself said "unavailable" (of VPP), rather than gRPC of the daemon."""
    metadata: Any = error.trailing_metadata() or ()
    return any(key == AWAY for key, _ in metadata)
