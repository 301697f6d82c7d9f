# OpenSSL's declarations, and the structures of the TLS threads.

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_SESSION:
        pass
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    ctypedef struct X509:
        pass
    ctypedef struct X509_STACK "STACK_OF(X509)":
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    ctypedef struct ASN1_TIME:
        pass
    enum:
        SSL_ERROR_NONE
        SSL_ERROR_SSL
        SSL_ERROR_SYSCALL
        SSL_ERROR_WANT_READ
        SSL_ERROR_WANT_WRITE
        SSL_ERROR_ZERO_RETURN
        SSL_FILETYPE_PEM
        SSL_MODE_RELEASE_BUFFERS
        SSL_SESS_CACHE_CLIENT
        SSL_SESS_CACHE_NO_INTERNAL
        SSL_VERIFY_NONE
        SSL_VERIFY_PEER
        SSL_R_CERTIFICATE_VERIFY_FAILED
        SSL_AD_REASON_OFFSET
        TLS1_2_VERSION
        TLS1_3_VERSION
        ERR_LIB_SSL
        ERR_R_MALLOC_FAILURE
        X509_V_OK
        X509_V_ERR_OUT_OF_MEM
        X509_V_ERR_CERT_NOT_YET_VALID
        X509_V_ERR_CERT_HAS_EXPIRED
        X509_V_ERR_STORE_LOOKUP
        X509_V_ERR_HOSTNAME_MISMATCH
        X509_V_ERR_IP_ADDRESS_MISMATCH
        BIO_TYPE_SOURCE_SINK
        BIO_CTRL_FLUSH
        BIO_CTRL_EOF
        BIO_FLAGS_READ
        BIO_FLAGS_RWS
        BIO_FLAGS_SHOULD_RETRY
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_IGNORE_UNEXPECTED_EOF

    const SSL_METHOD* TLS_client_method()
    SSL_CTX* SSL_CTX_new(const SSL_METHOD*)
    void SSL_CTX_free(SSL_CTX*)
    uint64_t SSL_CTX_set_options(SSL_CTX*, uint64_t)
    long SSL_CTX_set_mode(SSL_CTX*, long)
    int SSL_CTX_set_min_proto_version(SSL_CTX*, int)
    int SSL_CTX_set_cipher_list(SSL_CTX*, const char*)
    long SSL_CTX_set1_groups_list(SSL_CTX*, const char*)
    void SSL_CTX_set_verify(SSL_CTX*, int, void*)
    void SSL_CTX_set_verify_depth(SSL_CTX*, int)
    void SSL_CTX_set1_cert_store(SSL_CTX*, X509_STORE*)
    int SSL_CTX_set_alpn_protos(SSL_CTX*, const unsigned char*, unsigned int)
    long SSL_CTX_set_session_cache_mode(SSL_CTX*, long)
    long SSL_CTX_set_max_cert_list(SSL_CTX*, long)
    void SSL_CTX_set_read_ahead(SSL_CTX*, int)
    void SSL_CTX_sess_set_new_cb(SSL_CTX*, int (*)(SSL*, SSL_SESSION*) noexcept nogil)
    SSL* SSL_new(SSL_CTX*)
    void SSL_free(SSL*)
    void SSL_set_bio(SSL*, BIO*, BIO*)
    void SSL_set_connect_state(SSL*)
    long SSL_set_tlsext_host_name(SSL*, const char*)
    int SSL_set_ex_data(SSL*, int, void*)
    void* SSL_get_ex_data(const SSL*, int)
    X509_VERIFY_PARAM* SSL_get0_param(SSL*)
    int SSL_set_session(SSL*, SSL_SESSION*)
    int SSL_session_reused(const SSL*)
    int SSL_version(const SSL*)
    int SSL_do_handshake(SSL*)
    int SSL_read(SSL*, void*, int)
    int SSL_write(SSL*, const void*, int)
    int SSL_shutdown(SSL*)
    int SSL_get_error(const SSL*, int)
    long SSL_get_verify_result(const SSL*)
    X509_STACK* SSL_get0_verified_chain(const SSL*)
    const char* SSL_alert_desc_string_long(int)
    void SSL_SESSION_free(SSL_SESSION*)
    int SSL_SESSION_is_resumable(const SSL_SESSION*)
    int i2d_SSL_SESSION(const SSL_SESSION*, unsigned char**)
    SSL_SESSION* d2i_SSL_SESSION(SSL_SESSION**, const unsigned char**, long)

cdef extern from "openssl/bio.h" nogil:
    int BIO_get_new_index()
    BIO_METHOD* BIO_meth_new(int, const char*)
    int BIO_meth_set_read(BIO_METHOD*, int (*)(BIO*, char*, int) noexcept nogil)
    int BIO_meth_set_write(BIO_METHOD*, int (*)(BIO*, const char*, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD*, long (*)(BIO*, int, long, void*) noexcept nogil)
    BIO* BIO_new(const BIO_METHOD*)
    void BIO_set_data(BIO*, void*)
    void* BIO_get_data(BIO*)
    void BIO_set_init(BIO*, int)
    void BIO_set_flags(BIO*, int)
    void BIO_clear_flags(BIO*, int)

cdef extern from "openssl/x509_vfy.h" nogil:
    X509_STORE* X509_STORE_new()
    void X509_STORE_free(X509_STORE*)
    int X509_STORE_load_file(X509_STORE*, const char*)
    int X509_STORE_set_default_paths(X509_STORE*)
    const char* X509_get_default_cert_file()
    const char* X509_get_default_cert_dir()
    const char* X509_get_default_cert_file_env()
    const char* X509_get_default_cert_dir_env()
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM*, const char*, size_t)
    int X509_VERIFY_PARAM_set1_ip(X509_VERIFY_PARAM*, const unsigned char*, size_t)
    const char* X509_verify_cert_error_string(long)
    const ASN1_TIME* X509_get0_notAfter(const X509*)
    int ASN1_TIME_diff(int*, int*, const ASN1_TIME*, const ASN1_TIME*)
    int sk_X509_num(const X509_STACK*)
    X509* sk_X509_value(const X509_STACK*, int)

cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()
    unsigned long ERR_get_error()
    int ERR_GET_LIB(unsigned long)
    int ERR_GET_REASON(unsigned long)
    const char* ERR_reason_error_string(unsigned long)

cdef extern from "sys/resource.h" nogil:
    enum:
        PRIO_PROCESS
    int setpriority(int, unsigned int, int)

cdef extern from "stdlib.h" nogil:
    char* getenv(const char*)

cdef enum:
    TLS_MAX = 4096                  # handshakes and what follows them, under way at once: the rest waits its turn
    TLS_WORKERS = 4
    TLS_RING = 16384                # messages to or from a worker; one connection has at most three on the way
    TLS_EVENTS = 64
    TLS_TURNS = 8                   # reads of one connection, before the others get theirs
    TLS_MAX_CHAIN = 65536           # bytes of certificates that a server may send
    TLS_MAX_DEPTH = 10              # intermediate certificates
    TLS_MAX_OUT = 65536             # bytes that wait to be sent
    TLS_MAX_IN = 1 << 20            # bytes of one connection: far more than a body that is searched
    TLS_SESSION_MAX = 4096          # bytes of a session that are worth keeping
    TLS_SESSIONS_MAX = 64 << 20     # bytes of all sessions
    TLS_SESSION_LIFE = 60           # seconds after which a certificate is looked at again

# What a worker is told.
cdef enum:
    TLS_START = 0                   # the connection is made: shake hands
    TLS_EXPIRE = 1                  # the time is over: have a last look
    TLS_DROP = 2                    # nobody asks any more

# What a worker answers, one for each that it was told.
cdef enum:
    TLS_NOTHING = 0                 # to TLS_EXPIRE or TLS_DROP: it had ended, or goes on after all
    TLS_ENDED = 1                   # to TLS_START: `outcome` says how

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

# A session, as slots keep it: without the certificates, which are what is large in it.
cdef struct Session:
    uint32_t length
    uint32_t authorities            # the reading of the authorities that it was verified by
    int64_t until                   # wall clock, seconds: then the certificate is to be verified again
    uint8_t data[1]

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
    # Of the workers, guarded by `tls_lock`
    SSL_CTX* ctx
    Authorities* trusted
    uint32_t authorities            # which reading `ctx` is of
    TlsContext* next                # in the list of those to be freed

# Authorities that were read, shared by all checks that name the same file. Guarded by `tls_lock`.
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

# One connection. The engine makes and frees it; between TLS_START and TLS_ENDED it is the worker's, but for the first
# few fields.
cdef struct Tls:
    # The engine's, always
    uint32_t stream
    uint32_t worker
    uint32_t told                   # messages that were not answered yet: freed when there is none
    bint expiring                   # TLS_EXPIRE was told and not answered
    bint over                       # TLS_ENDED has come
    bint orphan                     # its probe was given up
    # Both
    int64_t own                     # atomic: time that we took ourselves, which is not the server's
    int64_t until                   # with TLS_EXPIRE: how long the server has, monotonic
    # The worker's
    TlsContext* context
    SSL* ssl
    BIO* bio
    Http* http
    uint64_t codes[10]
    Session* session                # to resume; after the end what to resume the next time
    SSL_SESSION* fresh              # the last session that the server gave
    char* request
    uint32_t request_bytes
    uint32_t authorities
    int fd
    uint8_t state
    uint8_t outcome
    uint8_t code
    uint8_t kind
    bint v6
    bint watched                    # in the worker's epoll
    bint expect_out                 # there also for what is left to be sent
    bint eof
    bint dry                        # the last read emptied the socket
    bint resumed
    bint heard                      # something came after our side had finished
    bint head_seen                  # data came through the encryption
    uint32_t value
    int error                       # errno of the socket
    uint8_t address[16]
    int64_t sent                    # monotonic: when the probe began
    int64_t handed                  # monotonic: when the engine let go of it
    int64_t arrived                 # monotonic: kernel time of what was read last
    int64_t began                   # monotonic: this step
    int64_t first                   # kernel time of what was read first in this step, 0 = nothing
    uint32_t received
    uint8_t* out
    uint32_t out_bytes
    uint32_t out_space

cdef struct TlsMessage:
    Tls* tls
    uint32_t what

cdef struct TlsWorker:
    void* engine                    # State
    pthread_t thread
    bint runs
    int wake                        # eventfd
    int epoll
    Ring inbox                      # TlsMessage, from the engine
    Ring outbox                     # TlsMessage, to the engine
    bint said                       # the worker's: something is in `outbox` that the engine was not woken for
    bint told                       # the engine's: something is in `inbox` that it was not woken for
    epoll_event events[TLS_EVENTS]
    uint8_t scratch[16384]
