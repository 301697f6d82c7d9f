"""A web server on a separate thread, with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

from tests.helpers.tls import RESPONSE


class Web:
    """Answers each request with ``RESPONSE``."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._sock = sock
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()

    async def _run(self) -> None:
        self._loop.set_exception_handler(lambda loop, context: None)  # handshakes that the client cut off
        server = await asyncio.start_server(self._serve, sock=self._sock, ssl=self._context, backlog=4096)
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(RESPONSE)
            await writer.drain()
        writer.close()

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def web(sock: socket.socket, context: ssl.SSLContext | None = None) -> Iterator[Web]:
    """A server on a listening socket, for one test."""
    one = Web(sock, context)
    try:
        yield one
    finally:
        one.close()
