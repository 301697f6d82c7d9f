"""The client of VPP's API: connects for ever, checks what it finds, keeps the connection alive, says goodbye.

A VPP that lacks the weight messages is reported (``VppInfo.problem``) and left alone: the connection stays, so that
an operator sees what is there, and ``usable`` is False. One daemon drives one VPP: a lock beside the socket sees to it.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maglev.base import logs
from maglev.base.clock import Clock, Moments
from maglev.base.errors import Unavailable
from maglev.vpp.wire.messages import (
    MESSAGES,
    WEIGHT_MESSAGES,
    ProtocolError,
    number_of,
    pack_cli,
    retval_text,
    unpack_cli_reply,
    unpack_threads,
    unpack_version,
)
from maglev.vpp.wire.socketlock import SocketLock
from maglev.vpp.wire.transport import WINDOW, Connection, ConnectionLost, Reply, Request

log = logs.get(__name__)

BASE_MESSAGES = ("control_ping", "show_version", "cli_inband")
LB_MESSAGES = (*WEIGHT_MESSAGES, "lb_add_del_vip_v2", "lb_vip_dump", "lb_vip_details", "lb_conf", "lb_flush_vip")


MOST_UPTIME = 9_000_000_000
"""Longest uptime of a VPP that is believed, seconds: in nanoseconds it still fits into 64 bits."""


class Refused(Exception):
    """VPP answered a call with an error. ``retval`` is its number."""

    def __init__(self, name: str, retval: int) -> None:
        super().__init__(f"{name}: {retval_text(retval)}")
        self.name = name
        self.retval = retval


@dataclass(frozen=True, slots=True)
class VppInfo:
    """The VPP at the other end.

    ``problem``: why it is left alone, empty when it can be driven. ``started_ns``, ``connected_ns``: moments of the
    clock's monotonic time.
    """

    version: str
    build_date: str
    build_directory: str
    pid: int
    workers: int
    started_ns: int
    connected_ns: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the client is. Seconds."""

    deadline: float = 5.0
    ping: float = 2.0
    backoff: float = 0.1
    backoff_most: float = 5.0


