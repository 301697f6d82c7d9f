# The TLS threads. A handshake costs some hundred microseconds, a server can make it cost far more, and the engine
# thread has packets to send on time. So the engine connects, hands the socket over, and gets back how it ended
# (handover.pyx).
#
# A thread waits for its sockets itself. The time that it takes for its own work (from the kernel's time stamp of what
# came in to the end of the work on it) is measured and added to the time that the server has: a thread with too much to
# do makes probes late, and never makes a server look slow.
#
# A connection is read for some turns only, so that a server that sends without end holds up no other connection. The
# kernel knows what is left in its socket, and epoll says so; it knows nothing of what OpenSSL has read ahead, which may
# be hundreds of small records. A connection that stopped with data in OpenSSL is therefore put into a list of its
# worker (`more`), and takes its next turns after all others have had theirs.
#
# OpenSSL keeps its errors in a queue per thread. An error that one connection leaves there would count for the next; so
# the queue is cleared before each call whose failure is looked at, and after each that may leave something.


# ---- sessions


# The server gave us a session. It is written down at the end: often another one follows.
cdef int tls_session_came(SSL* ssl, SSL_SESSION* session) noexcept nogil:
    cdef Tls* tls = <Tls*>SSL_get_ex_data(ssl, 0)
    SSL_SESSION_free(tls.fresh)
    tls.fresh = session
    return 1


# The length of a DER element's head and content, or 0 if it is none.
cdef uint32_t der_element(const uint8_t* at, uint32_t left, uint32_t* head) noexcept nogil:
    cdef uint32_t length
    cdef int i, count
    if left < 2:
        return 0
    head[0] = 2
    length = at[1]
    if length & 0x80:
        count = length & 0x7f
        if not 1 <= count <= 3 or left < <uint32_t>(2 + count):
            return 0
        length = 0
        for i in range(count):
            length = length << 8 | at[2 + i]
        head[0] = 2 + count
    return head[0] + length if head[0] + length <= left else 0


# Take the server's certificate (tag [3]) out of an encoded SSL_SESSION: a kilobyte or more that a client has no use
# for. Returns the new length, 0 if the encoding is not understood.
cdef uint32_t session_strip(uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint32_t head = 0
    cdef uint32_t inner = 0
    cdef uint32_t size, kept, at
    if der_element(data, length, &head) != length or data[0] != 0x30:
        return 0
    at = kept = 4                   # room for a head of four bytes
    if head > 4:
        return 0
    if head < 4:
        return length               # under 256 bytes: too short for a certificate
    while at < length:
        size = der_element(data + at, length - at, &inner)
        if size == 0:
            return 0
        if data[at] != 0xa3:
            if at != kept:
                memmove(data + kept, data + at, size)
            kept += size
        at += size
    data[1] = 0x82
    data[2] = <uint8_t>((kept - 4) >> 8)
    data[3] = <uint8_t>(kept - 4)
    return kept


# When the certificate has to be looked at again: soon, and not after one of the chain has expired. By a clock that
# cannot be set: by the wall clock, a session would last for years when that is set back.
cdef int64_t verified_until(const SSL* ssl) noexcept nogil:
    cdef const X509_STACK* chain = SSL_get0_verified_chain(ssl)
    cdef int64_t left = TLS_SESSION_LIFE
    cdef int64_t one
    cdef int days, seconds, i
    if chain is not NULL:
        for i in range(sk_X509_num(chain)):
            if ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(sk_X509_value(chain, i))) == 1:
                one = <int64_t>days * 86400 + seconds
                if one < left:
                    left = one
    return boot_seconds() + left


# Keep a session for the next handshake. A session that was resumed and not replaced is still good; its certificate was
# verified when it was.
cdef void tls_keep_session(Tls* tls) noexcept nogil:
    cdef Session* made = NULL
    cdef unsigned char* data
    cdef int64_t until
    cdef int length
    if tls.state < TLS_READING or tls.outcome.how not in (TLS_PASSED, TLS_RESPONSE):
        free(tls.session)
        tls.session = NULL
        return
    if tls.fresh is NULL:
        if not tls.outcome.resumed:
            free(tls.session)
            tls.session = NULL
        return
    until = tls.session.until if tls.outcome.resumed and tls.session is not NULL else verified_until(tls.ssl)
    if SSL_SESSION_is_resumable(tls.fresh):
        length = i2d_SSL_SESSION(tls.fresh, NULL)
        if 0 < length <= 65535:
            made = <Session*>malloc(sizeof(Session) + length)
            if made is not NULL:
                data = made.data
                i2d_SSL_SESSION(tls.fresh, &data)
                made.length = session_strip(made.data, <uint32_t>length)
                made.until = until
                made.authorities = tls.authorities
                if not 0 < made.length <= TLS_SESSION_MAX:
                    free(made)
                    made = NULL
                elif made.length < <uint32_t>length:
                    made = <Session*>realloc(made, sizeof(Session) + made.length)
    free(tls.session)
    tls.session = made


