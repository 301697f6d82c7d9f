# The timing wheel's functions, on the engine thread. A slot is in at most one bucket. A slot whose time lies beyond the
# wheel's reach shares a bucket with near ones, and is put back when that bucket is taken out; the caller knows the true
# time, the wheel only when to look.


# False: no memory. The caller frees the wheel in that case, too.
cdef bint wheel_init(Wheel* wheel, uint32_t capacity, int64_t now) noexcept nogil:
    memset(wheel, 0, sizeof(Wheel))
    wheel.now = now
    wheel.free_page = NIL
    memset(wheel.heads, 0xff, sizeof(wheel.heads))
    wheel.places = <uint32_t*>malloc((<size_t>capacity + 1) * sizeof(uint32_t))
    wheel.pages = <Page*>aligned_alloc(sizeof(Page), (capacity // PAGE_SLOTS + 1 + WHEEL_BUCKETS) * sizeof(Page))
    if wheel.places is NULL or wheel.pages is NULL:
        return False
    memset(wheel.places, 0xff, capacity * sizeof(uint32_t))
    return True


cdef void wheel_free(Wheel* wheel) noexcept nogil:
    free(wheel.places)
    free(wheel.pages)


cdef inline uint32_t page_take(Wheel* wheel) noexcept nogil:
    cdef uint32_t at = wheel.free_page
    if at != NIL:
        wheel.free_page = wheel.pages[at].next
        return at
    wheel.page_top += 1
    return wheel.page_top - 1


cdef inline void page_give(Wheel* wheel, uint32_t at) noexcept nogil:
    wheel.pages[at].next = wheel.free_page
    wheel.free_page = at


cdef inline void bucket_emptied(Wheel* wheel, uint32_t bucket) noexcept nogil:
    wheel.filled[bucket >> 6] &= ~(<uint64_t>1 << (bucket & 63))


# The last slot of the bucket takes the place of the one that leaves.
cdef void wheel_remove(Wheel* wheel, uint32_t index) noexcept nogil:
    cdef uint32_t place = wheel.places[index]
    cdef uint32_t head, last
    cdef Page* page
    cdef Page* first
    if place == NIL:
        return
    page = &wheel.pages[place >> PLACE_BITS]
    head = wheel.heads[page.bucket]
    first = &wheel.pages[head]
    first.count -= 1
    last = first.slots[first.count]
    page.slots[place & ((1 << PLACE_BITS) - 1)] = last
    wheel.places[last] = place
    wheel.places[index] = NIL
    if first.count == 0:
        wheel.heads[first.bucket] = first.next
        if first.next == NIL:
            bucket_emptied(wheel, first.bucket)
        page_give(wheel, head)


# Put a slot (again) where it is looked at in millisecond `at`, at the earliest in the next one.
cdef void wheel_put(Wheel* wheel, uint32_t index, int64_t at) noexcept nogil:
    cdef uint32_t place = wheel.places[index]
    cdef uint32_t bucket, head, fresh
    cdef Page* page
    if at <= wheel.now:
        at = wheel.now + 1
    bucket = at & (WHEEL_BUCKETS - 1)
    if place != NIL:
        if wheel.pages[place >> PLACE_BITS].bucket == bucket:
            return
        wheel_remove(wheel, index)
    head = wheel.heads[bucket]
    if head == NIL or wheel.pages[head].count == PAGE_SLOTS:
        fresh = page_take(wheel)
        page = &wheel.pages[fresh]
        page.next = head
        page.bucket = <uint16_t>bucket
        page.count = 0
        wheel.heads[bucket] = head = fresh
        wheel.filled[bucket >> 6] |= <uint64_t>1 << (bucket & 63)
    page = &wheel.pages[head]
    page.slots[page.count] = index
    wheel.places[index] = (head << PLACE_BITS) | page.count
    page.count += 1


# The millisecond in which a slot will be looked at, -1 if it is not in the wheel.
cdef inline int64_t wheel_look(const Wheel* wheel, uint32_t index) noexcept nogil:
    cdef uint32_t place = wheel.places[index]
    cdef int64_t first = wheel.now + 1
    if place == NIL:
        return -1
    return first + ((wheel.pages[place >> PLACE_BITS].bucket - first) & (WHEEL_BUCKETS - 1))


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
cdef uint32_t wheel_take(Wheel* wheel, int64_t until, uint32_t* out) noexcept nogil:
    cdef uint32_t count = 0
    cdef uint32_t bucket, head, following, i
    cdef Page* page
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
        head = wheel.heads[bucket]
        wheel.heads[bucket] = NIL
        bucket_emptied(wheel, bucket)
        while head != NIL:
            page = &wheel.pages[head]
            for i in range(page.count):
                out[count] = page.slots[i]
                wheel.places[page.slots[i]] = NIL
                count += 1
            following = page.next
            page_give(wheel, head)
            head = following
    return count