class VppClient:
    """Keeps one connection to a VPP and offers calls on it.

    ``on_connect`` and ``on_disconnect`` are called on the loop; the first only for a VPP that can be driven, the
    second (with the reason) only after the first. ``api_total`` counts messages by (name, direction, result).
    """

    def __init__(
        self,
        socket: str,
        clock: Clock,
        *,
        name: str = "vpp-maglev",
        timing: Timing | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.socket = socket
        self.on_connect: list[Callable[[], None]] = []
        self.on_disconnect: list[Callable[[str], None]] = []
        self.api_total: Counter[tuple[str, str, str]] = Counter()
        self.connects = 0
        self.problem = "not connected yet"
        self._since_ns = clock.monotonic_ns()
        self._moments = Moments(clock)
        self._clock = clock
        self._name = name
        self._timing = timing or Timing()
        self._chance = chance or random.Random()
        self._lock = SocketLock(socket)
        self._connection: Connection | None = None
        self._info: VppInfo | None = None
        self._closing = asyncio.Event()

    # ------------------------------------------------------------------------------------------------------- state

    @property
    def since_ns(self) -> int:
        """Since when it is connected or not, wall clock."""
        return self._moments.shown(self._since_ns)

    @property
    def connected(self) -> bool:
        """Whether the connection stands and VPP has introduced itself."""
        return self._info is not None

    @property
    def unlocked(self) -> bool:
        """Whether VPP is driven without a lock, so that nothing keeps a second daemon off."""
        return self.usable and not self._lock.held

    @property
    def usable(self) -> bool:
        """Whether calls can be made on a VPP that has all we need."""
        if self._info is None or self._info.problem:
            return False
        # Callers that wait for a reply learn of the end of a connection before ``run`` does.
        return self._connection is not None and not self._connection.lost.done()

    @property
    def excuse(self) -> str:
        """Why it is not ``usable``, for whoever asked for something."""
        if self._info is None:
            return f"VPP is away: {self.problem}"
        return f"VPP cannot be driven: {self.problem}" if self.problem else "VPP is away: the connection was just lost"

    def still_connected(self, connects: int) -> None:
        """Raises ``Unavailable`` unless calls can be made on the connection of that number, as of ``connects``."""
        if not self.usable:
            raise Unavailable(self.excuse)
        if self.connects != connects:
            raise Unavailable("the connection was made anew meanwhile")

    def info(self) -> VppInfo | None:
        """The VPP at the other end; None while there is none."""
        return self._info

    # ------------------------------------------------------------------------------------------------------- calls

    async def call(self, name: str, payload: bytes = b"") -> bytes:
        """One call; returns the payload of its reply. Raises Refused for a return value below 0, ConnectionLost."""
        (reply,) = await self._connected().send([Request(name, payload)])
        if reply.retval < 0:
            raise Refused(name, reply.retval)
        return reply.payload

    async def send(self, requests: Sequence[Request]) -> list[Reply]:
        """Many calls in one write, at most ``WINDOW`` in flight. Errors of VPP are in the replies."""
        connection = self._connected()
        replies: list[Reply] = []
        for start in range(0, len(requests), WINDOW):
            replies += await connection.send(requests[start : start + WINDOW])
        return replies

    async def dump(self, name: str, payload: bytes = b"") -> list[bytes]:
        """A dump; returns the bodies of its details."""
        return await self._connected().dump(name, payload)

    async def cli(self, command: str) -> str:
        """Output of a CLI command (``cli_inband``). An answer that is none drops the connection (ProtocolError)."""
        payload = await self.call("cli_inband", pack_cli(command))
        try:
            retval, text = unpack_cli_reply(payload)
        except ProtocolError as error:
            self.drop(f"VPP sent nonsense: {error}")
            raise
        if retval < 0:
            raise Refused("cli_inband", retval)
        return text

    def _connected(self) -> Connection:
        if self._connection is None or self._info is None:
            raise Unavailable(self.excuse)
        return self._connection

    def drop(self, why: str) -> None:
        """End the connection, for a reason that only the caller can see; ``run`` makes a new one."""
        if self._connection is not None:
            self._connection.abort(why)

    # ------------------------------------------------------------------------------------------------------ running

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost, until ``close``."""
        failures = 0
        try:
            while not self._closing.is_set():
                why = await self._once()
                if self._closing.is_set():
                    return
                failures = failures + 1 if self._info is None else 1
                self._gone(why)
                await self._pause(failures)
        finally:
            connection, self._connection, self._info = self._connection, None, None
            if connection is not None:
                connection.abort("closing")
            self._lock.release()

    async def close(self) -> None:
        """Close the connection in order (``sockclnt_delete``). ``run`` returns."""
        self._closing.set()
        connection = self._connection
        if connection is None:
            return
        if connection.goodbye():
            # VPP closes its end once it has read that.
            await asyncio.wait([connection.lost], timeout=0.5)
        connection.abort("closing")

    async def _pause(self, failures: int) -> None:
        longest = min(self._timing.backoff_most, self._timing.backoff * 2 ** min(failures - 1, 16))
        sleeping = asyncio.ensure_future(self._clock.sleep(longest * self._chance.uniform(0.5, 1.0)))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait([sleeping, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            closing.cancel()

    def _gone(self, why: str) -> None:
        was, self._info, self._connection = self._info, None, None
        if why != self.problem or was is not None:
            log.warning("vpp-disconnected", f"VPP at {self.socket}: {why}", socket=self.socket)
        if was is not None:
            self._since_ns = self._clock.monotonic_ns()
        self.problem = why
        if was is not None and not was.problem:
            for listener in tuple(self.on_disconnect):
                listener(why)

    async def _once(self) -> str:
        """One connection, to its end; returns why it ended. ``_info`` None: it was never established."""
        refused = self._refusal()
        if refused:
            return refused
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timing.deadline):
                _, connection = await loop.create_unix_connection(
                    lambda: Connection(deadline=self._timing.deadline, counters=self.api_total), self.socket
                )
        except TimeoutError:
            return f"no connection within {self._timing.deadline:g} s"
        except OSError as error:
            return f"cannot connect: {error.strerror or error}"
        self._connection = connection
        try:
            await connection.handshake(self._name)
            self._info = await self._introduce(connection)
        except (ConnectionLost, ProtocolError, Refused, Unavailable) as error:
            connection.abort(str(error))
            return str(error)
        self.connects += 1
        self._since_ns = self._info.connected_ns
        self.problem = self._info.problem
        if self._info.problem:
            log.error("vpp-unsupported", f"VPP at {self.socket}: {self._info.problem}", version=self._info.version)
        else:
            log.info(
                "vpp-connected",
                f"connected to VPP {self._info.version}, pid {self._info.pid}",
                version=self._info.version,
                pid=self._info.pid,
                workers=self._info.workers,
            )
            for listener in tuple(self.on_connect):
                listener()
        pinging = asyncio.ensure_future(self._keep_alive(connection))
        try:
            return await connection.lost
        finally:
            # Not ``await pinging``: a cancellation of ours at this moment would be taken for its own, and overheard.
            pinging.cancel()
            await asyncio.wait([pinging])
            failed = None if pinging.cancelled() else pinging.exception()
            if failed is not None and not isinstance(failed, ConnectionLost):
                log.exception("vpp-ping-failed", f"the keep-alive ended: {failed}", failed)

    def _refusal(self) -> str:
        """Why connecting would be useless. The lock file lies beside the socket, so the socket must exist."""
        try:
            os.stat(self.socket)
        except OSError as error:
            return f"cannot connect: {error.strerror}"
        return self._lock.acquire()

    async def _keep_alive(self, connection: Connection) -> None:
        """A ping when nothing was heard for a while; any answer of the last moments counts as alive."""
        loop = asyncio.get_running_loop()
        while not connection.lost.done():
            await asyncio.sleep(self._timing.ping)
            if loop.time() - connection.last_heard >= self._timing.ping:
                await connection.send([Request("control_ping")])

    async def _introduce(self, connection: Connection) -> VppInfo:
        """Ask who is there, and whether it can be driven."""
        missing = [name for name in BASE_MESSAGES if not connection.supports(name)]
        if missing:
            raise ProtocolError(f"this VPP lacks {', '.join(MESSAGES[name].name_crc for name in missing)}")
        version, ping = await connection.send([Request("show_version"), Request("control_ping")])
        told = unpack_version(version.payload)
        pid = MESSAGES["control_ping_reply"].unpack(ping.payload)["vpe_pid"]
        workers = 0
        if connection.supports("show_threads"):
            (threads,) = await connection.send([Request("show_threads")])
            if threads.retval == 0:
                workers = sum(thread.type == "workers" for thread in unpack_threads(threads.payload))
        uptime = await self._uptime(connection)
        now = self._clock.monotonic_ns()
        return VppInfo(
            version=told.version,
            build_date=told.build_date,
            build_directory=told.build_directory,
            pid=int(pid),
            workers=workers,
            started_ns=now - uptime,
            connected_ns=now,
            problem=self._problem(connection),
        )

    async def _uptime(self, connection: Connection) -> int:
        """Nanoseconds since VPP started. No API message has it; 0 where the CLI does not print it.

        Raises ProtocolError for a time that no VPP can have run.
        """
        (reply,) = await connection.send([Request("cli_inband", pack_cli("show clock"))])
        if reply.retval != 0:
            return 0
        found = re.match(r"Time now ([0-9]+)(?:\.([0-9]{1,9}))?", unpack_cli_reply(reply.payload)[1])
        if found is None:
            return 0
        try:
            seconds = number_of(found[1], MOST_UPTIME)
        except ProtocolError as error:
            raise ProtocolError(f"show clock: {error}") from error
        return seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))

    def _problem(self, connection: Connection) -> str:
        missing = [name for name in LB_MESSAGES if not connection.supports(name)]
        if not missing:
            return ""
        if len(missing) == len(LB_MESSAGES):
            return "its lb plugin is not loaded; it is left alone"
        names = ", ".join(MESSAGES[name].name_crc for name in missing)
        return f"its lb plugin cannot set weights (it lacks {names}); a newer VPP is needed, this one is left alone"
