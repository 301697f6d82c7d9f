# TLS, on threads of its own: a handshake costs some hundred microseconds, a server can make it cost far more, and the
# engine's thread has packets to send on time. The engine connects, hands the socket over, and gets back how it ended.
#
# The worker waits for its sockets itself. What it takes for its own work (from the kernel's time stamp of what came in
# to the moment when it is worked off) is measured and added to the time that the server has: a worker with too much to
# do makes probes late, and never makes a server look slow.


# ---- authorities and contexts, under `tls_lock`


cdef BIO_METHOD* tls_method = NULL


cdef int64_t wall_seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec


cdef void authorities_release(State* e, Authorities* one) noexcept nogil:
    cdef Authorities** at = &e.trusted
    if one is NULL:
        return
    one.users -= 1
    if one.users:
        return
    while at[0] is not NULL:
        if at[0] == one:
            at[0] = one.next
            break
        at = &at[0].next
    X509_STORE_free(one.store)
    free(one.file)
    free(one)


# Is there anything at all to verify with, where the system keeps it? An empty machine is no verdict on a server.
cdef bint system_has_authorities() noexcept nogil:
    cdef stat_t found
    cdef const char* file = getenv(X509_get_default_cert_file_env())
    cdef const char* folder = getenv(X509_get_default_cert_dir_env())
    if file is NULL:
        file = X509_get_default_cert_file()
    if folder is NULL:
        folder = X509_get_default_cert_dir()
    return stat(file, &found) == 0 or stat(folder, &found) == 0


# The store of a file, read now; NULL with errno set. Anything but a regular file could make us wait.
cdef X509_STORE* store_read(const char* file, stat_t* found) noexcept nogil:
    cdef X509_STORE* store
    cdef int fd
    memset(found, 0, sizeof(stat_t))
    if file is NULL:
        if not system_has_authorities():
            errno_set(ENOENT)
            return NULL
    else:
        if stat(file, found) < 0:
            return NULL
        if not S_ISREG(found.st_mode):
            errno_set(EINVAL)
            return NULL
        fd = open_fd(file, O_RDONLY | O_CLOEXEC)
        if fd < 0:
            return NULL
        close(fd)
    store = X509_STORE_new()
    if store is NULL:
        errno_set(ENOMEM)
        return NULL
    if (X509_STORE_set_default_paths(store) if file is NULL else X509_STORE_load_file(store, file)) != 1:
        X509_STORE_free(store)
        ERR_clear_error()
        errno_set(EINVAL)
        return NULL
    return store


cdef bint same_file(const char* a, const char* b) noexcept nogil:
    if a is NULL or b is NULL:
        return a == b
    return strlen(a) == strlen(b) and memcmp(a, b, strlen(a)) == 0


# The authorities of a context, as of reading number `reading`; a file that did not change is not read again, and one
# that can no longer be read stays in force as it was.
cdef Authorities* authorities_take(State* e, const char* file, uint32_t reading) noexcept nogil:
    cdef Authorities* one = e.trusted
    cdef Authorities* old = NULL
    cdef X509_STORE* store
    cdef stat_t found
    cdef size_t length
    while one is not NULL:
        if same_file(one.file, file):
            if one.authorities == reading:
                one.users += 1
                return one
            if old is NULL:
                old = one           # the newest: they are put in at the head
        one = one.next
    if old is not NULL and file is not NULL and stat(file, &found) == 0:
        if (
            found.st_dev == old.device
            and found.st_ino == old.inode
            and found.st_size == old.size
            and <int64_t>found.st_mtim.tv_sec * SECOND + found.st_mtim.tv_nsec == old.changed
        ):
            old.authorities = reading
            old.users += 1
            return old
    store = store_read(file, &found)
    if store is NULL:
        if old is not NULL:
            old.authorities = reading
            old.users += 1
        return old
    one = <Authorities*>calloc(1, sizeof(Authorities))
    if one is not NULL and file is not NULL:
        length = strlen(file) + 1
        one.file = <char*>malloc(length)
        if one.file is NULL:
            free(one)
            one = NULL
        else:
            memcpy(one.file, file, length)
    if one is NULL:
        X509_STORE_free(store)
        errno_set(ENOMEM)
        return NULL
    one.store = store
    one.users = 1
    one.authorities = reading
    one.device = found.st_dev
    one.inode = found.st_ino
    one.size = found.st_size
    one.changed = <int64_t>found.st_mtim.tv_sec * SECOND + found.st_mtim.tv_nsec
    one.next = e.trusted
    e.trusted = one
    return one


