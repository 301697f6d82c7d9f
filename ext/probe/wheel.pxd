# A timing wheel of 4,096 buckets of one millisecond. A bucket is a list of pages, each a cache line full of slots, so
# that to take it out is to read a few lines from front to back, however its slots lie in memory. Only the first page of
# a bucket may be partly empty, which bounds how many pages there can be.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    WHEEL_BUCKETS = 4096
    WHEEL_WORDS = 64
    PAGE_SLOTS = 14
    PLACE_BITS = 4              # of a place: which slot of a page
    NIL = 0xffffffff            # no slot, no page, no place

cdef struct Page:
    uint32_t next               # of the same bucket; of a free page: the next free one
    uint16_t bucket
    uint16_t count
    uint32_t slots[PAGE_SLOTS]

cdef struct Wheel:
    int64_t now                         # the last millisecond that was taken out
    uint64_t filled[WHEEL_WORDS]        # one bit a bucket, so that an empty stretch costs 64 words to skip
    uint32_t heads[WHEEL_BUCKETS]       # first pages
    uint32_t* places                    # by slot: page << PLACE_BITS | position; NIL: not in the wheel
    Page* pages
    uint32_t free_page                  # list by Page.next
    uint32_t page_top                   # pages ever used
