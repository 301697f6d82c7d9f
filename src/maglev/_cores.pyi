"""The pure parts of the probe engine alone, for tests, fuzzing and tools. None touches an engine or a socket."""

from collections.abc import Iterable
from typing import TypedDict

def siphash13(key: bytes, word: int) -> int: ...
def seal_cookie(key: bytes, plain: int) -> int:
    """The cookie of a probe: a keyed permutation of slot << 12 | serial."""

def open_cookie(key: bytes, cookie: int) -> int:
    """The slot and serial of a cookie; the inverse of ``seal_cookie``."""

def seal_cookie64(key: bytes, cookie: int) -> int:
    """The 64-bit cookie in the payload of an echo request."""

def make_echo(v6: bool, cookie: int, magic: int, seal: int, payload: int = 16) -> bytes:
    """An echo request from its ICMP header on; IPv6 without a checksum, which the kernel adds."""

def make_syn4(source: bytes, target: bytes, own_port: int, peer_port: int, cookie: int) -> bytes:
    """A SYN with its IPv4 header, whose own checksum and identification the kernel adds."""

def next_probe_due(seed: int, due: int, now: int, interval: int) -> int:
    """When the probe after the one that was due at ``due`` is due; ``seed``, not 0, stands for chance. Nanoseconds."""

def source_port(count: int, target: int, now: int, sent: int) -> int | None:
    """Which of ``count`` reserved ports a SYN of ``target`` leaves from now; None while it has to wait for one.

    ``sent`` is when the last one left; both in nanoseconds.
    """

class Packet(TypedDict):
    """``kind``: malformed, other, echo, syn-ack, rst, error-icmp or error-tcp. Ports in host order.

    ``address`` is who answers; of an error, whom the quoted packet went to. ``error`` is ICMP type and code.
    """

    kind: str
    cookie: int
    seal: int
    magic: int
    address: bytes
    peer_port: int
    own_port: int
    error: tuple[int, int]

def read_icmp(data: bytes, v6: bool, source: bytes = ...) -> Packet:
    """Parse an ICMP message as a raw socket delivers it (IPv4: with its IP header). Never raises for bad packets."""

def read_tcp(data: bytes, v6: bool, source: bytes = ...) -> Packet:
    """Parse a TCP segment as a raw socket delivers it (IPv4: with its IP header). Never raises for bad packets."""

class HttpParser:
    """An HTTP response parser: ``feed`` bytes as they come, ``eof`` when the server closes.

    ``codes``: the statuses that are good, 0..599; for those only a body is read, if ``want_body``.
    """

    def __init__(self, codes: Iterable[int] = (200,), *, head: bool = False, want_body: bool = False) -> None: ...
    def feed(self, data: bytes) -> None:
        """Take bytes; those after the end of the response are ignored."""

    def eof(self) -> None:
        """The server has closed."""

    @property
    def state(self) -> str:
        """``more``, ``complete`` or ``failed``."""

    @property
    def status(self) -> int: ...
    @property
    def fault(self) -> str:
        """Why it failed, empty otherwise."""

    @property
    def rest(self) -> bool:
        """True while the end of the response is known and has not come, although the verdict needs no more."""

    @property
    def body(self) -> bytes:
        """The first 64 KiB of the body, without its framing."""

class TimingWheel:
    """The wheel alone, over ``capacity`` slots, from millisecond ``now`` on."""

    def __init__(self, capacity: int, now: int = 0) -> None: ...
    def put(self, index: int, at: int) -> None:
        """Have ``index`` looked at in millisecond ``at``, or a multiple of 4,096 earlier."""

    def remove(self, index: int) -> None:
        """Take ``index`` out; harmless if it is not in."""

    def next(self) -> int:
        """The next millisecond in which anything is to be looked at, or -1."""

    def take(self, until: int) -> list[int]:
        """Everything up to millisecond ``until``, in no order within one."""

class ItemRing:
    """A ring as the engine uses it, ``size`` a power of two: one thread produces, one consumes, both without
    the interpreter's lock. ``seconds``: how long a call goes on at most. Items are numbered across calls."""

    def __init__(self, size: int) -> None: ...
    def produce(self, count: int, seconds: float) -> int:
        """Push the next ``count`` items as there is room; returns how many were pushed."""

    def consume(self, count: int, seconds: float) -> tuple[int, int]:
        """Take the next ``count`` items as they come; returns how many were stale or torn, and how many came."""
