# The engine's own structures. All of it belongs to the engine thread, except where a comment says otherwise.

cdef enum:
    MS = 1000000
    SECOND = 1000000000
    JUDGE_LIMIT = 2 * SECOND        # for a regular expression, before the probe is repeated
    TICK = 2 * MS                   # what is due within one tick shares a wake-up, and leaves at its beginning
    SLICE = MS // 10                # the least time slice that the kernel takes
    GRACE = 1 * MS                  # between a deadline and giving up: what the softirq still holds may come in
    STALL = 10 * MS                 # a thread that wakes this late was not let run
    ATTENTION = 50 * MS             # the longest sleep while a connection is under way
    LATE = 5 * MS                   # a probe sent this late is counted as late
    OVERDUE = 100 * MS              # a probe this late is not sent at once with all others, but spread

    AHEAD = 8                       # slots that are fetched into the cache before their turn
    TOO_BIG_TRIES = 4               # routers of one way that each may find a packet too big
    BATCH = 128                     # packets a sendmmsg
    DEPARTED = 4096                 # probes of a tick whose deadlines can wait for the next one
    HEAD_BYTES = 64                 # of a packet that are built for it: the head, and all of a usual echo request
    RECV_BATCH = 128                # packets a recvmmsg
    RECV_BYTES = 192                # of a packet: IP header with options, ICMP header, the quoted headers likewise
    RECV_CONTROL = 96
    RECV_ROUNDS = 512               # recvmmsg calls a socket and a tick
    RECV_MEMORY = 1024              # bytes of a receive buffer that a packet takes at most: cut by the filter
    TRACE_RING = 8192               # results of traced targets that wait for Python
    JUDGE_RING = 256                # bodies that wait for their regular expression
    EVENTS = 256
    POLL_FDS = 66
    SCRATCH = 16384                 # bytes of a stream read at once; a request with its host fits in it, too
    MAX_REQUEST = 12288
    FIFO_STEP = 1024                # of those that wait for a descriptor, looked at in one tick
    MAX_CHECKS = 65536
    MAX_ORIGINS = 1024
    OPENER_QUEUE = 2 * MAX_ORIGINS  # each to be opened and to be stocked
    MAX_COMMANDS_SLACK = 4096
    CODE_COUNT = 14                 # maglev.states.Code up to L7RSP
    BOUNDS = 17                     # buckets of a duration histogram
    STREAM_LOOKS = 3                # ticks in which a fresh stream is looked at before epoll watches it
    SPARE_DESCRIPTORS = 256         # for the rest of the process
    MIN_PORTS = 64                  # TCP ports that an origin reserves for its SYN probes; fewer will not do
    USUAL_PORTS = 512               # enough for one probe in 118 ms
    MAX_PORTS = 8192
    PORT_REST = 60                  # seconds in which a port is not used again for a target
    TRIM_SECONDS = 10               # between two looks at sockets that nobody used
    TRIM_STEP = 256                 # of an origin, closed at one look

# maglev.states.Code, as far as probes give them.
cdef enum:
    CODE_NONE = 0
    CODE_L3OK = 1
    CODE_L3TOUT = 2
    CODE_L3ERR = 3
    CODE_L4OK = 4
    CODE_L4TOUT = 5
    CODE_L4CON = 6
    CODE_L6OK = 7
    CODE_L6TOUT = 8
    CODE_L6RSP = 9
    CODE_L7OK = 10
    CODE_L7TOUT = 11
    CODE_L7STS = 12
    CODE_L7RSP = 13

cdef enum:
    PROBE_ICMP = 0
    PROBE_SYN = 1
    PROBE_CONNECT = 2
    PROBE_HTTP = 3
    PROBE_TYPES = 4

# Where a probe is.
cdef enum:
    PHASE_IDLE = 0                  # waits for `due`
    PHASE_WAITING = 1               # due, but no descriptor is free
    PHASE_FLYING = 2                # a raw packet is out
    PHASE_CONNECTING = 3
    PHASE_TLS = 4                   # with a TLS thread: the handshake and what follows it
    PHASE_SENDING = 5
    PHASE_RECEIVING = 6
    PHASE_JUDGING = 7               # the body is with the regular expressions

# Slot flags
cdef enum:
    SLOT_ACTIVE = 1
    SLOT_PAUSED = 2
    SLOT_TRACED = 4
    SLOT_UNREPORTED = 8             # a transition found the ring full
    SLOT_IN_FIFO = 16
    SLOT_SPREAD = 32                # was overdue and has been spread: now send it when it comes
    SLOT_IN_REPORT = 64             # in the list of the unreported
    SLOT_WAITED = 128               # that this probe has to wait is counted

