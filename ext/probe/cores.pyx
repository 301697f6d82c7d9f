"""The pure parts of the probe engine alone, for tests, fuzzing and tools that look at packets. See ``_cores.pyi``.

None of it touches an engine or a socket.
"""

# The engine's own source, compiled once more: within the core these functions are inlined and have no address. It is
# another module since Python's calling conventions around them take the compiler longer than the engine itself.

from maglev._probe import HTTP_FAULTS

from probe.http cimport *
from probe.packet cimport *
from probe.ports cimport *
from probe.ring cimport *
from probe.schedule cimport *
from probe.state cimport *
from probe.sys cimport *
from probe.wheel cimport *

include "packet.pyx"
include "wheel.pyx"
include "http.pyx"


cdef Key _key(bytes key) except *:
    cdef Key out
    if len(key) != 16:
        raise ValueError(f"a key has 16 bytes, not {len(key)}")
    memcpy(&out, <const char*>key, 16)
    return out


def siphash13(bytes key, uint64_t word):
    """SipHash-1-3 of one little-endian word: the function behind every cookie."""
    cdef Key k = _key(key)
    return siphash(&k, word)


def seal_cookie(bytes key, uint32_t plain):
    """The cookie of a probe: a keyed permutation of slot << 12 | serial."""
    cdef Key k = _key(key)
    return cookie_seal(&k, plain)


def open_cookie(bytes key, uint32_t cookie):
    """The slot and serial of a cookie; the inverse of ``seal_cookie``."""
    cdef Key k = _key(key)
    return cookie_open(&k, cookie)


def seal_cookie64(bytes key, uint32_t cookie):
    """The 64-bit cookie in the payload of an echo request."""
    cdef Key k = _key(key)
    return cookie_seal64(&k, cookie)


def make_echo(bint v6, uint32_t cookie, uint64_t magic, uint64_t seal, int payload=ICMP_MIN_PAYLOAD):
    """An echo request from its ICMP header on; IPv6 without a checksum, which the kernel adds."""
    cdef uint8_t head[ICMP_HEAD]
    if not ICMP_MIN_PAYLOAD <= payload <= ICMP_MAX_PAYLOAD:
        raise ValueError(f"payload must be {ICMP_MIN_PAYLOAD}..{ICMP_MAX_PAYLOAD}")
    build_echo(head, v6, cookie, magic, seal)
    return (<char*>head)[:ICMP_HEAD] + bytes(payload - ICMP_MIN_PAYLOAD)


def make_syn4(bytes source, bytes target, uint16_t own_port, uint16_t peer_port, uint32_t cookie):
    """A SYN with its IPv4 header, whose own checksum and identification the kernel adds."""
    cdef uint8_t packet[IP4_HEAD + TCP_HEAD]
    if len(source) != 4 or len(target) != 4:
        raise ValueError("addresses must have 4 bytes")
    build_syn4(packet, <const uint8_t*><const char*>source, <const uint8_t*><const char*>target, own_port, peer_port,
               cookie)
    return (<char*>packet)[:IP4_HEAD + TCP_HEAD]


def next_probe_due(uint64_t seed, int64_t due, int64_t now, int64_t interval):
    """When the probe after the one that was due at ``due`` is due; ``seed``, not 0, stands for chance."""
    if seed == 0 or interval < 1:
        raise ValueError("seed and interval must be positive")
    return next_due(&seed, due, now, interval)


def source_port(uint32_t count, uint32_t target, int64_t now, int64_t sent):
    """Which of ``count`` reserved ports a SYN of ``target`` leaves from now; None while it has to wait for one.

    ``sent`` is when the last one left.
    """
    cdef Origin origin
    if count < MIN_PORTS:
        raise ValueError(f"count must be {MIN_PORTS} at least")
    memset(&origin, 0, sizeof(origin))
    origin.ports.count = count
    origin.ports.turn_length = port_turn(count)
    turn_ports(&origin, now)
    return None if sent >= origin.ports.turn_at else port_at(&origin, target)


cdef object _packet(const Packet* packet, bint v6):
    return {
        "kind": ("malformed", "other", "echo", "syn-ack", "rst", "error-icmp", "error-tcp")[packet.kind],
        "cookie": packet.cookie,
        "seal": packet.seal,
        "magic": packet.magic,
        "address": (<const char*>packet.address)[:16 if v6 else 4],
        "peer_port": packet.peer_port,
        "own_port": packet.own_port,
        "error": (packet.error_type, packet.error_code),
    }


def read_icmp(const uint8_t[::1] data, bint v6, bytes source=bytes(16)):
    """Parse an ICMP message as a raw socket delivers it (IPv4: with its IP header). Never raises for bad packets."""
    cdef Packet packet
    cdef uint8_t nothing = 0
    if len(source) != 16:
        raise ValueError("source must have 16 bytes")
    parse_icmp(&data[0] if data.shape[0] else &nothing, data.shape[0], v6, <const uint8_t*><const char*>source, &packet)
    return _packet(&packet, v6)


def read_tcp(const uint8_t[::1] data, bint v6, bytes source=bytes(16)):
    """Parse a TCP segment as a raw socket delivers it (IPv4: with its IP header). Never raises for bad packets."""
    cdef Packet packet
    cdef uint8_t nothing = 0
    if len(source) != 16:
        raise ValueError("source must have 16 bytes")
    parse_tcp(&data[0] if data.shape[0] else &nothing, data.shape[0], v6, <const uint8_t*><const char*>source, &packet)
    return _packet(&packet, v6)


