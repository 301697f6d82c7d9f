# A libFuzzer target: whatever a network may send to the parsers. No Python runs in it; the parsers are the engine's own
# source, compiled once more with sanitizers. The first byte of an input says which parser, the second how it is cut.

from libc.stdlib cimport abort

from probe.http cimport *
from probe.packet cimport *
from probe.sys cimport *

include "probe/packet.pyx"
include "probe/http.pyx"


# An exact copy on the heap, so that a single byte read beyond the end is noticed.
cdef uint8_t* exact(const uint8_t* data, size_t length) noexcept nogil:
    cdef uint8_t* copy = <uint8_t*>malloc(length)
    if length:
        memcpy(copy, data, length)
    return copy


cdef void feed(Http* http, const uint8_t* data, size_t length) noexcept nogil:
    cdef uint8_t* copy = exact(data, length)
    cdef size_t taken = 0
    if http.rest == 0:
        taken = http_feed(http, copy, length)
    http_skip(http, copy + taken, length - taken)
    free(copy)


# However the bytes of a response are cut, its end is the same.
cdef void fuzz_http(const uint8_t* data, size_t length, uint8_t cut) noexcept nogil:
    cdef Http whole
    cdef Http parts
    cdef uint64_t codes[10]
    cdef size_t step = 1 + (cut & 31)
    cdef size_t at = 0
    memset(codes, 0, sizeof(codes))
    codes[3] = <uint64_t>0x3ff << 8             # 200..209
    http_init(&whole, codes, cut & 64, not cut & 128)
    http_init(&parts, codes, cut & 64, not cut & 128)
    feed(&whole, data, length)
    while at < length:
        feed(&parts, data + at, step if step < length - at else length - at)
        at += step
    if cut & 32:
        http_eof(&whole)
        http_eof(&parts)
    if whole.state != parts.state or whole.status != parts.status or whole.fault != parts.fault:
        abort()
    if whole.body_bytes != parts.body_bytes or whole.body_bytes > HTTP_MAX_BODY:
        abort()
    if whole.body_bytes and memcmp(whole.body, parts.body, whole.body_bytes) != 0:
        abort()
    free(whole.body)
    free(parts.body)


cdef void fuzz_packet(const uint8_t* data, size_t length, bint v6, bint tcp) noexcept nogil:
    cdef Packet packet
    cdef Key key
    cdef uint8_t source[16]
    cdef uint8_t* copy = exact(data, length)
    memset(source, 7, 16)
    key.a = 1
    key.b = 2
    if tcp:
        parse_tcp(copy, length, v6, source, &packet)
    else:
        parse_icmp(copy, length, v6, source, &packet)
    free(copy)
    if packet.kind > PACKET_ERROR_TCP:
        abort()
    if packet.kind >= PACKET_ECHO and cookie_seal(&key, cookie_open(&key, packet.cookie)) != packet.cookie:
        abort()


cdef public int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) noexcept nogil:
    if length < 2:
        return 0
    if data[0] & 7 < 4:
        fuzz_packet(data + 2, length - 2, data[0] & 1, data[0] & 2)
    else:
        fuzz_http(data + 2, length - 2, data[1])
    return 0
