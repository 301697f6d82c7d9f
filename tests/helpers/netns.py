"""Network namespaces for tests: two that are joined by a veth pair, and a stranger who sends any packet he likes."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

ETH_P_IP = 0x0800
CLONE_NEWNET = 0x40000000

CLIENT, SERVER = "192.0.2.1", "192.0.2.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def ip(*words: str) -> None:
    """Run ``ip``; its complaint is the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def inside(namespace: str, function: Callable[[], Any]) -> Any:
    """Call ``function`` in a thread of that namespace; what it opens stays there."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with open(f"/run/netns/{namespace}") as handle:
                if _libc.setns(handle.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {namespace}")
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


class Pair:
    """Two namespaces: ``client``, where probes leave from, and ``server``. 198.51.100.0/24 leads into its silence."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.client = f"mgl-{os.getpid()}-c{number}"
        self.server = f"mgl-{os.getpid()}-s{number}"

    def open(self) -> None:
        """Make them."""
        for name in (self.client, self.server):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.client, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", self.server)
        for name, four, six in ((self.client, CLIENT, CLIENT6), (self.server, SERVER, SERVER6)):
            ip("-n", name, "addr", "add", f"{four}/24", "dev", "veth0")
            ip("-n", name, "addr", "add", f"{six}/64", "dev", "veth0", "nodad")
            ip("-n", name, "link", "set", "veth0", "up")
        ip("-n", self.client, "route", "add", "198.51.100.0/24", "via", SERVER)

    def close(self) -> None:
        """Remove what is left of them."""
        for name in (self.client, self.server):
            with contextlib.suppress(RuntimeError):
                ip("netns", "del", name)


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """Two joined namespaces for one test."""
    one = Pair()
    try:
        one.open()
        yield one
    finally:
        one.close()


class Stranger:
    """Sees every IPv4 packet that reaches the server's namespace and answers with whatever ``answer`` returns.

    Packets start with their IP header. ``seen`` keeps those that came for 198.51.100.0/24.
    """

    def __init__(self, namespace: str, answer: Callable[[bytes], list[bytes]]) -> None:
        self.answer = answer
        self.seen: list[bytes] = []
        self._ears = inside(
            namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        )
        self._mouth = inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self._quit_read, self._quit_write = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._ears, self._quit_read], [], [])
            if self._quit_read in ready:
                return
            packet, address = self._ears.recvfrom(65536)
            if address[2] == socket.PACKET_OUTGOING or packet[16:19] != bytes([198, 51, 100]):
                continue
            self.seen.append(packet)
            for reply in self.answer(packet):
                self.send(reply)

    def send(self, packet: bytes) -> None:
        """Send a packet with its IP header."""
        self._mouth.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))

    def close(self) -> None:
        """Stop listening."""
        os.write(self._quit_write, b"x")
        self._thread.join()
        self._ears.close()
        self._mouth.close()
        os.close(self._quit_read)
        os.close(self._quit_write)


@contextlib.contextmanager
def stranger(namespace: str, answer: Callable[[bytes], list[bytes]]) -> Iterator[Stranger]:
    """A stranger for one test."""
    one = Stranger(namespace, answer)
    try:
        yield one
    finally:
        one.close()


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: bytes, target: bytes, proto: int, payload: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    """An IPv4 packet; the kernel adds the header's checksum."""
    words = 5 + len(options) // 4
    total = words * 4 + len(payload)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, total, 4711 if fragment else 0, fragment, 64, proto, 0)
    return head + source + target + options + payload


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP message; ``rest`` starts behind the checksum."""
    return struct.pack(">BBH", kind, code, checksum(struct.pack(">BBH", kind, code, 0) + rest)) + rest


def flipped(data: bytes, at: int) -> bytes:
    """The same with one bit of byte ``at`` turned over."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def echo_reply(request: bytes, **changes: bytes) -> bytes:
    """The reply to an echo request (``payload``, ``source`` or IP ``options`` may differ)."""
    message = changes.get("payload", request[28:])
    source = changes.get("source", request[16:20])
    body = icmp(0, 0, request[24:28] + message)
    return ip4(source, request[12:16], 1, body, changes.get("options", b""))


def icmp_error(probe: bytes, kind: int, code: int, quoted: int = 8) -> bytes:
    """An error from the router that quotes the probe's IP header and ``quoted`` bytes behind it."""
    quote = probe[: 20 + quoted]
    return ip4(socket.inet_aton(SERVER), probe[12:16], 1, icmp(kind, code, bytes(4) + quote))


def tcp_reply(syn: bytes, flags: int, *, ack: int = 1, source: bytes | None = None, sequence: int = 1000) -> bytes:
    """A segment that answers a SYN; ``ack`` is what it acknowledges beyond the SYN's sequence number."""
    own, peer, theirs = struct.unpack(">HHI", syn[20:28])
    source = source or syn[16:20]
    segment = struct.pack(">HHIIBBHHH", peer, own, sequence, (theirs + ack) & 0xFFFFFFFF, 0x50, flags, 1024, 0, 0)
    pseudo = source + syn[12:16] + struct.pack(">HH", 6, len(segment))
    total = checksum(pseudo + segment)
    return ip4(source, syn[12:16], 6, segment[:16] + struct.pack(">H", total) + segment[18:])