# What a check asks of a connection. No DHE: a server may choose its group, and with that how long we calculate.
cdef SSL_CTX* context_make(const TlsContext* context, X509_STORE* store) noexcept nogil:
    cdef SSL_CTX* ctx = SSL_CTX_new(TLS_client_method())
    if ctx is NULL:
        return NULL
    # OpenSSL's own settings of the system (openssl.cnf) stay in force but for what is set here.
    if (
        SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1
        or SSL_CTX_set_cipher_list(ctx, b"DEFAULT:!kDHE") != 1
        or SSL_CTX_set1_groups_list(ctx, b"X25519:P-256:P-384:P-521") != 1
        or (context.http and SSL_CTX_set_alpn_protos(ctx, <const unsigned char*>b"\x08http/1.1", 9) != 0)
    ):
        SSL_CTX_free(ctx)
        return NULL
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF)
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS)
    SSL_CTX_set_read_ahead(ctx, 1)
    SSL_CTX_set_max_cert_list(ctx, TLS_MAX_CHAIN)
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL)
    SSL_CTX_sess_set_new_cb(ctx, tls_session_came)
    if store is not NULL:
        SSL_CTX_set1_cert_store(ctx, store)
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL)
        SSL_CTX_set_verify_depth(ctx, TLS_MAX_DEPTH)
    else:
        SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL)
    return ctx


# An SSL for a connection, of a context that is as new as the last reload. NULL with errno set.
cdef SSL* context_ssl(State* e, TlsContext* context, uint32_t* reading_out) noexcept nogil:
    cdef uint32_t reading = load32(&e.authorities)
    cdef Authorities* trusted = NULL
    cdef SSL_CTX* ctx
    cdef SSL* ssl = NULL
    cdef bint failed = False
    cdef int error = ENOMEM
    pthread_mutex_lock(&e.tls_lock)
    if context.ctx is NULL or (context.verify and context.authorities != reading):
        if context.verify:
            trusted = authorities_take(e, context.ca_file, reading)
            if trusted is NULL:
                error = errno
                failed = True
        if not failed and (context.ctx is NULL or trusted != context.trusted):
            ctx = context_make(context, trusted.store if trusted is not NULL else NULL)
            if ctx is not NULL:
                SSL_CTX_free(context.ctx)
                authorities_release(e, context.trusted)
                context.ctx = ctx
                context.trusted = trusted
                context.authorities = reading
            else:
                authorities_release(e, trusted)
                failed = True
        elif not failed:
            authorities_release(e, trusted)
            context.authorities = reading
    if not failed:
        ssl = SSL_new(context.ctx)
    pthread_mutex_unlock(&e.tls_lock)
    reading_out[0] = reading
    if ssl is NULL:
        ERR_clear_error()
        errno_set(error)
    return ssl


cdef void context_free(State* e, TlsContext* context) noexcept nogil:
    SSL_CTX_free(context.ctx)
    authorities_release(e, context.trusted)
    free(context.name)
    free(context.ca_file)
    free(context)


# The engine's: one user less. A worker frees what nobody uses, since large stores take their time.
cdef void context_release(State* e, TlsContext* context) noexcept nogil:
    cdef uint64_t one = 1
    if context is NULL:
        return
    context.users -= 1
    if context.users:
        return
    pthread_mutex_lock(&e.tls_lock)
    context.next = e.tls_doomed
    e.tls_doomed = context
    pthread_mutex_unlock(&e.tls_lock)
    if e.worker_count:
        write(e.workers[0].wake, &one, sizeof(one))