cdef enum:
    DETAIL_NONE = 0
    DETAIL_ERRNO = 1
    DETAIL_ICMP4 = 2                # type << 8 | code
    DETAIL_ICMP6 = 3
    DETAIL_STATUS = 4
    DETAIL_HTTP = 5                 # HttpFault
    DETAIL_TIMEOUT = 6              # milliseconds
    DETAIL_SELF = 7                 # connected to itself
    DETAIL_TLS_VERIFY = 8           # why a certificate is not good, X509_V_ERR_*
    DETAIL_TLS_ALERT = 9            # the alert that the server sent
    DETAIL_TLS_ERROR = 10           # OpenSSL's packed error
    DETAIL_TLS_FAULT = 11           # TLS_FAULT_*

# What could not be done, of a local error.
cdef enum:
    BLOCK_NONE = 0
    BLOCK_SEND = 1
    BLOCK_SOCKET = 2
    BLOCK_CONNECT = 3
    BLOCK_RAW_ICMP = 4
    BLOCK_RAW_TCP = 5
    BLOCK_SOURCE = 6
    BLOCK_PORTS = 7
    BLOCK_NETNS = 8
    BLOCK_FILTER = 9
    BLOCK_AUTHORITIES = 10
    BLOCK_TLS = 11
    BLOCK_CLOCK = 12

cdef enum:
    OP_CHECK_SET = 0
    OP_CHECK_FREE = 1
    OP_ORIGIN_SET = 2
    OP_ORIGIN_FREE = 3
    OP_ADD = 4
    OP_REMOVE = 5
    OP_PAUSE = 6
    OP_RESUME = 7
    OP_CHANGE = 8
    OP_PRESUME = 9
    OP_TRACE = 10
    OP_VERDICT = 11
    OP_AUTHORITIES = 12

# Global counters, in the order of STAT_NAMES.
cdef enum:
    STAT_SENT = 0                   # four of them, by ProbeType
    STAT_PASSED = 4
    STAT_FAILED = 5
    STAT_LATE_SENDS = 6
    STAT_LATE_FD = 7
    STAT_ENOBUFS = 8
    STAT_LOCAL_ERRORS = 9
    STAT_REPEATED = 10
    STAT_RX_DROPS = 11
    STAT_STALLS = 12
    STAT_FOREIGN = 13
    STAT_FORGED = 14
    STAT_DUPLICATE = 15
    STAT_LATE_REPLIES = 16
    STAT_MALFORMED = 17
    STAT_ICMP_ERRORS = 18
    STAT_TRANSITIONS = 19
    STAT_TRANSITIONS_DEFERRED = 20
    STAT_RESULTS_DROPPED = 21
    STAT_TICKS = 22
    STAT_WAKEUPS = 23
    STAT_TLS_FULL = 24              # handshakes
    STAT_TLS_RESUMED = 25
    STAT_LATE_TLS = 26
    STAT_CLOCK_STEPS = 27
    STAT_LATE_PORT = 28
    STAT_TARGETS = 29               # gauges from here
    STAT_IN_FLIGHT = 30
    STAT_WAITING_FD = 31
    STAT_TLS_SESSION_BYTES = 32
    STAT_RX_BUFFER = 33             # bytes of the receive buffer that overflowed last
    STAT_COUNT = 34

# Two cache lines; what every probe touches comes first.
cdef struct Slot:
    uint8_t phase                   # Phase
    uint8_t flags
    uint8_t state                   # HealthState
    uint8_t counter
    uint8_t reported                # the state that Python knows
    uint8_t type                    # ProbeType
    uint8_t v6
    uint8_t backoff                 # local errors in a row
    uint32_t generation
    uint32_t check
    uint32_t origin
    uint32_t stream                 # index of the stream, NIL without one
    uint32_t cookie                 # of the probe in flight
    uint32_t fifo_next
    uint32_t report_next
    uint16_t serial                 # of the last probe, 12 bits; lives on when the slot is used again, as does `sent`
    uint16_t own_port
    uint8_t source[4]               # IPv4 SYN: what the checksum was made with; 0 = not known
    uint8_t address[16]
    int64_t due                     # monotonic: of the next probe, or of the one in flight
    int64_t sent
    int64_t deadline
    int64_t stalled                 # the engine's stalled time when the probe was sent
    Session* session                # of the last TLS handshake, to resume; NULL without one
    uint64_t seal                   # ICMP: the 64-bit cookie of the probe in flight
    int64_t lag                     # how late the next probe is since it was put off, before `due` is counted
    uint32_t losses                 # the origin's when the probe was sent
    uint8_t too_big                 # how often a router has found this probe too big
    uint8_t spare[3]

