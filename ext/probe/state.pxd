# The engine's memory. Each structure says which thread may read and write it; what two threads share states beside the
# data what orders their accesses.
#
# The threads:
#   engine    `engine_loop` (loop.pyx): probes, decides, reports. Owns everything that names no other owner.
#   Python    whoever calls `maglev._probe.Engine`: one thread at a time, with the interpreter's lock.
#   regexp    a Python thread that searches bodies, since RE2 is reached through Python.
#   opener    `opener_main` (opener.pyx): opens sockets, and enters network namespaces for that.
#   TLS       `worker_main` (tls.pyx), one to four of them: handshakes and what follows.
# Names in gdb and top: maglev-probe, maglev-regexp, maglev-opener, maglev-tls.

from probe.sys cimport *
from probe.http cimport Http
from probe.numbers cimport BOUNDS, CHECK_TYPES, CODE_COUNT, STAT_COUNT
from probe.packet cimport Key
from probe.ring cimport Ring
from probe.tls cimport Session, Tls, TlsContext, TlsPool
from probe.wheel cimport Wheel

cdef enum:
    MS = 1000000
    SECOND = 1000000000
    JUDGE_LIMIT = 2 * SECOND        # for a regular expression, before the probe is repeated
    TICK = 2 * MS                   # what is due within one tick shares a wake-up, and leaves at its beginning
    SLICE = MS // 10                # the least time slice that the kernel takes
    GRACE = 1 * MS                  # between a deadline and giving up: what the softirq still holds may come in
    STALL = 10 * MS                 # a thread that wakes this late was not let run
    STALL_MOST = 86400              # seconds for which the wall clock's being set counts at most
    SLEW = 2000                     # ns in which a clock of 500 ppm drifts by one
    ATTENTION = 50 * MS             # the longest sleep while a connection is under way
    LATE = 5 * MS                   # a probe sent this late is counted as late
    OVERDUE = 100 * MS              # a probe this late is not sent at once with all others, but spread

    AHEAD = 8                       # slots that are fetched into the cache before they are visited
    TOO_BIG_TRIES = 4               # routers of one way that each may find a packet too big
    BATCH = 128                     # packets a sendmmsg
    DEPARTED = 4096                 # probes of a tick whose deadlines can wait for the next one
    HEAD_BYTES = 64                 # of a packet that are built for it: the head, and all of a usual echo request
    RECV_BATCH = 128                # packets a recvmmsg
    RECV_BYTES = 192                # of a packet: IP header with options, ICMP header, the quoted headers with options
    RECV_CONTROL = 96
    ERROR_CONTROL = 256             # of a departure stamp: times, interface, kind
    PACKET_MEMORY = 4096            # of a send buffer that a packet takes beyond its bytes, at most
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
    INTERFACE_UNKNOWN = 255         # of Slot.interface: could not be learned
    INTERFACES = 32                 # of an origin that are distinguished; targets behind further ones have none
    ASIDE_BATCH = 32                # packets a sendmmsg with stamps: each gives two messages in the error queue
    ASKS = 64                       # targets a tick whose next hop is asked for: about 5 us each
    SAMPLE = 64                     # passes of a target after which its route is asked for again: a power of two
    LEARNING = 4 * MS               # between two passes of an origin that ask for their route, while no route moves
    MOVING = 10                     # seconds after a route has moved, in which each pass asks for its own
    RESOLICITING = 2500             # ms: a kernel notices a carrier, and tries a neighbour again, up to a second late
    SOLICITING = 4000               # ms: the kernel's three attempts at a neighbour, a second apart, and some
    TWIN_LEARNING = 60              # seconds between two twins that tell whether a driver gives stamps
    CA_CWR = 2                      # TCP_INFO: the congestion state that a refusal by our own queue leads to
    TWIN_WAIT = 20 * MS             # for the departure stamps of a twin
    LANES = 4                       # batches of an origin: main and aside, ICMP and SYN each
    STOCK_SIZE = 64                 # stream sockets that the opener makes at once
    OPENER_QUEUE = 2 * MAX_ORIGINS  # each to be opened and to be stocked
    STREAM_LOOKS = 3                # ticks in which a fresh stream is looked at before epoll watches it
    SPARE_DESCRIPTORS = 256         # for the rest of the process
    MIN_PORTS = 64                  # TCP ports that an origin reserves for its SYN probes; fewer will not do
    USUAL_PORTS = 512               # enough for one probe in 118 ms
    MAX_PORTS = 8192
    PORT_REST = 60                  # seconds in which a port is not used again for a target
    TRIM_SECONDS = 10               # between two looks at unused sockets
    TRIM_STEP = 256                 # of an origin, closed at one look
    SEARCH_FIRST = 8 * MS           # of an unfinished body, before its first search
    LINGER = 100 * MS               # how long the rest of a response is read after its verdict
    ERRORS_DRAINED = 64             # of a socket's error queue: a connection that fails leaves one or two

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
    PHASE_PROVING = 8               # a connection timed out, and its twin shows whether packets leave (departure.pyx)

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

