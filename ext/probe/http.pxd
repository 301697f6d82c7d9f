# An HTTP/1.x response, byte by byte.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    HTTP_LINE = 192             # bytes of a line that are kept: the rest of it cannot matter
    HTTP_MAX_HEAD = 16384       # bytes of all headers, interim responses included
    HTTP_MAX_BODY = 65536       # bytes of the body that a regular expression sees
    HTTP_CODES = 600

cdef enum:
    HTTP_STATUS_LINE = 0
    HTTP_HEADERS = 1
    HTTP_BODY = 2
    HTTP_CHUNK_SIZE = 3
    HTTP_CHUNK_DATA = 4
    HTTP_CHUNK_END = 5
    HTTP_COMPLETE = 6
    HTTP_FAILED = 7

cdef enum:
    HTTP_UNTIL_CLOSE = 0
    HTTP_LENGTH = 1
    HTTP_CHUNKED = 2

# Why a response is not one. The texts are in details.pyx.
cdef enum:
    FAULT_NONE = 0
    FAULT_NOT_HTTP = 1          # the first bytes are not a status line
    FAULT_HEAD_TOO_LONG = 2
    FAULT_BAD_HEADER = 3
    FAULT_BAD_LENGTH = 4
    FAULT_BAD_CHUNK = 5
    FAULT_CLOSED_EMPTY = 6      # closed before the first byte
    FAULT_CLOSED_HEAD = 7
    FAULT_CLOSED_BODY = 8
    FAULT_NO_MATCH = 9          # the body does not match the expression
    FAULT_STATUS = 10           # a status outside 100 to 599 (RFC 9110, 15)
    FAULT_TLS = 11              # the first bytes are a TLS record
    FAULT_HTTP2 = 12            # the first bytes are a frame of HTTP/2

cdef struct Http:
    uint64_t left               # bytes of the body, or of this chunk, still to come
    uint32_t head_bytes
    uint32_t body_bytes         # in `body`
    uint32_t body_space
    uint32_t searched           # bytes of an unfinished body that were given to the expression
    uint16_t status
    uint16_t line_bytes         # of this line so far, at most HTTP_LINE are kept
    uint8_t state               # HttpState
    uint8_t framing             # HttpFraming
    uint8_t fault               # HttpFault
    uint8_t rest                # the state to go on in with what follows the verdict, 0: nothing of it is read
    bint foreign                # the first byte is one of TLS or HTTP/2
    bint length_seen
    bint head_request           # the answer to HEAD has no body
    bint want_body
    bint skipping               # the verdict is made: bytes of the body are counted, not kept
    uint32_t skipped            # such bytes
    bint no_memory              # the body could not be kept: our trouble, not the server's
    const uint64_t* codes       # the statuses that are good, one bit each; a body is read for those only
    uint8_t* body               # malloc'd when wanted; the caller frees it
    char line[HTTP_LINE]
