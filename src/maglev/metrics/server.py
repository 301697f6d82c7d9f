"""The HTTP server of the metrics, and of ``/healthz``: 200 for as long as the daemon's event loop runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib

from maglev.base import logs
from maglev.base.listen import parse_listen
from maglev.metrics.exposition import Exposition
from maglev.metrics.text import CONTENT_TYPE

log = logs.get(__name__)

MAX_REQUEST_BYTES = 8 << 10
MAX_CONNECTIONS = 64
MAX_SCRAPES = 4
REQUEST_SECONDS = 10.0
SCRAPE_SECONDS = 60.0

GZIP_LEVEL = 1
"""The quickest. A piece of the exposition takes about half a millisecond, and shrinks to a twentieth."""

_GZIP = re.compile(rb"(?im)^accept-encoding:[^\r\n]*\bgzip\b(?!\s*;\s*q=0(?:\.0*)?(?:[\s,\r]|$))")


class MetricsServer:
    """Answers ``GET /metrics`` and ``GET /healthz``, and nothing else.

    Bounded are the size of a request, connections, scrapes and time.

    When the limit of connections is reached, a new one replaces the oldest that has sent no request, so that a client
    with many silent connections does not keep Prometheus out. ``refused`` counts refusals by reason.
    """

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Connections without a request yet, oldest first.
        self._silent: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._scrapes = 0
        self.scraped = 0
        self.refused: dict[str, int] = dict.fromkeys(("connections", "scrapes", "request", "slow", "broken"), 0)

    async def start(self, address: str) -> None:
        """Listen. Raises ``ValueError`` for a bad address and ``OSError`` when it cannot be listened on."""
        host, port = parse_listen(address)
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_REQUEST_BYTES, backlog=128)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            self.refused["connections"] += 1
            oldest = next(iter(self._silent), None)
            if oldest is None:
                writer.transport.abort()
                return
            # A task that never ran does not close what it was given.
            self._silent[oldest].transport.abort()
            self._forget(oldest)
            oldest.cancel()
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        self._silent[task] = writer
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._silent.pop(task, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                self._silent.pop(task, None)
            except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
                self.refused["request"] += 1
                await self._answer(writer, 400, "bad request")
                return
            async with asyncio.timeout(SCRAPE_SECONDS):
                await self._respond(writer, head)
        except TimeoutError:
            self.refused["slow"] += 1
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        except OSError:
            self.refused["broken"] += 1
        except Exception as error:
            self.refused["broken"] += 1
            log.exception("metrics-failed", f"a scrape failed: {error}", error)
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _respond(self, writer: asyncio.StreamWriter, head: bytes) -> None:
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or line[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            self.refused["request"] += 1
            await self._answer(writer, 400, "bad request")
            return
        method, path, version = line
        page = path.partition(b"?")[0]
        if page not in (b"/metrics", b"/healthz"):
            await self._answer(writer, 404, "metrics are at /metrics, and there is /healthz")
        elif method not in (b"GET", b"HEAD"):
            await self._answer(writer, 405, "only GET and HEAD", "Allow: GET, HEAD\r\n")
        elif page == b"/healthz":
            await self._answer(writer, 200, "ok", body=method == b"GET")
        elif self._scrapes >= MAX_SCRAPES:
            self.refused["scrapes"] += 1
            await self._answer(writer, 503, "too many scrapes at once")
        else:
            self._scrapes += 1
            try:
                packed = _GZIP.search(head) is not None
                await self._scrape(writer, chunked=version == b"HTTP/1.1", body=method == b"GET", packed=packed)
                self.scraped += 1
            finally:
                self._scrapes -= 1

    async def _scrape(self, writer: asyncio.StreamWriter, *, chunked: bool, body: bool, packed: bool) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nConnection: close\r\nVary: Accept-Encoding\r\n"
        head += "Content-Encoding: gzip\r\n" if packed else ""
        writer.write((head + ("Transfer-Encoding: chunked\r\n\r\n" if chunked else "\r\n")).encode())
        if not body:
            await writer.drain()
            return
        # 31: with the header and the trailer of gzip.
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31) if packed else None

        async def send(piece: bytes) -> None:
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()

        async for piece in self._exposition.render():
            await send(packer.compress(piece) if packer is not None else piece)
        if packer is not None:
            await send(packer.flush())
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    @staticmethod
    async def _answer(
        writer: asyncio.StreamWriter, status: int, text: str, headers: str = "", *, body: bool = True
    ) -> None:
        reason = {
            200: "OK",
            400: "Bad Request",
            404: "Not Found",
            405: "Method Not Allowed",
            503: "Service Unavailable",
        }[status]
        writer.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(text) + 1}\r\n"
            f"{headers}Connection: close\r\n\r\n{text}\n".encode()[: None if body else -len(text) - 1]
        )
        await writer.drain()