# ---- the socket, as OpenSSL sees it: time stamps kept, and all that is written sent at once


cdef int tls_bio_read(BIO* bio, char* data, int length) noexcept nogil:
    cdef Tls* tls = <Tls*>BIO_get_data(bio)
    cdef char control[RECV_CONTROL]
    cdef iovec part
    cdef msghdr header
    cdef cmsghdr* item
    cdef timespec stamp
    cdef ssize_t got
    cdef int64_t now, wall
    cdef int64_t at = 0
    BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY)
    if length <= 0 or tls.io.eof or tls.io.error:
        return 0 if tls.io.eof else -1
    if tls.io.dry or tls.io.received > tls.io.allowed:
        # Enough is enough, even within one SSL_read: it would go on as long as a server sends, say, key updates.
        BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        return -1
    memset(&header, 0, sizeof(header))
    part.iov_base = data
    part.iov_len = length
    header.msg_iov = &part
    header.msg_iovlen = 1
    header.msg_control = control
    header.msg_controllen = RECV_CONTROL
    got = recvmsg(tls.task.fd, &header, MSG_DONTWAIT)
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            tls.io.dry = True
            BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        else:
            tls.io.error = errno
        return -1
    if got == 0:
        tls.io.eof = True
        return 0
    # Less than there was room for: the next one would find nothing. If it does come, epoll says so.
    tls.io.dry = got < length
    now = clock_ns(CLOCK_MONOTONIC)
    wall = clock_ns(CLOCK_REALTIME) - now
    item = CMSG_FIRSTHDR(&header)
    while item is not NULL:
        if item.cmsg_level == SOL_SOCKET and item.cmsg_type == SO_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(item), sizeof(stamp))
            at = <int64_t>stamp.tv_sec * SECOND + stamp.tv_nsec - wall
        item = CMSG_NXTHDR(&header, item)
    if at > now or at < tls.task.sent:
        at = now
    tls.io.arrived = at
    if tls.io.first == 0:
        tls.io.first = at
    if tls.io.received < sizeof(tls.io.start):
        memcpy(
            tls.io.start + tls.io.received,
            data,
            min(<size_t>got, sizeof(tls.io.start) - tls.io.received),
        )
    tls.io.received += <uint32_t>got
    return <int>got


cdef int tls_bio_write(BIO* bio, const char* data, int length) noexcept nogil:
    cdef Tls* tls = <Tls*>BIO_get_data(bio)
    cdef uint32_t space
    cdef uint8_t* grown
    BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY)
    if length <= 0:
        return 0
    if tls.io.out_bytes + <uint32_t>length > tls.io.out_space:
        space = tls.io.out_space if tls.io.out_space else 2048
        while space < tls.io.out_bytes + <uint32_t>length:
            space *= 2
        grown = <uint8_t*>realloc(tls.io.out, space) if space <= TLS_MAX_OUT else NULL
        if grown is NULL:
            tls.io.error = ENOBUFS
            return -1
        tls.io.out = grown
        tls.io.out_space = space
    memcpy(tls.io.out + tls.io.out_bytes, data, length)
    tls.io.out_bytes += <uint32_t>length
    return length


cdef long tls_bio_ctrl(BIO* bio, int command, long number, void* pointer) noexcept nogil:
    cdef Tls* tls = <Tls*>BIO_get_data(bio)
    if command == BIO_CTRL_FLUSH:
        return 1
    if command == BIO_CTRL_EOF:
        return tls.io.eof
    return 0


cdef BIO_METHOD* tls_method = NULL


