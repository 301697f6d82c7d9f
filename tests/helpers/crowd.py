"""Many web servers of this process, which answer, or take requests and say nothing, or refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from tests.helpers.daemon import reserved_port


class Crowd:
    """Web servers on loopback addresses, all on one port. ``mute``: those that take requests and do not answer."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = addresses
        self.port = reserved_port()
        self.mute: set[str] = set()
        self._servers: dict[str, asyncio.Server] = {}
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, names: Iterable[str] | None = None) -> None:
        """These servers listen, or all of them."""
        for name in self.addresses if names is None else names:
            if name not in self._servers:
                self._servers[name] = await asyncio.start_server(self._serve(name), self.addresses[name], self.port)

    async def refuse(self, names: Iterable[str]) -> None:
        """These servers listen no longer."""
        for name in names:
            if (server := self._servers.pop(name, None)) is not None:
                server.close()

    async def stop(self) -> None:
        """No server listens, and every connection is closed."""
        await self.refuse(self.addresses)
        for writer in list(self._writers):
            writer.close()

    def _serve(self, name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            try:
                await reader.readuntil(b"\r\n\r\n")
                if name not in self.mute:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    await writer.drain()
                else:
                    await reader.read()  # until the prober has given up
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the prober is done with it
            finally:
                self._writers.discard(writer)
                writer.close()

        return serve
