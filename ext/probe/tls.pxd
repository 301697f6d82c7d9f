# The structures of TLS. A TLS thread knows its pool, its own TlsWorker and the connections that were handed to it, and
# nothing else of the engine.

from probe.sys cimport *
from probe.http cimport Http
from probe.openssl cimport BIO, SSL, SSL_CTX, SSL_SESSION, X509_STORE
from probe.ring cimport Ring

cdef enum:
    TLS_MAX = 4096                  # handshakes and what follows them, under way at once: the rest waits its turn
    TLS_WORKERS = 4
    TLS_RING = 16384                # messages to or from a worker; one connection has at most four on the way
    TLS_EVENTS = 64
    TLS_TURNS = 8                   # reads of one connection, before the others get theirs
    TLS_MAX_CHAIN = 65536           # bytes of certificates that a server may send
    TLS_MAX_DEPTH = 10              # intermediate certificates
    TLS_MAX_OUT = 65536             # bytes that wait to be sent
    TLS_MAX_IN = 1 << 20            # bytes of one connection: far more than a body that is searched ...
    TLS_WRAPPING = 128              # ... and more for each byte of content, since a record may hold a single one, ...
    TLS_MOST_IN = 12 << 20          # ... up to what the longest head and body take in records of one byte
    TLS_SESSION_MAX = 4096          # bytes of a session that are worth keeping
    TLS_SESSIONS_MAX = 64 << 20     # bytes of all sessions
    TLS_SESSION_LIFE = 60           # seconds after which a certificate is looked at again
    ANCHOR_THERE = 1                # flags of an anchor: see dates.pyx
    ANCHOR_SYNCHRONISED = 2
    ANCHOR_FOLLOWS = 3600           # seconds: the engine's anchor moves so far at once
    ANCHOR_WAITS = 600              # seconds without a doubted date, after which it moves any distance

# Messages to a worker.
cdef enum:
    TLS_START = 0                   # the connection is made: shake hands
    TLS_EXPIRE = 1                  # the time is over: have a last look
    TLS_DROP = 2                    # the probe was given up
    TLS_PEEK = 3                    # copy the unfinished body, to be searched

# Messages from a worker: one for each that it got.
cdef enum:
    TLS_NOTHING = 0                 # to TLS_EXPIRE or TLS_DROP: it had ended, or goes on after all
    TLS_ENDED = 1                   # to TLS_START: `outcome` says how
    TLS_PEEKED = 2                  # to TLS_PEEK: `part` is the copy, NULL if nothing has come since the last one

cdef enum:
    TLS_PASSED = 0
    TLS_FAILED = 1                  # `code`, `kind`, `value`
    TLS_RESPONSE = 2                # `http` holds a response, or what is none
    TLS_TIMED_OUT = 3
    TLS_LOCAL = 4                   # our own trouble: `kind` is what failed, `value` the errno
    TLS_DROPPED = 5

# Where a connection is.
cdef enum:
    TLS_NEW = 0
    TLS_HANDSHAKE = 1
    TLS_READING = 2                 # the request is out
    TLS_ACCEPTING = 3               # TLS 1.3: our side has finished; has the server?
    TLS_OVER = 4

# Why a handshake failed, where OpenSSL has no word for it. The texts are in details.pyx.
cdef enum:
    TLS_FAULT_CLOSED = 1
    TLS_FAULT_FLOOD = 2
    TLS_FAULT_PLAIN = 3             # the first bytes are a response of HTTP/1
    TLS_FAULT_PLAIN_HTTP = 4        # the same, to a check that asks for one

# A session, as slots keep it: without the certificates, which are what is large in it.
cdef struct Session:
    uint32_t length
    uint32_t authorities            # the reading of the authorities that it was verified by
    int64_t until                   # CLOCK_BOOTTIME, seconds: then the certificate is to be verified again
    uint8_t data[1]

# Authorities that were read, shared by all checks that name the same file. Guarded by the pool's lock.
cdef struct Authorities:
    Authorities* next
    X509_STORE* store
    char* file                      # NULL: the system's
    uint32_t users
    uint32_t authorities            # which reading: they are looked at again after each reload
    uint64_t device
    uint64_t inode
    int64_t size
    int64_t changed                 # ns

# The parameters of one check. Checks come and go while connections are under way, so these count their users.
cdef struct TlsContext:
    uint32_t users                  # the engine's: one for the check, one for each connection
    bint verify
    bint http
    bint name_is_ip
    uint8_t ip_bytes
    uint8_t ip[16]
    char* name                      # NULL: the target's address
    char* ca_file                   # NULL: the system's
    # The workers', guarded by the pool's lock
    SSL_CTX* ctx
    Authorities* trusted
    uint32_t authorities            # which reading `ctx` is of
    TlsContext* next                # in the list of those to be freed

# A worker's task. The engine writes it before TLS_START; afterwards it is constant.
cdef struct TlsTask:
    TlsContext* context
    Http* http                      # the worker's from TLS_START to TLS_ENDED
    uint64_t codes[10]
    char* request
    uint32_t request_bytes
    int fd
    bint v6
    uint8_t address[16]
    int64_t sent                    # monotonic: when the probe began
    int64_t handed                  # monotonic: when the engine let go of it
    int64_t anchor                  # of the clock, by the last verification: see dates.pyx. 0: none
    bint serving                    # the target is up, or presumed good

