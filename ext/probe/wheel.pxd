# A timing wheel of 4,096 buckets of one millisecond, over one link for each slot. The links are an array of
# their own: twelve bytes each, they stay in the cache while a turn of the wheel goes by.

cdef enum:
    WHEEL_BUCKETS = 4096
    WHEEL_WORDS = 64
    NIL = 0xffffffff            # no slot
    NO_BUCKET = 0xffff          # of a slot: not in the wheel

cdef struct Link:
    uint32_t next
    uint32_t prev
    uint16_t bucket

cdef struct Wheel:
    int64_t now                         # the last millisecond that was taken out
    uint64_t filled[WHEEL_WORDS]        # one bit a bucket, so that an empty stretch costs 64 words to skip
    uint32_t heads[WHEEL_BUCKETS]
