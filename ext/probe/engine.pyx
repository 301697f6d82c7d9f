"""The probe engine: a native thread that probes, decides, and reports only transitions. See ``_probe.pyi``."""

import atexit
import errno as errnos
import ipaddress
import os
import re
import struct
import threading
from collections import namedtuple

from maglev.config.model import HttpParams, IcmpParams, TcpMode, TcpParams
from maglev.states import CheckType

from health cimport (
    HEALTH_DOWN,
    HEALTH_UNKNOWN,
    HEALTH_UP,
    Health,
    health_entry,
    health_max,
    health_step,
    health_undecided,
)

include "sys.pxd"
include "packet.pxd"
include "ring.pxd"
include "wheel.pxd"
include "http.pxd"
include "tls.pxd"
include "engine.pxd"

include "packet.pyx"
include "wheel.pyx"
include "http.pyx"
include "details.pyx"
include "origin.pyx"
include "icmp.pyx"
include "tcp_syn.pyx"
include "raw.pyx"
include "stream.pyx"
include "tls.pyx"
include "core.pyx"
include "cores.pyx"

cdef int64_t bounds_ns[BOUNDS]
BOUND_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)
for _i, _bound in enumerate(BOUND_SECONDS):
    bounds_ns[_i] = round(_bound * SECOND)

CODES = CODE_COUNT
MAX_CAPACITY = 1 << INDEX_BITS

