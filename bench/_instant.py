"""A stand-in that answers weight calls and the dump of one VIP at once: nothing is written down, little is decoded.

``python -m bench._instant SOCKET [FILE]``. Everything else is as in ``maglev.vppsim``. Each weight call is a line in
FILE: when it came (wall clock, ns), address (hexadecimal), weight.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
import time
from typing import IO

import uvloop

from maglev.vpp.wire.messages import MESSAGES, REQUEST_PAYLOAD, reply
from maglev.vppsim.model import NO_SUCH_ENTRY, Vip, embed
from maglev.vppsim.server import StandIn, _Connection

# Behind message id, client index and context: the VIP, and in lb_as_set_weight the AS, the weight and the flush.
_VIP = slice(10, 31)
_ADDRESS = slice(31, 48)
_CONTEXT = slice(6, 10)


class Instant(StandIn):
    """The short way for ``lb_as_set_weight``, and for ``lb_as_v2_dump`` of one VIP with the ping after it."""

    def __init__(self, path: str, told: IO[str] | None = None) -> None:
        super().__init__(path)
        self._told = told
        self._vips: dict[bytes, Vip] = {}
        self._details: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self._ids = {name: self.api.ids[name].to_bytes(2, "big") for name in ("lb_as_set_weight", "lb_as_v2_dump")}

    def take(self, connection: _Connection, bodies: list[bytes]) -> None:
        """Requests came in."""
        if self._told is not None:
            now, weight = time.time_ns(), self._ids["lb_as_set_weight"]
            told = [f"{now} {body[_ADDRESS][1:5].hex()} {body[48]}" for body in bodies if body[:2] == weight]
            if told:
                print("\n".join(told), file=self._told, flush=True)
        if self._backlog:
            super().take(connection, bodies)
            return
        weight, dump = self._ids["lb_as_set_weight"], self._ids["lb_as_v2_dump"]
        ping = self.api.ids["control_ping"].to_bytes(2, "big")
        for body in bodies:
            if body[:2] == weight:
                connection.send(self._set_weight(body))
            elif body[:2] == dump and any(body[11:27]):
                context = body[_CONTEXT]
                connection.send(b"".join([head + context + tail for head, tail in self._dump(body)]))
            else:
                if body[:2] != ping:
                    self._vips.clear()
                    self._details.clear()
                super().take(connection, [body])
        connection.flush()

    def _set_weight(self, body: bytes) -> bytes:
        wire = body[_VIP]
        vip = self._vips.get(wire) or self._find(wire)
        self._details.clear()
        retval = NO_SUCH_ENTRY
        if vip is not None:
            address = body[_ADDRESS]
            packed = embed(address[1:5] if address[0] == 0 else address[1:])
            retval = self.model.set_weight(vip, packed, body[48], flush=bool(body[49]))
        context = int.from_bytes(body[_CONTEXT], "big")
        return reply(self.api.ids["lb_as_set_weight_reply"], context, struct.pack(">i", retval))

    def _dump(self, body: bytes) -> list[tuple[bytes, bytes]]:
        details = self._details.get(body[_VIP])
        if details is None:
            message, number = MESSAGES["lb_as_v2_details"], self.api.ids["lb_as_v2_details"]
            values = MESSAGES["lb_as_v2_dump"].unpack(body[REQUEST_PAYLOAD:])
            found = self.api.call(MESSAGES["lb_as_v2_dump"], values, 0)
            framed = [reply(number, 0, message.pack(**one)) for _, one in found]
            details = [(one[:18], one[22:]) for one in framed]
            self._details[body[_VIP]] = details
        return details

    def _find(self, wire: bytes) -> Vip | None:
        address = wire[1:5] if wire[0] == 0 else wire[1:17]
        length = wire[17] + 128 - 8 * len(address)
        vip = self.model.find(embed(address), length, wire[18], int.from_bytes(wire[19:21], "big"))
        if vip is not None:
            self._vips[wire] = vip
        return vip


async def _serve(path: str, told: IO[str] | None = None) -> None:
    await Instant(path, told).start()
    print("listening", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(name, "w", encoding="ascii")) for name in sys.argv[2:3]]
        uvloop.run(_serve(sys.argv[1], *files))
