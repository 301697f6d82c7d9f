# A slot is in at most one bucket. What lies further ahead than the wheel reaches shares a bucket with what is near and
# is put back when its bucket comes by; the caller knows the true time, the wheel only when to look.


cdef void wheel_init(Wheel* wheel, int64_t now) noexcept nogil:
    wheel.now = now
    memset(wheel.filled, 0, sizeof(wheel.filled))
    memset(wheel.heads, 0xff, sizeof(wheel.heads))


cdef void wheel_remove(Wheel* wheel, Link* links, uint32_t index) noexcept nogil:
    cdef Link* link = &links[index]
    cdef uint32_t bucket = link.bucket
    if bucket == NO_BUCKET:
        return
    if link.prev != NIL:
        links[link.prev].next = link.next
    else:
        wheel.heads[bucket] = link.next
        if link.next == NIL:
            wheel.filled[bucket >> 6] &= ~(<uint64_t>1 << (bucket & 63))
    if link.next != NIL:
        links[link.next].prev = link.prev
    link.bucket = NO_BUCKET


# Put a slot (again) where it is looked at in millisecond `at`, at the earliest in the next one.
cdef void wheel_put(Wheel* wheel, Link* links, uint32_t index, int64_t at) noexcept nogil:
    cdef Link* link = &links[index]
    cdef uint32_t bucket, head
    if at <= wheel.now:
        at = wheel.now + 1
    bucket = at & (WHEEL_BUCKETS - 1)
    if link.bucket == bucket:
        return
    wheel_remove(wheel, links, index)
    head = wheel.heads[bucket]
    link.next = head
    link.prev = NIL
    link.bucket = bucket
    if head != NIL:
        links[head].prev = index
    wheel.heads[bucket] = index
    wheel.filled[bucket >> 6] |= <uint64_t>1 << (bucket & 63)


# The next millisecond whose bucket holds anything, or -1 if all are empty.
cdef int64_t wheel_next(const Wheel* wheel) noexcept nogil:
    cdef int64_t at = wheel.now + 1
    cdef int64_t end = at + WHEEL_BUCKETS
    cdef uint64_t word
    while at < end:
        word = wheel.filled[(at & (WHEEL_BUCKETS - 1)) >> 6] >> (at & 63)
        if word:
            return at + ctz64(word)
        at = (at | 63) + 1
    # The word that was entered in its middle is seen whole at the end of the round.
    word = wheel.filled[(at & (WHEEL_BUCKETS - 1)) >> 6]
    return -1 if word == 0 else at + ctz64(word)


# Take out everything up to millisecond `until`; the indices go to `out`, which holds as many as there are slots.
cdef uint32_t wheel_take(Wheel* wheel, Link* links, int64_t until, uint32_t* out) noexcept nogil:
    cdef uint32_t count = 0
    cdef uint32_t bucket, index
    cdef Link* link
    cdef int64_t at
    if until - wheel.now > WHEEL_BUCKETS:
        wheel.now = until - WHEEL_BUCKETS    # a whole round: every bucket once
    while wheel.now < until:
        at = wheel_next(wheel)
        if at < 0 or at > until:
            wheel.now = until
            break
        wheel.now = at
        bucket = at & (WHEEL_BUCKETS - 1)
        index = wheel.heads[bucket]
        wheel.heads[bucket] = NIL
        wheel.filled[bucket >> 6] &= ~(<uint64_t>1 << (bucket & 63))
        while index != NIL:
            link = &links[index]
            link.bucket = NO_BUCKET
            out[count] = index
            count += 1
            index = link.next
    return count
