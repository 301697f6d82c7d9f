# Checksums, keyed cookies, builders and parsers. Pure functions: no socket, no clock, no allocation. Any thread.
#
# Every byte that the parsers see was sent by a stranger: each length is checked against what was received before it is
# used (tests/fuzz/parsers.pyx).


cdef inline uint64_t rotl(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline uint16_t load_be16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t load_be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void store_be16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value


cdef inline void store_be32(uint8_t* p, uint32_t value) noexcept nogil:
    store_be16(p, value >> 16)
    store_be16(p + 2, value)


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotl(v[1], 13) ^ v[0]
    v[0] = rotl(v[0], 32)
    v[2] += v[3]
    v[3] = rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotl(v[1], 17) ^ v[2]
    v[2] = rotl(v[2], 32)


# SipHash-1-3 of one 64-bit word (Aumasson and Bernstein, 2012): a keyed function, unpredictable without the key.
cdef inline uint64_t siphash(const Key* key, uint64_t word) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t length = <uint64_t>sizeof(word) << 56
    v[0] = key.a ^ <uint64_t>0x736f6d6570736575
    v[1] = key.b ^ <uint64_t>0x646f72616e646f6d
    v[2] = key.a ^ <uint64_t>0x6c7967656e657261
    v[3] = key.b ^ <uint64_t>0x7465646279746573 ^ word
    sip_round(v)
    v[0] ^= word
    v[3] ^= length
    sip_round(v)
    v[0] ^= length
    v[2] ^= 0xff
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


# The purpose that the one key is used for goes into the upper half of the word.
cdef enum:
    USE_COOKIE = 0
    USE_SEAL = 1
    USE_JITTER = 2


cdef inline uint32_t cookie_round(const Key* key, uint32_t half, uint64_t turn) noexcept nogil:
    return <uint32_t>siphash(key, <uint64_t>USE_COOKIE << 32 | turn << 16 | half) & 0xffff


# A cookie is a keyed permutation of (slot, serial): four Feistel rounds over two halves of 16 bits. It can be undone
# without a table, no two probes in flight share one, and a stranger can only guess.
cdef uint32_t cookie_seal(const Key* key, uint32_t plain) noexcept nogil:
    cdef uint32_t left = plain >> 16
    cdef uint32_t right = plain & 0xffff
    left ^= cookie_round(key, right, 0)
    right ^= cookie_round(key, left, 1)
    left ^= cookie_round(key, right, 2)
    right ^= cookie_round(key, left, 3)
    return (left << 16) | right


cdef uint32_t cookie_open(const Key* key, uint32_t cookie) noexcept nogil:
    cdef uint32_t left = cookie >> 16
    cdef uint32_t right = cookie & 0xffff
    right ^= cookie_round(key, left, 3)
    left ^= cookie_round(key, right, 2)
    right ^= cookie_round(key, left, 1)
    left ^= cookie_round(key, right, 0)
    return (left << 16) | right


# The second, 64-bit cookie of an echo request.
cdef inline uint64_t cookie_seal64(const Key* key, uint32_t cookie) noexcept nogil:
    return siphash(key, <uint64_t>USE_SEAL << 32 | cookie)


# Sum of 16-bit words, not yet folded: partial sums of parts of even length may be added (RFC 1071).
cdef uint64_t sum_bytes(const uint8_t* data, size_t length) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t i = 0
    while i + 1 < length:
        total += load_be16(data + i)
        i += 2
    if i < length:
        total += <uint32_t>data[i] << 8
    return total


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return <uint16_t>(~total & 0xffff)


# The head of an echo request; what follows up to the payload's size is zero and adds nothing to the sum.
# IPv6's checksum covers addresses that the kernel chooses, and the kernel fills it in.
cdef void build_echo(uint8_t* head, bint v6, uint32_t cookie, uint64_t magic, uint64_t seal) noexcept nogil:
    head[0] = 128 if v6 else 8
    head[1] = 0
    store_be16(head + 2, 0)
    store_be32(head + 4, cookie)
    store_be32(head + 8, <uint32_t>(magic >> 32))
    store_be32(head + 12, <uint32_t>magic)
    store_be32(head + 16, <uint32_t>(seal >> 32))
    store_be32(head + 20, <uint32_t>seal)
    if not v6:
        store_be16(head + 2, fold(sum_bytes(head, ICMP_HEAD)))


# A SYN without its checksum: sequence number = cookie, one option (MSS 1460), as an ordinary client sends it.
cdef void build_syn(uint8_t* head, uint16_t own_port, uint16_t peer_port, uint32_t cookie) noexcept nogil:
    store_be16(head, own_port)
    store_be16(head + 2, peer_port)
    store_be32(head + 4, cookie)
    store_be32(head + 8, 0)
    head[12] = (TCP_HEAD // 4) << 4
    head[13] = TCP_SYN
    store_be16(head + 14, 64240)
    store_be16(head + 16, 0)
    store_be16(head + 18, 0)
    head[20] = 2
    head[21] = 4
    store_be16(head + 22, 1460)


# An IPv4 header, then a SYN. The kernel fills in the header's length, identification and checksum.
cdef void build_syn4(
    uint8_t* packet,
    const uint8_t* source,
    const uint8_t* target,
    uint16_t own_port,
    uint16_t peer_port,
    uint32_t cookie,
) noexcept nogil:
    cdef uint8_t* tcp = packet + IP4_HEAD
    cdef uint64_t total
    memset(packet, 0, IP4_HEAD)
    packet[0] = 0x45
    store_be16(packet + 2, IP4_HEAD + TCP_HEAD)
    packet[6] = 0x40    # do not fragment
    packet[8] = 64
    packet[9] = 6
    memcpy(packet + 12, source, 4)
    memcpy(packet + 16, target, 4)
    build_syn(tcp, own_port, peer_port, cookie)
    total = sum_bytes(packet + 12, 8) + 6 + TCP_HEAD + sum_bytes(tcp, TCP_HEAD)
    store_be16(tcp + 16, fold(total))


# The packet that an ICMP error quotes: `data` starts with the IP header of the packet that caused it, and may end after
# 8 bytes of its payload.
cdef void parse_quote(const uint8_t* data, size_t length, bint v6, Packet* out) noexcept nogil:
    cdef size_t head
    cdef uint8_t proto
    if v6:
        if length < 48 or data[0] >> 4 != 6:
            return
        head = 40
        proto = data[6]
        memcpy(out.address, data + 24, 16)
    else:
        if length < 28 or data[0] >> 4 != 4:
            return
        head = <size_t>(data[0] & 15) * 4
        if head < 20 or length < head + 8:
            return
        proto = data[9]
        if load_be16(data + 6) & 0x1fff:
            out.kind = PACKET_OTHER     # a later fragment: it does not begin with a header
            return
        memcpy(out.address, data + 16, 4)
    data += head
    if proto == 6:
        out.own_port = load_be16(data)
        out.peer_port = load_be16(data + 2)
        out.cookie = load_be32(data + 4)
        out.kind = PACKET_ERROR_TCP
    elif (v6 and proto == 58 and data[0] == 128) or (not v6 and proto == 1 and data[0] == 8):
        out.cookie = load_be32(data + 4)
        out.kind = PACKET_ERROR_ICMP
    else:
        out.kind = PACKET_OTHER


# The payload of an IP packet as a raw socket gives it: IPv4 with its header, IPv6 without (`source` is the
# sender then). Notes the sender and shortens `length`; NULL where the header is none.
cdef inline const uint8_t* past_ip(
    const uint8_t* data, size_t* length, bint v6, const uint8_t* source, Packet* out
) noexcept nogil:
    cdef size_t head
    if v6:
        memcpy(out.address, source, 16)
        return data
    if length[0] < 20:
        return NULL
    head = <size_t>(data[0] & 15) * 4
    if data[0] >> 4 != 4 or head < 20 or length[0] < head:
        return NULL
    memcpy(out.address, data + 12, 4)
    length[0] -= head
    return data + head


# An ICMP message as a raw socket gives it.
cdef void parse_icmp(const uint8_t* data, size_t length, bint v6, const uint8_t* source, Packet* out) noexcept nogil:
    cdef uint8_t kind
    memset(out, 0, sizeof(Packet))
    data = past_ip(data, &length, v6, source, out)
    if data is NULL:
        return
    if length < 8:
        return
    kind = data[0]
    if kind == (129 if v6 else 0):
        if length < ICMP_HEAD:
            return
        out.cookie = load_be32(data + 4)
        out.magic = (<uint64_t>load_be32(data + 8) << 32) | load_be32(data + 12)
        out.seal = (<uint64_t>load_be32(data + 16) << 32) | load_be32(data + 20)
        out.kind = PACKET_ECHO
    elif (1 <= kind <= 4) if v6 else (kind == 3 or kind == 11 or kind == 12):
        out.error_type = kind
        out.error_code = data[1]
        memset(out.address, 0, 16)
        parse_quote(data + 8, length - 8, v6, out)
    else:
        out.kind = PACKET_OTHER


# A TCP segment as a raw socket gives it, in the same manner. Only an answer to a SYN can be ours: it acknowledges
# exactly one more than the cookie.
cdef void parse_tcp(const uint8_t* data, size_t length, bint v6, const uint8_t* source, Packet* out) noexcept nogil:
    cdef size_t head
    cdef uint8_t flags
    memset(out, 0, sizeof(Packet))
    data = past_ip(data, &length, v6, source, out)
    if data is NULL:
        return
    if length < 20:
        return
    head = <size_t>(data[12] >> 4) * 4
    if head < 20 or length < head:
        return
    out.peer_port = load_be16(data)
    out.own_port = load_be16(data + 2)
    out.cookie = load_be32(data + 8) - 1
    flags = data[13]
    if not flags & TCP_ACK:
        out.kind = PACKET_OTHER
    elif flags & TCP_RST:
        out.kind = PACKET_RST
    elif flags & TCP_SYN:
        out.kind = PACKET_SYN_ACK
    else:
        out.kind = PACKET_OTHER
