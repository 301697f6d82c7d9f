"""VPP's new-flow table, bucket for bucket: which application server (AS) each new flow goes to.

VPP fills the table again with every weight call (``lb_vip_update_new_flow_table`` in its lb plugin). Building the
same one here predicts how many buckets each AS will have and how many flows of others will move.

An AS is given as ``(key, weight)``: its address as 16 bytes (``address_key``) and its weight 0..255; weight 0 has no
bucket. Keys within one table are distinct. A table's length is a power of two from 1 to 2**24.
"""

from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import array

cdef enum:
    KEY_LENGTH = 16
    MAX_LENGTH = 1 << 24
    MAX_WEIGHT = 255   # u8 in VPP's API

# XXH64's constants, and the start value of VPP's clib_xxhash: its seed + PRIME64_5 + the length of the input, 8.
cdef uint64_t PRIME64_1 = 0x9E3779B185EBCA87
cdef uint64_t PRIME64_2 = 0xC2B2AE3D27D4EB4F
cdef uint64_t PRIME64_3 = 0x165667B19E3779F9
cdef uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63
cdef uint64_t START = <uint64_t> 0x9E3779B97F4A7C13 + <uint64_t> 0x27D4EB2F165667C5 + 8

cdef array.array INT32 = array.array("i")


cdef struct Server:
    uint64_t word      # both halves of the address, XORed
    uint32_t weight
    uint32_t index     # where the caller has it


cdef struct Replica:
    # A server takes part once for each unit of its weight; each replica walks the table in its own order.
    uint32_t position  # where its walk goes on
    uint32_t skip
    int32_t server     # the caller's index


