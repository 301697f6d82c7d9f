"""The servers of the soak: one kernel that answers for all of them, in a network namespace of its own.

A server fails when its address is routed into a black hole on the far side: probes vanish there, as they do in a dead
machine. Nothing here answers a probe in Python but the few web servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import subprocess
import sys
from collections.abc import Collection

from tests.helpers.netns import SERVER, Pair, inside, ip

NETWORK = ipaddress.ip_network("10.64.0.0/15")
PORT_SYN, PORT_CONNECT, PORT_HTTP = 8001, 8002, 8003


def address_of(number: int) -> str:
    """The address of server ``number``, from 0."""
    return str(NETWORK[256 + number])


class World:
    """Servers that answer until they are made to fail. ``down`` has the addresses of those that do not."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.down: set[str] = set()
        self._sockets: list[socket.socket] = []
        self._web: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Make the namespaces and let the servers answer."""
        self.pair.open()
        ip("-n", self.pair.client, "route", "add", str(NETWORK), "via", SERVER)
        # In one table with the black holes: the longest prefix wins.
        ip("-n", self.pair.server, "route", "add", "local", str(NETWORK), "dev", "lo", "table", "local")
        self._listen(PORT_SYN)
        self._web = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", self.pair.server, sys.executable, "-m", "tests.soak.web",
            str(PORT_CONNECT), str(PORT_HTTP),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._web.stdout is not None
        async with asyncio.timeout(30):
            if not await self._web.stdout.readline():
                raise RuntimeError("the web servers do not start")

    def _listen(self, port: int) -> None:
        # The kernel answers SYNs, and every handshake ends before there is a connection to accept.
        def make() -> socket.socket:
            return socket.create_server(("0.0.0.0", port), backlog=4096)

        self._sockets.append(inside(self.pair.server, make))

    def fail(self, addresses: Collection[str]) -> None:
        """These answer no more."""
        self._routes("add", set(addresses) - self.down)
        self.down.update(addresses)

    def mend(self, addresses: Collection[str]) -> None:
        """These answer again."""
        self._routes("del", set(addresses) & self.down)
        self.down.difference_update(addresses)

    def _routes(self, verb: str, addresses: Collection[str]) -> None:
        lines = "".join(f"route {verb} blackhole {address}/32 table local\n" for address in addresses)
        done = subprocess.run(
            ["ip", "-n", self.pair.server, "-batch", "-"], input=lines, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"ip -batch: {done.stderr.strip()}")

    async def stop(self) -> None:
        """Remove all of it."""
        if self._web is not None:
            with contextlib.suppress(ProcessLookupError):
                self._web.kill()
            await self._web.wait()
        for sock in self._sockets:
            sock.close()
        self.pair.close()