cdef void contexts_bury(State* e) noexcept nogil:
    cdef TlsContext* context
    pthread_mutex_lock(&e.tls_lock)
    while e.tls_doomed is not NULL:
        context = e.tls_doomed
        e.tls_doomed = context.next
        context_free(e, context)
    pthread_mutex_unlock(&e.tls_lock)


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
        return length               # under 256 bytes: there is no certificate in it
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


# When the certificate has to be looked at again: soon, and not after one of the chain has expired.
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
    return wall_seconds() + left


# What to resume the next time. A session that was resumed and not replaced is still good; its certificate was verified
# when it was.
cdef void tls_keep_session(Tls* tls) noexcept nogil:
    cdef Session* made = NULL
    cdef unsigned char* data
    cdef int64_t until
    cdef int length
    if tls.state < TLS_READING or tls.outcome not in (TLS_PASSED, TLS_RESPONSE):
        free(tls.session)
        tls.session = NULL
        return
    if tls.fresh is NULL:
        if not tls.resumed:
            free(tls.session)
            tls.session = NULL
        return
    until = tls.session.until if tls.resumed and tls.session is not NULL else verified_until(tls.ssl)
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


# The engine's. A slot has one session at most, and all together are bounded.
cdef void session_put(State* e, Slot* slot, Session* session) noexcept nogil:
    if slot.session is not NULL:
        e.stats[STAT_TLS_SESSION_BYTES] -= sizeof(Session) + slot.session.length
        free(slot.session)
        slot.session = NULL
    if session is NULL:
        return
    if e.stats[STAT_TLS_SESSION_BYTES] + <int64_t>(sizeof(Session) + session.length) > TLS_SESSIONS_MAX:
        free(session)
        return
    e.stats[STAT_TLS_SESSION_BYTES] += sizeof(Session) + session.length
    slot.session = session


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
    if length <= 0 or tls.eof or tls.error:
        return 0 if tls.eof else -1
    if tls.dry or tls.received > TLS_MAX_IN:
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
    got = recvmsg(tls.fd, &header, MSG_DONTWAIT)
    if got < 0:
        if errno == EAGAIN or errno == EINTR:
            tls.dry = True
            BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        else:
            tls.error = errno
        return -1
    if got == 0:
        tls.eof = True
        return 0
    # Less than there was room for: the next one would find nothing. If it does come, epoll says so.
    tls.dry = got < length
    now = clock_ns(CLOCK_MONOTONIC)
    wall = clock_ns(CLOCK_REALTIME) - now
    item = CMSG_FIRSTHDR(&header)
    while item is not NULL:
        if item.cmsg_level == SOL_SOCKET and item.cmsg_type == SO_TIMESTAMPNS:
            memcpy(&stamp, CMSG_DATA(item), sizeof(stamp))
            at = <int64_t>stamp.tv_sec * SECOND + stamp.tv_nsec - wall
        item = CMSG_NXTHDR(&header, item)
    if at > now or at < tls.sent:
        at = now
    tls.arrived = at
    if tls.first == 0:
        tls.first = at
    tls.received += <uint32_t>got
    return <int>got


cdef int tls_bio_write(BIO* bio, const char* data, int length) noexcept nogil:
    cdef Tls* tls = <Tls*>BIO_get_data(bio)
    cdef uint32_t space
    cdef uint8_t* grown
    BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY)
    if length <= 0:
        return 0
    if tls.out_bytes + <uint32_t>length > tls.out_space:
        space = tls.out_space if tls.out_space else 2048
        while space < tls.out_bytes + <uint32_t>length:
            space *= 2
        grown = <uint8_t*>realloc(tls.out, space) if space <= TLS_MAX_OUT else NULL
        if grown is NULL:
            tls.error = ENOBUFS
            return -1
        tls.out = grown
        tls.out_space = space
    memcpy(tls.out + tls.out_bytes, data, length)
    tls.out_bytes += <uint32_t>length
    return length


