"""Real servers to probe, on addresses of 127.0.0.0/8, that count what reaches them and can be stopped and started.

Their sockets live on an event loop in a thread of its own; every method may be called from any other thread and
returns when what it asks for has happened.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long a call into the server thread may take, and how long a connection may stay open."""

HEAD_LIMIT = 16 * 1024

# Below the kernel's range for outgoing connections, which could take a port between our look and our bind, and from
# which maglevd reserves the ports of its SYN probes.
PORTS = range(5_000, 10_000)


def bindable(port: int, addresses: Iterable[str]) -> bool:
    """Whether ``port`` is free on every one of ``addresses``."""
    for address in addresses:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def free_port(addresses: Iterable[str], wanted: int = 0) -> int:
    """A TCP port that is free on all ``addresses``: ``wanted`` if that is, else any. OSError: there is none."""
    addresses = tuple(addresses)
    if wanted and bindable(wanted, addresses):
        return wanted
    for port in random.sample(PORTS, 200):
        if bindable(port, addresses):
            return port
    raise OSError(f"no free port on {', '.join(addresses)}")


class Server:
    """One listening socket. With ``http`` it answers requests, without it it only accepts.

    ``probes`` counts requests (http) or connections, ``lost`` those that were left without an answer on purpose.
    """

    def __init__(self, name: str, address: str, port: int, *, http: bool) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.http = http
        self.probes = 0
        self.lost = 0
        self._status = 200
        self._answers_ns: deque[int] = deque(maxlen=1000)
        self._to_lose = 0
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def running(self) -> bool:
        """Whether the port is open."""
        return self._listener is not None

    @property
    def status(self) -> int:
        """The HTTP status of its answers."""
        return self._status

    def lose_next(self, probes: int) -> None:
        """Leave the next requests without an answer, as if they were lost on the way."""
        self._to_lose = probes

    async def answer(self, status: int) -> None:
        """Answer requests with this HTTP status from now on."""
        self._status = status
        self._answers_ns.clear()

    def answers_ns(self) -> list[int]:
        """When the requests came that were answered with the present status: wall clock, nanoseconds."""
        return list(self._answers_ns)

    async def start(self) -> None:
        """Open the port. OSError: it is taken."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, self.address, self.port)

    async def stop(self) -> None:
        """Close the port and cut what is open: from now on connections are refused."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        listener.close()
        for writer in tuple(self._open):
            writer.transport.abort()
        await listener.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self.http:
                    await self._answer(reader, writer)
                else:
                    self.probes += 1
                    await reader.read(1)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # A prober may end a connection as it likes; what counts was counted before.
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.probes += 1
        if self._to_lose > 0:
            self._to_lose -= 1
            self.lost += 1
            await reader.read(1)  # silence until the prober gives up
            return
        self._answers_ns.append(time.time_ns())
        body = f"{self.name} says ok\n".encode()
        head = (
            f"HTTP/1.1 {self._status} {'OK' if self._status == 200 else 'Not well'}\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        await reader.read(1)  # the prober closes first


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` there and wait for its result. TimeoutError: it takes too long."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_SECONDS)

    def close(self) -> None:
        """Let what was cut end its tasks, then end the thread; doing it twice is harmless."""
        if self._loop.is_closed():
            return
        self.do(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_SECONDS)
        self._loop.close()

    @staticmethod
    async def _settle() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=ANSWER_SECONDS / 2)


class Servers:
    """Servers by name, on one event loop."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._servers: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        return self._servers[name]

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers.values())

    def add(self, name: str, address: str, port: int, *, http: bool) -> Server:
        """Start a new server. OSError: the port is taken."""
        server = Server(name, address, port, http=http)
        self._thread.do(server.start())
        self._servers[name] = server
        return server

    def start(self, name: str) -> None:
        """Open the port of a server again."""
        self._thread.do(self._servers[name].start())

    def stop(self, name: str) -> None:
        """Close the port of a server; connections are refused from now on."""
        self._thread.do(self._servers[name].stop())

    def answer(self, name: str, status: int) -> None:
        """Let a server answer requests with this HTTP status from now on."""
        self._thread.do(self._servers[name].answer(status))

    def close(self) -> None:
        """Stop every server; doing it twice is harmless."""
        for server in self:
            self._thread.do(server.stop())
