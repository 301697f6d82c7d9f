# The engine's output: transitions and results, which it pushes, and snapshots and counters, which callers read. All of
# it runs on Python's thread.

CODES = CODE_COUNT

STAT_NAMES = (
    *counter_help(),        # sent_icmp, sent_syn, ...: one for each PROBE_ number, in their order
    "passed", "failed", "late_sends", "late_fd", "enobufs", "local_errors", "repeated", "rx_drops", "stalls",
    "foreign", "forged", "duplicate", "late_replies", "malformed",
    "icmp_errors", "transitions", "transitions_deferred", "results_dropped", "ticks", "wakeups", "tls_full",
    "tls_resumed", "late_tls", "clock_steps", "late_port", "dates_doubted", "dates_unsure",
    *(f"unprobed_{name}" for name, _ in UNPROBED.values()),
    "targets",
    "in_flight", "waiting_fd", "tls_session_bytes", "rx_buffer", "clock_step_ns",
)
assert len(STAT_NAMES) == STAT_COUNT

cdef packed struct SnapshotRecord:
    uint32_t target
    uint32_t generation
    uint8_t state
    uint8_t counter
    uint8_t last_code
    uint8_t flags
    int64_t last_at
    int64_t last_rtt
    int64_t rtt_sum
    uint32_t rtt_count
    uint32_t detail_kind
    uint32_t detail_value
    int64_t blocked_since
    uint32_t blocked_kind
    int32_t blocked_errno
    uint32_t codes[CODE_COUNT]

SNAPSHOT_FORMAT = f"<IIBBBBqqqIIIqIi{CODE_COUNT}I"
SNAPSHOT_FIELDS = (
    "target", "generation", "state", "counter", "last_code", "flags", "last_at_ns", "last_rtt_ns", "rtt_sum_ns",
    "rtt_count", "detail_kind", "detail_value", "blocked_since_ns", "blocked_kind", "blocked_errno",
)
assert struct.calcsize(SNAPSHOT_FORMAT) == sizeof(SnapshotRecord)

Transition = namedtuple(
    "Transition", "target generation from_state to_state code detail at_ns counter silent", defaults=(False,)
)
Result = namedtuple("Result", "target generation state counter passed code detail at_ns rtt_ns")
TargetInfo = namedtuple(
    "TargetInfo",
    "generation state counter last_code last_detail last_at_ns last_rtt_ns rtt_sum_ns rtt_count blocked_since_ns "
    "blocked_reason codes",
)
Histogram = namedtuple("Histogram", "bounds counts sum_seconds")
for _type in (Transition, Result, TargetInfo, Histogram):
    _type.__module__ = "maglev._probe"


cdef object _histogram(const Duration* duration):
    return Histogram(BOUND_SECONDS, tuple(duration.counts[i] for i in range(BOUNDS + 1)), duration.total / 1e9)


# The wall clock less the monotonic one. Spans of the engine are monotonic, and become moments by the wall clock only
# when they are asked for: then a clock that has been set since shows neither an age of years nor one below zero. The
# engine's own reading is preferred while it is true, so that two answers name the same moment.
cdef int64_t wall_offset(const State* e) noexcept nogil:
    cdef int64_t kept = e.clock.wall
    cdef int64_t offset = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC)
    return kept if -MS < offset - kept < MS else offset


cdef inline int64_t moment(int64_t monotonic, int64_t wall) noexcept nogil:
    return monotonic + wall if monotonic else 0


cdef void _pack(SnapshotRecord* packed, uint32_t number, const Record* record, int64_t wall) noexcept nogil:
    packed.target = number
    packed.generation = record.generation
    packed.state = record.state
    packed.counter = record.counter
    packed.last_code = record.last_code
    packed.flags = 0
    packed.last_at = moment(record.last_at, wall)
    packed.last_rtt = record.last_rtt
    packed.rtt_sum = record.rtt_sum
    packed.rtt_count = record.rtt_count
    packed.detail_kind = record.detail_kind
    packed.detail_value = record.detail_value
    packed.blocked_since = moment(record.blocked_since, wall)
    packed.blocked_kind = record.blocked_kind
    packed.blocked_errno = record.blocked_errno
    packed.codes[CODE_NONE] = 0
    memcpy(&packed.codes[1], record.codes, sizeof(record.codes))


