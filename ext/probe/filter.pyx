# Packet filters: what the kernel may put into the receive queue of a raw socket. Attached by the opener.


cdef sock_filter op(int code, uint32_t k, int jt=0, int jf=0) noexcept nogil:
    cdef sock_filter line
    line.code = <uint16_t>code
    line.jt = <uint8_t>jt
    line.jf = <uint8_t>jf
    line.k = k
    return line


# Classic BPF, by its numbers: loads absolute and indexed (X), jumps, return.
cdef enum:
    LD_B = 0x30
    LD_H = 0x28
    LD_W = 0x20
    LDX_IHL = 0xb1      # X = 4 * (packet[k] & 15)
    LD_BX = 0x50
    LD_HX = 0x48
    LD_WX = 0x40
    AND = 0x54
    LSH = 0x64
    ADD_X = 0x0c
    TAX = 0x07
    LDX_IMM = 0x01
    JEQ = 0x15
    JGE = 0x35
    JGT = 0x25
    JSET = 0x45
    RET = 0x06


# Jump targets that are filled in when the length of the program is known.
cdef enum:
    TO_ACCEPT = 254
    TO_DROP = 255


cdef int attach_filter(int fd, sock_filter* lines, int count) noexcept nogil:
    cdef sock_fprog program
    cdef int i
    lines[count] = op(RET, RECV_BYTES)
    lines[count + 1] = op(RET, 0)
    for i in range(count):
        if lines[i].code not in (JEQ, JGE, JGT, JSET):
            continue
        if lines[i].jt >= TO_ACCEPT:
            lines[i].jt = <uint8_t>(count - i - 1 + (lines[i].jt == TO_DROP))
        if lines[i].jf >= TO_ACCEPT:
            lines[i].jf = <uint8_t>(count - i - 1 + (lines[i].jf == TO_DROP))
    program.len = <unsigned short>(count + 2)
    program.filter = lines
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program))


# Let through: echo replies with our magic; errors that quote an echo request, or a TCP segment from one of our ports.
# An IPv4 raw socket sees the packet with its IP header, an IPv6 one without. A load beyond the end drops the packet.
cdef int filter_icmp(int fd, const Origin* origin) noexcept nogil:
    cdef sock_filter p[40]
    cdef uint32_t low = origin.ports.numbers[0] if origin.want_tcp else 0
    cdef uint32_t high = origin.ports.numbers[origin.ports.count - 1] if origin.want_tcp else 0
    cdef uint32_t magic = <uint32_t>(origin.magic >> 32)
    cdef int quoted_tcp = 0 if origin.want_tcp else TO_DROP
    cdef int quoted_echo = TO_ACCEPT if origin.want_icmp else TO_DROP
    if origin.v6:
        p[0] = op(LD_B, 0)
        p[1] = op(JEQ, 129, 0, 4)
        p[2] = op(LD_W, 8)
        p[3] = op(JEQ, magic, 0, TO_DROP)
        p[4] = op(LD_W, 12)
        p[5] = op(JEQ, <uint32_t>origin.magic, TO_ACCEPT, TO_DROP)
        p[6] = op(JGE, 1, 0, TO_DROP)
        p[7] = op(JGT, 4, TO_DROP, 0)
        p[8] = op(LD_B, 14)                 # the quoted packet's next header
        p[9] = op(JEQ, 58, 0, 2)
        p[10] = op(LD_B, 48)
        p[11] = op(JEQ, 128, quoted_echo, TO_DROP)
        p[12] = op(JEQ, 6, quoted_tcp, TO_DROP)
        p[13] = op(LD_H, 48)
        p[14] = op(JGE, low, 0, TO_DROP)
        p[15] = op(JGT, high, TO_DROP, TO_ACCEPT)
        return attach_filter(fd, p, 16)
    p[0] = op(LDX_IHL, 0)
    p[1] = op(LD_BX, 0)
    p[2] = op(JEQ, 0, 0, 4)
    p[3] = op(LD_WX, 8)
    p[4] = op(JEQ, magic, 0, TO_DROP)
    p[5] = op(LD_WX, 12)
    p[6] = op(JEQ, <uint32_t>origin.magic, TO_ACCEPT, TO_DROP)
    p[7] = op(JEQ, 3, 2, 0)
    p[8] = op(JEQ, 11, 1, 0)
    p[9] = op(JEQ, 12, 0, TO_DROP)
    p[10] = op(LD_BX, 17)                   # the quoted packet's protocol
    p[11] = op(JEQ, 1, 0, 7)
    p[12] = op(LD_BX, 8)                    # its header length: X moves on by it
    p[13] = op(AND, 15)
    p[14] = op(LSH, 2)
    p[15] = op(ADD_X, 0)
    p[16] = op(TAX, 0)
    p[17] = op(LD_BX, 8)
    p[18] = op(JEQ, 8, quoted_echo, TO_DROP)
    p[19] = op(JEQ, 6, quoted_tcp, TO_DROP)
    p[20] = op(LD_BX, 8)
    p[21] = op(AND, 15)
    p[22] = op(LSH, 2)
    p[23] = op(ADD_X, 0)
    p[24] = op(TAX, 0)
    p[25] = op(LD_HX, 8)
    p[26] = op(JGE, low, 0, TO_DROP)
    p[27] = op(JGT, high, TO_DROP, TO_ACCEPT)
    return attach_filter(fd, p, 28)


# Let through: segments to our ports that are a SYN-ACK or an RST.
cdef int filter_tcp(int fd, const Origin* origin) noexcept nogil:
    cdef sock_filter p[10]
    cdef uint32_t low = origin.ports.numbers[0]
    cdef uint32_t high = origin.ports.numbers[origin.ports.count - 1]
    p[0] = op(LDX_IMM, 0) if origin.v6 else op(LDX_IHL, 0)
    p[1] = op(LD_HX, 2)
    p[2] = op(JGE, low, 0, TO_DROP)
    p[3] = op(JGT, high, TO_DROP, 0)
    p[4] = op(LD_BX, 13)
    p[5] = op(JSET, TCP_RST, TO_ACCEPT, 0)
    p[6] = op(AND, TCP_SYN | TCP_ACK)
    p[7] = op(JEQ, TCP_SYN | TCP_ACK, TO_ACCEPT, TO_DROP)
    return attach_filter(fd, p, 8)
