# Certificate authorities and what follows from a check for its connections (SSL_CTX): shared by all TLS threads, under
# the pool's lock. They run on TLS threads, but `context_release`, which is the engine's: reading a large store takes
# tens of milliseconds, and freeing it some.


cdef int64_t wall_seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec


cdef int64_t boot_seconds() noexcept nogil:
    return clock_ns(CLOCK_BOOTTIME) // SECOND


cdef void authorities_release(TlsPool* pool, Authorities* one) noexcept nogil:
    cdef Authorities** at = &pool.trusted
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


# Is there anything at all to verify with, where the system keeps it? A machine without any says nothing about a server.
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
cdef Authorities* authorities_take(TlsPool* pool, const char* file, uint32_t reading) noexcept nogil:
    cdef Authorities* one = pool.trusted
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
    one.next = pool.trusted
    pool.trusted = one
    return one


# The settings of a check's connections. No DHE: a server may choose its group, and with that how long we calculate.
cdef SSL_CTX* context_make(const TlsContext* context, X509_STORE* store) noexcept nogil:
    cdef SSL_CTX* ctx = SSL_CTX_new(TLS_client_method())
    if ctx is NULL:
        return NULL
    # OpenSSL's own settings of the system (openssl.cnf) stay in force, except those set here.
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
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, dates_judge)
        SSL_CTX_set_verify_depth(ctx, TLS_MAX_DEPTH)
    else:
        SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL)
    return ctx


# An SSL for a connection, of a context that is as new as the last reload. NULL with errno set.
cdef SSL* context_ssl(TlsPool* pool, TlsContext* context, uint32_t* reading_out) noexcept nogil:
    cdef uint32_t reading = load32(&pool.authorities)
    cdef Authorities* trusted = NULL
    cdef SSL_CTX* ctx
    cdef SSL* ssl = NULL
    cdef bint failed = False
    cdef int error = ENOMEM
    pthread_mutex_lock(&pool.lock)
    if context.ctx is NULL or (context.verify and context.authorities != reading):
        if context.verify:
            trusted = authorities_take(pool, context.ca_file, reading)
            if trusted is NULL:
                error = errno
                failed = True
        if not failed and (context.ctx is NULL or trusted != context.trusted):
            ctx = context_make(context, trusted.store if trusted is not NULL else NULL)
            if ctx is not NULL:
                SSL_CTX_free(context.ctx)
                authorities_release(pool, context.trusted)
                context.ctx = ctx
                context.trusted = trusted
                context.authorities = reading
            else:
                authorities_release(pool, trusted)
                failed = True
        elif not failed:
            authorities_release(pool, trusted)
            context.authorities = reading
    if not failed:
        ssl = SSL_new(context.ctx)
    pthread_mutex_unlock(&pool.lock)
    reading_out[0] = reading
    if ssl is NULL:
        ERR_clear_error()
        errno_set(error)
    return ssl


cdef void context_free(TlsPool* pool, TlsContext* context) noexcept nogil:
    SSL_CTX_free(context.ctx)
    authorities_release(pool, context.trusted)
    free(context.name)
    free(context.ca_file)
    free(context)


# The engine's: one user less. A worker frees unused contexts, since large stores take their time.
cdef void context_release(TlsPool* pool, TlsContext* context) noexcept nogil:
    cdef uint64_t one = 1
    if context is NULL:
        return
    context.users -= 1
    if context.users:
        return
    pthread_mutex_lock(&pool.lock)
    context.next = pool.doomed
    pool.doomed = context
    pthread_mutex_unlock(&pool.lock)
    if pool.worker_count:
        write(pool.workers[0].wake, &one, sizeof(one))


cdef void contexts_sweep(TlsPool* pool) noexcept nogil:
    cdef TlsContext* context
    pthread_mutex_lock(&pool.lock)
    while pool.doomed is not NULL:
        context = pool.doomed
        pool.doomed = context.next
        context_free(pool, context)
    pthread_mutex_unlock(&pool.lock)
