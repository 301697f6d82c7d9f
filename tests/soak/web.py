"""``python -m tests.soak.web PORT ...``: the soak's web servers, in a process that nothing else keeps busy."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: a probe by connect ends with a reset; one by HTTP asks something."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
    writer.close()


async def main(ports: list[int]) -> None:
    """Serve until killed; says ``ready`` when it listens."""
    servers = [await asyncio.start_server(serve, "0.0.0.0", port, backlog=4096) for port in ports]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(main([int(word) for word in sys.argv[1:]]))