# The worker's: the socket as OpenSSL's BIO sees it.
cdef struct TlsSocket:
    int error                       # errno
    bint eof
    bint dry                        # the last read emptied it
    uint8_t start[5]                # the first bytes that came
    int64_t arrived                 # monotonic: kernel time of the last bytes that were read
    int64_t first                   # kernel time of this step's first bytes, 0 = none
    uint32_t received
    uint32_t allowed                # what may be received: TLS_MAX_IN, and more with each byte of content
    uint8_t* out                    # written by OpenSSL and not sent yet
    uint32_t out_bytes
    uint32_t out_space

# The end of a connection: written by the worker before TLS_ENDED, read by the engine after it.
cdef struct TlsOutcome:
    uint8_t how                     # TLS_PASSED ...
    uint8_t code
    uint8_t kind
    uint32_t value
    bint resumed
    bint unsure                     # a date was refused while the kernel called its clock unsynchronised
    int64_t anchor                  # left by a verification that succeeded; 0: none

cdef struct TlsPool

# One connection. The engine makes and frees it; between TLS_START and TLS_ENDED the worker has all but the first
# fields.
#
# The ordering rule: the rings carry it. A worker that takes a message sees all that the engine wrote before it,
# and the other way round, as a ring orders its items. So there is one thread at a time, but for `own` and `until`.
# Each message is answered once; the engine frees a connection when no answer is outstanding (`outstanding`), so that
# neither side has a pointer to what the other has freed.
cdef struct Tls:
    # The engine's, always
    uint32_t stream
    uint32_t worker
    uint32_t outstanding            # messages that were not answered yet
    bint expiring                   # TLS_EXPIRE was sent and not answered
    bint over                       # TLS_ENDED has come
    bint peeking                    # TLS_PEEK was sent and not answered
    bint orphan                     # its probe was given up
    # Both
    int64_t own                     # atomic: time that we took ourselves, which is not the server's
    int64_t until                   # with TLS_EXPIRE: how long the server has, monotonic
    # The worker's
    TlsPool* pool
    int doubted                     # X509_V_ERR_*: a date that was refused by a doubtful clock; 0: none
    TlsTask task
    TlsSocket io
    TlsOutcome outcome
    uint8_t* part                   # with TLS_PEEKED; the engine's from there on
    uint32_t part_bytes
    uint32_t part_status
    int64_t part_at                 # when the last of it had come
    SSL* ssl
    BIO* bio
    uint8_t state                   # TLS_NEW ... TLS_OVER
    Session* session                # to resume; after the end what to resume the next time
    SSL_SESSION* fresh              # the last session that the server gave
    uint32_t authorities            # which reading it is verified by
    bint watched                    # in the worker's epoll
    bint expect_out                 # there also for EPOLLOUT: not all was sent
    bint heard                      # something came after our side had finished
    bint head_seen                  # data came through the encryption
    bint more                       # in the worker's list of those that OpenSSL holds data of
    Tls* next                       # in that list
    int64_t began                   # monotonic: this step
    int64_t paused                  # monotonic: when the last step ended before all data was read

cdef struct TlsMessage:
    Tls* tls
    uint32_t what

# One TLS thread. All of it is the thread's own, but what says otherwise; the rings are shared as rings are.
cdef struct TlsWorker:
    TlsPool* pool
    pthread_t thread                # Python's, which starts and joins it
    bint runs                       # Python's
    int wake                        # eventfd: the engine writes to it
    int epoll
    Ring inbox                      # TlsMessage, from the engine
    Ring outbox                     # TlsMessage, to the engine
    Tls* more_head                  # connections with data in OpenSSL, which epoll knows nothing of; by Tls.next
    Tls* more_tail
    bint answered                   # something is in `outbox` that the engine was not woken for
    bint unwoken                    # the engine's: something is in `inbox` that the thread was not woken for
    epoll_event events[TLS_EVENTS]
    uint8_t scratch[16384]

# Shared by the engine and its TLS threads.
cdef struct TlsPool:
    # Written before the threads start
    TlsWorker* workers[TLS_WORKERS]
    uint32_t worker_count
    int wake                        # the engine's eventfd: a worker writes to it
    int64_t clock_floor             # wall clock, seconds: before this it is wrong
    int64_t grace_until             # CLOCK_BOOTTIME, ns: until then an unsynchronised clock is doubted
    # The engine's
    uint32_t next                   # worker
    uint32_t count                  # connections, orphans too
    int64_t anchor                  # of the clock, for targets without their own; atomic: Python reads it
    int64_t moved_since             # monotonic: since when verifications want it to be far from there; 0: not at all
    # Both
    uint32_t authorities            # atomic: raised by each reload, by the engine
    uint32_t stopping               # atomic: Python stores it with release when the engine's thread has ended
    pthread_mutex_t lock
    Authorities* trusted            # guarded by `lock`
    TlsContext* doomed              # guarded by `lock`; whether there is any may be looked at without it
