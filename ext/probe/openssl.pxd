# OpenSSL's declarations, as far as the engine uses them.

from libc.stdint cimport uint64_t
from libc.time cimport time_t

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
    ctypedef struct X509_STORE_CTX:
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
        SSL_R_WRONG_VERSION_NUMBER
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
    void SSL_CTX_set_verify(SSL_CTX*, int, int (*)(int, X509_STORE_CTX*) noexcept nogil)
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
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    X509_VERIFY_PARAM* SSL_get0_param(SSL*)
    int SSL_set_session(SSL*, SSL_SESSION*)
    int SSL_session_reused(const SSL*)
    int SSL_version(const SSL*)
    int SSL_do_handshake(SSL*)
    int SSL_read(SSL*, void*, int)
    int SSL_has_pending(const SSL*)
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
    void* X509_STORE_CTX_get_ex_data(X509_STORE_CTX*, int)
    int X509_STORE_CTX_get_error(X509_STORE_CTX*)
    X509* X509_STORE_CTX_get_current_cert(X509_STORE_CTX*)
    const ASN1_TIME* X509_get0_notBefore(const X509*)
    const ASN1_TIME* X509_get0_notAfter(const X509*)
    int X509_cmp_time(const ASN1_TIME*, time_t*)
    int ASN1_TIME_diff(int*, int*, const ASN1_TIME*, const ASN1_TIME*)
    int sk_X509_num(const X509_STACK*)
    X509* sk_X509_value(const X509_STACK*, int)

cdef extern from "openssl/err.h" nogil:
    void ERR_clear_error()
    unsigned long ERR_get_error()
    int ERR_GET_LIB(unsigned long)
    int ERR_GET_REASON(unsigned long)
    const char* ERR_reason_error_string(unsigned long)
