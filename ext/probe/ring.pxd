# A ring between two threads: one producer, one consumer, no lock. Every ring of the engine is one of these: transitions
# and traced results (engine thread to Python), bodies (engine thread to the thread of regular expressions), messages to
# and from each TLS thread.
#
# The ordering rule. `head` and `tail` count items since the start and run over; the place of an item is its number
# modulo the size.
#   The producer alone writes `tail`, and writes it after the item: a consumer that sees the new `tail` sees a whole
#   item.
#   The consumer alone writes `head`, and writes it after its last look at the item: a producer that sees the new `head`
#   may write into that place.
# Each side stores its own counter with release and loads the other's with acquire; it may load its own plainly. A
# counter that is published one line too early compiles, and passes every test with a single thread: now and then an
# item is old, or torn. tests/unit/test_engine_ring.py has two threads, and fails for either mistake.
#
# A ring holds no items' resources: what an item points to belongs to the side that has the item.

from probe.sys cimport calloc, free, load32, memcpy, store32, uint8_t, uint32_t

cdef struct Ring:
    uint8_t* items
    size_t item                     # bytes of one
    uint32_t size                   # a power of two, so that the counters may run over
    uint32_t head                   # atomic; written by the consumer: items taken
    uint32_t tail                   # atomic; written by the producer: items pushed


# Before the threads start. False: no memory.
cdef inline bint ring_init(Ring* ring, uint32_t size, size_t item) noexcept nogil:
    ring.items = <uint8_t*>calloc(size, item)
    ring.item = item
    ring.size = size
    ring.head = ring.tail = 0
    return ring.items is not NULL


# After the threads have ended.
cdef inline void ring_free(Ring* ring) noexcept nogil:
    free(ring.items)
    ring.items = NULL


cdef inline uint8_t* ring_place(const Ring* ring, uint32_t number) noexcept nogil:
    return ring.items + (number & (ring.size - 1)) * ring.item


# The producer's. False, and nothing done: the ring is full.
cdef inline bint ring_push(Ring* ring, const void* item) noexcept nogil:
    cdef uint32_t tail = ring.tail
    if tail - load32(&ring.head) >= ring.size:
        return False
    memcpy(ring_place(ring, tail), item, ring.item)
    store32(&ring.tail, tail + 1)
    return True


# The consumer's: the oldest item where it lies, NULL if none waits. It stays there, whole, until `ring_drop`.
cdef inline const void* ring_front(const Ring* ring) noexcept nogil:
    return NULL if ring.head == load32(&ring.tail) else ring_place(ring, ring.head)


# The consumer's: done with the oldest item.
cdef inline void ring_drop(Ring* ring) noexcept nogil:
    store32(&ring.head, ring.head + 1)


# The consumer's: a copy of the oldest item. False: none waits.
cdef inline bint ring_take(Ring* ring, void* out) noexcept nogil:
    cdef const void* front = ring_front(ring)
    if front is NULL:
        return False
    memcpy(out, front, ring.item)
    ring_drop(ring)
    return True
