"""The probe engine: a native thread that probes, decides, and reports only transitions. See ``_probe.pyi``."""

# The Python face. Its files run on Python's thread with the interpreter's lock, except `_judge_run`, which is the
# regexp thread. Code without the lock is in the native core (core.pyx), reached through _probecore.pxd.

import atexit
import errno as errnos
import ipaddress
import os
import re
import struct
import threading
import time
from collections import namedtuple

from maglev._probecore import BOUND_SECONDS
from maglev.base.states import CheckType
from maglev.kinds.registry import counter_help, kind_of
from maglev.kinds.tcp import TcpMode

from health cimport HEALTH_DOWN, HEALTH_UNKNOWN, HEALTH_UP, health_entry, health_max
from maglev._probecore cimport (
    check_free,
    command_push,
    engine_loop,
    state_free,
    state_new,
    threads_start,
    threads_stop,
)
from probe.http cimport *
from probe.numbers cimport *
from probe.openssl cimport *
from probe.packet cimport *
from probe.ring cimport *
from probe.schedule cimport clock_ns
from probe.state cimport *
from probe.sys cimport *
from probe.tls cimport *
from probe.wheel cimport NIL

cdef enum:
    PAUSED_STATE = 3            # maglev.base.states.State


class EngineError(RuntimeError):
    """The engine cannot do what was asked: its thread could not start, or a table is full."""


include "details.pyx"
include "checks.pyx"
include "targets.pyx"
include "reports.pyx"

MAX_CAPACITY = 1 << INDEX_BITS