# Facts about a slot's probes (Slot.evidence; the rules are in evidence.pyx).
cdef enum:
    EVIDENCE_DOUBT = 1              # the last probe did not pass: the next ones are stamped until one does
    EVIDENCE_STAMPED = 2            # the one in flight asked for departure stamps
    EVIDENCE_QUEUED = 4             # ... and passed routing, packet filter and neighbour table (SCHED)
    EVIDENCE_LEFT = 8               # ... and was given to the driver (SND)
    EVIDENCE_AGAIN = 16             # a connection was repeated, since its SYN may have met no neighbour entry
    EVIDENCE_MOVED = 32             # the last pass found its route by another interface: the next one confirms that
    EVIDENCE_OF_PROBE = 2 | 4 | 8

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
    OP_HOLD = 13
    OP_RELEASE = 14

# What a slot's failed probes since its last pass have in common (Slot.run; the rules are in silence.pyx).
cdef enum:
    RUN_SILENT = 1                  # there are some, and each of them was silence
    RUN_ANSWERED = 2                # at least one of them was an answer
    RUN_HELD = 4                    # Python holds the verdict: the engine says down, and the backend counts as it did

cdef enum:
    RECENT = 15                     # seconds in which a target that went down by silence counts as having been up

# How a slot counts in the silence of its vantage (Slot.tally).
cdef enum:
    TALLY_NONE = 0                  # it is not probed, is down, or has never passed
    TALLY_UP = 1
    TALLY_SILENT = 2                # counts as up, and fails by silence at this moment

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
    uint16_t check
    uint16_t origin
    uint32_t refused                # when our own routing last refused its probe: `stamp_ms`; 0 since it passed
    uint32_t stream                 # index of the stream, NIL without one
    uint32_t cookie                 # of the probe in flight
    uint32_t fifo_next
    uint32_t report_next
    uint16_t serial                 # of the last probe, 12 bits; lives on when the slot is used again, as does `sent`
    uint16_t own_port               # SYN: where it left from; PHASE_PROVING: the code of the failure
    uint8_t source[4]               # IPv4 SYN: what the checksum was made with; 0 = not known
    uint8_t address[16]
    uint8_t run                     # RUN_*
    uint8_t failures                # failed probes in a row, of a held one since then; at most 255
    uint8_t tally                   # TALLY_*
    int64_t due                     # monotonic: of the next probe, or of the one in flight
    int64_t sent
    int64_t deadline
    int64_t stalled                 # the engine's stalled time when the probe was sent
    Session* session                # of the last TLS handshake, to resume; NULL without one
    uint64_t seal                   # ICMP: the 64-bit cookie of the probe in flight
    int64_t lag                     # how late the next probe is since it was put off, before `due` is counted
    uint32_t losses                 # the origin's when the probe was sent
    uint8_t too_big                 # how often a router has found this probe too big
    uint8_t evidence                # EVIDENCE_*: of the last probe, and of the one in flight
    uint8_t interface               # which one probes that pass leave by: its place + 1, 0 = not asked yet
    uint8_t left_by                 # the same of the stamped probe in flight

