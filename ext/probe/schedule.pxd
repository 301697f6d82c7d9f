# When a probe is due, as functions of numbers: the clock is read elsewhere. All times are nanoseconds on one clock.

from libc.stdint cimport int64_t, uint64_t

from probe.state cimport MS, OVERDUE, SECOND
from probe.sys cimport clock_gettime, clockid_t, timespec


cdef inline int64_t clock_ns(clockid_t which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return <int64_t>now.tv_sec * SECOND + now.tv_nsec


# xorshift64*: for jitter, nothing secret.
cdef inline int64_t draw_below(uint64_t* random, int64_t limit) noexcept nogil:
    random[0] ^= random[0] >> 12
    random[0] ^= random[0] << 25
    random[0] ^= random[0] >> 27
    return <int64_t>((random[0] * <uint64_t>0x2545f4914f6cdd1d >> 24) % <uint64_t>limit) if limit > 0 else 0


# When a probe that is `late` is due, now that all others are as late: not at once with them.
cdef inline int64_t spread_due(uint64_t* random, int64_t now, int64_t late, int64_t interval) noexcept nogil:
    return now + draw_below(random, late if late < interval else interval)


# When the probe after the one that was due at `due` is due: counted from there, whenever that was sent and answered, so
# that nothing drifts, with a tenth of jitter to either side. Probes that a stall has delayed are not caught up with.
cdef inline int64_t next_due(uint64_t* random, int64_t due, int64_t now, int64_t interval) noexcept nogil:
    due += interval - interval // 10 + draw_below(random, interval // 5)
    return spread_due(random, now, now - due, interval) if now - due > OVERDUE else due