STAT_NAMES = (
    "sent_icmp", "sent_syn", "sent_connect", "sent_http", "passed", "failed", "late_sends", "late_fd", "enobufs",
    "local_errors", "repeated", "rx_drops", "stalls", "foreign", "forged", "duplicate", "late_replies", "malformed",
    "icmp_errors", "transitions", "transitions_deferred", "results_dropped", "ticks", "wakeups", "tls_full",
    "tls_resumed", "late_tls", "clock_steps", "late_port", "targets",
    "in_flight", "waiting_fd", "tls_session_bytes", "rx_buffer",
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

cdef enum:
    PAUSED_STATE = 3            # maglev.states.State


class EngineError(RuntimeError):
    """The engine cannot do what was asked: its thread could not start, or a table is full."""


Transition = namedtuple("Transition", "target generation from_state to_state code detail at_ns counter")
Result = namedtuple("Result", "target generation state counter passed code detail at_ns rtt_ns")
TargetInfo = namedtuple(
    "TargetInfo",
    "generation state counter last_code last_detail last_at_ns last_rtt_ns rtt_sum_ns rtt_count blocked_since_ns "
    "blocked_reason codes",
)
Histogram = namedtuple("Histogram", "bounds counts sum_seconds")
for _type in (Transition, Result, TargetInfo, Histogram):
    _type.__module__ = "maglev._probe"

_TYPES = {
    CheckType.ICMP: PROBE_ICMP,
    CheckType.TCP: PROBE_SYN,
    CheckType.HTTP: PROBE_HTTP,
    CheckType.HTTPS: PROBE_HTTP,
}
_CAPABILITIES = {"CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}


def missing_capabilities(check):
    """What this process lacks and ``check`` needs, of CAP_NET_RAW (icmp, tcp syn) and CAP_SYS_ADMIN (netns)."""
    needed = []
    if check.type == CheckType.ICMP or (
        check.type == CheckType.TCP and check.params.tls is None and check.params.mode is TcpMode.SYN
    ):
        needed.append("CAP_NET_RAW")
    if check.netns:
        needed.append("CAP_SYS_ADMIN")
    effective = 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return tuple(name for name in needed if not effective >> _CAPABILITIES[name] & 1)


def _clean(text, what):
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{what} contains a control character")
    return text


def _request(params, port, user_agent, usual_port):
    """The two parts of an HTTP request: before and after the target's address, the second empty with a fixed host."""
    method = params.method
    if method not in ("GET", "HEAD"):
        raise ValueError(f"method must be GET or HEAD, not {method!r}")
    path = _clean(params.path, "path")
    if not path.startswith("/") or " " in path:
        raise ValueError("path must start with / and contain no blank")
    start = f"{method} {path} HTTP/1.1\r\nHost: "
    suffix = "" if port == usual_port else f":{port}"
    rest = f"\r\nUser-Agent: {_clean(user_agent, 'user agent')}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    if params.host is None:
        return start.encode(), (suffix + rest).encode()
    host = _clean(params.host, "host")
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    if not re.search(r":\d+$", host) or host.endswith("]"):
        host += suffix
    return (start + host + rest).encode(), b""


# A table of zeros that starts on a page, so that its entries of two cache lines are two cache lines. It is walked in no
# order: in huge pages, where the kernel has them, that costs no walks of the page table. NULL: no memory.
cdef void* table_new(size_t count, size_t size) noexcept nogil:
    cdef void* at = mmap(NULL, count * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if at == MAP_FAILED:
        return NULL
    madvise(at, count * size, MADV_HUGEPAGE)
    return at


cdef void table_free(void* at, size_t count, size_t size) noexcept nogil:
    if at is not NULL:
        munmap(at, count * size)


assert sizeof(Slot) == 128
assert sizeof(Record) == 128


def _server_name(params):
    """The name that a check over TLS asks for and verifies: server-name, else the host without its port, else None."""
    name = params.tls.server_name
    if name is None:
        name = getattr(params, "host", None)
        if name is not None:
            name = re.sub(r"(?<!:):\d+$", "", name) if name.count(":") < 2 or "]" in name else name
    if name is not None:
        name = _clean(name, "server name").strip("[]").rstrip(".")
        if not name or len(name.encode()) > 255:
            raise ValueError(f"{name!r} is no name of a server")
    return name


cdef class Engine:
    """See ``_probe.pyi``."""

    cdef State* e
    cdef object _thread
    cdef object _judge_thread
    cdef bytes _user_agent
    cdef bint _started
    cdef bint _stopped
    cdef bint _judge_stop
    # Python's side of the slots: what was commanded, whether or not the engine has come to it.
    cdef uint32_t* _generations
    cdef uint32_t* _epochs
    cdef uint32_t* _checks
    cdef uint32_t* _origin_ids
    cdef uint32_t* _free
    cdef uint32_t _free_count
    cdef uint32_t _top
    cdef uint8_t* _active
    cdef uint8_t* _states
    cdef uint8_t* _counters
    cdef uint8_t* _paused
    cdef uint8_t* _presumed
    cdef uint8_t* _families
    cdef uint8_t* _addresses    # 16 bytes a target: what a certificate should have been for
    cdef dict _check_table      # id -> [HealthCheck, type, targets, removed, expression]
    cdef list _free_checks
    cdef dict _origin_table     # key -> [id, targets]
    cdef dict _origin_keys      # id -> key
    cdef list _free_origins

    def __cinit__(self, *, capacity=1 << 17, key=None, user_agent="vpp-maglev", ring=1 << 16):
        cdef State* e
        cdef bytes secret = os.urandom(16) if key is None else bytes(key)
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be 1..{MAX_CAPACITY}, not {capacity}")
        if not 1 <= ring <= 1 << 24 or ring & (ring - 1):
            raise ValueError(f"ring must be a power of two up to 2**24, not {ring}")
        if len(secret) != 16:
            raise ValueError(f"key must have 16 bytes, not {len(secret)}")
        self._user_agent = _clean(user_agent, "user agent").encode()
        tls_prepare()
        e = self.e = <State*>calloc(1, sizeof(State))
        if e is NULL:
            raise MemoryError
        e.wake = e.notify = e.judge_notify = e.epoll = -1
        pthread_mutex_init(&e.lock, NULL)
        pthread_mutex_init(&e.opener_lock, NULL)
        pthread_mutex_init(&e.tls_lock, NULL)
        pthread_cond_init(&e.opener_wake, NULL)
        e.capacity = capacity
        memcpy(&e.key, <const char*>secret, 16)
        e.random = siphash(&e.key, <uint64_t>USE_JITTER << 32) | 1
        e.slots = <Slot*>table_new(capacity, sizeof(Slot))
        e.records = <Record*>table_new(capacity, sizeof(Record))
        e.due = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        e.checks = <Check**>calloc(MAX_CHECKS, sizeof(Check*))
        e.origins = <Origin**>calloc(MAX_ORIGINS, sizeof(Origin*))
        e.scratch = <uint8_t*>calloc(1, SCRATCH)
        e.zeros = <uint8_t*>calloc(1, ICMP_MAX_PAYLOAD)
        self._generations = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self._epochs = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self._checks = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self._origin_ids = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self._free = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self._active = <uint8_t*>calloc(capacity, 1)
        self._states = <uint8_t*>calloc(capacity, 1)
        self._counters = <uint8_t*>calloc(capacity, 1)
        self._paused = <uint8_t*>calloc(capacity, 1)
        self._presumed = <uint8_t*>calloc(capacity, 1)
        self._families = <uint8_t*>calloc(capacity, 1)
        self._addresses = <uint8_t*>calloc(capacity, 16)
        if (
            not wheel_init(&e.wheel, capacity, clock_ns(CLOCK_MONOTONIC) // MS)
            or not e.slots or not e.records or not e.due or not e.checks or not e.origins
            or not ring_init(&e.transitions, ring, sizeof(Event)) or not ring_init(&e.results, TRACE_RING, sizeof(Event))
            or not ring_init(&e.bodies, JUDGE_RING, sizeof(Judgement)) or not e.scratch or not e.zeros or not self._generations or not self._epochs
            or not self._checks or not self._origin_ids or not self._free or not self._active or not self._states
            or not self._counters or not self._paused or not self._presumed or not self._families
            or not self._addresses
        ):
            raise MemoryError
        e.fresh = e.stream_free = e.fifo_head = e.fifo_tail = e.unreported_head = e.unreported_tail = NIL
        raw_buffers_init(e)
        e.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        e.notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        e.judge_notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        e.epoll = epoll_create1(EPOLL_CLOEXEC)
        if e.wake < 0 or e.notify < 0 or e.judge_notify < 0 or e.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        self._check_table = {}
        self._free_checks = []
        self._origin_table = {}
        self._origin_keys = {}
        self._free_origins = []

    def __dealloc__(self):
        cdef State* e = self.e
        cdef uint32_t i
        cdef Command* command
        if e is NULL:
            return
        # The thread holds a reference to this object: here it has ended, or never was.
        for i in range(e.inbox_count):
            command = &e.inbox[i]
            if command.op == OP_CHECK_SET:
                check_free(e, <Check*>command.pointer)
            elif command.op == OP_ORIGIN_SET:
                origin_free(e, <Origin*>command.pointer)
        if e.origins is not NULL:
            engine_close(e)
        if e.checks is not NULL:
            for i in range(MAX_CHECKS):
                check_free(e, e.checks[i])
        contexts_bury(e)
        for fd in (e.wake, e.notify, e.judge_notify, e.epoll):
            if fd >= 0:
                close(fd)
        free(e.inbox)
        free(e.outbox)
        table_free(e.slots, e.capacity, sizeof(Slot))
        table_free(e.records, e.capacity, sizeof(Record))
        wheel_free(&e.wheel)
        free(e.due)
        free(e.checks)
        free(e.origins)
        ring_free(&e.transitions)
        ring_free(&e.results)
        ring_free(&e.bodies)
        free(e.scratch)
        free(e.zeros)
        free(e.streams)
        pthread_mutex_destroy(&e.lock)
        pthread_mutex_destroy(&e.opener_lock)
        pthread_mutex_destroy(&e.tls_lock)
        pthread_cond_destroy(&e.opener_wake)
        free(e)
        free(self._generations)
        free(self._epochs)
        free(self._checks)
        free(self._origin_ids)
        free(self._free)
        free(self._active)
        free(self._states)
        free(self._counters)
        free(self._paused)
        free(self._presumed)
        free(self._families)
        free(self._addresses)

    @property
    def capacity(self):
        """How many targets there can be."""
        return self.e.capacity

    @property
    def running(self):
        """True between ``start`` and ``stop``."""
        return self._started and not self._stopped

    def pulse(self):
        """How many rounds the thread has made. Asks for one more: of a healthy thread the next answer is higher."""
        cdef uint64_t one = 1
        cdef uint64_t rounds = self.e.stats[STAT_TICKS]
        write(self.e.wake, &one, sizeof(one))
        return rounds

    def fileno(self):
        """An eventfd that is readable while transitions or results wait."""
        return self.e.notify

    # ---- life

    def start(self):
        """Start the native thread and the opener."""
        cdef State* e = self.e
        cdef rlimit limit
        if self._started:
            raise EngineError("the engine runs once")
        if getrlimit(RLIMIT_NOFILE, &limit) == 0 and limit.rlim_cur < limit.rlim_max:
            limit.rlim_cur = limit.rlim_max
            setrlimit(RLIMIT_NOFILE, &limit)
        getrlimit(RLIMIT_NOFILE, &limit)
        e.max_sockets = 65536
        if limit.rlim_cur < 65536 + SPARE_DESCRIPTORS:
            if limit.rlim_cur > 2 * SPARE_DESCRIPTORS:
                e.max_sockets = <uint32_t>(limit.rlim_cur - SPARE_DESCRIPTORS)
            else:
                e.max_sockets = <uint32_t>(limit.rlim_cur // 2)
        e.stream_space = e.max_sockets
        e.streams = <Stream*>calloc(e.stream_space, sizeof(Stream))
        if e.streams is NULL:
            raise MemoryError
        e.ephemeral_low, e.ephemeral_high = self._ephemeral()
        # Nothing is older than this module's own file: a clock that says so cannot tell what has expired.
        e.clock_floor = int(os.stat(__file__).st_mtime)
        self._thread = threading.Thread(target=self._run, name="maglev-probe", daemon=True)
        self._judge_thread = threading.Thread(target=self._judge_run, name="maglev-regexp", daemon=True)
        self._started = True
        # The process may end without stop(), for an error elsewhere: exit() then takes OpenSSL down under threads that
        # shake hands.
        atexit.register(self.stop)
        try:
            if pthread_create(&e.opener, NULL, opener_main, e) != 0:
                raise EngineError("cannot start a thread")
            e.opener_runs = True
            if tls_start_workers(e, min(TLS_WORKERS, max(1, len(os.sched_getaffinity(0)) - 1))) < 0:
                raise EngineError(f"cannot start a thread: {os.strerror(errno)}")
            self._thread.start()
            self._judge_thread.start()
        except BaseException:
            # Those that run already work on memory that goes with this object.
            self.stop()
            raise

    @staticmethod
    def _ephemeral():
        try:
            with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as text:
                low, high = text.read().split()
                return int(low), int(high)
        except (OSError, ValueError):
            return 1024, 65535      # then every port is looked at twice

    def _run(self):
        cdef State* e = self.e
        cdef sigset_t every
        with nogil:
            # Signals are for Python's main thread.
            sigfillset(&every)
            pthread_sigmask(SIG_SETMASK, &every, NULL)
            engine_loop(e)

    def stop(self):
        """End the threads, wait for them, close all sockets."""
        cdef State* e = self.e
        cdef uint64_t one = 1
        if not self._started or self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        store32(&e.stopping, 1)
        write(e.wake, &one, sizeof(one))
        self._judge_stop = True
        write(e.judge_notify, &one, sizeof(one))
        for thread in (self._thread, self._judge_thread):
            if thread.ident is not None:
                thread.join()
        with nogil:
            if e.opener_runs:
                pthread_mutex_lock(&e.opener_lock)
                e.opener_stop = True
                pthread_cond_signal(&e.opener_wake)
                pthread_mutex_unlock(&e.opener_lock)
                pthread_join(e.opener, NULL)
                e.opener_runs = False
            tls_stop_workers(e)
            engine_close(e)

    # ---- regular expressions

    def _judge_run(self):
        """Search bodies for their expressions; RE2 takes time linear in the body, whatever the pattern."""
        cdef State* e = self.e
        cdef pollfd waiting
        cdef uint64_t count
        cdef Judgement job
        cdef Command command
        while not self._judge_stop:
            with nogil:
                waiting.fd = e.judge_notify
                waiting.events = POLLIN
                ppoll(&waiting, 1, NULL, NULL)
                read(e.judge_notify, &count, sizeof(count))
            while not self._judge_stop and ring_take(&e.bodies, &job):
                try:
                    body = (<char*>job.body)[:job.body_bytes] if job.body_bytes else b""
                finally:
                    free(job.body)
                entry = self._check_table.get(job.check)
                if entry is None or entry[4] is None:
                    continue        # removed meanwhile, and the target with it
                memset(&command, 0, sizeof(command))
                command.op = OP_VERDICT
                command.slot = job.slot
                command.generation = job.generation
                command.check = job.serial
                command.origin = job.status
                command.flag = entry[4].search(body) is not None
                try:
                    self._push(&command)
                except EngineError:
                    continue        # no room, or stopped: without an answer the probe is repeated

    # ---- commands

    cdef int _push(self, const Command* command) except -1:
        cdef State* e = self.e
        cdef Command* grown
        cdef uint32_t space
        cdef uint64_t one = 1
        cdef bint first
        if self._stopped:
            raise EngineError("the engine was stopped")
        pthread_mutex_lock(&e.lock)
        if e.inbox_count == e.inbox_space:
            space = 256 if e.inbox_space == 0 else 2 * e.inbox_space
            grown = NULL
            if space <= 16 * e.capacity + 65536:
                grown = <Command*>realloc(e.inbox, space * sizeof(Command))
            if grown is NULL:
                pthread_mutex_unlock(&e.lock)
                raise EngineError("too many commands wait for the engine")
            e.inbox = grown
            e.inbox_space = space
        first = e.inbox_count == 0
        e.inbox[e.inbox_count] = command[0]
        e.inbox_count += 1
        pthread_mutex_unlock(&e.lock)
        if first:
            write(e.wake, &one, sizeof(one))
        return 0

    cdef int _known(self, object target) except -1:
        if not 0 <= target < self.e.capacity or not self._active[<uint32_t>target]:
            raise KeyError(target)
        return 0

    cdef list _check(self, object check_id):
        entry = self._check_table.get(check_id)
        if entry is None or entry[3]:
            raise KeyError(check_id)
        return entry

    def add_check(self, check):
        """Take a check's parameters; returns its id."""
        cdef Check* c
        cdef Command command
        cdef bytes prefix = b""
        cdef bytes suffix = b""
        params = check.params
        expression = None
        tls = getattr(params, "tls", None)
        if check.type not in _TYPES:
            raise ValueError(f"healthcheck {check.name!r}: unknown type {check.type!r}")
        kind = _TYPES[check.type]
        wanted = {PROBE_ICMP: IcmpParams, PROBE_SYN: TcpParams, PROBE_HTTP: HttpParams}[kind]
        if not isinstance(params, wanted) or (
            kind == PROBE_HTTP and (tls is None) == (check.type == CheckType.HTTPS)
        ):
            raise ValueError(f"healthcheck {check.name!r}: parameters do not fit its type")
        if kind == PROBE_SYN and (params.mode is TcpMode.CONNECT or tls is not None):
            kind = PROBE_CONNECT
        if not 1 <= check.rise <= 100 or not 1 <= check.fall <= 100:
            raise ValueError(f"healthcheck {check.name!r}: rise and fall must be 1..100")
        if min(check.interval, check.fast_interval, check.down_interval, check.timeout) < MS:
            raise ValueError(f"healthcheck {check.name!r}: intervals and timeout must be at least 1ms")
        if max(check.interval, check.fast_interval, check.down_interval, check.timeout) > 86400 * <int64_t>SECOND:
            raise ValueError(f"healthcheck {check.name!r}: intervals and timeout must be at most a day")
        if kind == PROBE_ICMP:
            if not ICMP_MIN_PAYLOAD <= params.size <= ICMP_MAX_PAYLOAD:
                raise ValueError(
                    f"healthcheck {check.name!r}: size must be {ICMP_MIN_PAYLOAD}..{ICMP_MAX_PAYLOAD}"
                )
        elif not 1 <= check.port <= 65535:
            raise ValueError(f"healthcheck {check.name!r}: port must be 1..65535")
        if check.netns is not None and (not check.netns or len(check.netns.encode()) > 200 or "/" in check.netns
                                        or check.netns in (".", "..")):
            raise ValueError(f"healthcheck {check.name!r}: {check.netns!r} is no name of a network namespace")
        if kind == PROBE_HTTP:
            prefix, suffix = _request(
                params, check.port, self._user_agent.decode(), 80 if tls is None else 443
            )
            if len(prefix) + len(suffix) > MAX_REQUEST:
                raise ValueError(f"healthcheck {check.name!r}: the request is longer than {MAX_REQUEST} bytes")
            if params.response_regexp is not None:
                expression = self._compile(check.name, params.response_regexp)
        if self._free_checks:
            check_id = self._free_checks[len(self._free_checks) - 1]
        elif len(self._check_table) < MAX_CHECKS:
            check_id = len(self._check_table)
        else:
            raise EngineError(f"more than {MAX_CHECKS} checks")
        c = <Check*>calloc(1, sizeof(Check))
        if c is NULL:
            raise MemoryError
        c.id = check_id
        c.type = kind
        c.histogram = check.type
        c.interval = check.interval
        c.fast = check.fast_interval
        c.down = check.down_interval
        c.timeout = check.timeout
        c.rise = check.rise
        c.fall = check.fall
        c.port = check.port
        if kind == PROBE_ICMP:
            c.icmp_size = params.size
        if kind == PROBE_HTTP:
            c.head_request = params.method == "HEAD"
            c.regexp = expression is not None
            c.host_is_address = params.host is None
            c.prefix_bytes = len(prefix)
            c.suffix_bytes = len(suffix)
            for low, high in params.response_codes:
                for code in range(max(low, 0), min(high, HTTP_CODES - 1) + 1):
                    c.codes[code >> 6] |= <uint64_t>1 << (code & 63)
            c.request = <char*>malloc(c.prefix_bytes + c.suffix_bytes + 1)
            if c.request is NULL:
                check_free(self.e, c)
                raise MemoryError
            memcpy(c.request, <const char*>prefix, c.prefix_bytes)
            memcpy(c.request + c.prefix_bytes, <const char*>suffix, c.suffix_bytes)
        if tls is not None:
            try:
                self._tls(c, params)
            except BaseException:
                check_free(self.e, c)
                raise
        memset(&command, 0, sizeof(command))
        command.op = OP_CHECK_SET
        command.check = check_id
        command.pointer = c
        try:
            self._push(&command)
        except BaseException:
            check_free(self.e, c)
            raise
        if self._free_checks:
            self._free_checks.pop()
        self._check_table[check_id] = [check, kind, 0, False, expression]
        return check_id

    cdef int _tls(self, Check* c, object params) except -1:
        """What a TLS thread needs of a check; the authorities are read there, by the first probe."""
        cdef TlsContext* context = <TlsContext*>calloc(1, sizeof(TlsContext))
        cdef bytes packed
        if context is NULL:
            raise MemoryError
        context.users = 1
        c.tls = context
        context.verify = not params.tls.insecure_skip_verify
        context.http = c.type == PROBE_HTTP
        name = _server_name(params)
        if name is not None:
            packed = name.encode()
            context.name = <char*>malloc(len(packed) + 1)
            if context.name is NULL:
                raise MemoryError
            memcpy(context.name, <const char*>packed, len(packed) + 1)
            try:
                packed = ipaddress.ip_address(name).packed
            except ValueError:
                pass
            else:
                context.name_is_ip = True
                context.ip_bytes = <uint8_t>len(packed)
                memcpy(context.ip, <const char*>packed, len(packed))
        if params.tls.ca_file is not None:
            packed = os.fsencode(params.tls.ca_file)
            if not packed or b"\0" in packed:
                raise ValueError(f"{params.tls.ca_file!r} is no file name")
            context.ca_file = <char*>malloc(len(packed) + 1)
            if context.ca_file is NULL:
                raise MemoryError
            memcpy(context.ca_file, <const char*>packed, len(packed) + 1)
        return 0

    def reread_authorities(self):
        """Have the certificate authorities of all checks looked at again."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_AUTHORITIES
        self._push(&command)

    @staticmethod
    def _compile(name, pattern):
        import re2

        options = re2.Options()
        options.log_errors = False
        try:
            return re2.compile(pattern.encode(), options)
        except re2.error as error:
            raise ValueError(f"healthcheck {name!r}: response-regexp: {error}") from None

    def remove_check(self, check_id):
        """Forget a check as soon as no target uses it."""
        entry = self._check(check_id)
        entry[3] = True
        if entry[2] == 0:
            self._drop_check(check_id)

    cdef int _drop_check(self, object check_id) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_CHECK_FREE
        command.check = check_id
        self._push(&command)
        del self._check_table[check_id]
        self._free_checks.append(check_id)
        return 0

    cdef int _release_check(self, object check_id) except -1:
        entry = self._check_table[check_id]
        entry[2] -= 1
        if entry[2] == 0 and entry[3]:
            self._drop_check(check_id)
        return 0

    cdef object _origin(self, list entry, bint v6):
        """The id of the origin for a check and a family, one target more; made where it is new."""
        cdef Origin* origin
        cdef Command command
        cdef bytes packed
        check, kind = entry[0], entry[1]
        source = check.probe_ipv6_src if v6 else check.probe_ipv4_src
        whole = kind == PROBE_ICMP and not v6 and check.params.size <= ICMP_WHOLE_PAYLOAD
        ports = 0
        if kind == PROBE_SYN:
            # A port each 0.8 intervals: less apart the jitter does not bring two probes.
            quickest = min(check.interval, check.fast_interval, check.down_interval)
            ports = USUAL_PORTS
            while ports < MAX_PORTS and (ports - 2) * quickest * 4 // 5 < PORT_REST * <int64_t>SECOND:
                ports *= 2
        key = (check.netns, v6, source, min(kind, PROBE_CONNECT), whole, ports)
        known = self._origin_table.get(key)
        if known is not None:
            known[1] += 1
            return known[0]
        if self._free_origins:
            origin_id = self._free_origins[len(self._free_origins) - 1]
        elif len(self._origin_table) < MAX_ORIGINS:
            origin_id = len(self._origin_table)
        else:
            raise EngineError(f"more than {MAX_ORIGINS} combinations of namespace, source address and probe type")
        origin = <Origin*>calloc(1, sizeof(Origin))
        if origin is NULL:
            raise MemoryError
        origin.id = origin_id
        origin.v6 = v6
        origin.want_icmp = kind == PROBE_ICMP
        origin.whole = whole
        origin.want_tcp = kind == PROBE_SYN
        origin.ports_wanted = ports
        origin.icmp.fd = origin.tcp.fd = origin.resolver = -1
        origin.retry_delay = 250 * MS
        packed = os.urandom(8)
        memcpy(&origin.magic, <const char*>packed, 8)
        if source is not None:
            packed = source.packed
            origin.has_source = True
            memcpy(origin.source, <const char*>packed, len(packed))
        if check.netns:
            packed = check.netns.encode()
            memcpy(origin.netns, <const char*>packed, len(packed))
        memset(&command, 0, sizeof(command))
        command.op = OP_ORIGIN_SET
        command.origin = origin_id
        command.pointer = origin
        try:
            self._push(&command)
        except BaseException:
            free(origin)
            raise
        if self._free_origins:
            self._free_origins.pop()
        self._origin_table[key] = [origin_id, 1]
        self._origin_keys[origin_id] = key
        return origin_id

    cdef int _release_origin(self, uint32_t origin_id) except -1:
        cdef Command command
        key = self._origin_keys[origin_id]
        known = self._origin_table[key]
        known[1] -= 1
        if known[1]:
            return 0
        memset(&command, 0, sizeof(command))
        command.op = OP_ORIGIN_FREE
        command.origin = origin_id
        self._push(&command)
        del self._origin_table[key]
        del self._origin_keys[origin_id]
        self._free_origins.append(origin_id)
        return 0

    cdef int _fill_state(self, Command* command, object state, object counter, object delay, object check) except -1:
        if state not in (HEALTH_UNKNOWN, HEALTH_UP, HEALTH_DOWN):
            raise ValueError(f"a target is unknown, up or down, not {state}")
        if counter is None:
            counter = health_entry(state, check.rise, check.fall)
        low = check.rise if state == HEALTH_UP else 0
        high = check.rise - 1 if state == HEALTH_DOWN else health_max(check.rise, check.fall)
        if not low <= counter <= high:
            raise ValueError(f"counter {counter} is not in {low}..{high}")
        if not 0 <= delay <= 86400 * <int64_t>SECOND:
            raise ValueError(f"first_delay {delay} is not in 0..1 day")
        command.state = state
        command.counter = counter
        command.delay = delay
        return 0

    def add_target(self, check_id, bytes address, *, state=HEALTH_UNKNOWN, counter=None, first_delay=0):
        """Probe ``address`` from now on; returns the target id."""
        cdef Command command
        cdef uint32_t target
        cdef bint v6 = len(address) == 16
        entry = self._check(check_id)
        if len(address) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
        memset(&command, 0, sizeof(command))
        self._fill_state(&command, state, counter, first_delay, entry[0])
        if not self._free_count and self._top == self.e.capacity:
            raise EngineError(f"more than {self.e.capacity} targets")
        origin = self._origin(entry, v6)
        if self._free_count:
            self._free_count -= 1
            target = self._free[self._free_count]
        else:
            target = self._top
            self._top += 1
        self._generations[target] += 1
        self._epochs[target] += 1
        command.op = OP_ADD
        command.slot = target
        command.generation = self._generations[target]
        command.epoch = self._epochs[target]
        command.check = check_id
        command.origin = origin
        command.type = entry[1]
        command.v6 = v6
        memcpy(command.address, <const char*>address, len(address))
        try:
            self._push(&command)
        except BaseException:
            self._free[self._free_count] = target
            self._free_count += 1
            self._release_origin(origin)
            raise
        entry[2] += 1
        self._active[target] = 1
        self._checks[target] = check_id
        self._origin_ids[target] = origin
        self._states[target] = command.state
        self._counters[target] = command.counter
        self._presumed[target] = command.state == HEALTH_UNKNOWN and command.counter >= entry[0].rise
        self._paused[target] = 0
        self._families[target] = v6
        memcpy(self._addresses + 16 * <size_t>target, <const char*>address, len(address))
        return target

    def remove_target(self, target):
        """Stop probing and forget the target."""
        self._known(target)
        self._simple(OP_REMOVE, target, True, False)
        self._active[<uint32_t>target] = 0
        self._free[self._free_count] = target
        self._free_count += 1
        self._release_check(self._checks[<uint32_t>target])
        self._release_origin(self._origin_ids[<uint32_t>target])

    cdef int _simple(self, int op, uint32_t target, bint bump, bint flag) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = <uint8_t>op
        command.slot = target
        command.flag = flag
        command.generation = self._generations[target] + bump
        self._push(&command)
        self._generations[target] += bump
        return 0

    def pause_target(self, target):
        """Send no more probes."""
        self._known(target)
        if not self._paused[<uint32_t>target]:
            self._simple(OP_PAUSE, target, True, False)
            self._paused[<uint32_t>target] = 1

    def resume_target(self, target, *, state=HEALTH_UNKNOWN, counter=None, first_delay=0):
        """Probe again, in this state."""
        cdef Command command
        cdef uint32_t slot
        self._known(target)
        slot = target
        check = self._check_table[self._checks[slot]][0]
        memset(&command, 0, sizeof(command))
        self._fill_state(&command, state, counter, first_delay, check)
        command.op = OP_RESUME
        command.slot = slot
        command.generation = self._generations[slot] + 1
        self._push(&command)
        self._generations[slot] += 1
        self._paused[slot] = 0
        self._states[slot] = command.state
        self._counters[slot] = command.counter
        self._presumed[slot] = command.state == HEALTH_UNKNOWN and command.counter >= check.rise

    def change_check(self, target, check_id):
        """Go on with another check in the present state."""
        cdef Command command
        cdef uint32_t slot
        self._known(target)
        slot = target
        entry = self._check(check_id)
        check = entry[0]
        memset(&command, 0, sizeof(command))
        command.op = OP_CHANGE
        command.slot = slot
        command.generation = self._generations[slot] + 1
        command.check = check_id
        command.type = entry[1]
        command.state = self._states[slot]
        if self._presumed[slot]:
            command.counter = health_max(check.rise, check.fall)
        else:
            command.counter = health_entry(command.state, check.rise, check.fall)
        command.origin = self._origin(entry, self._families[slot])
        try:
            self._push(&command)
        except BaseException:
            self._release_origin(command.origin)
            raise
        self._generations[slot] += 1
        self._counters[slot] = command.counter
        entry[2] += 1
        self._release_check(self._checks[slot])
        self._release_origin(self._origin_ids[slot])
        self._checks[slot] = check_id
        self._origin_ids[slot] = command.origin

    def presume(self, target, bint good):
        """While the target is unknown: presume it good, or take that back."""
        self._known(target)
        self._simple(OP_PRESUME, target, False, good)
        if self._states[<uint32_t>target] == HEALTH_UNKNOWN:
            self._presumed[<uint32_t>target] = good

    def trace(self, target, bint on):
        """Report every result of the target through ``results()``."""
        self._known(target)
        self._simple(OP_TRACE, target, False, on)

    # ---- what comes out

    cdef object _detail(self, uint32_t target, int kind, uint32_t value):
        """The text of a detail, with the name that a certificate should have had."""
        if kind != DETAIL_TLS_VERIFY:
            return render_detail(kind, value)
        params = self._check_table[self._checks[target]][0].params
        name = _server_name(params) if getattr(params, "tls", None) is not None else None
        if name is None:
            packed = (<char*>self._addresses + 16 * <size_t>target)[:16 if self._families[target] else 4]
            name = str(ipaddress.ip_address(packed))
        return render_detail(kind, value, name)

    cdef int _rearm(self) except -1:
        """Both rings share the eventfd: readable again if anything is left in either."""
        cdef State* e = self.e
        cdef uint64_t one = 1
        if ring_front(&e.transitions) is not NULL or ring_front(&e.results) is not NULL:
            write(e.notify, &one, sizeof(one))
        return 0

    def transitions(self, most=4096):
        """Take up to ``most`` waiting transitions, oldest first."""
        cdef State* e = self.e
        cdef uint64_t count
        cdef const Event* event
        cdef uint32_t left = most
        cdef list out = []
        read(e.notify, &count, sizeof(count))
        while left:
            event = <const Event*>ring_front(&e.transitions)
            if event is NULL:
                break
            if self._active[event.slot] and self._generations[event.slot] == event.generation:
                self._states[event.slot] = event.to_state
                self._counters[event.slot] = event.counter
                self._presumed[event.slot] = 0
                out.append(Transition(
                    event.slot, event.generation, event.from_state, event.to_state, event.code,
                    self._detail(event.slot, event.detail_kind, event.detail_value), event.at, event.counter,
                ))
                left -= 1
            ring_drop(&e.transitions)
        self._rearm()
        return out

    def results(self, most=4096):
        """Take up to ``most`` results of traced targets."""
        cdef State* e = self.e
        cdef uint64_t count
        cdef const Event* event
        cdef uint32_t left = most
        cdef list out = []
        read(e.notify, &count, sizeof(count))
        while left:
            event = <const Event*>ring_front(&e.results)
            if event is NULL:
                break
            if self._active[event.slot] and self._generations[event.slot] == event.generation:
                out.append(Result(
                    event.slot, event.generation, event.to_state, event.counter, bool(event.passed), event.code,
                    self._detail(event.slot, event.detail_kind, event.detail_value), event.at, event.rtt,
                ))
                left -= 1
            ring_drop(&e.results)
        self._rearm()
        return out

    def generation(self, target):
        """The generation that a transition of this target must carry."""
        self._known(target)
        return self._generations[<uint32_t>target]

    cdef void _read(self, uint32_t target, Record* out) noexcept nogil:
        """A consistent copy of what the engine knows; what it has not come to yet is as it was commanded."""
        cdef Record* record = &self.e.records[target]
        cdef uint32_t before
        while True:
            before = load32(&record.sequence)
            if before & 1:
                continue
            memcpy(out, record, sizeof(Record))
            fence_read()
            if load32(&record.sequence) == before:
                break
        if out.epoch != self._epochs[target]:
            memset(out, 0, sizeof(Record))
        if out.epoch == 0 or out.generation != self._generations[target]:
            out.state = self._states[target]
            out.counter = self._counters[target]
        out.generation = self._generations[target]
        if self._paused[target]:
            out.state = PAUSED_STATE

    def target_info(self, target):
        """A target as it is."""
        cdef Record record
        self._known(target)
        self._read(target, &record)
        blocked = ""
        if record.blocked_since:
            check = self._check_table[self._checks[<uint32_t>target]][0]
            tls = getattr(check.params, "tls", None)
            blocked = render_blocked(
                record.blocked_kind, record.blocked_errno, check.netns, tls.ca_file if tls is not None else None
            )
        return TargetInfo(
            record.generation, record.state, record.counter, record.last_code,
            self._detail(target, record.detail_kind, record.detail_value), record.last_at, record.last_rtt,
            record.rtt_sum, record.rtt_count, record.blocked_since, blocked,
            (0, *(record.codes[i] for i in range(CODE_COUNT - 1))),
        )

    def snapshot(self):
        """All targets as packed records, by target id."""
        cdef uint32_t i
        cdef uint32_t top = self._top       # more may come while the lock is not held
        cdef SnapshotRecord* out
        cdef Record record
        cdef SnapshotRecord* packed
        out = <SnapshotRecord*>malloc((<size_t>top + 1) * sizeof(SnapshotRecord))
        if out is NULL:
            raise MemoryError
        try:
            with nogil:
                packed = out
                for i in range(top):
                    if not self._active[i]:
                        continue
                    self._read(i, &record)
                    packed.target = i
                    packed.generation = record.generation
                    packed.state = record.state
                    packed.counter = record.counter
                    packed.last_code = record.last_code
                    packed.flags = 0
                    packed.last_at = record.last_at
                    packed.last_rtt = record.last_rtt
                    packed.rtt_sum = record.rtt_sum
                    packed.rtt_count = record.rtt_count
                    packed.detail_kind = record.detail_kind
                    packed.detail_value = record.detail_value
                    packed.blocked_since = record.blocked_since
                    packed.blocked_kind = record.blocked_kind
                    packed.blocked_errno = record.blocked_errno
                    packed.codes[CODE_NONE] = 0
                    memcpy(&packed.codes[1], record.codes, sizeof(record.codes))
                    packed += 1
            return (<char*>out)[:<char*>packed - <char*>out]
        finally:
            free(out)

    def stats(self):
        """Counters of the whole engine since it was made."""
        return {name: self.e.stats[i] for i, name in enumerate(STAT_NAMES)}

    cdef object _histogram(self, const Duration* duration):
        return Histogram(
            BOUND_SECONDS, tuple(duration.counts[i] for i in range(BOUNDS + 1)), duration.total / 1e9
        )

    def histograms(self):
        """Durations by (type, ``pass`` or ``fail``)."""
        return {
            (str(kind), result): self._histogram(&self.e.durations[2 * <int>kind + passed])
            for kind in CheckType
            for passed, result in enumerate(("fail", "pass"))
        }

    def lateness(self):
        """How late probes were sent against the time they were due."""
        return self._histogram(&self.e.lateness)