cdef long tls_bio_ctrl(BIO* bio, int command, long number, void* pointer) noexcept nogil:
    cdef Tls* tls = <Tls*>BIO_get_data(bio)
    if command == BIO_CTRL_FLUSH:
        return 1
    if command == BIO_CTRL_EOF:
        return tls.eof
    return 0


# Made once, while Python's lock is held.
cdef int tls_prepare() except -1:
    global tls_method
    cdef BIO_METHOD* method
    if tls_method is not NULL:
        return 0
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"maglev")
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
    if tls.out_bytes == 0:
        return True
    sent = send(tls.fd, tls.out, tls.out_bytes, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        if errno == EAGAIN or errno == EINTR:
            return True
        tls.error = errno
        return False
    tls.out_bytes -= <uint32_t>sent
    if tls.out_bytes:
        memmove(tls.out, tls.out + sent, tls.out_bytes)
    return True


# ---- the worker


cdef void worker_say(TlsWorker* w, Tls* tls, int what) noexcept nogil:
    cdef TlsMessage message
    message.tls = tls
    message.what = what
    ring_push(&w.outbox, &message)          # never full: see TLS_RING
    w.said = True


# What this step took, and how long what it worked on had waited for us.
cdef void tls_count_own(Tls* tls) noexcept nogil:
    cdef int64_t since = tls.first if tls.first else tls.began
    store64(&tls.own, tls.own + clock_ns(CLOCK_MONOTONIC) - since)


cdef void tls_end(TlsWorker* w, Tls* tls, int outcome, int code=0, int kind=0, uint32_t value=0) noexcept nogil:
    cdef epoll_event event
    if tls.watched:
        event.events = 0
        epoll_ctl(w.epoll, EPOLL_CTL_DEL, tls.fd, &event)
        tls.watched = False
    if outcome == TLS_FAILED or (outcome == TLS_RESPONSE and tls.http.state == HTTP_FAILED):
        tls_count_own(tls)      # for a server that has closed, perhaps since we kept it waiting
    tls.outcome = <uint8_t>outcome
    tls.code = <uint8_t>code
    tls.kind = <uint8_t>kind
    tls.value = value
    if tls.ssl is not NULL and outcome != TLS_DROPPED:
        tls_keep_session(tls)
    SSL_SESSION_free(tls.fresh)
    tls.fresh = NULL
    SSL_free(tls.ssl)
    tls.ssl = NULL
    ERR_clear_error()
    tls.state = TLS_OVER
    worker_say(w, tls, TLS_ENDED)


# The socket failed, or the server closed it.
cdef void tls_broken(TlsWorker* w, Tls* tls) noexcept nogil:
    cdef int error = tls.error
    cdef int code = CODE_L7RSP if tls.head_seen else CODE_L6RSP
    if error in (ENOBUFS, ENOMEM, ENETDOWN, EPERM):
        tls_end(w, tls, TLS_LOCAL, 0, BLOCK_CONNECT, error)
    elif tls.state == TLS_ACCEPTING:
        tls_end(w, tls, TLS_PASSED, CODE_L6OK)      # the handshake was done on both sides as far as we were told
    elif tls.state == TLS_READING:
        if error and not (error == ECONNRESET and tls.http.state == HTTP_BODY):
            tls_end(w, tls, TLS_FAILED, CODE_L7RSP, DETAIL_ERRNO, error)
        else:
            http_eof(tls.http)
            tls_end(w, tls, TLS_RESPONSE)
    elif error:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_ERRNO, error)
    else:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_FAULT, TLS_FAULT_CLOSED)