# Once, when the module is imported.
cdef int tls_prepare() except -1:
    global tls_method
    cdef BIO_METHOD* method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"maglev")
    if method is NULL:
        raise MemoryError
    BIO_meth_set_read(method, tls_bio_read)
    BIO_meth_set_write(method, tls_bio_write)
    BIO_meth_set_ctrl(method, tls_bio_ctrl)
    tls_method = method
    return 0


# False when the socket has failed.
cdef bint tls_flush(Tls* tls) noexcept nogil:
    cdef ssize_t sent
    if tls.io.out_bytes == 0:
        return True
    sent = send(tls.task.fd, tls.io.out, tls.io.out_bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        if errno == EAGAIN or errno == EINTR:
            return True
        tls.io.error = errno
        return False
    tls.io.out_bytes -= <uint32_t>sent
    if tls.io.out_bytes:
        memmove(tls.io.out, tls.io.out + sent, tls.io.out_bytes)
    return True


# ---- the worker


cdef void worker_answer(TlsWorker* w, Tls* tls, int what) noexcept nogil:
    cdef TlsMessage message
    message.tls = tls
    message.what = what
    ring_push(&w.outbox, &message)          # never full: see TLS_RING
    w.answered = True


# Count the time of this step, and the time that its data had waited for this thread: in the kernel since it came, or in
# OpenSSL since the last step.
cdef void tls_count_own(Tls* tls) noexcept nogil:
    cdef int64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef int64_t since = tls.began
    if tls.paused:
        since = tls.paused
    elif tls.io.first:
        since = tls.io.first
    tls.paused = now if tls.more else 0
    store64(&tls.own, tls.own + now - since)


# Turns for a connection whose data is in OpenSSL, after those that wait already.
cdef void more_put(TlsWorker* w, Tls* tls) noexcept nogil:
    if tls.more:
        return
    tls.more = True
    tls.next = NULL
    if w.more_head is NULL:
        w.more_head = tls
    else:
        w.more_tail.next = tls
    w.more_tail = tls


# The list is short: only connections with many small records are in it, and most leave it at its head.
cdef void more_remove(TlsWorker* w, Tls* tls) noexcept nogil:
    cdef Tls* before = NULL
    cdef Tls* at = w.more_head
    if not tls.more:
        return
    tls.more = False
    while at != tls:
        before = at
        at = at.next
    if before is NULL:
        w.more_head = tls.next
    else:
        before.next = tls.next
    if w.more_tail == tls:
        w.more_tail = before


cdef void tls_end(TlsWorker* w, Tls* tls, int outcome, int code=0, int kind=0, uint32_t value=0) noexcept nogil:
    cdef epoll_event event
    more_remove(w, tls)
    if tls.watched:
        event.events = 0
        epoll_ctl(w.epoll, EPOLL_CTL_DEL, tls.task.fd, &event)
        tls.watched = False
    if outcome == TLS_FAILED or (outcome == TLS_RESPONSE and tls.task.http.state == HTTP_FAILED):
        tls_count_own(tls)      # for a server that has closed, perhaps since we kept it waiting
    tls.outcome.how = <uint8_t>outcome
    tls.outcome.code = <uint8_t>code
    tls.outcome.kind = <uint8_t>kind
    tls.outcome.value = value
    if tls.ssl is not NULL and outcome != TLS_DROPPED:
        tls_keep_session(tls)
    SSL_SESSION_free(tls.fresh)
    tls.fresh = NULL
    SSL_free(tls.ssl)
    tls.ssl = NULL
    ERR_clear_error()
    tls.state = TLS_OVER
    worker_answer(w, tls, TLS_ENDED)


# The socket failed, or the server closed it.
cdef void tls_broken(TlsWorker* w, Tls* tls) noexcept nogil:
    cdef int error = tls.io.error
    cdef int code = CODE_L7RSP if tls.head_seen else CODE_L6RSP
    if error in (ENOBUFS, ENOMEM, ENETDOWN, EPERM):
        tls_end(w, tls, TLS_LOCAL, 0, BLOCK_CONNECT, error)
    elif tls.state == TLS_ACCEPTING:
        tls_end(w, tls, TLS_PASSED, CODE_L6OK)      # the handshake was done on both sides as far as we know
    elif tls.state == TLS_READING:
        if error and not (error == ECONNRESET and tls.task.http.state == HTTP_BODY):
            tls_end(w, tls, TLS_FAILED, CODE_L7RSP, DETAIL_ERRNO, error)
        else:
            http_eof(tls.task.http)
            tls_end(w, tls, TLS_RESPONSE)
    elif error:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_ERRNO, error)
    else:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_FAULT, TLS_FAULT_CLOSED)


