"""VPP's flow hash: which bucket of a VIP's new-flow table a packet falls into.

The lb plugin hashes the addresses and ports of a packet with CRC-32C, as its processor's instruction computes it: start
value 0, no inversion at the end, word by word (``lb_node_get_hash`` in the plugin's node.c, ``lb_hash_hash`` in
vppinfra). The bucket is the hash modulo the table's length, which is a power of two. A build of VPP for a processor
without that instruction hashes otherwise (xxhash), and this module does not forecast its buckets.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

cdef enum:
    WORDS_BYTES = 40         # five words of 64 bits
    POLYNOMIAL = 0x82F63B78  # CRC-32C, bits in reverse order, as the instruction has it
    MOST_PORT = 65535

cdef uint32_t TABLE[256]     # filled once when the module is imported, constant afterwards


cdef void fill_table() noexcept:
    cdef uint32_t value, byte, _bit
    for byte in range(256):
        value = byte
        for _bit in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        TABLE[byte] = value


fill_table()


def flow_hash(bytes source, bytes destination, int source_port=0, int destination_port=0):
    """The 32-bit hash of a packet from ``source`` to ``destination``: packed addresses of one family, 4 or 16 bytes.

    Both ports are 0 for a VIP with ``src-ip-sticky`` and for any protocol but TCP and UDP. Raises ValueError for
    addresses of other lengths or of two families, and for a port outside 0..65535.
    """
    cdef uint8_t words[WORDS_BYTES]
    cdef Py_ssize_t length
    cdef uint8_t* ports
    cdef uint32_t value = 0
    cdef int i
    if source is None or destination is None:
        raise TypeError("an address is bytes, not None")
    length = PyBytes_GET_SIZE(source)
    if length not in (4, 16) or PyBytes_GET_SIZE(destination) != length:
        raise ValueError("both addresses have 4 bytes, or both have 16")
    for i in (source_port, destination_port):
        if not 0 <= i <= MOST_PORT:
            raise ValueError(f"a port is 0 to {MOST_PORT}, not {i}")
    memset(words, 0, WORDS_BYTES)
    memcpy(words, PyBytes_AS_STRING(source), length)
    memcpy(words + length, PyBytes_AS_STRING(destination), length)
    # The word after the addresses: VPP loads both ports without swapping their bytes and puts the source port above
    # the destination port, so the destination port comes first in memory. The remaining words are zero.
    ports = words + 2 * length
    ports[0] = <uint8_t> (destination_port >> 8)
    ports[1] = <uint8_t> (destination_port & 0xFF)
    ports[2] = <uint8_t> (source_port >> 8)
    ports[3] = <uint8_t> (source_port & 0xFF)
    for i in range(WORDS_BYTES):
        value = TABLE[(value ^ words[i]) & 0xFF] ^ (value >> 8)
    return value
