"""Network namespaces for tests: two that are joined by a veth pair, and a stranger that sends arbitrary packets."""

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

from tests.helpers.engine import packed

ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
CLONE_NEWNET = 0x40000000

CLIENT, SERVER = "192.0.2.1", "192.0.2.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
SILENT, SILENT6 = "198.51.100.7", "2001:db8:7::7"
OTHER, OTHER6 = "198.51.100.8", "2001:db8:7::8"

_SILENT_NETS = (socket.inet_aton(SILENT)[:3], socket.inet_pton(socket.AF_INET6, SILENT6)[:8])
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
    """Two namespaces: ``client``, where probes leave from, and ``server``, which says nothing for ``SILENT``'s net."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.client = f"mgl-{os.getpid()}-c{number}"
        self.server = f"mgl-{os.getpid()}-s{number}"

    def open(self) -> None:
        """Make them."""
        ip("netns", "add", self.server)
        ip("-n", self.server, "link", "set", "lo", "up")
        self.join()

    def join(self) -> None:
        """Make the client's namespace, and the link between the two: also anew, where both are gone."""
        ip("netns", "add", self.client)
        ip("-n", self.client, "link", "set", "lo", "up")
        ip("-n", self.client, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", self.server)
        for name, four, six in ((self.client, CLIENT, CLIENT6), (self.server, SERVER, SERVER6)):
            ip("-n", name, "addr", "add", f"{four}/24", "dev", "veth0")
            ip("-n", name, "addr", "add", f"{six}/64", "dev", "veth0", "nodad")
            ip("-n", name, "link", "set", "veth0", "up")
        ip("-n", self.client, "route", "add", "198.51.100.0/24", "via", SERVER)
        ip("-n", self.client, "route", "add", "2001:db8:7::/64", "via", SERVER6)
        ip("-n", self.server, "-6", "route", "replace", "blackhole", "2001:db8:7::/64")

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
    """Sees what reaches the server's namespace for ``SILENT``'s net, and answers with whatever ``answer`` returns.

    Packets, of IPv4 and IPv6, start with their IP header. ``seen`` keeps them.
    """

    def __init__(self, namespace: str, answer: Callable[[bytes], list[bytes]]) -> None:
        self.answer = answer
        self.seen: list[bytes] = []
        self._ears = inside(
            namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        )
        families = (socket.AF_INET, socket.AF_INET6)
        self._mouths: dict[socket.AddressFamily, socket.socket] = inside(
            namespace, lambda: {one: socket.socket(one, socket.SOCK_RAW, socket.IPPROTO_RAW) for one in families}
        )
        self._quit_read, self._quit_write = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._ears, self._quit_read], [], [])
            if self._quit_read in ready:
                return
            packet, address = self._ears.recvfrom(65536)
            if address[2] == socket.PACKET_OUTGOING or address[1] not in (ETH_P_IP, ETH_P_IPV6):
                continue
            if not ends(packet)[1].startswith(_SILENT_NETS):
                continue
            self.seen.append(packet)
            for reply in self.answer(packet):
                self.send(reply)

    def send(self, packet: bytes) -> None:
        """Send a packet with its IP header."""
        _, target = ends(packet)
        self._mouths[family_of(target)].sendto(packet, (socket.inet_ntop(family_of(target), target), 0))

    def close(self) -> None:
        """Stop listening."""
        os.write(self._quit_write, b"x")
        self._thread.join()
        self._ears.close()
        for mouth in self._mouths.values():
            mouth.close()
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


def family_of(address: bytes) -> socket.AddressFamily:
    """By its length."""
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def head(packet: bytes) -> int:
    """Where a packet's payload begins: behind an IP header without options or extensions."""
    return 20 if packet[0] >> 4 == 4 else 40


def ends(packet: bytes) -> tuple[bytes, bytes]:
    """Source and target of a packet."""
    return (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])


def ip_packet(source: bytes, target: bytes, proto: int, payload: bytes) -> bytes:
    """An IP packet; the kernel adds the checksum of IPv4's header."""
    if len(source) == 4:
        return struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, proto, 0) + source + target + payload
    return struct.pack(">IHBB", 6 << 28, len(payload), proto, 64) + source + target + payload


