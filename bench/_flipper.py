"""Servers that come and go, in a network namespace: ``python -m bench._flipper COUNT PORT FLIP_PORT``.

On PORT every address answers, always. On FLIP_PORT the COUNT addresses from 127.2.0.1 on listen or refuse, each on its
own. Told ``RATE SECONDS`` on its standard input it changes one after the other, RATE a second, and then writes a line
of JSON: for each change the moment (wall clock, ns) in which the first reply that shows it came out of the kernel,
which server it was, and whether it is up. Changes that were not probed in time are not in it.
"""

from __future__ import annotations

import ctypes
import json
import select
import socket
import struct
import sys
import time

BASE = 0x7F020001
SO_ATTACH_FILTER, SO_TIMESTAMPNS, ETH_P_IP, PACKET_OUTGOING = 26, 35, 0x0800, 4
RST, SYN_ACK = 0x04, 0x12
# IPv4 packets from 127.2.0.0/16, as classic BPF.
FILTER = (
    (0x20, 0, 0, 12),  # load the source address
    (0x54, 0, 0, 0xFFFF0000),
    (0x15, 0, 1, 0x7F020000),
    (0x06, 0, 0, 128),
    (0x06, 0, 0, 0),
)


def address(index: int) -> str:
    """The address of a server that comes and goes."""
    return socket.inet_ntoa((BASE + index).to_bytes(4, "big"))


def listener(host: str, port: int, backlog: int) -> socket.socket:
    """A listening socket without an accepting process, since half-open checks end before that."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(backlog)
    return sock


def capture() -> socket.socket:
    """A packet socket that sees what the servers answer, with the kernel's time of each packet."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
    code = b"".join(struct.pack("HBBI", *line) for line in FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(FILTER), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.bind(("lo", ETH_P_IP))
    sock.setblocking(False)
    return sock


class Flipper:
    """The servers, and the observed answers."""

    def __init__(self, count: int, port: int) -> None:
        self._port = port
        self._up: list[socket.socket | None] = [listener(address(index), port, 8) for index in range(count)]
        self._capture = capture()
        self._awaited: dict[int, bool] = {}
        self._next = 0
        self._seen: list[tuple[int, int, bool]] = []

    def run(self, rate: float, seconds: float) -> list[tuple[int, int, bool]]:
        """Change servers for so long; a little longer to see the last answers."""
        self._seen.clear()
        began = time.monotonic()
        changes = round(rate * seconds)
        for number in range(changes):
            self._watch(began + number / rate)
            self._flip()
        self._watch(time.monotonic() + 2)
        return self._seen

    def _flip(self) -> None:
        index = self._next
        self._next = (index + 1) % len(self._up)
        sock = self._up[index]
        if sock is None:
            self._up[index] = listener(address(index), self._port, 8)
        else:
            sock.close()
            self._up[index] = None
        self._awaited[index] = sock is None

    def _watch(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            if select.select([self._capture], [], [], left)[0]:
                self._look()

    def _look(self) -> None:
        packet, ancillary, _, sender = self._capture.recvmsg(128, 64)
        if sender[2] == PACKET_OUTGOING or packet[9] != socket.IPPROTO_TCP:
            return
        head = 4 * (packet[0] & 15)
        flags = packet[head + 13]
        index = int.from_bytes(packet[12:16], "big") - BASE
        up = self._awaited.get(index)
        if up is None or not (flags & SYN_ACK == SYN_ACK if up else flags & RST):
            return
        del self._awaited[index]
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
        self._seen.append((seconds * 1_000_000_000 + nanoseconds, index, up))


def main(count: int, port: int, flip_port: int) -> None:
    """Serve until the standard input ends."""
    everywhere = listener("0.0.0.0", port, 4096)
    flipper = Flipper(count, flip_port)
    print("ready", flush=True)
    for line in sys.stdin:
        rate, seconds = line.split()
        print(json.dumps(flipper.run(float(rate), float(seconds))), flush=True)
    everywhere.close()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))