# What Python reads, guarded by `sequence` (odd while the engine writes). Two cache lines, too.
cdef struct Record:
    uint32_t sequence
    uint32_t epoch                  # of the add that these counts belong to
    uint32_t generation
    uint8_t state
    uint8_t counter
    uint8_t last_code
    uint8_t detail_kind
    uint8_t blocked_kind
    uint8_t paused
    uint8_t change_code             # of the last transition, for the case that the ring was full
    uint8_t change_kind
    uint32_t change_value
    uint32_t detail_value
    int32_t blocked_errno
    uint32_t rtt_count
    uint32_t codes[CODE_COUNT - 1]  # without CODE_NONE, which is no result
    int64_t rtt_sum
    int64_t last_rtt
    int64_t last_at
    int64_t change_at
    int64_t blocked_since

cdef struct Check:
    int64_t interval
    int64_t fast
    int64_t down
    int64_t timeout
    uint8_t type                    # ProbeType
    uint8_t rise
    uint8_t fall
    uint8_t histogram               # index of the durations: icmp, tcp, http, https
    uint16_t port
    uint16_t icmp_size
    uint32_t id
    bint head_request
    bint regexp
    bint host_is_address            # the target's address goes between prefix and suffix
    uint32_t prefix_bytes
    uint32_t suffix_bytes
    uint64_t codes[10]
    char* request                   # prefix, then suffix
    TlsContext* tls                 # NULL: no TLS

cdef enum:
    ORIGIN_NEW = 0
    ORIGIN_OPENING = 1
    ORIGIN_OPEN = 2
    ORIGIN_FAILED = 3

cdef struct RawSocket:
    int fd
    bint tcp
    uint32_t drops_seen             # the kernel's counter, as of the last look
    bint crowded                    # it was far from empty at the last look, or when it was read since
    uint32_t space                  # bytes of its receive buffer

# Where probes leave from: a network namespace, a family, a source address.
cdef struct Origin:
    uint32_t id
    uint32_t state                  # OriginState; the opener writes it last, with release
    bint v6
    bint has_source
    bint want_icmp
    bint want_tcp
    bint whole                      # IPv4 packets that no link has to fragment
    uint8_t failed_kind
    int failed_errno
    int64_t retry_at
    int64_t retry_delay
    uint8_t source[16]
    char netns[256]                 # empty: the daemon's own
    uint64_t ns_dev
    uint64_t ns_ino
    int64_t checked_at              # when the namespace and the source were last seen to be there
    uint64_t magic
    RawSocket icmp
    RawSocket tcp
    int resolver                    # UDP, to ask the kernel for source addresses; also holds on to the namespace
    uint32_t losses                 # how often answers were lost: with a full receive queue, or with the sockets
    uint32_t flying                 # raw probes out
    uint32_t ports_wanted           # what the quickest of its checks needs
    uint32_t ports_granted          # descriptors set aside for them
    uint32_t port_count
    uint16_t* ports                 # rising; `ports_granted` entries, as have the descriptors
    int* port_fds
    int64_t port_turn               # how long a target keeps its port, ns
    int64_t turn                    # the present one, counted since ever
    int64_t turn_at                 # when it began
    # Stream sockets that are ready to connect. In a namespace of its own only the opener can make them.
    int* pool
    uint32_t pool_count
    uint32_t pool_space
    uint32_t pool_idle              # how few of them there have been since the pool was last trimmed
    uint32_t stocking               # the opener was asked for more (1), is done (2)
    int stock[64]
    uint32_t stock_count
    int stock_errno
    uint64_t stock_dev              # the namespace that they were made in
    uint64_t stock_ino
    uint32_t batch_count[2]
    uint32_t batch[2][BATCH]        # probes that go out with the next sendmmsg: [0] ICMP, [1] SYN

cdef struct Stream:
    int fd
    uint32_t slot
    uint32_t next                   # free list, or the list of fresh ones
    uint32_t tag                    # counts the uses, so that epoll's late words are known as such
    uint32_t sent_bytes
    uint8_t looks
    bint watched                    # epoll knows the descriptor: it is closed, not used again
    bint fresh                      # in the list of fresh ones
    bint used
    Tls* tls                        # NULL without TLS, and once that has ended
    int64_t own                     # of its time, what we took ourselves
    Http http

cdef struct Command:
    uint8_t op                      # Op
    uint8_t state
    uint8_t counter
    uint8_t flag
    uint8_t v6
    uint8_t type
    uint32_t slot
    uint32_t generation
    uint32_t epoch
    uint32_t check
    uint32_t origin
    int64_t delay
    uint8_t address[16]
    void* pointer

