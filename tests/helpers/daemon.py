"""The installed daemon as a process, real targets for it to probe, and its API to watch it by."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc

DEADLINE = 20.0
"""Seconds for anything that has to happen; far more than it takes."""


_reserved: list[socket.socket] = []


def reserved_port() -> int:
    """A TCP port for this test alone, on every address of IPv4, until its process ends.

    It is bound, and nobody listens: the kernel gives it to no other that asks for any port, for a connection or to
    listen on it. Who is told it can, as bound ports are shared with SO_REUSEADDR until one of them listens (ip(7)).
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", 0))
    _reserved.append(sock)
    return int(sock.getsockname()[1])


class HttpTarget:
    """A web server on one loopback address that answers every request with ``status``, and counts them.

    The next ``failures`` requests are answered with 500 instead.
    """

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.status = 200
        self.failures = 0
        self.requests = 0
        self.last_request = b""
        self._asked = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, self.address, self.port)

    async def stop(self) -> None:
        """Listen no more: connections are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def asked(self, times: int = 1) -> None:
        """Wait for so many requests from now on."""
        wanted = self.requests + times
        async with asyncio.timeout(DEADLINE):
            while self.requests < wanted:
                self._asked.clear()
                await self._asked.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.last_request = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            self._asked.set()
            status = self.status
            if self.failures:
                self.failures -= 1
                status = 500
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok" % status)
            await writer.drain()
        writer.close()


class _Notices(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.heard = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.lines.extend(data.decode().split("\n"))
        self.heard.set()


class DaemonProcess:
    """``maglevd`` in a process of its own, in ``directory``; everything it listens on is there or on a port of its own.

    ``config``: the configuration, in YAML or JSON.
    """

    def __init__(self, directory: Path, config: str, *flags: str) -> None:
        self.directory = directory
        self.config = directory / ("maglev.json" if config.startswith("{") else "maglev.yaml")
        self.config.write_text(config)
        self.socket = directory / "run" / "maglevd.sock"
        self.metrics_port = reserved_port()
        self.flags = flags
        self.environment: dict[str, str] = {}
        self.process: asyncio.subprocess.Process | None = None
        self.log: list[str] = []
        self._logged = asyncio.Event()
        self._notices = _Notices()
        self._readers: list[asyncio.Task[None]] = []
        self._notify: asyncio.DatagramTransport | None = None

    async def spawn(self, before_exec: Callable[[], None] | None = None) -> None:
        """Start the process, and wait for nothing. ``before_exec`` is called in the child."""
        path = self.directory / f"notify-{len(self._readers)}"
        path.unlink(missing_ok=True)
        self._notices = _Notices()
        self._notify, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self._notices, local_addr=str(path), family=socket.AF_UNIX
        )
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "maglev.daemon.main",
            "--config",
            str(self.config),
            "--grpc-socket",
            str(self.socket),
            "--grpc-addr=",
            f"--metrics-addr=127.0.0.1:{self.metrics_port}",
            f"--state-file={self.directory / 'state.json'}",
            "--vpp-stats-addr=",
            *self.flags,
            env={**os.environ, **self.environment, "NOTIFY_SOCKET": str(path)},
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=before_exec,
        )
        self._readers.append(asyncio.create_task(self._read_log(self.process)))

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.spawn()
        await self.notice("READY=1")

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self.log.append(line.decode().rstrip("\n"))
            self._logged.set()

    async def logged(self, text: str) -> str:
        """Wait for a line with this text; lines come by a pipe of their own, behind whatever else tells of it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._logged.clear()
                for line in self.log:
                    if text in line:
                        return line
                await self._logged.wait()

    async def notice(self, line: str) -> None:
        """Wait until the daemon has sent the service manager this line, and forget all that came before it."""
        assert self.process is not None
        ended = asyncio.create_task(self.process.wait())
        try:
            async with asyncio.timeout(DEADLINE):
                while line not in self._notices.lines:
                    if ended.done():
                        raise AssertionError("maglevd ended:\n" + "\n".join(self.log))
                    self._notices.heard.clear()
                    heard = asyncio.create_task(self._notices.heard.wait())
                    await asyncio.wait([ended, heard], return_when=asyncio.FIRST_COMPLETED)
                    heard.cancel()
        except TimeoutError:
            raise AssertionError(f"never told {line}:\n" + "\n".join(self.log)) from None
        finally:
            ended.cancel()
        del self._notices.lines[: self._notices.lines.index(line) + 1]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        assert self.process is not None
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
            await self._readers[-1]
        if self._notify is not None:
            self._notify.close()
        return status

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def restart(self) -> None:
        """Stop it and start it again."""
        assert await self.stop() == 0
        await self.start()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.wait()
        if error is not None:
            print("\n".join(self.log))

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[pb_grpc.MaglevAsyncStub]:
        """The API on the Unix socket, as operator."""
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            yield pb_grpc.MaglevStub(channel)

    async def metrics(self) -> str:
        """One scrape."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.metrics_port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2].decode()


class Watcher:
    """Follows the daemon's events from their beginning: states of backends and frontends, and the log."""

    def __init__(self, stub: pb_grpc.MaglevAsyncStub) -> None:
        request = pb.WatchEventsRequest(
            kinds=[pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND, pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_DEBUG
        )
        self.call = stub.WatchEvents(request)
        self.backends: dict[str, str] = {}
        self.frontends: dict[str, str] = {}
        self.logged: list[pb.LogEvent] = []
        self.events: list[pb.Event] = []
        self.lost = 0

    async def _read(self) -> None:
        batch = await self.call.read()
        assert isinstance(batch, pb.WatchEventsResponse), "the stream ended"
        self.lost += batch.lost
        for event in batch.events:
            self.events.append(event)
            kind = event.WhichOneof("event")
            if kind == "backend":
                self.backends[event.backend.name] = _word(pb.BackendState.Name(event.backend.to_state))
            elif kind == "frontend":
                self.frontends[event.frontend.name] = _word(pb.FrontendState.Name(event.frontend.to_state))
            elif kind == "log":
                self.logged.append(event.log)

    async def until(self, condition: Callable[[Watcher], bool]) -> None:
        """Read events until ``condition`` holds."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition(self):
                    await self._read()
        except TimeoutError:
            raise AssertionError(
                f"never: backends {self.backends}, frontends {self.frontends}, "
                f"log {[(e.event, dict(e.fields)) for e in self.logged[-10:]]}"
            ) from None

    async def states(self, **wanted: str) -> None:
        """Wait until these backends have these states; a dash in a name is written as ``_``."""
        await self.until(
            lambda w: all(w.backends.get(name.replace("_", "-")) == state for name, state in wanted.items())
        )

    async def log_event(self, name: str, **fields: str) -> pb.LogEvent:
        """Wait for a log record of that event name and with these fields, and forget what came before it."""

        def found() -> int | None:
            for index, record in enumerate(self.logged):
                if record.event == name and all(record.fields.get(k) == v for k, v in fields.items()):
                    return index
            return None

        await self.until(lambda _: found() is not None)
        index = found()
        assert index is not None
        record = self.logged[index]
        del self.logged[: index + 1]
        return record


def _word(name: str) -> str:
    return name.rsplit("_", 1)[1].lower()