cdef class Reader:
    """The consumer of the engine's reports."""
    cdef State* e
    cdef Targets targets

    def __cinit__(self, Targets targets):
        self.targets = targets
        self.e = targets.native.e       # which `targets` keeps alive

    cdef void disarm(self) noexcept:
        """Before the rings are read: what is pushed from here on makes the eventfd readable again."""
        cdef uint64_t count
        read(self.e.reports.notify, &count, sizeof(count))

    cdef void rearm(self) noexcept:
        """Both rings share the eventfd: readable again if anything is left in either."""
        cdef uint64_t one = 1
        if ring_front(&self.e.reports.transitions) is not NULL or ring_front(&self.e.reports.results) is not NULL:
            write(self.e.reports.notify, &one, sizeof(one))

    cdef const Event* front(self, Ring* ring):
        """The next event of a ring, which stays there until it is dropped. Events of older generations are dropped."""
        cdef const Event* event = <const Event*>ring_front(ring)
        while event is not NULL and not self.targets.current(event):
            ring_drop(ring)
            event = <const Event*>ring_front(ring)
        return event

    cdef list transitions(self, uint32_t most):
        cdef Ring* ring = &self.e.reports.transitions
        cdef Targets targets = self.targets
        cdef const Event* event
        cdef list out = []
        self.disarm()
        while most:
            event = self.front(ring)
            if event is NULL:
                break
            targets.turned(event)
            out.append(Transition(
                event.slot, event.generation, event.from_state, event.to_state, event.code,
                targets.detail(event.slot, event.detail_kind, event.detail_value), event.at, event.counter,
                bool(event.silent),
            ))
            most -= 1
            ring_drop(ring)
        self.rearm()
        return out

    cdef list results(self, uint32_t most):
        cdef Ring* ring = &self.e.reports.results
        cdef Targets targets = self.targets
        cdef const Event* event
        cdef list out = []
        self.disarm()
        while most:
            event = self.front(ring)
            if event is NULL:
                break
            out.append(Result(
                event.slot, event.generation, event.to_state, event.counter, bool(event.passed), event.code,
                targets.detail(event.slot, event.detail_kind, event.detail_value), event.at, event.rtt,
            ))
            most -= 1
            ring_drop(ring)
        self.rearm()
        return out

    cdef object target_info(self, object number):
        cdef const Target* target = self.targets.known(number)
        cdef Record record
        cdef int64_t wall = wall_offset(self.e)
        self.targets.read(number, &record)
        blocked = ""
        if record.blocked_since:
            check = self.targets.check(target)
            tls = getattr(check.params, "tls", None)
            ca_file = tls.ca_file if tls is not None else None
            blocked = render_blocked(
                record.blocked_kind, record.blocked_errno, check.netns, ca_file, target.v6
            )
        return TargetInfo(
            record.generation, record.state, record.counter, record.last_code,
            self.targets.detail(number, record.detail_kind, record.detail_value), moment(record.last_at, wall),
            record.last_rtt, record.rtt_sum, record.rtt_count, moment(record.blocked_since, wall), blocked,
            (0, *(record.codes[i] for i in range(CODE_COUNT - 1))),
        )

    cdef bytes snapshot(self):
        cdef Targets targets = self.targets
        cdef uint32_t top = targets.top     # more may come while the lock is not held
        cdef SnapshotRecord* out = <SnapshotRecord*>malloc((<size_t>top + 1) * sizeof(SnapshotRecord))
        cdef SnapshotRecord* packed = out
        cdef Record record
        cdef int64_t wall = wall_offset(self.e)
        cdef uint32_t i
        if out is NULL:
            raise MemoryError
        try:
            with nogil:
                for i in range(top):
                    if targets.table[i].active:
                        targets.read(i, &record)
                        _pack(packed, i, &record, wall)
                        packed += 1
            return (<char*>out)[:<char*>packed - <char*>out]
        finally:
            free(out)

    cdef dict stats(self):
        return {name: self.e.stats.counters[i] for i, name in enumerate(STAT_NAMES)}

    cdef dict histograms(self):
        assert len(CheckType) == CHECK_TYPES, "numbers.pxd and maglev.base.states.CheckType disagree"
        return {
            (str(kind), result): _histogram(&self.e.stats.durations[2 * <int>kind + passed])
            for kind in CheckType
            for passed, result in enumerate(("fail", "pass"))
        }

    cdef object lateness(self):
        return _histogram(&self.e.stats.lateness)