cdef class HttpParser:
    """An HTTP response parser: ``feed`` bytes as they come, ``eof`` when the server closes. See ``_cores.pyi``."""
    cdef Http http
    cdef uint64_t codes[10]

    def __cinit__(self, codes=(200,), *, bint head=False, bint want_body=False):
        memset(self.codes, 0, sizeof(self.codes))
        for code in codes:
            if not 0 <= code < HTTP_CODES:
                raise ValueError(f"status {code} is not in 0..599")
            self.codes[code >> 6] |= <uint64_t>1 << (code & 63)
        http_init(&self.http, self.codes, head, want_body)

    def __dealloc__(self):
        free(self.http.body)

    def feed(self, const uint8_t[::1] data):
        """Take bytes; those after the end of the response are ignored."""
        cdef size_t taken = 0
        if data.shape[0]:
            if self.http.rest == 0:
                taken = http_feed(&self.http, &data[0], data.shape[0])
            http_skip(&self.http, &data[0] + taken, data.shape[0] - taken)

    def eof(self):
        """The server has closed."""
        http_eof(&self.http)

    @property
    def state(self):
        return {HTTP_COMPLETE: "complete", HTTP_FAILED: "failed"}.get(self.http.state, "more")

    @property
    def status(self):
        return self.http.status

    @property
    def fault(self):
        return HTTP_FAULTS.get(self.http.fault, "").format(status=self.http.status)

    @property
    def rest(self):
        """True while the end of the response is known and has not come: the verdict does not need it."""
        return self.http.rest != 0

    @property
    def body(self):
        return (<char*>self.http.body)[:self.http.body_bytes] if self.http.body_bytes else b""


cdef class TimingWheel:
    """The wheel alone, over ``capacity`` slots, from millisecond ``now`` on."""
    cdef Wheel wheel
    cdef uint32_t* out
    cdef uint32_t capacity

    def __cinit__(self, uint32_t capacity, int64_t now=0):
        self.capacity = capacity
        self.out = <uint32_t*>calloc(capacity + 1, sizeof(uint32_t))
        if not wheel_init(&self.wheel, capacity, now) or self.out is NULL:
            raise MemoryError

    def __dealloc__(self):
        wheel_free(&self.wheel)
        free(self.out)

    cdef int _check(self, uint32_t index) except -1:
        if index >= self.capacity:
            raise IndexError(index)
        return 0

    def put(self, uint32_t index, int64_t at):
        """Have ``index`` looked at in millisecond ``at``, or a multiple of 4,096 earlier."""
        self._check(index)
        wheel_put(&self.wheel, index, at)

    def remove(self, uint32_t index):
        """Take ``index`` out; harmless if it is not in."""
        self._check(index)
        wheel_remove(&self.wheel, index)

    def next(self):
        """The next millisecond in which anything is to be looked at, or -1."""
        return wheel_next(&self.wheel)

    def take(self, int64_t until):
        """Everything up to millisecond ``until``, in no order within one."""
        cdef uint32_t count = wheel_take(&self.wheel, until, self.out)
        return [self.out[i] for i in range(count)]


cdef enum:
    ITEM_WORDS = 512

# Much larger than what the engine hands over: copying it takes so long that a thread is often interrupted in the
# middle, also where both threads share a CPU. A wrong order of publishing shows at once then.
cdef struct Item:
    uint64_t words[ITEM_WORDS]


# Item number `number`: every word depends on the number, so that a stale or torn item shows.
cdef void item_fill(Item* item, uint32_t number) noexcept nogil:
    cdef int i
    for i in range(ITEM_WORDS):
        item.words[i] = (number + <uint64_t>1) * <uint64_t>0x9e3779b97f4a7c15


# One more turn of a thread that spins for the other one. False: it is late. On a single CPU the other one needs the
# rest of this time slice.
cdef bint patient(uint32_t* idle, int64_t until) noexcept nogil:
    idle[0] += 1
    if idle[0] & 1023:
        return True
    sched_yield()
    return clock_ns(CLOCK_MONOTONIC) < until


cdef class ItemRing:
    """A ring as the engine uses it, for one thread that produces and one that consumes. See ``_cores.pyi``."""
    cdef Ring ring
    cdef uint32_t pushed        # the producer's
    cdef uint32_t taken         # the consumer's

    def __cinit__(self, uint32_t size):
        if not 1 <= size <= 1 << 24 or size & (size - 1):
            raise ValueError(f"size must be a power of two up to 2**24, not {size}")
        if not ring_init(&self.ring, size, sizeof(Item)):
            raise MemoryError

    def __dealloc__(self):
        ring_free(&self.ring)

    def produce(self, uint32_t count, double seconds):
        """Push the next ``count`` items as there is room; returns how many were pushed within ``seconds``."""
        cdef Item item
        cdef uint32_t begun = self.pushed
        cdef uint32_t idle = 0
        cdef int64_t until = clock_ns(CLOCK_MONOTONIC) + <int64_t>(seconds * SECOND)
        with nogil:
            while self.pushed - begun < count:
                item_fill(&item, self.pushed)
                if ring_push(&self.ring, &item):
                    self.pushed += 1
                elif not patient(&idle, until):
                    break
        return self.pushed - begun

    def consume(self, uint32_t count, double seconds):
        """Take the next ``count`` items as they come.

        Returns how many of those taken were stale or torn, and how many came within ``seconds``.
        """
        cdef Item item, expected
        cdef uint32_t begun = self.taken
        cdef uint32_t idle = 0
        cdef uint32_t wrong = 0
        cdef int64_t until = clock_ns(CLOCK_MONOTONIC) + <int64_t>(seconds * SECOND)
        with nogil:
            while self.taken - begun < count:
                if ring_take(&self.ring, &item):
                    item_fill(&expected, self.taken)
                    wrong += memcmp(&item, &expected, sizeof(Item)) != 0
                    self.taken += 1
                elif not patient(&idle, until):
                    break
        return wrong, self.taken - begun
