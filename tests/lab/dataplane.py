"""What the dataplane holds, and what is written to it, seen from beside the daemon.

``read_weights`` asks a VPP (or its stand-in) itself, as a second client. ``Tap`` stands between the daemon and VPP on
the socket and writes down every call that changes something; it passes all bytes on as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maglev.vpp.messages import (
    MESSAGES,
    REQUEST_PAYLOAD,
    SOCKCLNT_CREATE_ID,
    AsDetails,
    Decoder,
    Handshake,
    VipDetails,
    VipKey,
    pack_as_dump,
    pack_handshake,
    pack_vip_dump,
    reply_head,
    request,
    request_head,
    unpack_as_details,
    unpack_handshake_reply,
    unpack_vip_details,
)

READ_SECONDS = 5.0

WRITES = frozenset(
    (
        "lb_conf",
        "lb_add_del_vip",
        "lb_add_del_vip_v2",
        "lb_add_del_as",
        "lb_add_del_as_v2",
        "lb_as_set_weight",
        "lb_flush_vip",
    )
)


@dataclass(frozen=True, slots=True)
class Vip:
    """One VIP with the weights of its live ASes, by address."""

    details: VipDetails
    weights: Mapping[str, int]


class _Reader:
    """A blocking client for a few dumps."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = Decoder()
        self._bodies: deque[bytes] = deque()
        self._context = 0
        self._socket.settimeout(READ_SECONDS)
        self._socket.connect(str(path))
        self._socket.sendall(pack_handshake("lab", 0))
        self._handshake = unpack_handshake_reply(self._next())

    def _next(self) -> bytes:
        while not self._bodies:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the dataplane closed the connection")
            self._bodies.extend(self._decoder.feed(data))
        return self._bodies.popleft()

    def _send(self, name: str, payload: bytes = b"") -> int:
        number = self._handshake.id_of(name)
        if number is None:
            raise ConnectionError(f"this dataplane has no {name}")
        self._context += 1
        self._socket.sendall(request(number, self._handshake.client_index, self._context, payload))
        return self._context

    def dump(self, name: str, payload: bytes) -> Iterator[bytes]:
        """The bodies that answer a dump; a ping behind it marks its end."""
        context = self._send(name, payload)
        self._send("control_ping")
        while True:
            body = self._next()
            if reply_head(body)[1] != context:
                return
            yield body

    def close(self) -> None:
        """Say goodbye, which keeps a real VPP from spinning."""
        with contextlib.suppress(OSError):
            self._send("sockclnt_delete", MESSAGES["sockclnt_delete"].pack(index=self._handshake.client_index))
            self._next()
        self._socket.close()


def read_weights(path: Path) -> dict[VipKey, Vip]:
    """Every VIP on the API socket ``path``, sorted by address. OSError: nobody answers."""
    reader = _Reader(path)
    try:
        vips = [unpack_vip_details(body[6:]) for body in reader.dump("lb_vip_dump", pack_vip_dump())]
        ases: list[AsDetails] = unpack_as_details(reader.dump("lb_as_v2_dump", pack_as_dump()))
    finally:
        reader.close()
    found = {}
    for vip in sorted(vips, key=lambda vip: vip.key.sort_key):
        live = [one for one in ases if one.live and one.vip == vip.key]
        weights = {
            socket.inet_ntop(socket.AF_INET if len(one.address) == 4 else socket.AF_INET6, one.address): one.weight
            for one in live
        }
        found[vip.key] = Vip(vip, weights)
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the daemon that changes something, or its goodbye (``sockclnt_delete``)."""

    name: str
    values: Mapping[str, Any]

    @property
    def address(self) -> str:
        """The AS that it names, empty if it names none."""
        address = self.values.get("as_address")
        if not isinstance(address, bytes):
            return ""
        return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


class Tap:
    """Listens on ``path`` and passes every connection on to ``upstream``. Runs on the event loop that starts it."""

    def __init__(self, path: Path, upstream: Path, calls: deque[Call]) -> None:
        self._path = path
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._calls = calls

    async def start(self) -> None:
        """Listen. OSError: the path is taken."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def stop(self) -> None:
        """Cut every connection and take the socket away."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await server.wait_closed()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            writer.transport.abort()
            return
        names: dict[int, str] = {}
        pair = {writer, upstream_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, upstream_writer, self._requests(names)))
                tasks.create_task(self._pass(upstream_reader, writer, self._handshake(names)))
        except* OSError:
            pass  # one side was cut: so is the other
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], None]) -> None:
        while data := await reader.read(65536):
            look(data)
            writer.write(data)
            await writer.drain()
        await asyncio.sleep(0)
        writer.close()

    def _handshake(self, names: dict[int, str]) -> Callable[[bytes], None]:
        """Learn the message ids of this connection from the first answer."""
        decoder = Decoder()

        def look(data: bytes) -> None:
            for body in () if names else decoder.feed(data):
                handshake: Handshake = unpack_handshake_reply(body)
                for name in (*WRITES, "sockclnt_delete"):
                    number = handshake.id_of(name)
                    if number is not None:
                        names[number] = name
                break

        return look

    def _requests(self, names: dict[int, str]) -> Callable[[bytes], None]:
        """Write down what changes something."""
        decoder = Decoder()

        def look(data: bytes) -> None:
            for body in decoder.feed(data):
                number, _, _ = request_head(body)
                name = names.get(number) if number != SOCKCLNT_CREATE_ID else None
                if name is not None:
                    self._calls.append(Call(name, MESSAGES[name].unpack(body[REQUEST_PAYLOAD:])))

        return look