# OpenSSL says no. An alert that it sends with that goes out, so that the server's log says why.
cdef void tls_refused(State* e, TlsWorker* w, Tls* tls) noexcept nogil:
    cdef unsigned long error = ERR_get_error()
    cdef int reason = ERR_GET_REASON(error)
    cdef int code = CODE_L7RSP if tls.head_seen else CODE_L6RSP
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
        elif (
            verdict in (X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED)
            and wall_seconds() < e.clock_floor
        ):
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_CLOCK, EINVAL)
        else:
            tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_VERIFY, <uint32_t>verdict)
    elif reason >= SSL_AD_REASON_OFFSET:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_ALERT, <uint32_t>(reason - SSL_AD_REASON_OFFSET))
    else:
        tls_end(w, tls, TLS_FAILED, code, DETAIL_TLS_ERROR, <uint32_t>error)


cdef bint tls_open(State* e, Tls* tls) noexcept nogil:
    cdef TlsContext* context = tls.context
    cdef X509_VERIFY_PARAM* rules
    cdef const unsigned char* data
    cdef SSL_SESSION* session = NULL
    cdef int ok = 1
    tls.ssl = context_ssl(e, context, &tls.authorities)
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
            ok &= X509_VERIFY_PARAM_set1_ip(rules, tls.address, 16 if tls.v6 else 4)
    if not ok:
        ERR_clear_error()
        errno_set(ENOMEM)
        return False
    if tls.session is not NULL:
        data = tls.session.data
        if tls.session.authorities == tls.authorities and wall_seconds() < tls.session.until:
            session = d2i_SSL_SESSION(NULL, &data, tls.session.length)
        if session is not NULL:
            SSL_set_session(tls.ssl, session)
            SSL_SESSION_free(session)
        else:
            free(tls.session)
            tls.session = NULL
    ERR_clear_error()
    return True


# Our side of the handshake is finished. What is written now goes out with the Finished.
cdef bint tls_shaken(TlsWorker* w, Tls* tls) noexcept nogil:
    tls.resumed = SSL_session_reused(tls.ssl) != 0
    if tls.context.http:
        tls.state = TLS_READING
        if SSL_write(tls.ssl, tls.request, <int>tls.request_bytes) != <int>tls.request_bytes:
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


# Go on with a connection as far as it goes without waiting. False when it has ended.
cdef bint tls_work(State* e, TlsWorker* w, Tls* tls) noexcept nogil:
    cdef int result, error
    cdef int turn = 0
    tls.dry = False
    while True:
        ERR_clear_error()
        if tls.state == TLS_HANDSHAKE:
            result = SSL_do_handshake(tls.ssl)
            if result == 1:
                if not tls_shaken(w, tls):
                    tls_refused(e, w, tls)
                    return False
                continue
        else:
            if tls.state == TLS_ACCEPTING:
                if not tls_flush(tls):
                    tls_broken(w, tls)
                    return False
                if tls.heard and tls.out_bytes == 0:
                    tls_end(w, tls, TLS_PASSED, CODE_L6OK)
                    return False
            result = SSL_read(tls.ssl, w.scratch, sizeof(w.scratch))
            if result > 0:
                tls.head_seen = True
                if tls.state == TLS_ACCEPTING:
                    tls.heard = True
                    continue
                http_feed(tls.http, w.scratch, result)
                if tls.http.state >= HTTP_COMPLETE:
                    tls_end(w, tls, TLS_RESPONSE)
                    return False
                turn += 1
                if turn == TLS_TURNS:
                    break
                continue
        error = SSL_get_error(tls.ssl, result)
        if tls.received > TLS_MAX_IN:
            tls_end(w, tls, TLS_FAILED, CODE_L7RSP if tls.head_seen else CODE_L6RSP, DETAIL_TLS_FAULT, TLS_FAULT_FLOOD)
            return False
        if error == SSL_ERROR_WANT_READ and not tls.error:
            if tls.state == TLS_ACCEPTING and (tls.fresh is not NULL) and not tls.heard:
                tls.heard = True
                continue
            if not tls.dry:
                turn += 1
                if turn < TLS_TURNS:
                    continue
            break
        if error == SSL_ERROR_SSL and not tls.error:
            tls_refused(e, w, tls)
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
    event.events = EPOLLIN | (EPOLLOUT if tls.out_bytes else 0)
    event.data.u64 = <uint64_t>tls
    # Only what is left to be sent changes what is waited for, and that is rare.
    if tls.watched and not tls.out_bytes and not tls.expect_out:
        return True
    tls.expect_out = tls.out_bytes != 0
    if epoll_ctl(w.epoll, EPOLL_CTL_MOD if tls.watched else EPOLL_CTL_ADD, tls.fd, &event) < 0:
        return False
    tls.watched = True
    return True


