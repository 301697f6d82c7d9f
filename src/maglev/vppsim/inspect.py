"""Looking into a VPP, simulated or real, through its API: what ``python -m maglev.vppsim show`` prints."""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Any, Final, Self

from maglev.vpp.wire.messages import (
    MESSAGES,
    REPLY_PAYLOAD,
    AsDetails,
    Decoder,
    Encap,
    Handshake,
    ProtocolError,
    VipDetails,
    address_text,
    pack_handshake,
    reply_head,
    request,
    unpack_as_details,
    unpack_handshake_reply,
    unpack_vip_details,
)

DEADLINE: Final = 10.0
"""Longest wait for anything, seconds."""


class Client:
    """A client for one question after the other; blocking. Raises OSError and ProtocolError."""

    def __init__(self, path: str | os.PathLike[str], name: str = "vppsim-show") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._decoder = Decoder()
        self._bodies: list[bytes] = []
        self._context = 0
        try:
            self._socket.settimeout(DEADLINE)
            self._socket.connect(os.fspath(path))
            self._socket.sendall(pack_handshake(name, 0))
            self._handshake: Handshake = unpack_handshake_reply(self._read())
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.call("sockclnt_delete", index=self._handshake.client_index)
        finally:
            self._socket.close()

    def call(self, name: str, **values: Any) -> dict[str, Any]:
        """One call and its reply."""
        (body,) = self._exchange(name, values)
        return MESSAGES[MESSAGES[name].reply].unpack(body[REPLY_PAYLOAD:])

    def dump(self, name: str, **values: Any) -> list[bytes]:
        """The bodies of a dump."""
        return self._exchange(name, values)

    def vips(self) -> list[VipDetails]:
        """All VIPs in use."""
        return [unpack_vip_details(body[REPLY_PAYLOAD:]) for body in self.dump("lb_vip_dump")]

    def ases(self) -> list[AsDetails]:
        """The ASes of all VIPs, deleted ones that linger included."""
        return unpack_as_details(self.dump("lb_as_v2_dump"))

    def _exchange(self, name: str, values: dict[str, Any]) -> list[bytes]:
        message = MESSAGES[name]
        self._context += 1
        context = self._context
        self._socket.sendall(
            request(self._id(name), self._handshake.client_index, context, message.pack(**values))
            + (request(self._id("control_ping"), self._handshake.client_index, context) if message.stream else b"")
        )
        last = self._id("control_ping_reply" if message.stream else message.reply)
        bodies: list[bytes] = []
        while True:
            body = self._read()
            number, answered = reply_head(body)
            if answered != context:
                raise ProtocolError(f"an answer to question {answered} instead of {context}")
            if number == last:
                return bodies if message.stream else [body]
            bodies.append(body)

    def _id(self, name: str) -> int:
        number = self._handshake.id_of(name)
        if number is None:
            raise ProtocolError(f"this VPP has no {MESSAGES[name].name_crc}")
        return number

    def _read(self) -> bytes:
        while not self._bodies:
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("VPP closed the connection")
            self._bodies = self._decoder.feed(data)[::-1]
        return self._bodies.pop()


def show(path: str | os.PathLike[str]) -> str:
    """The VIPs of a VPP and their ASes, as lines. Raises OSError and ProtocolError."""
    with Client(path) as client:
        vips, ases = client.vips(), client.ases()
    lines: list[str] = []
    shown = set()
    for vip in sorted(vips, key=lambda vip: vip.key.sort_key):
        length = vip.flow_table_length or 65536
        lines.append(f"{vip.key}  {_encap(vip.encap)}  {length} buckets")
        for server in sorted((one for one in ases if one.vip == vip.key), key=lambda one: (not one.live, one.address)):
            shown.add(id(server))
            share = 100 * server.num_buckets / length
            lines.append(
                f"  {address_text(server.address)} weight {server.weight} buckets {server.num_buckets} ({share:.1f} %)"
                + ("" if server.live else " deleted")
            )
    ghosts = [server for server in ases if id(server) not in shown]
    if ghosts:
        lines.append(f"and {len(ghosts)} ASes of deleted VIPs")
    return "\n".join(lines or ["no VIPs"]) + "\n"


def _encap(number: int) -> str:
    try:
        return str(Encap(number))
    except ValueError:
        return f"encap {number}"