# The part of a slot that Python reads, guarded by `sequence`. Two cache lines, too.
#
# The ordering rule (a sequence lock): the engine makes `sequence` odd before it writes and even again afterwards, and
# never waits. A reader copies it all, and copies again unless `sequence` was even before and is the same after. The
# fence after the odd number keeps the writes from being seen before it; the release store keeps the even number from
# being seen before the writes. The reader's acquire load and its fence do the same for its reads.
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
    uint32_t codes[CODE_COUNT - 1]  # without CODE_NONE: that is for targets without a result
    int64_t rtt_sum
    int64_t last_rtt
    int64_t last_at                 # monotonic
    int64_t change_at               # wall clock
    int64_t blocked_since           # monotonic; 0: it can be probed

# A check as the engine needs it. Python makes it; from OP_CHECK_SET on it is the engine's, which frees it.
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
    ORIGIN_NEW = 0                  # what calloc leaves; never stored
    ORIGIN_OPENING = 1              # the opener has it
    ORIGIN_OPEN = 2
    ORIGIN_FAILED = 3

cdef enum:
    STOCK_NONE = 0
    STOCK_ASKED = 1                 # the opener has it
    STOCK_THERE = 2

cdef struct RawSocket:
    int fd
    bint tcp
    uint32_t drops_seen             # the kernel's counter, as of the last look
    bint crowded                    # it was far from empty at the last look, or when it was read since
    uint32_t space                  # bytes of its receive buffer

# A network interface that probes of an origin have left by. The kernel's numbers rise, and are not given again soon.
cdef struct Interface:
    int number
    bint up                         # as of `looked_at`: administratively, with carrier
    bint resolves                   # its neighbours are to be resolved
    uint8_t stamps                  # STAMPS_*
    uint32_t carrier_changes        # the kernel's counter, as of `looked_at`
    int64_t first_at                # when it was first looked at; 0 = never
    int64_t looked_at               # the start of the tick; 0 = never
    int64_t left_at                 # when an SND stamp of it was last read
    int64_t stuck_at                # when nothing was last seen to leave by it
    int64_t canary_at               # when a packet was last sent that needs no neighbour
    int64_t tried_at                # when a probe was last stamped to learn of its stamps
    int64_t changed_at              # when `up` or the counter was last seen to differ from the look before

# Does an interface's driver give SND stamps? Learned from probes that were answered: they did leave.
cdef enum:
    STAMPS_UNKNOWN = 0
    STAMPS_WORK = 1
    STAMPS_MISSING = 2

cdef struct Namespace:
    char name[256]                  # empty: the daemon's own
    uint64_t device                 # which one it was when the sockets were opened
    uint64_t inode

# Why an origin could not be opened, and when that is tried again.
cdef struct Failure:
    uint8_t kind                    # BLOCK_*
    int error
    int64_t retry_at
    int64_t retry_delay

# TCP ports that are reserved for SYN probes.
cdef struct Ports:
    uint32_t wanted                 # what the quickest of its checks needs
    uint32_t granted                # descriptors set aside for them
    uint32_t count
    uint16_t* numbers               # rising; `granted` entries, as have the descriptors
    int* fds
    int64_t turn_length             # how long a target keeps its port, ns
    int64_t turn                    # the present one, counted since ever
    int64_t turn_at                 # when it began

# Stream sockets that are ready to connect.
cdef struct Pool:
    int* fds
    uint32_t count
    uint32_t space
    uint32_t idle                   # how few of them there have been since the pool was last trimmed