# How many sockets this process may have, beside what the rest of it needs; raises the limit as far as it goes.
cdef uint32_t _max_sockets() noexcept:
    cdef rlimit limit
    if getrlimit(RLIMIT_NOFILE, &limit) == 0 and limit.rlim_cur < limit.rlim_max:
        limit.rlim_cur = limit.rlim_max
        setrlimit(RLIMIT_NOFILE, &limit)
    getrlimit(RLIMIT_NOFILE, &limit)
    if limit.rlim_cur >= 65536 + SPARE_DESCRIPTORS:
        return 65536
    if limit.rlim_cur > 2 * SPARE_DESCRIPTORS:
        return <uint32_t>(limit.rlim_cur - SPARE_DESCRIPTORS)
    return <uint32_t>(limit.rlim_cur // 2)


def _ephemeral():
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as text:
            low, high = text.read().split()
            return int(low), int(high)
    except (OSError, ValueError):
        return 1024, 65535      # then every port is looked at twice


cdef class Engine:
    """See ``_probe.pyi``."""

    cdef Native _native
    cdef Checks _checks
    cdef Targets _targets
    cdef Reader _reader
    cdef object _thread
    cdef object _judge_thread
    cdef bint _started
    cdef bint _judge_stop
    cdef object _clock_grace

    def __cinit__(
        self, *, capacity=1 << 17, key=None, user_agent="vpp-maglev", ring=1 << 16, clock_anchor=0, clock_grace=600.0
    ):
        cdef bytes secret = os.urandom(16) if key is None else bytes(key)
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be 1..{MAX_CAPACITY}, not {capacity}")
        if not 1 <= ring <= 1 << 24 or ring & (ring - 1):
            raise ValueError(f"ring must be a power of two up to 2**24, not {ring}")
        if len(secret) != 16:
            raise ValueError(f"key must have 16 bytes, not {len(secret)}")
        _clean(user_agent, "user agent").encode()      # ValueError for what cannot be sent
        self._native = Native(capacity, ring, secret)
        self._checks = Checks(self._native, user_agent)
        self._targets = Targets(self._native, self._checks, Origins(self._native))
        self._reader = Reader(self._targets)
        if not 0 <= clock_grace <= 86400:
            raise ValueError(f"clock_grace must be 0..86400 seconds, not {clock_grace}")
        self._clock_grace = clock_grace
        self._native.e.tls.anchor = clock_anchor

    # ---- life

    @property
    def capacity(self):
        """How many targets there can be."""
        return self._native.e.settings.capacity

    @property
    def running(self):
        """True between ``start`` and ``stop``."""
        return self._started and not self._native.stopped

    def pulse(self):
        """How many rounds the thread has made. Asks for one more: of a healthy thread the next answer is higher."""
        cdef uint64_t one = 1
        cdef uint64_t rounds = self._native.e.stats.counters[STAT_TICKS]
        write(self._native.e.settings.wake, &one, sizeof(one))
        return rounds

    def fileno(self):
        """An eventfd that is readable while transitions or results wait."""
        return self._native.e.reports.notify

    @property
    def clock_anchor(self):
        """The engine's anchor of the wall clock (dates.pyx); 0: none."""
        return load64(&self._native.e.tls.anchor)

    def start(self):
        """Start the engine's threads."""
        cdef State* e = self._native.e
        if self._started:
            raise EngineError("the engine runs once")
        e.settings.max_sockets = _max_sockets()
        e.settings.ephemeral_low, e.settings.ephemeral_high = _ephemeral()
        # Nothing is older than this module's own file: a clock that says so cannot tell what has expired.
        e.tls.clock_floor = int(os.stat(__file__).st_mtime)
        e.tls.grace_until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(self._clock_grace * SECOND)
        self._thread = threading.Thread(target=self._run, name="maglev-probe", daemon=True)
        self._judge_thread = threading.Thread(target=self._judge_run, name="maglev-regexp", daemon=True)
        self._started = True
        # The process may end without stop(), for an error elsewhere: exit() then takes OpenSSL down under threads that
        # shake hands.
        atexit.register(self.stop)
        try:
            if threads_start(e, min(TLS_WORKERS, max(1, len(os.sched_getaffinity(0)) - 1))) < 0:
                if errno == ENOMEM:
                    raise MemoryError
                raise EngineError(f"cannot start a thread: {os.strerror(errno)}")
            self._thread.start()
            self._judge_thread.start()
        except BaseException:
            # Threads that run already use memory that is freed with this object.
            self.stop()
            raise

    def _run(self):
        cdef State* e = self._native.e
        with nogil:
            thread_begin(b"maglev-probe")
            engine_loop(e)

    def stop(self):
        """End the threads, wait for them, close all sockets."""
        cdef State* e = self._native.e
        cdef uint64_t one = 1
        if not self._started or self._native.stopped:
            return
        self._native.stopped = True
        atexit.unregister(self.stop)
        store32(&e.inbox.stopping, 1)
        write(e.settings.wake, &one, sizeof(one))
        self._judge_stop = True
        write(e.judge.notify, &one, sizeof(one))
        for thread in (self._thread, self._judge_thread):
            if thread.ident is not None:
                thread.join()
        with nogil:
            threads_stop(e)

    # ---- regular expressions

    def _judge_run(self):
        """Search bodies for their expressions; RE2 takes time linear in the body, whatever the pattern."""
        cdef State* e = self._native.e
        cdef pollfd waiting
        cdef uint64_t count
        cdef Judgement job
        thread_name(b"maglev-regexp")
        while not self._judge_stop:
            with nogil:
                waiting.fd = e.judge.notify
                waiting.events = POLLIN
                ppoll(&waiting, 1, NULL, NULL)
                read(e.judge.notify, &count, sizeof(count))
            while not self._judge_stop and ring_take(&e.judge.bodies, &job):
                try:
                    body = (<char*>job.body)[:job.body_bytes] if job.body_bytes else b""
                finally:
                    free(job.body)
                expression = self._checks.expression(job.check)
                if expression is None:          # it was removed meanwhile, and the target with it
                    continue
                matched = (expression.ended if job.kind == JUDGE_WHOLE else expression.unfinished)(body)
                if matched or job.kind != JUDGE_PART:
                    self._answer(&job, matched)

    cdef int _answer(self, const Judgement* job, bint matched) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_VERDICT
        command.slot = job.slot
        command.generation = job.generation
        command.serial = job.serial
        command.status = job.status
        command.matched = matched
        command.judged = job.kind
        command.when = job.when
        command.limit = job.limit
        try:
            self._native.push(&command)
        except EngineError:
            pass        # no room, or stopped: without an answer the probe is repeated
        return 0

    # ---- commands

    def add_check(self, check):
        """Take a check's parameters; returns its id."""
        return self._checks.add(check)

    def remove_check(self, check_id):
        """Forget a check as soon as no target uses it."""
        self._checks.remove(check_id)

    def reread_authorities(self):
        """Have the certificate authorities of all checks looked at again."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_AUTHORITIES
        self._native.push(&command)

    def add_target(self, check_id, bytes address, *, state=HEALTH_UNKNOWN, counter=None, first_delay=0):
        """Probe ``address`` from now on; returns the target id."""
        return self._targets.add(check_id, address, state, counter, first_delay)

    def remove_target(self, target):
        """Stop probing and forget the target."""
        self._targets.remove(target)

    def pause_target(self, target):
        """Send no more probes."""
        self._targets.pause(target)

    def resume_target(self, target, *, state=HEALTH_UNKNOWN, counter=None, first_delay=0):
        """Probe again, in this state."""
        self._targets.resume(target, state, counter, first_delay)

    def change_check(self, target, check_id):
        """Go on with another check in the present state."""
        self._targets.change(target, check_id)

    def presume(self, target, bint good):
        """While the target is unknown: presume it good, or take that back."""
        self._targets.presume(target, good)

    def hold(self, target, state):
        """Hold the verdict down: the target counts as ``state``, and is probed at fast-interval."""
        if state not in (HEALTH_UNKNOWN, HEALTH_UP):
            raise ValueError(f"a held target is unknown or up, not {state}")
        self._targets.hold(target, state)

    def release(self, target):
        """End the hold."""
        self._targets.release(target)

    def silence(self, target):
        """How many targets of its vantage are up, and how many of them fail by silence; the vantage's number first."""
        return self._targets.silence(target)

    def failing(self, target):
        """Whether the last probe of the target did not pass."""
        return self._targets.failing(target)

    def trace(self, target, bint on):
        """Report every result of the target through ``results()``."""
        self._targets.trace(target, on)

    # ---- what comes out

    def transitions(self, most=4096):
        """Take up to ``most`` waiting transitions, oldest first."""
        return self._reader.transitions(most)

    def results(self, most=4096):
        """Take up to ``most`` results of traced targets."""
        return self._reader.results(most)

    def generation(self, target):
        """The generation that a transition of this target must carry."""
        return self._targets.known(target).generation

    def target_info(self, target):
        """A target as it is."""
        return self._reader.target_info(target)

    def snapshot(self):
        """All targets as packed records, by target id."""
        return self._reader.snapshot()

    def stats(self):
        """Counters of the whole engine since it was made."""
        return self._reader.stats()

    def histograms(self):
        """Durations by (type, ``pass`` or ``fail``)."""
        return self._reader.histograms()

    def lateness(self):
        """How late probes were sent against the time they were due."""
        return self._reader.lateness()
