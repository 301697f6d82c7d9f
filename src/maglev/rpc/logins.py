"""Login names of callers on the Unix socket, proved by the kernel.

gRPC for Python shows no credentials of the peer of a Unix socket: to a handler all its callers are ``unix:``. So a
second socket stands beside the API's, ``PATH.login``. A client that wants to be named in the log connects there first.
SO_PEERCRED (unix(7)) tells which user connected, and the daemon answers with a token: one line of 32 hexadecimal
digits. The client sends the token as metadata ``maglev-login`` with its calls and keeps the connection open, since the
token ends with it.

Nothing that a caller says about itself is believed: a token cannot be guessed, it is given to one connection, and the
kernel vouches for the user of that connection. A caller without a valid token is ``unix``, as before. A token gives no
right: whoever can open the API's socket is an operator, and both sockets have the same owner and mode.

Everything here runs on the event loop, but the look into the user database, which may ask a directory server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from maglev.base import background, logs
from maglev.rpc.listeners import CannotListen, prepare_socket

log = logs.get(__name__)

SUFFIX = ".login"
METADATA = "maglev-login"

MAX_CONNECTIONS = 256
"""Clients that hold a token. A further one takes the place of the oldest, which connects again for its next call."""

LOOKUP_SECONDS = 1.0
"""How long a user may be looked up. After that the number stands for the name."""

MAX_NAME = 64
_CREDENTIALS = struct.Struct("3i")
"""``struct ucred`` of unix(7): process, user, group."""


class Logins:
    """The socket, and the tokens that were given out. ``given`` counts tokens, ``evicted`` clients that lost theirs."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._open: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None
        self._lookups: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self.given = 0
        self.evicted = 0

    async def start(self, api_socket: Path) -> None:
        """Listen beside the API's socket. Where that fails, which is logged, callers have no names."""
        path = api_socket.with_name(api_socket.name + SUFFIX)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            prepare_socket(path)
            before = os.umask(0o117)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            listener.listen(64)
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: _Connection(self), sock=listener)
        except (OSError, CannotListen) as error:
            listener.close()
            # CannotListen names the path itself.
            why = f"{path}: {error.strerror}" if isinstance(error, OSError) else error
            log.warning(
                "api-logins-off",
                f"{why}: the log names callers on the Unix socket unix, without their login names",
                address=str(path),
            )
            return
        self._path = path

    async def stop(self) -> None:
        """Stop listening, end all tokens, and remove the socket."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in tuple(self._lookups):
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def name_of(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """The login name that belongs to a call's token; empty for a call without a valid one."""
        for key, value in metadata or ():
            if key == METADATA and isinstance(value, str):
                return self._names.get(value, "")
        return ""

    # ------------------------------------------------------------------------------------------------- connections

    def opened(self, connection: _Connection, user: int) -> None:
        """A client has connected: give it a token once its user is looked up."""
        if len(self._open) >= MAX_CONNECTIONS:
            self.evicted += 1
            oldest = next(iter(self._open))
            self.closed(oldest)
            oldest.abort()
        self._open[connection] = None
        task = asyncio.ensure_future(self._greet(connection, user))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def closed(self, connection: _Connection) -> None:
        """A client has gone: its token ends. Doing it twice is harmless."""
        self._open.pop(connection, None)
        self._names.pop(connection.token, None)

    async def _greet(self, connection: _Connection, user: int) -> None:
        name = await _login(user)
        if connection in self._open:
            connection.token = secrets.token_hex(16)
            self._names[connection.token] = name
            self.given += 1
            connection.send(f"{connection.token}\n".encode())


class _Connection(asyncio.Protocol):
    """One client on the socket. It sends nothing: a client that does is dropped."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins
        self._transport: asyncio.Transport | None = None
        self.token = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the kernel which user connected."""
        self._transport = cast("asyncio.Transport", transport)
        peer: socket.socket = transport.get_extra_info("socket")
        try:
            data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            self.abort()
            return
        self._logins.opened(self, _CREDENTIALS.unpack(data)[1])

    def data_received(self, data: bytes) -> None:
        """Drop a client that talks."""
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """The token ends here."""
        self._logins.closed(self)

    def send(self, data: bytes) -> None:
        """Send the token: a few bytes, which fit into the socket."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


async def _login(user: int) -> str:
    """The login name of a user; its number where there is none, or where it cannot be shown or found in time."""
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            name = await background.start("login", lambda: pwd.getpwuid(user).pw_name)
    except (KeyError, OSError, TimeoutError):
        return str(user)
    return name if name.isprintable() and 0 < len(name) <= MAX_NAME else str(user)