# Stream sockets made in a namespace of its own, which only the opener enters. `state` says which thread may touch the
# rest: while it is STOCK_ASKED the opener, which stores STOCK_THERE last, with release; the engine loads that with
# acquire, and owns it until it asks again.
cdef struct Stock:
    uint32_t state                  # atomic
    uint32_t count
    int fds[STOCK_SIZE]
    int error                       # errno of what ended it
    uint64_t device                 # the namespace that they were made in
    uint64_t inode

# Where probes leave from: a network namespace, a family, a source address. The engine's, but while the opener has it:
# from ORIGIN_OPENING on the opener writes it all, and `state` last, with release; the engine, which loads `state` with
# acquire, touches nothing else of it meanwhile, and does not free it. The mutex of the opener's queue orders the way
# there.
cdef struct Origin:
    uint32_t id
    uint32_t state                  # atomic; OriginState
    bint v6
    bint has_source
    bint want_icmp
    bint want_tcp
    bint whole                      # IPv4 packets that no link has to fragment
    uint8_t source[16]
    Namespace netns
    Failure failure
    int64_t checked_at              # when the namespace and the source were last seen to be there
    uint64_t magic
    RawSocket icmp
    RawSocket tcp
    int aside[2]                    # raw sockets for stamped probes: [0] ICMP, [1] TCP; -1: none (departure.pyx)
    int netlink                     # rtnetlink, to ask for next hops and interfaces; -1 where it cannot be had
    uint32_t netlink_serial
    uint32_t vantage                # its place in Evidence.passes
    uint32_t interface_count
    Interface interfaces[INTERFACES]
    int64_t learned_at              # when a target that passed last asked for its route
    int64_t moved_at                # when a target's route was last seen to lead by another interface
    int resolver                    # UDP, to ask the kernel for source addresses; also holds on to the namespace
    uint32_t losses                 # how often answers were lost: with a full receive queue, or with the sockets
    uint32_t flying                 # raw probes out
    Ports ports
    Pool pool
    Stock stock
    uint32_t batch_count[LANES]
    uint32_t batch[LANES][BATCH]    # probes that go out with the next sendmmsg: [0] ICMP, [1] SYN; [2], [3] aside

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
    bint made                       # the connection was made
    Tls* tls                        # NULL without TLS, and once that has ended
    int64_t own                     # of its time, what we took ourselves
    int64_t search_at               # when the unfinished body is looked at next; 0: not at all
    int64_t search_wait             # how long that look was waited for
    int64_t body_at                 # when the first bytes of the body came, with `search_at`
    int64_t arrived                 # when the last ones came
    int64_t linger_until            # the verdict is made, and the rest is read until then; 0: no
    Http http

# A request of Python or the regexp thread to the engine. Each field has one meaning; an operation leaves the others
# zero.
cdef struct Command:
    uint8_t op                      # Op
    uint8_t state                   # ADD, RESUME, CHANGE, RELEASE
    uint8_t counter                 # ADD, RESUME, CHANGE
    uint8_t type                    # ADD, CHANGE: PROBE_*
    uint8_t v6                      # ADD
    bint good                       # PRESUME
    bint traced                     # TRACE
    bint matched                    # VERDICT: the body has what the expression looks for
    uint8_t judged                  # VERDICT: JUDGE_*
    uint32_t slot
    uint32_t generation
    uint32_t epoch                  # ADD
    uint32_t check                  # CHECK_SET, CHECK_FREE, ADD, CHANGE
    uint32_t origin                 # ORIGIN_SET, ORIGIN_FREE, ADD, CHANGE
    uint32_t serial                 # VERDICT: of which probe
    uint32_t status                 # VERDICT: of the response
    int64_t delay                   # ADD, RESUME: before the first probe
    int64_t when                    # VERDICT: when what was searched had come
    uint32_t limit                  # VERDICT: the probe's time, ms
    uint8_t address[16]             # ADD
    Check* new_check                # CHECK_SET: the engine's, from here on
    Origin* new_origin              # ORIGIN_SET: the engine's, from here on

