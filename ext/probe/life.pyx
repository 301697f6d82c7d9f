# The engine's memory and its native threads: made and taken down by Python's thread, while no other one runs.


cdef void check_free(State* e, Check* check) noexcept nogil:
    if check is not NULL:
        context_release(&e.tls, check.tls)
        free(check.request)
        free(check)


cdef void origin_free(State* e, Origin* origin) noexcept nogil:
    cdef uint32_t i
    if origin.stock.state == STOCK_THERE:
        for i in range(origin.stock.count):
            close(origin.stock.fds[i])
    origin_close(e, origin)
    free(origin.ports.numbers)
    free(origin.ports.fds)
    free(origin.pool.fds)
    free(origin)


# After all other threads have ended: nothing of ours stays open.
cdef void engine_close(State* e) noexcept nogil:
    cdef uint32_t i
    cdef Judgement job
    cdef Stream* stream
    for i in range(e.streams.top):
        stream = &e.streams.table[i]
        if stream.used:
            if stream.tls is not NULL:
                tls_free(e, stream.tls)
                stream.tls = NULL
            close(stream.fd)
            free(stream.http.body)
            stream.http.body = NULL
            stream.used = False
    while e.origins.doomed_count:
        e.origins.doomed_count -= 1
        origin_free(e, e.origins.doomed[e.origins.doomed_count])
    for i in range(e.origins.top):
        if e.origins.table[i] is not NULL:
            origin_free(e, e.origins.table[i])
            e.origins.table[i] = NULL
    while ring_take(&e.judge.bodies, &job):
        free(job.body)
    if e.slots is not NULL:
        for i in range(e.settings.capacity):
            session_put(e, &e.slots[i], NULL)
    tls_close(e)


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


cdef bint tables_new(State* e, uint32_t capacity, uint32_t ring) noexcept nogil:
    e.slots = <Slot*>table_new(capacity, sizeof(Slot))
    e.records = <Record*>table_new(capacity, sizeof(Record))
    e.due = <uint32_t*>calloc(capacity, sizeof(uint32_t))
    e.anchors = <int64_t*>calloc(capacity, sizeof(int64_t))
    e.checks = <Check**>calloc(MAX_CHECKS, sizeof(Check*))
    e.origins.table = <Origin**>calloc(MAX_ORIGINS, sizeof(Origin*))
    e.streams.scratch = <uint8_t*>calloc(1, SCRATCH)
    e.raw.zeros = <uint8_t*>calloc(1, ICMP_MAX_PAYLOAD)
    return (
        wheel_init(&e.wheel, capacity, clock_ns(CLOCK_MONOTONIC) // MS)
        and ring_init(&e.reports.transitions, ring, sizeof(Event))
        and ring_init(&e.reports.results, TRACE_RING, sizeof(Event))
        and ring_init(&e.judge.bodies, JUDGE_RING, sizeof(Judgement))
        and e.slots is not NULL
        and e.records is not NULL
        and e.due is not NULL
        and e.anchors is not NULL
        and e.checks is not NULL
        and e.origins.table is not NULL
        and e.streams.scratch is not NULL
        and e.raw.zeros is not NULL
    )


cdef State* state_new(uint32_t capacity, uint32_t ring, const Key* key) noexcept nogil:
    cdef State* e = <State*>calloc(1, sizeof(State))
    if e is NULL:
        errno_set(ENOMEM)
        return NULL
    e.settings.capacity = capacity
    e.settings.key = key[0]
    e.clock.random = siphash(&e.settings.key, <uint64_t>USE_JITTER << 32) | 1
    e.streams.fresh = e.streams.unused = NIL
    e.waiting.head = e.waiting.tail = NIL
    e.reports.unreported_head = e.reports.unreported_tail = NIL
    pthread_mutex_init(&e.inbox.lock, NULL)
    pthread_mutex_init(&e.opener.lock, NULL)
    pthread_mutex_init(&e.tls.lock, NULL)
    pthread_cond_init(&e.opener.wake, NULL)
    e.settings.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    e.reports.notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    e.judge.notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    e.streams.epoll = epoll_create1(EPOLL_CLOEXEC)
    e.opener.settings = &e.settings
    e.tls.wake = e.settings.wake
    if e.settings.wake < 0 or e.reports.notify < 0 or e.judge.notify < 0 or e.streams.epoll < 0:
        state_free(e)
        return NULL
    if not tables_new(e, capacity, ring):
        state_free(e)
        errno_set(ENOMEM)
        return NULL
    raw_buffers_init(e)
    evidence_init(e)
    return e


# Free the commands that the engine did not take, and their checks and origins.
cdef void inbox_free(State* e) noexcept nogil:
    cdef uint32_t i
    cdef Command* command
    for i in range(e.inbox.count):
        command = &e.inbox.waiting[i]
        if command.op == OP_CHECK_SET:
            check_free(e, command.new_check)
        elif command.op == OP_ORIGIN_SET:
            origin_free(e, command.new_origin)
    free(e.inbox.waiting)
    free(e.inbox.taken)


cdef void state_free(State* e) noexcept nogil:
    cdef uint32_t i
    cdef int error = errno
    inbox_free(e)
    if e.origins.table is not NULL:
        engine_close(e)
    if e.checks is not NULL:
        for i in range(MAX_CHECKS):
            check_free(e, e.checks[i])
    contexts_sweep(&e.tls)
    close_fd(&e.settings.wake)
    close_fd(&e.reports.notify)
    close_fd(&e.judge.notify)
    close_fd(&e.streams.epoll)
    table_free(e.slots, e.settings.capacity, sizeof(Slot))
    table_free(e.records, e.settings.capacity, sizeof(Record))
    wheel_free(&e.wheel)
    ring_free(&e.reports.transitions)
    ring_free(&e.reports.results)
    ring_free(&e.judge.bodies)
    free(e.due)
    free(e.anchors)
    free(e.checks)
    free(e.origins.table)
    free(e.streams.scratch)
    free(e.raw.zeros)
    free(e.streams.table)
    pthread_mutex_destroy(&e.inbox.lock)
    pthread_mutex_destroy(&e.opener.lock)
    pthread_mutex_destroy(&e.tls.lock)
    pthread_cond_destroy(&e.opener.wake)
    free(e)
    errno_set(error)


cdef int threads_start(State* e, uint32_t tls_workers) noexcept nogil:
    e.streams.space = e.settings.max_sockets
    e.streams.table = <Stream*>calloc(e.streams.space, sizeof(Stream))
    if e.streams.table is NULL:
        errno_set(ENOMEM)
        return -1
    errno_set(pthread_create(&e.opener.thread, NULL, opener_main, &e.opener))
    if errno:
        return -1
    e.opener.runs = True
    return tls_start_workers(e, tls_workers)


cdef void threads_stop(State* e) noexcept nogil:
    if e.opener.runs:
        pthread_mutex_lock(&e.opener.lock)
        e.opener.stop = True
        pthread_cond_signal(&e.opener.wake)
        pthread_mutex_unlock(&e.opener.lock)
        pthread_join(e.opener.thread, NULL)
        e.opener.runs = False
    tls_stop_workers(e)
    engine_close(e)
