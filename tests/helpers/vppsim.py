"""A stand-in in this process, a clock that stands still, and a client that knows nothing but bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from maglev.vpp.wire import messages
from maglev.vpp.wire.messages import MESSAGES, Decoder, Handshake
from maglev.vppsim.server import StandIn

DEADLINE = 10.0


class StoppedClock:
    """Time that moves when a test says so; ``sleep`` returns at once and moves it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        """Nanoseconds since the start."""
        return self.now_ns

    def time_ns(self) -> int:
        """The same; a test has no other clock."""
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        """Let time pass without waiting for it."""
        self.slept.append(seconds)
        self.now_ns += int(seconds * 1e9)
        await asyncio.sleep(0)


class RawClient:
    """A client of the binary API that sends what it is told to and shows what it got. Every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.handshake: Handshake | None = None
        self._decoder = Decoder()
        self._bodies: list[bytes] = []
        self._context = 1000

    @classmethod
    async def connect(cls, path: str | Path, *, shake: bool = True) -> RawClient:
        """Connect, and introduce oneself if wanted."""
        client = cls(*await asyncio.open_unix_connection(str(path)))
        if shake:
            client.send(messages.pack_handshake("test", 7))
            client.handshake = messages.unpack_handshake_reply(await client.body())
        return client

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)

    def request(self, name: str, payload: bytes | None = None, context: int | None = None, **values: Any) -> int:
        """Send a request; returns its context."""
        assert self.handshake is not None
        if context is None:
            self._context += 1
            context = self._context
        number = self.handshake.id_of(name)
        assert number is not None, name
        if payload is None:
            payload = MESSAGES[name].pack(**values)
        self.send(messages.request(number, self.handshake.client_index, context, payload))
        return context

    async def body(self) -> bytes:
        """The next message. Raises EOFError when the connection ends."""
        async with asyncio.timeout(DEADLINE):
            while not self._bodies:
                data = await self.reader.read(1 << 18)
                if not data:
                    raise EOFError("the connection is closed")
                self._bodies = self._decoder.feed(data)
        return self._bodies.pop(0)

    async def reply(self) -> tuple[str, int, bytes]:
        """The next message: name (empty if it is in no table), context, payload."""
        body = await self.body()
        number, context = messages.reply_head(body)
        return self.name_of(number), context, body[messages.REPLY_PAYLOAD :]

    def name_of(self, number: int) -> str:
        """The name of a message id."""
        assert self.handshake is not None
        names = [name for name, found in self.handshake.ids.items() if found == number]
        return names[0].rpartition("_")[0] if names else ""

    async def call(self, name: str, payload: bytes | None = None, **values: Any) -> list[tuple[str, bytes]]:
        """A request and all that it is answered with."""
        context = self.request(name, payload, **values)
        found: list[tuple[str, bytes]] = []
        if MESSAGES[name].stream:
            self.request("control_ping", context=context)
        while True:
            answer, answered, body = await self.reply()
            assert answered == context
            if MESSAGES[name].stream and answer == "control_ping_reply":
                return found
            found.append((answer, body))
            if not MESSAGES[name].stream:
                return found

    async def values(self, name: str, **values: Any) -> dict[str, Any]:
        """The values of the one reply to a call."""
        ((answer, payload),) = await self.call(name, **values)
        return MESSAGES[answer].unpack(payload)

    async def ended(self) -> None:
        """Wait until the other side has closed the connection; what it still says is thrown away."""
        async with asyncio.timeout(DEADLINE):
            while await self.reader.read(1 << 18):
                pass

    async def close(self) -> None:
        """Hang up without a word."""
        self.writer.close()
        await self.writer.wait_closed()


@asynccontextmanager
async def stand_in(path: Path, **options: Any) -> AsyncIterator[StandIn]:
    """A stand-in that listens on ``path``, with a clock that stands still."""
    options.setdefault("clock", StoppedClock())
    server = StandIn(path, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(path: str | Path) -> AsyncIterator[RawClient]:
    """A client that has introduced itself."""
    client = await RawClient.connect(path)
    try:
        yield client
    finally:
        await client.close()