cdef struct Event:
    uint32_t slot
    uint32_t generation
    uint8_t from_state
    uint8_t to_state
    uint8_t code
    uint8_t detail_kind
    uint8_t counter
    uint8_t passed
    bint silent                     # each failed probe since the last pass was silence
    uint32_t detail_value
    int64_t at
    int64_t rtt

# The subject of a search.
cdef enum:
    JUDGE_WHOLE = 0                 # a whole body
    JUDGE_PART = 1                  # an unfinished one; the probe goes on meanwhile
    JUDGE_LAST = 2                  # an unfinished one at the deadline

cdef struct Judgement:
    uint8_t kind                    # JUDGE_*
    uint32_t slot
    uint32_t generation
    uint32_t serial
    uint32_t check
    uint32_t status
    uint32_t body_bytes
    uint8_t* body
    int64_t when                    # when the last of it had come
    uint32_t limit                  # the probe's time, ms

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

# Written before the threads start, and never again: any thread may read it.
cdef struct Settings:
    uint32_t capacity               # slots
    uint32_t max_sockets
    uint16_t ephemeral_low          # the ports that the kernel gives to clients
    uint16_t ephemeral_high
    Key key                         # of cookies, and of all other numbers that must be unpredictable
    int wake                        # eventfd: any thread may write to it, the engine alone reads it

# The engine's.
cdef struct Clocks:
    int64_t now                     # monotonic, refreshed several times a tick
    int64_t tick_start
    int64_t wall                    # CLOCK_REALTIME less CLOCK_MONOTONIC, at the start of the tick
    int64_t compared                # when that was read: monotonic
    int64_t suspended               # CLOCK_BOOTTIME less CLOCK_MONOTONIC, when the wall clock last moved
    int64_t stalled                 # time that this thread was not let run, since ever
    uint32_t quiet                  # ticks without a packet sent or received
    uint64_t random                 # for jitter: see `draw_below`

# The engine's. Doomed origins are freed once the opener has finished with them.
cdef struct OriginTable:
    Origin** table
    uint32_t top                    # one more than the highest in use
    Origin* doomed[OPENER_QUEUE + 1]
    uint32_t doomed_count

# The engine's: ICMP and SYN probes.
cdef struct Raw:
    uint32_t flying
    bint undrained                  # a raw socket could not be emptied in this tick
    uint32_t departed_count
    uint32_t departed[DEPARTED]     # probes whose deadline is not in the wheel yet
    uint8_t* zeros                  # the constant rest of an echo request
    SendBuffers send
    ReceiveBuffers receive

# The targets that passed last in a vantage: all origins of one namespace, family and source address. Two entries, so
# that each target finds the last pass of another one.
cdef struct Passes:
    uint32_t slot                   # the target that passed last
    uint32_t other                  # the last one before it that is not the same
    int64_t at                      # 0: none yet
    int64_t other_at

# How many targets of a vantage are up, and how many of them fail by silence at this moment (silence.pyx). The engine
# writes; Python reads single values while they change.
cdef struct Silence:
    uint32_t up
    uint32_t silent

# The engine's: what proves that a probe left this host (evidence.pyx).
cdef struct Evidence:
    Passes passes[MAX_ORIGINS]      # by Origin.vantage
    int64_t asked_at                # the tick in which ...
    uint32_t asks                   # ... so many targets had their next hop asked for
    msghdr control                  # the control message of a stamped packet
    char stamp[32]                  # its data
    iovec parts[RECV_BATCH]         # buffers of the error queue
    mmsghdr messages[RECV_BATCH]
    char controls[RECV_BATCH][ERROR_CONTROL]
    uint8_t data[RECV_BATCH][RECV_BYTES]

