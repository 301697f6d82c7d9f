# May the wall clock judge a certificate? A date refusal (a certificate of the chain, intermediate and root included,
# that has expired or is not valid yet) is a verdict on the server only if this host's clock can be believed.
#
# The rule. A verification that succeeds also says something of the clock, and leaves an *anchor*: how far the wall
# clock was ahead of CLOCK_BOOTTIME. Setting the wall clock changes nothing about CLOCK_BOOTTIME, so the anchor plus
# CLOCK_BOOTTIME is the time that it would be now if the wall clock had not been set since. A date that the wall clock
# refuses and that time accepts is no verdict: the probe ends without one ("not probed: clock"), and the target keeps
# its state. Where both refuse it the certificate has expired, and the server fails its check.
#
# CLOCK_BOOTTIME and not CLOCK_MONOTONIC: certificates go on to age while a machine sleeps. Frequency corrections (NTP)
# move all these clocks alike, so a clock that is slewed keeps its anchor.
#
# Which anchor:
#   - the target's own, of its last full handshake that verified. A resumed session verifies nothing and leaves none.
#     Other targets' cannot spoil it: a certificate of thirty years passes by nearly any clock. It outlives a changed
#     check and a pause, not the target.
#   - else the engine's, which follows the targets' anchors, and which Python keeps over a restart (until the machine
#     is booted again). It is not led astray by long-lived certificates either: where it would move by more than an
#     hour, it does so only after ten minutes in which no date was doubted.
# An anchor that was left while the kernel called its clock unsynchronised does not count against a clock that has been
# synchronised since: of a machine that starts with a wrong clock the later one is right.
#
# Without an anchor a date refusal is a verdict, except
#   - by a clock that says that this program has not been installed yet (`clock_floor`): it is wrong;
#   - in the engine's first ten minutes, while the kernel calls its clock unsynchronised, of a target that has traffic
#     to lose: one that is up, or presumed good. The refusal of a new target takes no traffic away: it is a verdict.
#
# The engine checks neither CRLs nor stapled OCSP responses, so certificates have the only dates. All of this runs on
# TLS threads, but for `clock_believed` and `date_doubted`, which are the engine's.


# An anchor: nanoseconds, with the lowest bit set (0 is none), and the second one while the kernel's clock was
# synchronised.
cdef int64_t anchor_now() noexcept nogil:
    cdef int64_t before = clock_ns(CLOCK_BOOTTIME)
    cdef int64_t offset = clock_ns(CLOCK_REALTIME) - before
    return (offset & ~<int64_t>3) | (ANCHOR_SYNCHRONISED if kernel_synchronised() else 0) | ANCHOR_THERE


# The time by this anchor, in seconds: the wall clock's, had it not been set since.
cdef int64_t anchor_seconds(int64_t anchor) noexcept nogil:
    return ((anchor & ~<int64_t>3) + clock_ns(CLOCK_BOOTTIME)) // SECOND


# False also where adjtimex() is not allowed: then nothing vouches for the clock.
cdef bint kernel_synchronised() noexcept nogil:
    cdef timex state
    memset(&state, 0, sizeof(state))
    return 0 <= adjtimex(&state) < TIME_ERROR


cdef bint valid_at(X509* certificate, int64_t seconds) noexcept nogil:
    cdef time_t at = seconds
    return (
        X509_cmp_time(X509_get0_notBefore(certificate), &at) < 0
        and X509_cmp_time(X509_get0_notAfter(certificate), &at) > 0
    )


# The wall clock refuses this certificate's date. Is the clock to be doubted?
cdef bint date_doubtful(const Tls* tls, X509* certificate) noexcept nogil:
    cdef int64_t anchor = tls.task.anchor
    if wall_seconds() < tls.pool.clock_floor:
        return True
    if anchor:
        if not valid_at(certificate, anchor_seconds(anchor)):
            return False
        return anchor & ANCHOR_SYNCHRONISED or not kernel_synchronised()
    return tls.task.serving and clock_ns(CLOCK_BOOTTIME) < tls.pool.grace_until and not kernel_synchronised()


# OpenSSL asks for each fault that it finds. A doubtful date is passed over, so that all others are found, too: a server
# that shows a wrong certificate has failed by any clock.
cdef int dates_judge(int good, X509_STORE_CTX* store) noexcept nogil:
    cdef int fault
    cdef Tls* tls
    if good:
        return 1
    fault = X509_STORE_CTX_get_error(store)
    if fault != X509_V_ERR_CERT_NOT_YET_VALID and fault != X509_V_ERR_CERT_HAS_EXPIRED:
        return 0
    tls = <Tls*>SSL_get_ex_data(
        <SSL*>X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()), 0
    )
    if date_doubtful(tls, X509_STORE_CTX_get_current_cert(store)):
        tls.doubted = fault
        return 1
    if not kernel_synchronised():
        tls.outcome.unsure = True
    return 0


# A target's certificate was verified: its anchor, and perhaps the engine's.
cdef void clock_believed(State* e, uint32_t index, int64_t anchor) noexcept nogil:
    cdef int64_t moved = (anchor - load64(&e.tls.anchor)) // SECOND
    e.anchors[index] = anchor
    if e.tls.anchor == 0 or -ANCHOR_FOLLOWS < moved < ANCHOR_FOLLOWS:
        e.tls.moved_since = 0
    elif e.tls.moved_since == 0:
        e.tls.moved_since = e.clock.now
        return
    elif e.clock.now - e.tls.moved_since < ANCHOR_WAITS * <int64_t>SECOND:
        return
    store64(&e.tls.anchor, anchor)
    e.tls.moved_since = 0


# The probe ends without a verdict. The next one is due in its turn: a full handshake is too dear to be repeated at
# once, and the clock will not be right any sooner.
cdef void date_doubted(State* e, uint32_t index, int fault) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef int64_t interval = interval_of(slot, e.checks[slot.check])
    stream_end(e, slot.stream)
    mark_blocked(e, index, BLOCK_CLOCK, fault)
    e.stats.counters[STAT_LOCAL_ERRORS] += 1
    e.stats.counters[STAT_DATES_DOUBTED] += 1
    if e.tls.moved_since:
        e.tls.moved_since = e.clock.now
    slot.phase = PHASE_IDLE
    slot.backoff = 0
    slot.lag = 0
    plan_probe(e, index, next_due(&e.clock.random, slot.due, e.clock.now, interval))