# OpenSSL says no. An alert that it sends with that goes out, so that the server's log says why.
cdef void tls_refused(TlsPool* pool, TlsWorker* w, Tls* tls) noexcept nogil:
    cdef unsigned long error = ERR_get_error()
    cdef int reason = ERR_GET_REASON(error)
    cdef int code = CODE_L7RSP if tls.head_seen else CODE_L6RSP
    cdef int plain
    cdef long verdict
    tls_flush(tls)
    if error == 0:
        tls_broken(w, tls)
        return
    if reason == ERR_R_MALLOC_FAILURE:
        tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS, ENOMEM)
        return
    if ERR_GET_LIB(error) != ERR_LIB_SSL:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_ERROR, <uint32_t>error)
    elif reason == SSL_R_CERTIFICATE_VERIFY_FAILED:
        verdict = SSL_get_verify_result(tls.ssl)
        if verdict == X509_V_ERR_OUT_OF_MEM:
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS, ENOMEM)
        elif verdict == X509_V_ERR_STORE_LOOKUP:
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_AUTHORITIES, EINVAL)
        else:
            tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_VERIFY, <uint32_t>verdict)
    elif reason >= SSL_AD_REASON_OFFSET:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_ALERT, <uint32_t>(reason - SSL_AD_REASON_OFFSET))
    elif reason == SSL_R_WRONG_VERSION_NUMBER and memcmp(tls.io.start, b"HTTP/", sizeof(tls.io.start)) == 0:
        plain = TLS_FAULT_PLAIN_HTTP if tls.task.context.http else TLS_FAULT_PLAIN
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_FAULT, plain)
    else:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_ERROR, <uint32_t>error)


cdef bint tls_open(TlsPool* pool, Tls* tls) noexcept nogil:
    cdef TlsContext* context = tls.task.context
    cdef X509_VERIFY_PARAM* rules
    cdef const unsigned char* data
    cdef SSL_SESSION* session = NULL
    cdef int ok = 1
    tls.pool = pool
    tls.ssl = context_ssl(pool, context, &tls.authorities)
    if tls.ssl is NULL:
        return False
    tls.bio = BIO_new(tls_method)
    if tls.bio is NULL:
        errno_set(ENOMEM)
        return False
    BIO_set_data(tls.bio, tls)
    BIO_set_init(tls.bio, 1)
    SSL_set_bio(tls.ssl, tls.bio, tls.bio)
    SSL_set_ex_data(tls.ssl, 0, tls)
    SSL_set_connect_state(tls.ssl)
    rules = SSL_get0_param(tls.ssl)
    # An address is verified as an address and never sent as a server name (RFC 6066, 3).
    if context.name is not NULL and not context.name_is_ip:
        ok &= SSL_set_tlsext_host_name(tls.ssl, context.name) == 1
        if context.verify:
            ok &= X509_VERIFY_PARAM_set1_host(rules, context.name, 0)
    elif context.verify:
        if context.name is not NULL:
            ok &= X509_VERIFY_PARAM_set1_ip(rules, context.ip, context.ip_bytes)
        else:
            ok &= X509_VERIFY_PARAM_set1_ip(rules, tls.task.address, 16 if tls.task.v6 else 4)
    if not ok:
        ERR_clear_error()
        errno_set(ENOMEM)
        return False
    if tls.session is not NULL:
        data = tls.session.data
        if tls.session.authorities == tls.authorities and boot_seconds() < tls.session.until:
            session = d2i_SSL_SESSION(NULL, &data, tls.session.length)
        if session is not NULL:
            SSL_set_session(tls.ssl, session)
            SSL_SESSION_free(session)
        else:
            free(tls.session)
            tls.session = NULL
    ERR_clear_error()
    return True


