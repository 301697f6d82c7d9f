# Numbers that leave the engine: Python, the metrics and the API know probes, results and counters by them. None may
# change without its other side: CODE_* are maglev.base.states.Code, PROBE_* follow from a check's CheckType and mode
# (checks.pyx), DETAIL_* and BLOCK_* have their texts in details.pyx, STAT_* their names in reports.pyx.

cdef enum:
    CODE_COUNT = 14                 # maglev.base.states.Code up to L7RSP
    BOUNDS = 17                     # buckets of a duration histogram

# maglev.base.states.Code, as far as probes give them.
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

# The step that failed, of a local error.
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
    # From here on: the probe did not leave this host, or our own routing refused it (evidence.pyx).
    BLOCK_BUFFER = 13               # no memory for the packet, on its path or in the socket
    BLOCK_ROUTE = 14                # no route, while no other target passes either
    BLOCK_LINK = 15                 # the interface is down, has no carrier, or is gone
    BLOCK_FIREWALL = 16             # our own packet filter
    BLOCK_NEIGHBOURS = 17           # no room in the kernel's neighbour table
    BLOCK_QUEUE = 18                # accepted by the kernel, and not given to the driver
    BLOCK_COUNT = 19

# How many kinds maglev.base.states.CheckType has: durations are counted by them. Checked where Python reads them.
cdef enum:
    CHECK_TYPES = 4

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
    STAT_DATES_DOUBTED = 29         # of certificates, as the clock may be wrong
    STAT_DATES_UNSURE = 30          # verdicts by a clock that the kernel calls unsynchronised
    STAT_UNPROBED = 31              # six of them, from BLOCK_BUFFER on
    STAT_TARGETS = 37               # gauges from here
    STAT_IN_FLIGHT = 38
    STAT_WAITING_FD = 39
    STAT_TLS_SESSION_BYTES = 40
    STAT_RX_BUFFER = 41             # bytes of the receive buffer that overflowed last
    STAT_CLOCK_STEP = 42            # ns that the wall clock was set by, when it was set last
    STAT_COUNT = 43
