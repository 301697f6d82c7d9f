# Packets as bytes: probes as they are sent, and replies to them.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    INDEX_BITS = 20             # of a cookie: which slot ...
    SERIAL_BITS = 12            # ... and which of its probes
    SERIAL_MASK = (1 << 12) - 1

    ICMP_HEAD = 24              # bytes of a probe that differ: ICMP header, magic, 64-bit cookie
    ICMP_MIN_PAYLOAD = 16
    ICMP_WHOLE_PAYLOAD = 512    # with its headers less than the least path MTU that the kernel believes (552)
    ICMP_MAX_PAYLOAD = 65507    # 65535 less the IPv4 and ICMP headers
    TCP_HEAD = 24               # TCP header with one option: the maximum segment size
    IP4_HEAD = 20

    TCP_RST = 0x04
    TCP_SYN = 0x02
    TCP_ACK = 0x10

cdef enum:
    PACKET_MALFORMED = 0        # shorter than it says
    PACKET_OTHER = 1            # well-formed, but no answer to anything of ours
    PACKET_ECHO = 2             # an echo reply
    PACKET_SYN_ACK = 3
    PACKET_RST = 4
    PACKET_ERROR_ICMP = 5       # an ICMP error that quotes an echo request
    PACKET_ERROR_TCP = 6        # an ICMP error that quotes a TCP segment

cdef struct Key:
    uint64_t a
    uint64_t b

cdef struct Packet:
    uint32_t cookie             # the 32 bits that name slot and serial
    uint64_t seal               # echo: the 64-bit cookie of the payload
    uint64_t magic              # echo: whose probe
    uint8_t address[16]         # who answers; of an error: whom the quoted probe went to. IPv4: first 4 bytes
    uint16_t peer_port          # host order; of an error: where the quoted segment went
    uint16_t own_port           # host order
    uint8_t kind                # PacketKind
    uint8_t error_type          # ICMP type and code of an error
    uint8_t error_code