# Our side of the handshake is finished. Data that is written now leaves together with the Finished.
cdef bint tls_finished(TlsWorker* w, Tls* tls) noexcept nogil:
    tls.outcome.resumed = SSL_session_reused(tls.ssl) != 0
    if tls.task.context.verify and not tls.outcome.resumed:
        tls.outcome.anchor = anchor_now()
    if tls.task.context.http:
        tls.state = TLS_READING
        if SSL_write(tls.ssl, tls.task.request, <int>tls.task.request_bytes) != <int>tls.task.request_bytes:
            return False
    elif SSL_version(tls.ssl) >= TLS1_3_VERSION:
        # In TLS 1.3 the server has not seen our Finished yet: it may still refuse us (a client certificate that it
        # wants), and its session comes only now. Our goodbye makes any server say something.
        tls.state = TLS_ACCEPTING
        SSL_shutdown(tls.ssl)
    else:
        tls.state = TLS_ACCEPTING
        tls.heard = True
    return True


# The handshake has succeeded. False when the connection has ended with that.
cdef bint tls_shaken(TlsPool* pool, TlsWorker* w, Tls* tls) noexcept nogil:
    if tls.doubted:
        tls_end(w, tls, TLS_LOCAL, 0, BLOCK_CLOCK, <uint32_t>tls.doubted)
        return False
    if not tls_finished(w, tls):
        tls_refused(pool, w, tls)
        return False
    return True


# Content has come. True when the response is complete, or is none; what follows has been looked at then, too.
cdef bint tls_content(Tls* tls, const uint8_t* data, uint32_t length) noexcept nogil:
    cdef size_t taken
    tls.head_seen = True
    tls.io.allowed = min(tls.io.allowed + length * TLS_WRAPPING, <uint32_t>TLS_MOST_IN)
    if tls.state == TLS_ACCEPTING:
        tls.heard = True
        return False
    taken = http_feed(tls.task.http, data, length)
    http_skip(tls.task.http, data + taken, length - taken)
    return tls.task.http.state >= HTTP_COMPLETE


# Go on with a connection as far as it goes without waiting. False when it has ended.
cdef bint tls_work(TlsPool* pool, TlsWorker* w, Tls* tls) noexcept nogil:
    cdef int result, error
    cdef int turn = 0
    tls.io.dry = False
    while True:
        ERR_clear_error()
        if tls.state == TLS_HANDSHAKE:
            result = SSL_do_handshake(tls.ssl)
            if result == 1:
                if not tls_shaken(pool, w, tls):
                    return False
                continue
        else:
            if tls.state == TLS_ACCEPTING:
                if not tls_flush(tls):
                    tls_broken(w, tls)
                    return False
                if tls.heard and tls.io.out_bytes == 0:
                    tls_end(w, tls, TLS_PASSED, CODE_L6OK)
                    return False
            result = SSL_read(tls.ssl, w.scratch, sizeof(w.scratch))
            if result > 0:
                if tls_content(tls, w.scratch, <uint32_t>result):
                    tls_end(w, tls, TLS_RESPONSE)
                    return False
                turn += 1
                if turn == TLS_TURNS:
                    if SSL_has_pending(tls.ssl):
                        more_put(w, tls)
                    break
                continue
        error = SSL_get_error(tls.ssl, result)
        if tls.io.received > tls.io.allowed:
            tls_end(w, tls, TLS_FAILED, CODE_L7RSP if tls.head_seen else CODE_L6RSP, DETAIL_TLS_FAULT, TLS_FAULT_FLOOD)
            return False
        if error == SSL_ERROR_WANT_READ and not tls.io.error:
            if tls.state == TLS_ACCEPTING and (tls.fresh is not NULL) and not tls.heard:
                tls.heard = True
                continue
            if not tls.io.dry:
                turn += 1
                if turn < TLS_TURNS:
                    continue
            break
        if error == SSL_ERROR_SSL and not tls.io.error:
            tls_refused(pool, w, tls)
        else:
            tls_flush(tls)
            tls_broken(w, tls)
        return False
    if not tls_flush(tls):
        tls_broken(w, tls)
        return False
    return True


cdef bint tls_watch(TlsWorker* w, Tls* tls) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | (EPOLLOUT if tls.io.out_bytes else 0)
    event.data.u64 = <uint64_t>tls
    # Only what is left to be sent changes what is waited for, and that is rare.
    if tls.watched and not tls.io.out_bytes and not tls.expect_out:
        return True
    tls.expect_out = tls.io.out_bytes != 0
    if epoll_ctl(w.epoll, EPOLL_CTL_MOD if tls.watched else EPOLL_CTL_ADD, tls.task.fd, &event) < 0:
        return False
    tls.watched = True
    return True