def with_options(packet: bytes) -> bytes:
    """The same with options in the IPv4 header, or an extension header of IPv6."""
    at, payload = head(packet), packet[head(packet) :]
    if at == 20:
        return bytes([0x47]) + packet[1:2] + struct.pack(">H", len(packet) + 8) + packet[4:20] + b"\x01" * 8 + payload
    extension = bytes([packet[6], 0, 1, 4, 0, 0, 0, 0])  # destination options: a PadN
    return packet[:4] + struct.pack(">HB", len(payload) + 8, 60) + packet[7:40] + extension + payload


def in_fragments(packet: bytes, first: int) -> list[bytes]:
    """The same in two fragments, the first with so many bytes of payload (a multiple of 8)."""
    at, payload = head(packet), packet[head(packet) :]
    parts, number = [], next(_numbers)  # the kernel puts together what has the same
    for offset, more, data in ((0, 1, payload[:first]), (first // 8, 0, payload[first:])):
        if at == 20:
            size, where = struct.pack(">H", 20 + len(data)), struct.pack(">HH", number, more << 13 | offset)
            parts.append(packet[:2] + size + where + packet[8:20] + data)
        else:
            extension = struct.pack(">BBHI", packet[6], 0, offset << 3 | more, number)
            parts.append(packet[:4] + struct.pack(">HB", len(data) + 8, 44) + packet[7:40] + extension + data)
    return parts


def summed(source: bytes, target: bytes, proto: int, message: bytes, at: int) -> bytes:
    """A message with its checksum, which covers the addresses too, filled in at ``at``."""
    pseudo = source + target + struct.pack(">II", len(message), proto)
    return message[:at] + struct.pack(">H", checksum(pseudo + message)) + message[at + 2 :]


def icmp_packet(source: bytes, target: bytes, kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP or ICMPv6 message in its packet; ``rest`` starts after the checksum."""
    message = struct.pack(">BBH", kind, code, 0) + rest
    if len(source) == 4:
        message = message[:2] + struct.pack(">H", checksum(message)) + rest
        return ip_packet(source, target, socket.IPPROTO_ICMP, message)
    message = summed(source, target, socket.IPPROTO_ICMPV6, message, 2)
    return ip_packet(source, target, socket.IPPROTO_ICMPV6, message)


def flipped(packet: bytes, at: int) -> bytes:
    """The same with one bit of byte ``at`` turned over, counted from the end of the IP header."""
    at += head(packet)
    return packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :]


def echo_reply(request: bytes, *, source: str | None = None, payload: int | None = None) -> bytes:
    """The reply to an echo request; ``source`` may be another one, and ``payload`` fewer bytes."""
    body = request[head(request) + 4 :]
    peer, target = ends(request)[1] if source is None else packed(source), ends(request)[0]
    return icmp_packet(peer, target, 0 if len(peer) == 4 else 129, 0, body if payload is None else body[: 4 + payload])


def icmp_error(probe: bytes, *, quoted: int = 8) -> bytes:
    """A router's word that the host cannot be reached; quotes the probe's IP header and ``quoted`` bytes after it."""
    target, at = ends(probe)[0], head(probe)
    kind, code, router = (3, 1, SERVER) if at == 20 else (1, 3, SERVER6)
    return icmp_packet(packed(router), target, kind, code, bytes(4) + probe[: at + quoted])


def tcp_reply(syn: bytes, flags: int, *, ack: int = 1, source: str | None = None, sequence: int = 1000) -> bytes:
    """A segment that answers a SYN; ``ack`` is what it acknowledges beyond the SYN's sequence number."""
    at = head(syn)
    own, peer, theirs = struct.unpack(">HHI", syn[at : at + 8])
    server, target = ends(syn)[1] if source is None else packed(source), ends(syn)[0]
    words = (peer, own, sequence, (theirs + ack) & 0xFFFFFFFF, 0x50, flags, 1024, 0, 0)
    segment = struct.pack(">HHIIBBHHH", *words)
    return ip_packet(server, target, socket.IPPROTO_TCP, summed(server, target, socket.IPPROTO_TCP, segment, 16))