# One step of a connection, and what it took of our own time.
cdef void tls_step(State* e, TlsWorker* w, Tls* tls) noexcept nogil:
    tls.began = clock_ns(CLOCK_MONOTONIC)
    tls.first = 0
    if tls.state == TLS_NEW:
        tls.began = tls.handed
        tls.state = TLS_HANDSHAKE
        if not tls_open(e, tls):
            # What cannot be read of the authorities has its own errno; memory is all that can lack besides.
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS if errno == ENOMEM else BLOCK_AUTHORITIES, errno)
            return
    if tls_work(e, w, tls):
        tls_count_own(tls)
        if not tls_watch(w, tls):
            tls_end(w, tls, TLS_LOCAL, 0, BLOCK_TLS, errno)


cdef void worker_obey(State* e, TlsWorker* w, Tls* tls, int what) noexcept nogil:
    cdef int64_t until
    if what == TLS_START:
        tls_step(e, w, tls)
        return
    if tls.state != TLS_OVER:
        if what == TLS_DROP:
            tls_end(w, tls, TLS_DROPPED)
        else:
            # What has come waits behind others, perhaps: that took our time, not the server's.
            tls_step(e, w, tls)
            until = tls.until + tls.own
            if tls.state != TLS_OVER and clock_ns(CLOCK_MONOTONIC) >= until:
                if tls.state == TLS_ACCEPTING:
                    tls_end(w, tls, TLS_PASSED, CODE_L6OK)      # which it need not say anything to
                else:
                    tls_end(w, tls, TLS_TIMED_OUT, CODE_L7TOUT if tls.state == TLS_READING else CODE_L6TOUT)
    worker_say(w, tls, TLS_NOTHING)


cdef void* worker_main(void* argument) noexcept nogil:
    cdef TlsWorker* w = <TlsWorker*>argument
    cdef State* e = <State*>w.engine
    cdef sigset_t all_signals
    cdef uint64_t woken
    cdef uint64_t one = 1
    cdef TlsMessage message
    cdef int count, i
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, NULL)
    # On Linux this is of this thread: arithmetic gives way to those that keep time.
    setpriority(PRIO_PROCESS, 0, 5)
    while not load32(&e.tls_stopping):
        count = epoll_wait(w.epoll, w.events, TLS_EVENTS, -1)
        w.said = False
        for i in range(count):
            if w.events[i].data.u64 == 0:
                read(w.wake, &woken, sizeof(woken))
            else:
                tls_step(e, w, <Tls*>w.events[i].data.u64)
            if load32(&e.tls_stopping):
                return NULL
        count = 0
        while count < TLS_EVENTS and ring_take(&w.inbox, &message):
            worker_obey(e, w, message.tls, message.what)
            count += 1
        if ring_front(&w.inbox) is not NULL:
            write(w.wake, &one, sizeof(one))
        if e.tls_doomed is not NULL:
            contexts_bury(e)
        if w.said:
            write(e.wake, &one, sizeof(one))
    return NULL


# ---- the engine's side


cdef void tls_tell(State* e, Tls* tls, int what) noexcept nogil:
    cdef TlsWorker* w = e.workers[tls.worker]
    cdef TlsMessage message
    message.tls = tls
    message.what = what
    ring_push(&w.inbox, &message)           # never full: see TLS_RING
    w.told = True
    tls.told += 1


# Wake the workers that were told something in this tick.
cdef void tls_wake(State* e) noexcept nogil:
    cdef uint64_t one = 1
    cdef uint32_t i
    for i in range(e.worker_count):
        if e.workers[i].told:
            e.workers[i].told = False
            write(e.workers[i].wake, &one, sizeof(one))


