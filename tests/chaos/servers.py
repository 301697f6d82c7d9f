"""``python -m tests.chaos.servers JSON``: real servers of one network namespace, which fail on command.

``JSON``: a list of [address, port, kind, certificate]; kind is ``tcp``, ``http`` or ``https``. One line of JSON each
way: ``[[[address, ...], mode], ...]`` is answered with ``{"done": t}``. Modes: ``ok``, ``refuse`` (nothing listens),
``error`` (status 500), ``silent`` (a request is not answered). ``{"slow": [t, t]}`` says that this process did not run
for that long, so that its servers may have answered late. Times are monotonic seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import time
from typing import Any

import uvloop

TICK, SLOW = 0.02, 0.1


class Server:
    """One listening socket."""

    def __init__(self, address: str, port: int, kind: str, certificate: str) -> None:
        self.address, self.port, self.kind = address, port, kind
        self.mode = "ok"
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._server: asyncio.Server | None = None

    async def be(self, mode: str) -> None:
        """Behave like that from now on."""
        self.mode = mode
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            self._server = await asyncio.start_server(
                self._serve, self.address, self.port, backlog=512, ssl=self._context
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            async with asyncio.timeout(5):
                if self.kind == "tcp":
                    await reader.read(1)
                else:
                    await reader.readuntil(b"\r\n\r\n")
                    if self.mode == "silent":
                        await reader.read(1)
                    status = b"200 OK" if self.mode == "ok" else b"500 No"
                    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    await writer.drain()
        writer.close()


def say(what: dict[str, Any]) -> None:
    """One line for the run."""
    print(json.dumps(what), flush=True)


async def heartbeat() -> None:
    """Tell when this process did not run."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(TICK)
        now = time.monotonic()
        if now - last > TICK + SLOW:
            say({"slow": [last, now]})
        last = now


async def main(described: str) -> None:
    """Serve until standard input ends."""
    servers = {one[0]: Server(*one) for one in json.loads(described)}
    # A prober that hangs up in the middle of a handshake is nothing to report.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for server in servers.values():
        await server.be("ok")
    beating = asyncio.create_task(heartbeat())
    say({"done": time.monotonic()})
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        for addresses, mode in json.loads(line):
            for address in addresses:
                await servers[address].be(mode)
        say({"done": time.monotonic()})
    beating.cancel()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