cdef struct Event:
    uint32_t slot
    uint32_t generation
    uint8_t from_state
    uint8_t to_state
    uint8_t code
    uint8_t detail_kind
    uint8_t counter
    uint8_t passed
    uint32_t detail_value
    int64_t at
    int64_t rtt

cdef struct Judgement:
    uint32_t slot
    uint32_t generation
    uint32_t serial
    uint32_t check
    uint32_t status
    uint32_t body_bytes
    uint8_t* body

cdef struct Duration:
    uint64_t counts[BOUNDS + 1]
    uint64_t total

cdef struct SendBuffers:
    mmsghdr messages[BATCH]
    iovec parts[2 * BATCH]
    sockaddr_in6 names[BATCH]
    uint8_t heads[BATCH][HEAD_BYTES]

cdef struct ReceiveBuffers:
    bint v6                         # what the messages are made ready for
    mmsghdr messages[RECV_BATCH]
    iovec parts[RECV_BATCH]
    sockaddr_in6 names[RECV_BATCH]
    char control[RECV_BATCH][RECV_CONTROL]
    uint8_t data[RECV_BATCH][RECV_BYTES]

cdef struct State:
    uint32_t capacity
    Slot* slots
    Record* records
    uint32_t* due                   # scratch: what the wheel gave out
    Wheel wheel
    Key key
    uint64_t random
    Check** checks
    Origin** origins
    uint32_t origin_top             # one more than the highest origin in use
    Origin* doomed[OPENER_QUEUE + 1]    # each is in the opener's queue, or in its hand
    uint32_t doomed_count

    # clocks
    int64_t now                     # monotonic, refreshed several times a tick
    int64_t tick_start
    int64_t wall                    # CLOCK_REALTIME less CLOCK_MONOTONIC, at the start of the tick
    int64_t stalled                 # time that this thread was not let run, since ever
    int64_t planned                 # when this tick should have started
    bint undrained                  # a raw socket could not be emptied in this tick
    uint32_t quiet                  # ticks without a packet sent or received

    # streams
    Stream* streams
    uint32_t stream_space
    uint32_t stream_top             # highest ever used
    uint32_t stream_free
    uint32_t fresh                  # list by Stream.next
    uint32_t fresh_count
    uint32_t watched_count
    uint32_t streams_used
    int64_t trimmed_at              # when idle sockets were last closed
    uint32_t open_sockets           # in use and in pools
    uint32_t max_sockets
    uint32_t fifo_head
    uint32_t fifo_tail
    uint32_t fifo_count
    uint32_t flying
    uint32_t departed_count
    uint32_t departed[DEPARTED]     # raw probes whose deadline is not in the wheel yet
    uint16_t ephemeral_low
    uint16_t ephemeral_high
    int epoll
    epoll_event events[EVENTS]
    uint8_t* scratch                # received stream data; a request being put together
    uint8_t* zeros                  # the constant rest of an echo request

    # TLS
    TlsWorker* workers[TLS_WORKERS]
    uint32_t worker_count
    uint32_t worker_next
    uint32_t tls_count              # connections, orphans too
    uint32_t authorities            # atomic: raised by each reload
    int64_t clock_floor             # wall clock, seconds: before this it is wrong
    pthread_mutex_t tls_lock
    Authorities* trusted            # guarded by `tls_lock`
    TlsContext* tls_doomed          # guarded by `tls_lock`
    uint32_t tls_stopping           # atomic

    # unreported transitions, by Slot.report_next
    uint32_t unreported_head
    uint32_t unreported_tail

    # towards the engine
    pthread_mutex_t lock
    Command* inbox                  # guarded by `lock`
    uint32_t inbox_count            # guarded by `lock`
    uint32_t inbox_space            # guarded by `lock`
    Command* outbox                 # the other one of the two vectors: what the engine works off
    uint32_t outbox_space
    int wake                        # eventfd
    uint32_t stopping               # atomic
    uint32_t alive                  # atomic

    # towards Python
    int notify                      # eventfd
    Ring transitions                # Event
    Ring results                    # Event, of traced targets
    Ring bodies                     # Judgement
    int judge_notify                # eventfd
    bint pushed                     # something was pushed in this tick

    # the opener: a thread that opens sockets, in namespaces too
    pthread_t opener
    bint opener_runs
    pthread_mutex_t opener_lock
    pthread_cond_t opener_wake
    Origin* opener_queue[OPENER_QUEUE]
    uint32_t opener_head            # guarded by `opener_lock`
    uint32_t opener_tail            # guarded by `opener_lock`
    bint opener_stop                # guarded by `opener_lock`

    int64_t stats[STAT_COUNT]
    Duration durations[8]           # type * 2 + passed
    Duration lateness
    SendBuffers out
    ReceiveBuffers receive