# One step of a connection, with the time that it took.
cdef void tls_step(TlsPool* pool, TlsWorker* w, Tls* tls) noexcept nogil:
    tls.began = clock_ns(CLOCK_MONOTONIC)
    tls.io.first = 0
    more_remove(w, tls)
    if tls.state == TLS_NEW:
        tls.began = tls.task.handed
        tls.state = TLS_HANDSHAKE
        tls.io.allowed = TLS_MAX_IN
        if not tls_open(pool, tls):
            # Unreadable authorities have their own errno; otherwise memory is lacking.
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS if errno == ENOMEM else BLOCK_AUTHORITIES, errno)
            return
    if tls_work(pool, w, tls):
        tls_count_own(tls)
        if not tls_watch(w, tls):
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS, errno)


# The engine wants to have the unfinished body searched.
cdef void tls_copy_part(Tls* tls) noexcept nogil:
    cdef Http* http = tls.task.http
    tls.part = NULL
    if tls.state != TLS_READING or http.state >= HTTP_COMPLETE or http.body_bytes == http.searched:
        return
    tls.part = http_copy(http)
    tls.part_bytes = http.body_bytes
    tls.part_status = http.status
    tls.part_at = tls.io.arrived
    http.searched = http.body_bytes


cdef void worker_apply(TlsPool* pool, TlsWorker* w, Tls* tls, int what) noexcept nogil:
    cdef int64_t until
    if what == TLS_START:
        tls_step(pool, w, tls)
        return
    if what == TLS_PEEK:
        tls_copy_part(tls)
        worker_answer(w, tls, TLS_PEEKED)
        return
    if tls.state != TLS_OVER:
        if what == TLS_DROP:
            tls_end(w, tls, TLS_DROPPED)
        else:
            # Data may wait here behind other connections: that took our time, not the server's.
            tls_step(pool, w, tls)
            until = tls.until + tls.own
            if tls.state != TLS_OVER and clock_ns(CLOCK_MONOTONIC) >= until:
                if tls.state == TLS_ACCEPTING:
                    tls_end(w, tls, TLS_PASSED, CODE_L6OK)      # which it need not say anything to
                else:
                    tls_end(w, tls, TLS_TIMED_OUT, CODE_L7TOUT if tls.state == TLS_READING else CODE_L6TOUT)
    worker_answer(w, tls, TLS_NOTHING)


# One step for each connection that has data in OpenSSL; those that have more still come again in the next round, after
# what epoll and the engine have to say.
cdef void worker_go_on(TlsPool* pool, TlsWorker* w) noexcept nogil:
    cdef Tls* last = w.more_tail
    cdef Tls* tls = w.more_head
    cdef bint done = tls is NULL
    while not done:
        done = tls == last
        tls_step(pool, w, tls)
        tls = w.more_head


cdef void* worker_main(void* argument) noexcept nogil:
    cdef TlsWorker* w = <TlsWorker*>argument
    cdef TlsPool* pool = w.pool
    cdef uint64_t woken
    cdef uint64_t one = 1
    cdef TlsMessage message
    cdef int count, i
    thread_begin(b"maglev-tls")
    # On Linux this is of this thread: arithmetic gives way to those that keep time.
    setpriority(PRIO_PROCESS, 0, 5)
    while not load32(&pool.stopping):
        count = epoll_wait(w.epoll, w.events, TLS_EVENTS, -1 if w.more_head is NULL else 0)
        w.answered = False
        for i in range(count):
            if w.events[i].data.u64 == 0:
                read(w.wake, &woken, sizeof(woken))
            else:
                tls_step(pool, w, <Tls*>w.events[i].data.u64)
            if load32(&pool.stopping):
                return NULL
        count = 0
        while count < TLS_EVENTS and ring_take(&w.inbox, &message):
            worker_apply(pool, w, message.tls, message.what)
            count += 1
        worker_go_on(pool, w)
        if ring_front(&w.inbox) is not NULL:
            write(w.wake, &one, sizeof(one))
        if pool.doomed is not NULL:
            contexts_sweep(pool)
        if w.answered:
            write(pool.wake, &one, sizeof(one))
    return NULL