# The engine's: connections, and all descriptors that are counted against the limit.
cdef struct Streams:
    Stream* table
    uint32_t space
    uint32_t top                    # highest ever used
    uint32_t unused                 # list by Stream.next
    uint32_t fresh                  # list by Stream.next: looked at in each tick
    uint32_t watched                # how many epoll knows
    uint32_t used
    int64_t trimmed_at              # when idle sockets were last closed
    uint32_t open_sockets           # in use and in pools
    int epoll
    epoll_event events[EVENTS]
    uint8_t* scratch                # received stream data; a request being put together

# The engine's: slots that wait for a descriptor or for room among the handshakes, by Slot.fifo_next.
cdef struct Fifo:
    uint32_t head
    uint32_t tail
    uint32_t count

# Towards Python. The engine pushes, Python takes; `notify` becomes readable at the end of a tick that pushed.
cdef struct Reports:
    Ring transitions                # Event
    Ring results                    # Event, of traced targets
    int notify                      # eventfd
    # The engine's
    bint pushed                     # something was pushed in this tick
    uint32_t unreported_head        # slots whose transition found the ring full, by Slot.report_next
    uint32_t unreported_tail

# Towards the regexp thread. The engine pushes; the body goes with the item, and the regexp thread frees it. The answer
# comes back as a command.
cdef struct Judge:
    Ring bodies                     # Judgement
    int notify                      # eventfd

# Towards the engine, from Python and the regexp thread. No ring: it has two producers, and grows with what a reload
# brings at once. The engine swaps the two vectors under the lock, and works one off without it.
cdef struct Inbox:
    pthread_mutex_t lock
    Command* waiting                # guarded by `lock`
    uint32_t count                  # guarded by `lock`
    uint32_t space                  # guarded by `lock`
    Command* taken                  # the engine's: the other vector, being worked off
    uint32_t taken_space            # the engine's
    uint32_t stopping               # atomic: Python stores it with release, and wakes the engine

# The opener's queue. `runs` and `thread` are Python's, which starts and joins it.
cdef struct Opener:
    const Settings* settings
    pthread_t thread
    bint runs
    pthread_mutex_t lock
    pthread_cond_t wake
    Origin* queue[OPENER_QUEUE]     # guarded by `lock`
    uint32_t head                   # guarded by `lock`
    uint32_t tail                   # guarded by `lock`
    bint stop                       # guarded by `lock`

# Counts since the engine was made. The engine writes; Python reads single values while they change: each is
# an aligned word, whole at any time, and none has to fit another.
cdef struct Statistics:
    int64_t counters[STAT_COUNT]
    Duration durations[2 * CHECK_TYPES]     # 2 * Check.histogram + passed
    Duration lateness

cdef struct State:
    Settings settings
    Slot* slots                     # the engine's
    Record* records                 # written by the engine, read by Python: see Record
    uint32_t* due                   # the engine's: what the wheel gave out
    int64_t* anchors                # the engine's, by slot: of the clock, by the last verification (dates.pyx); 0: none
    Wheel wheel                     # the engine's
    Check** checks                  # the engine's
    Clocks clock
    OriginTable origins
    Raw raw
    Evidence evidence
    Silence silence[MAX_ORIGINS]    # by Origin.vantage
    Streams streams
    Fifo waiting
    Reports reports
    Judge judge
    Inbox inbox
    Opener opener
    TlsPool tls
    Statistics stats


cdef inline void record_begin(Record* record) noexcept nogil:
    record.sequence += 1
    fence_write()


cdef inline void record_end(Record* record) noexcept nogil:
    store32(&record.sequence, record.sequence + 1)


# A copy of one moment.
cdef inline void record_copy(const Record* record, Record* out) noexcept nogil:
    cdef uint32_t before
    while True:
        before = load32(&record.sequence)
        if before & 1:
            continue
        memcpy(out, record, sizeof(Record))
        fence_read()
        if load32(&record.sequence) == before:
            return
