"""The stand-in on its socket: connections, the handshake, the queue of requests, and faults.

All clients share one queue of requests, because VPP handles API messages on its single main thread: a slow request of
one client delays those of every other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, cast

from maglev.base.clock import Clock, SystemClock
from maglev.vpp.wire.messages import (
    MESSAGES,
    REPLY_PAYLOAD,
    REQUEST_PAYLOAD,
    SOCKCLNT_CREATE_ID,
    Decoder,
    Message,
    ProtocolError,
    pack_handshake_reply,
    reply,
    reply_head,
    request_head,
)
from maglev.vppsim.api import Api, Identity, Replies
from maglev.vppsim.control import Control
from maglev.vppsim.faults import Faults
from maglev.vppsim.journal import Entry, Journal
from maglev.vppsim.model import Crash, Model, Vip
from maglev.vppsim.statseg import Entry as StatsEntry
from maglev.vppsim.statseg import StatsSocket, entries_of

log = logging.getLogger(__name__)

MAX_REQUEST: Final = 1 << 20
"""Longest request that is accepted, bytes."""
BACKLOG: Final = 4096
"""Requests that may wait for a slow one. Reading from all connections pauses while more than these are queued."""
OUTPUT: Final = 1 << 16
"""Replies to one client that are buffered within a round before they are written early, bytes."""
SOCKET_CLIENT: Final = 0x80000000
"""VPP marks the client indexes of socket clients with this bit."""


class StandIn:
    """One simulated VPP on one socket.

    ``clock`` drives VPP's time and the delays. A ``restart`` replaces the model and keeps faults and journal.
    ``ignored`` counts, by reason, requests that VPP would drop without an answer. ``stats_path`` adds a stats segment.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        identity: Identity | None = None,
        with_weights: bool = True,
        first_id: int | None = None,
        journal: Journal | None = None,
        stats_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.clock: Clock = clock or SystemClock()
        self.faults = Faults()
        self.journal = Journal() if journal is None else journal
        self.ignored: Counter[str] = Counter()
        self.crashes: list[str] = []
        self.connections: set[_Connection] = set()
        self._make_api: Callable[[], Api] = lambda: Api(
            Model(self.now),
            self.now,
            identity,
            with_weights=with_weights,
            refuse_line=self.faults.refuse_line,
            **({"first_id": first_id} if first_id else {}),
        )
        self._started = self.clock.monotonic_ns()
        self._advanced = 0.0
        self.api = self._make_api()
        self.control = Control(self)
        self.stats = None if stats_path is None else StatsSocket(stats_path, self._stats_entries)
        self._server: asyncio.Server | None = None
        self._backlog: deque[tuple[_Connection, bytes]] = deque()
        self._answered: dict[_Connection, None] = {}
        self._worker: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._hanging = False
        self._clients = 0

    @property
    def model(self) -> Model:
        """The lb plugin of the VPP that runs now."""
        return self.api.model

    def now(self) -> float:
        """Seconds since this VPP started."""
        return (self.clock.monotonic_ns() - self._started) / 1e9 + self._advanced

    def advance(self, seconds: float) -> None:
        """Move VPP's clock forward and run the timers that expire, such as garbage collection."""
        self._advanced += seconds
        self.model.run_timers()

    def receive_flows(self, vip: Vip, flows: range) -> None:
        """Send one packet of each flow through the VIP; the stats segment shows them at once."""
        self.model.packets(vip, flows)
        if self.stats is not None:
            self.stats.refresh()

    # --- life

    async def start(self) -> None:
        """Listen. Raises OSError; FileExistsError if another process answers on the socket."""
        _clear_stale(self.path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), self.path)
        if self.stats is not None:
            self.stats.start()

    def _stats_entries(self, heartbeat: int) -> list[StatsEntry]:
        started = int((self.clock.time_ns() / 1e9) - self.now())
        workers = self.api.identity.workers
        return entries_of(self.model, started=started, heartbeat=heartbeat, workers=workers)

    async def stop(self) -> None:
        """Stop listening, drop all connections and remove the socket."""
        if self._restart is not None and self._restart is not asyncio.current_task():
            self._restart.cancel()
            self._restart = None
        await self._close()

    async def _close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        self._backlog.clear()
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        if self.stats is not None:
            self.stats.stop()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Abort every connection; buffered replies are lost."""
        for connection in list(self.connections):
            connection.drop()

    async def restart(self, down: float = 0.0) -> None:
        """Restart with an empty model, as after a crash. The socket does not exist for ``down`` seconds."""
        await self._close()
        if down:
            await self.clock.sleep(down)
        self._started, self._advanced = self.clock.monotonic_ns(), 0.0
        self.api = self._make_api()
        await self.start()

    def restart_soon(self, down: float = 0.0) -> None:
        """Schedule ``restart``, for callers that cannot await it: commands and the handler of a request.

        A restart that is already scheduled is kept, with its own ``down``.
        """
        if self._restart is None or self._restart.done():
            self._restart = asyncio.get_running_loop().create_task(self.restart(down))
            self._restart.add_done_callback(_report)

    async def restarted(self) -> None:
        """Wait for the end of a scheduled restart, if there is one. Raises the exception with which it failed."""
        if self._restart is not None:
            await asyncio.shield(self._restart)

    @property
    def hanging(self) -> bool:
        """True while the stand-in neither reads nor answers."""
        return self._hanging

    @hanging.setter
    def hanging(self, value: bool) -> None:
        self._hanging = value
        self._regulate()
        if not value:
            self._work()

    # --- work

    @property
    def busy(self) -> bool:
        """True while the queue is full, so that no connection may be read."""
        return len(self._backlog) > BACKLOG

    def take(self, connection: _Connection, bodies: list[bytes]) -> None:
        """Queue the requests of a connection and handle all that need no delay."""
        self._backlog.extend((connection, body) for body in bodies)
        self._work()

    def _work(self) -> None:
        # At most one task handles the queue; it exists only while a request is delayed. Without delays the queue is
        # emptied here, in the callback that received the requests, at no cost of task switches.
        if self._worker is not None or self._hanging:
            return
        while self._backlog and not self._hanging:
            connection, body = self._backlog[0]
            if self._delay(body) > 0.0:
                self._worker = asyncio.get_running_loop().create_task(self._work_slowly())
                self._worker.add_done_callback(_report)
                break
            self._backlog.popleft()
            self._handle(connection, body)
        self._flush()

    def _flush(self) -> None:
        # One write per connection and round: a system call for each reply would cost more than handling the request.
        for connection in self._answered:
            connection.flush()
        self._answered.clear()

    def answered(self, connection: _Connection) -> None:
        """Note that the connection has buffered replies, which the end of the round writes."""
        self._answered[connection] = None

    async def _work_slowly(self) -> None:
        try:
            while self._backlog and not self._hanging:
                connection, body = self._backlog.popleft()
                delay = self._delay(body)
                if delay > 0.0:
                    await self.clock.sleep(delay)
                self._handle(connection, body)
                self._flush()
                if len(self._backlog) == BACKLOG // 2:
                    self._regulate()
        finally:
            if self._worker is asyncio.current_task():
                self._worker = None
        self._regulate()

    def _regulate(self) -> None:
        for connection in self.connections:
            connection.regulate()

    def _delay(self, body: bytes) -> float:
        if not self.faults.delays:
            return 0.0
        message = self.api.requests.get(int.from_bytes(body[:2], "big"))
        return 0.0 if message is None else self.faults.delay(message.name)

    def _handle(self, connection: _Connection, body: bytes) -> None:
        number = int.from_bytes(body[:2], "big")
        if number == SOCKCLNT_CREATE_ID:
            self._handshake(connection, body)
            return
        message = self.api.requests.get(number)
        if message is None:
            self.ignored["unknown message"] += 1
            return
        try:
            _, client_index, context = request_head(body)
            if client_index != connection.client_index:
                # VPP finds the connection to answer on by this index, so it drops the request.
                self.ignored["wrong client index"] += 1
                return
            # VPP accepts messages that are longer than their definition, and drops shorter ones.
            payload = body[REQUEST_PAYLOAD:]
            values = message.unpack(payload if message.has_tail else payload[: message.size])
        except ProtocolError as error:
            log.debug("dropped a request: %s", error)
            self.ignored["malformed"] += 1
            return
        try:
            replies, retval = self._answer(message, values, client_index)
        except Crash as crash:
            log.error("VPP would have crashed: %s", crash)
            self.crashes.append(str(crash))
            self._flush()
            self.restart_soon()
            self.drop_connections()
            return
        self.journal.add(Entry(self.now(), connection.name, message.name, values, retval))
        # A muted dump still sends its details: without them the client would read an empty table, which is a wrong
        # answer and not a missing one. The reply to the control ping that ends the dump is the one to be muted.
        if message.stream or not self.faults.use("mute"):
            connection.send(b"".join([self._pack(name, context, found) for name, found in replies]))
        if message.name == "sockclnt_delete":
            connection.close()

    def _answer(self, message: Message, values: dict[str, Any], client_index: int) -> tuple[Replies, int]:
        if message.name == "cli_inband" and values["cmd"].startswith(Control.PREFIX):
            retval, output = self.control.execute(values["cmd"].removeprefix(Control.PREFIX))
            return [("cli_inband_reply", {"retval": retval, "reply": output})], retval
        refused = self.faults.refuse(message.name)
        if refused is not None:
            return ([] if message.stream else [(message.reply, {"retval": refused})]), refused
        replies = self.api.call(message, values, client_index)
        return replies, 0 if message.stream or not replies else int(replies[0][1].get("retval", 0))

    def _handshake(self, connection: _Connection, body: bytes) -> None:
        try:
            _, context = reply_head(body)
            create = MESSAGES["sockclnt_create"]
            connection.name = create.unpack(body[REPLY_PAYLOAD : REPLY_PAYLOAD + create.size])["name"]
        except ProtocolError:
            self.ignored["malformed"] += 1
            return
        if connection.client_index is None:
            self._clients += 1
            connection.client_index = SOCKET_CLIENT | self._clients
        self.journal.add(Entry(self.now(), connection.name, "sockclnt_create", {"name": connection.name}, 0))
        connection.send(pack_handshake_reply(connection.client_index, context, 0, self.api.table))

    def _pack(self, name: str, context: int, values: dict[str, Any]) -> bytes:
        message = MESSAGES[name]
        payload = message.pack(
            **{"response" if name == "sockclnt_delete_reply" else key: value for key, value in values.items()}
        )
        faults = self.faults
        front = b""
        if faults.use("unknown_message"):
            front = reply(self.api.unused_id, context, b"nobody asked")
        if faults.use("wrong_context"):
            context ^= 0x5A5A5A5A
        if faults.use("truncate"):
            payload = payload[:-1]
        framed = reply(self.api.ids[name], context, payload)
        if faults.use("garble"):
            framed = framed[:8] + b"\xff\xff\xff\xff" + framed[12:]
        return front + framed


class _Connection(asyncio.Protocol):
    """One client.

    Its socket is not read while it leaves its replies unread, or while the queue of requests is full: so every buffer
    here has a bound.
    """

    def __init__(self, server: StandIn) -> None:
        self._server = server
        self._decoder = Decoder(MAX_REQUEST)
        self._transport: asyncio.Transport | None = None
        self._choked = False  # True while the client leaves its replies unread
        self._reading = True
        self._out: list[bytes] = []
        self._out_size = 0
        self.client_index: int | None = None
        self.name = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self.regulate()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        faults = self._server.faults
        cut = faults.cut_received
        if cut is not None:
            faults.cut_received = None if len(data) >= cut else cut - len(data)
        try:
            bodies = self._decoder.feed(data if cut is None else data[:cut])
        except ProtocolError as error:
            log.info("client %r sent nonsense: %s", self.name, error)
            self._server.ignored["bad frame"] += 1
            self.drop()
            return
        self._server.take(self, bodies)
        if cut is not None and faults.cut_received is None:
            self.close()
        self.regulate()

    def pause_writing(self) -> None:
        self._choked = True
        self.regulate()

    def resume_writing(self) -> None:
        self._choked = False
        self.regulate()

    def regulate(self) -> None:
        """Pause or resume reading, as the state of the buffers demands."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        wanted = not (self._choked or self._server.hanging or self._server.busy)
        if wanted and not self._reading:
            transport.resume_reading()
        elif self._reading and not wanted:
            transport.pause_reading()
        self._reading = wanted

    def send(self, data: bytes) -> None:
        """Buffer replies until the end of the round, or until there are more than ``OUTPUT`` bytes."""
        if not data:
            return
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > OUTPUT:
            self.flush()
        else:
            self._server.answered(self)

    def flush(self) -> None:
        """Write the buffered replies; the fault ``cut sent`` may shorten them and close the connection."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        transport = self._transport
        if transport is None or transport.is_closing() or not data:
            return
        faults = self._server.faults
        cut = faults.cut_sent
        if cut is None or len(data) < cut:
            if cut is not None:
                faults.cut_sent = cut - len(data)
            transport.write(data)
            return
        faults.cut_sent = None
        transport.write(data[:cut])
        transport.close()

    def close(self) -> None:
        """Write the buffered replies, then close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> None:
        """Abort the connection; buffered replies are lost."""
        if self._transport is not None:
            self._transport.abort()


def _clear_stale(path: str) -> None:
    # Remove the socket that a killed process left behind, but never one on which a live process answers.
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise FileExistsError(f"somebody answers on {path} already")


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("the stand-in failed", exc_info=task.exception())