# A probe over TLS begins: what it needs, before it connects. False: no memory.
cdef bint tls_begin(State* e, Stream* stream, const Slot* slot, const Check* check) noexcept nogil:
    cdef Tls* tls = <Tls*>calloc(1, sizeof(Tls))
    if tls is NULL:
        return False
    if check.type == PROBE_HTTP:
        tls.request_bytes = request_text(slot, check, <char*>e.scratch)
        tls.request = <char*>malloc(tls.request_bytes)
        if tls.request is NULL:
            free(tls)
            return False
        memcpy(tls.request, e.scratch, tls.request_bytes)
    # The check may be gone before the worker lets go.
    memcpy(tls.codes, check.codes, sizeof(tls.codes))
    tls.context = check.tls
    tls.context.users += 1
    tls.stream = slot.stream
    tls.fd = stream.fd
    tls.v6 = slot.v6
    memcpy(tls.address, slot.address, 16)
    stream.http.codes = tls.codes
    tls.http = &stream.http
    stream.tls = tls
    e.tls_count += 1
    return True


# The connection is made.
cdef void tls_hand_over(State* e, Stream* stream, Slot* slot) noexcept nogil:
    cdef Tls* tls = stream.tls
    slot.phase = PHASE_TLS
    tls.session = slot.session
    if tls.session is not NULL:
        e.stats[STAT_TLS_SESSION_BYTES] -= sizeof(Session) + tls.session.length
        slot.session = NULL
    tls.sent = slot.sent
    tls.handed = e.now
    tls.own = seen_late(e, stream, slot)
    tls.worker = e.worker_next
    e.worker_next = (e.worker_next + 1) % e.worker_count
    tls_tell(e, tls, TLS_START)


cdef void tls_free(State* e, Tls* tls) noexcept nogil:
    SSL_SESSION_free(tls.fresh)
    SSL_free(tls.ssl)
    context_release(e, tls.context)
    free(tls.session)
    free(tls.request)
    free(tls.out)
    free(tls)
    e.tls_count -= 1


# The stream ends. True if its TLS has ended with it; False if a worker still has it, and with it the socket.
cdef bint tls_release(State* e, Stream* stream) noexcept nogil:
    cdef Tls* tls = stream.tls
    if tls.told:
        tls.orphan = True
        tls_tell(e, tls, TLS_DROP)
        return False
    stream.tls = NULL
    tls_free(e, tls)
    return True


# The time is over. What the worker took of it itself is given back to the server before it is asked for its last word.
cdef void tls_expired(State* e, uint32_t index) noexcept nogil:
    cdef Slot* slot = &e.slots[index]
    cdef Tls* tls = e.streams[slot.stream].tls
    cdef int64_t until = slot.deadline + stalled_since(e, slot) + GRACE
    cdef int64_t extended = until + load64(&tls.own)
    if e.tick_start < extended:
        plan(e, index, extended)
        return
    if not tls.expiring:
        tls.expiring = True
        tls.until = until
        tls_tell(e, tls, TLS_EXPIRE)
    plan(e, index, e.now + SECOND)