cdef inline uint64_t rotate(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline uint64_t xxhash(uint64_t word) noexcept nogil:
    cdef uint64_t value = START ^ (rotate(word * PRIME64_2, 31) * PRIME64_1)
    value = rotate(value, 27) * PRIME64_1 + PRIME64_4
    value = (value ^ (value >> 33)) * PRIME64_2
    value = (value ^ (value >> 29)) * PRIME64_3
    return value ^ (value >> 32)


cdef int check_length(long length) except -1:
    if length < 1 or length > MAX_LENGTH or length & (length - 1):
        raise ValueError(f"a table's length is a power of two from 1 to {MAX_LENGTH}, not {length}")
    return 0


cdef list in_order(object ases):
    # [(key, weight, index)] of those with weight, by key. Keys are 16 bytes each, so Python's order is memcmp's.
    cdef list found = []
    cdef Py_ssize_t index = 0
    cdef long weight
    cdef bytes key
    for key, weight in ases:
        if key is None or PyBytes_GET_SIZE(key) != KEY_LENGTH:
            raise ValueError("an AS key has 16 bytes")
        if weight < 0 or weight > MAX_WEIGHT:
            raise ValueError(f"an AS weight is 0 to {MAX_WEIGHT}, not {weight}")
        if weight > 0:
            found.append((key, weight, index))
        index += 1
    found.sort()
    for index in range(1, len(found)):
        if found[index][0] == found[index - 1][0]:
            raise ValueError("two ASes have the same key")
    return found


def address_key(address):
    """The 16 bytes by which VPP knows an IPv4Address or IPv6Address: IPv4 is 12 zero bytes, then its four."""
    cdef bytes packed = address.packed
    return packed if PyBytes_GET_SIZE(packed) == KEY_LENGTH else bytes(12) + packed


def bucket_counts(ases, long length):
    """Buckets of each AS, in the order of ``ases``, without building the table.

    Every round of the filling gives each replica one bucket, so all get the same number, and the first ones in
    VPP's order one more. Raises ValueError for a bad length, key or weight.
    """
    cdef list order
    cdef list counts
    cdef long total = 0
    cdef long each, left, level
    check_length(length)
    ases = list(ases)
    counts = [0] * len(ases)
    order = in_order(ases)
    for _, weight, _ in order:
        total += weight
    if total == 0:
        return counts
    each, left = divmod(length, total)
    for _, weight, index in order:
        counts[index] = weight * each
    level = 0
    while left > 0:
        # Replica number `level` of each AS that has one, by key.
        for _, weight, index in order:
            if weight > level:
                counts[index] += 1
                left -= 1
                if left == 0:
                    break
        level += 1
    return counts


cdef Py_ssize_t place(
    Server* servers, Py_ssize_t count, uint32_t weight_max, uint32_t mask, Replica* replicas, Py_ssize_t limit
) noexcept nogil:
    # Gives each replica its first bucket and its skip. Returns how many replicas there are, `limit` at most.
    # VPP's order: first replica 0 of every AS, then replica 1 of those with a weight above 1, and so on.
    cdef Py_ssize_t i
    cdef Py_ssize_t used = 0
    cdef uint32_t level
    cdef uint64_t seed
    for level in range(weight_max):
        for i in range(count):
            if servers[i].weight > level and used < limit:
                seed = xxhash(servers[i].word ^ level)
                replicas[used].position = <uint32_t> (seed >> 32) & mask
                replicas[used].skip = (<uint32_t> seed | 1) & mask
                replicas[used].server = <int32_t> servers[i].index
                used += 1
    return used


cdef void fill(
    int32_t* table, uint64_t* occupied, uint32_t length, Replica* replicas, Py_ssize_t count
) noexcept nogil:
    # `occupied` is a bit a bucket: 8 KiB for the largest table of VPP's API, so that the walks stay in the L1 cache.
    cdef uint32_t mask = length - 1
    cdef uint32_t free = length
    cdef uint32_t position
    cdef Py_ssize_t i
    cdef Replica* replica
    while True:
        for i in range(count):
            replica = &replicas[i]
            position = replica.position
            # The skip is odd and the length a power of two, so a walk meets every bucket; one is free.
            while occupied[position >> 6] >> (position & 63) & 1:
                position = (position + replica.skip) & mask
            occupied[position >> 6] |= <uint64_t> 1 << (position & 63)
            table[position] = replica.server
            replica.position = (position + replica.skip) & mask
            free -= 1
            if free == 0:
                return


def build(ases, long length):
    """The whole table: ``(counts, table)``.

    ``counts`` has the buckets of each AS in the order of ``ases``; ``table`` is an ``array('i')`` of ``length``
    indexes into ``ases``, -1 everywhere if no AS has weight. Raises ValueError for a bad length, key or weight.
    """
    cdef array.array table
    cdef int32_t* buckets
    cdef list order
    cdef Server* servers = NULL
    cdef Replica* replicas = NULL
    cdef uint64_t* occupied = NULL
    cdef Py_ssize_t count, i, used
    cdef uint32_t weight_max = 0
    cdef uint64_t halves[2]
    cdef Py_ssize_t total = 0
    cdef list counts
    check_length(length)
    ases = list(ases)
    order = in_order(ases)
    count = len(order)
    table = array.clone(INT32, length, zero=False)
    buckets = <int32_t*> table.data.as_ints
    memset(buckets, 0xFF, length * sizeof(int32_t))
    counts = [0] * len(ases)
    if count == 0:
        return counts, table
    try:
        servers = <Server*> PyMem_Malloc(count * sizeof(Server))
        if servers == NULL:
            raise MemoryError
        for i in range(count):
            key, weight, index = order[i]
            memcpy(halves, PyBytes_AS_STRING(key), KEY_LENGTH)
            servers[i].word = halves[0] ^ halves[1]
            servers[i].weight = weight
            servers[i].index = index
            total += servers[i].weight
            weight_max = max(weight_max, servers[i].weight)
        # With more replicas than buckets only the first ones get one.
        total = min(total, length)
        replicas = <Replica*> PyMem_Malloc(total * sizeof(Replica))
        occupied = <uint64_t*> PyMem_Calloc((length + 63) // 64, sizeof(uint64_t))
        if replicas == NULL or occupied == NULL:
            raise MemoryError
        with nogil:
            used = place(servers, count, weight_max, <uint32_t> length - 1, replicas, total)
            fill(buckets, occupied, <uint32_t> length, replicas, used)
        for i in range(used):
            # Each replica has length // used buckets, and the first length % used ones one more.
            counts[replicas[i].server] += length // used + (i < length % used)
    finally:
        PyMem_Free(servers)
        PyMem_Free(replicas)
        PyMem_Free(occupied)
    return counts, table


def moved_share(before, after, long length):
    """Share of *other* flows' buckets that move when the AS set ``before`` becomes ``after``: 0.0 to 1.0.

    Of the buckets whose old AS still has weight, those that now belong to another AS. What a drained AS had must
    move and is not counted. 0.0 if no old AS has weight left. Raises ValueError as ``build`` does.
    """
    cdef array.array old_table, new_table
    cdef int32_t* was
    cdef int32_t* becomes
    cdef int32_t* renumbered
    cdef Py_ssize_t i, stays = 0, moved = 0
    before = list(before)
    after = list(after)
    old_table = build(before, length)[1]
    new_table = build(after, length)[1]
    places = {key: index for index, (key, weight) in enumerate(after) if weight > 0}
    renumbered = <int32_t*> PyMem_Malloc((len(before) or 1) * sizeof(int32_t))
    if renumbered == NULL:
        raise MemoryError
    try:
        for i in range(len(before)):
            renumbered[i] = places.get(before[i][0], -1)
        was = <int32_t*> old_table.data.as_ints
        becomes = <int32_t*> new_table.data.as_ints
        for i in range(length):
            if was[i] >= 0 and renumbered[was[i]] >= 0:
                stays += 1
                moved += renumbered[was[i]] != becomes[i]
    finally:
        PyMem_Free(renumbered)
    return moved / <double> stays if stays else 0.0


def moved_between_others(before, after, long length, bytes aside):
    """Share of all buckets that move from one AS to another, both of them others than ``aside``: 0.0 to 1.0.

    ``before`` and ``after`` have the same ASes in the same order, with other weights. Raises ValueError as ``build``
    does.
    """
    cdef array.array old_table, new_table
    cdef int32_t* was
    cdef int32_t* becomes
    cdef Py_ssize_t i, moved = 0
    cdef int32_t index
    before = list(before)
    old_table = build(before, length)[1]
    new_table = build(after, length)[1]
    index = [key for key, _ in before].index(aside)
    was = <int32_t*> old_table.data.as_ints
    becomes = <int32_t*> new_table.data.as_ints
    for i in range(length):
        if was[i] != becomes[i] and was[i] != index and becomes[i] != index:
            moved += 1
    return moved / <double> length