# The worker has let go of it.
cdef void tls_ended(State* e, Tls* tls) noexcept nogil:
    cdef uint32_t at = tls.stream
    cdef Stream* stream = &e.streams[at]
    cdef uint32_t index = stream.slot
    cdef Slot* slot = &e.slots[index]
    cdef int outcome = tls.outcome
    cdef int code = tls.code
    cdef int kind = tls.kind
    cdef uint32_t value = tls.value
    cdef int64_t when = tls.arrived if tls.arrived else e.now
    if tls.orphan:
        stream.tls = NULL
        tls_free(e, tls)
        stream_close(e, at, False)
        return
    stream.own = tls.own
    session_put(e, slot, tls.session)
    tls.session = NULL
    if outcome in (TLS_PASSED, TLS_RESPONSE):
        e.stats[STAT_TLS_RESUMED if tls.resumed else STAT_TLS_FULL] += 1
    stream.tls = NULL
    tls_free(e, tls)
    if outcome == TLS_RESPONSE:
        slot.phase = PHASE_RECEIVING
        stream.http.codes = NULL
        response_done(e, at, when)
    elif outcome == TLS_LOCAL:
        stream_blocked(e, index, kind, <int>value)
    elif outcome == TLS_TIMED_OUT or when > slot.deadline + stalled_since(e, slot) + stream.own:
        if outcome != TLS_TIMED_OUT:
            code = CODE_L6TOUT
        stream_fail(e, index, code, DETAIL_TIMEOUT, <uint32_t>((slot.deadline - slot.sent) // MS), 0)
    elif outcome == TLS_PASSED:
        stream_end(e, at)
        conclude(e, index, True, code, DETAIL_NONE, 0, when - slot.sent)
    elif kind == DETAIL_TLS_VERIFY or kind == DETAIL_TLS_ERROR:
        stream_refused(e, index, code, kind, value, when - slot.sent)
    else:
        stream_fail(e, index, code, kind, value, when - slot.sent)


# What the workers have answered since the last tick.
cdef void tls_take(State* e) noexcept nogil:
    cdef TlsWorker* w
    cdef TlsMessage message
    cdef Tls* tls
    cdef Slot* slot
    cdef uint32_t i
    cdef uint32_t count = 0
    for i in range(e.worker_count):
        w = e.workers[i]
        while ring_take(&w.outbox, &message):
            tls = message.tls
            if count & 127 == 127:
                refresh_clock(e)
            count += 1
            tls.told -= 1
            if message.what == TLS_ENDED:
                tls.over = True
            elif not tls.over and not tls.orphan:
                # It goes on: what had come was waiting for us.
                tls.expiring = False
                slot = &e.slots[e.streams[tls.stream].slot]
                plan(e, e.streams[tls.stream].slot, slot.deadline + stalled_since(e, slot) + GRACE + load64(&tls.own))
            if tls.told == 0:
                tls_ended(e, tls)


cdef int tls_start_workers(State* e, uint32_t count) noexcept nogil:
    cdef TlsWorker* w
    cdef epoll_event event
    while e.worker_count < count:
        w = <TlsWorker*>calloc(1, sizeof(TlsWorker))
        if w is NULL:
            errno_set(ENOMEM)
            return -1
        w.engine = e
        if not (
            ring_init(&w.inbox, TLS_RING, sizeof(TlsMessage)) and ring_init(&w.outbox, TLS_RING, sizeof(TlsMessage))
        ):
            ring_free(&w.inbox)
            free(w)
            errno_set(ENOMEM)
            return -1
        w.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.epoll = epoll_create1(EPOLL_CLOEXEC)
        e.workers[e.worker_count] = w
        e.worker_count += 1
        event.events = EPOLLIN
        event.data.u64 = 0
        if w.wake < 0 or w.epoll < 0 or epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.wake, &event) < 0:
            return -1
        errno_set(pthread_create(&w.thread, NULL, worker_main, w))
        if errno:
            return -1
        w.runs = True
    return 0


# After the engine's thread has ended.
cdef void tls_stop_workers(State* e) noexcept nogil:
    cdef uint64_t one = 1
    cdef uint32_t i
    store32(&e.tls_stopping, 1)
    for i in range(e.worker_count):
        if e.workers[i].runs:
            write(e.workers[i].wake, &one, sizeof(one))
            pthread_join(e.workers[i].thread, NULL)
            e.workers[i].runs = False


# After the workers have ended, too: what is left of all of it.
cdef void tls_close(State* e) noexcept nogil:
    cdef uint32_t i
    for i in range(e.worker_count):
        close_fd(&e.workers[i].wake)
        close_fd(&e.workers[i].epoll)
        ring_free(&e.workers[i].inbox)
        ring_free(&e.workers[i].outbox)
        free(e.workers[i])
    e.worker_count = 0
    contexts_bury(e)
