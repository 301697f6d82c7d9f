# A response parser that takes bytes as they come, split anywhere, and ends in HTTP_COMPLETE or HTTP_FAILED. It does no
# I/O and reads no byte twice, so any split of the same bytes gives the same end. Runs on the engine thread, and over
# TLS on a TLS thread.
#
# A response is complete for the verdict as soon as nothing after it can change it: mostly with its head. What follows
# of a response whose end is known (`rest`) may still be read, so that the server can write it without an error:
# `http_skip` finds that end.


cdef void http_init(Http* http, const uint64_t* codes, bint head_request, bint want_body) noexcept nogil:
    memset(http, 0, sizeof(Http))
    http.codes = codes
    http.head_request = head_request
    http.want_body = want_body


cdef inline bint http_code_good(const uint64_t* codes, uint32_t status) noexcept nogil:
    return status < HTTP_CODES and (codes[status >> 6] >> (status & 63)) & 1


cdef inline void http_fail(Http* http, int fault) noexcept nogil:
    http.state = HTTP_FAILED
    http.fault = fault


cdef inline char lower(char c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


# "HTTP/1.x NNN", then a blank or the end. Judged at each byte, so that an SSH banner without a line end fails at once.
cdef bint http_status_byte_ok(int at, uint8_t byte) noexcept nogil:
    cdef const char* prefix = b"HTTP/1."
    if at < 7:
        return byte == <uint8_t>prefix[at]
    if at == 7 or 9 <= at <= 11:
        return 48 <= byte <= 57
    if at == 8 or at == 12:
        return byte == 32
    return True


# A first byte that no status line has, and that TLS or HTTP/2 begins with: a server of these answers a plain request
# with an alert (record type 21; 22: a handshake), or with the SETTINGS frame that precedes all others, perhaps with
# GOAWAY alone. Two bytes tell TLS from noise, nine are the head of a frame (RFC 8446, 5.1; RFC 9113, 4.1 and 3.4).
cdef inline bint http_foreign(uint8_t first) noexcept nogil:
    return first == 0 or first == 21 or first == 22


cdef void http_foreign_byte(Http* http, uint8_t byte) noexcept nogil:
    cdef int at = http.line_bytes
    http.foreign = True
    http.line[at] = <char>byte
    http.line_bytes += 1
    if at == 0:
        return
    if http.line[0] != 0:
        http_fail(http, FAULT_TLS if byte == 3 else FAULT_NOT_HTTP)
    elif at == 1 and byte > 0x40:
        http_fail(http, FAULT_NOT_HTTP)     # a frame longer than a server may send at first
    elif at == 3 and byte != 4 and byte != 7:
        http_fail(http, FAULT_NOT_HTTP)     # neither SETTINGS nor GOAWAY
    elif at >= 4 and byte != 0:
        http_fail(http, FAULT_NOT_HTTP)     # flags, or a stream: these two have none
    elif at == 8:
        http_fail(http, FAULT_HTTP2)


cdef void http_status_line(Http* http) noexcept nogil:
    if http.line_bytes < 12:
        http_fail(http, FAULT_NOT_HTTP)
        return
    http.status = (http.line[9] - 48) * 100 + (http.line[10] - 48) * 10 + (http.line[11] - 48)
    if not 100 <= http.status <= 599:
        http_fail(http, FAULT_STATUS)
        return
    http.framing = HTTP_UNTIL_CLOSE
    http.length_seen = False
    http.state = HTTP_HEADERS


# The value of a header if the kept line is that header: where it starts, or -1.
cdef int http_value(const Http* http, const char* name) noexcept nogil:
    cdef int length = <int>strlen(name)
    cdef int i
    if http.line_bytes <= length or http.line[length] != 58:
        return -1
    for i in range(length):
        if lower(http.line[i]) != name[i]:
            return -1
    i = length + 1
    while i < http.line_bytes and (http.line[i] == 32 or http.line[i] == 9):
        i += 1
    return i


cdef void http_content_length(Http* http, int at) noexcept nogil:
    cdef uint64_t value = 0
    cdef int end = http.line_bytes
    while end > at and (http.line[end - 1] == 32 or http.line[end - 1] == 9):
        end -= 1
    if at >= end or end - at > 18:
        http_fail(http, FAULT_BAD_LENGTH)
        return
    while at < end:
        if not 48 <= http.line[at] <= 57:
            http_fail(http, FAULT_BAD_LENGTH)
            return
        value = value * 10 + (http.line[at] - 48)
        at += 1
    if http.length_seen and value != http.left:
        http_fail(http, FAULT_BAD_LENGTH)
        return
    http.length_seen = True
    http.left = value
    if http.framing != HTTP_CHUNKED:
        http.framing = HTTP_LENGTH


# Transfer-Encoding: "chunked" counts as the last coding only (RFC 9112, 6.3); it overrides a length.
cdef void http_transfer_encoding(Http* http, int at) noexcept nogil:
    cdef const char* chunked = b"chunked"
    cdef int end = http.line_bytes
    cdef int i
    while end > at and (http.line[end - 1] == 32 or http.line[end - 1] == 9):
        end -= 1
    http.framing = HTTP_UNTIL_CLOSE
    http.length_seen = False
    if end - at < 7 or (end - at > 7 and http.line[end - 8] not in (32, 9, 44)):
        return
    for i in range(7):
        if lower(http.line[end - 7 + i]) != chunked[i]:
            return
    http.framing = HTTP_CHUNKED


cdef void http_end_of_head(Http* http) noexcept nogil:
    if 100 <= http.status < 200 and http.status != 101:
        http.state = HTTP_STATUS_LINE       # an interim response: the real one follows
        return
    if http.head_request or http.status in (101, 204, 304) or (http.framing == HTTP_LENGTH and http.left == 0):
        http.state = HTTP_COMPLETE
        return
    http.state = HTTP_BODY
    if http.framing == HTTP_CHUNKED:
        http.left = 0
        http.state = HTTP_CHUNK_SIZE
    if not http.want_body or not http_code_good(http.codes, http.status):
        http_settle(http)


# The verdict needs no more of this response. Where its end is known, the rest of it can be read to there.
cdef void http_settle(Http* http) noexcept nogil:
    if HTTP_BODY <= http.state < HTTP_COMPLETE:
        http.rest = 0 if http.framing == HTTP_UNTIL_CLOSE else http.state
        http.state = HTTP_COMPLETE


# A whole line of the head, without its line end.
cdef void http_line(Http* http) noexcept nogil:
    cdef int at
    if http.state == HTTP_STATUS_LINE:
        http_status_line(http)
        return
    if http.line_bytes == 0:
        http_end_of_head(http)
        return
    if http.line[0] == 32 or http.line[0] == 9:
        return                              # folded: belongs to the line before, and to none that matters
    at = http_value(http, b"content-length")
    if at >= 0:
        http_content_length(http, at)
        return
    at = http_value(http, b"transfer-encoding")
    if at >= 0:
        http_transfer_encoding(http, at)


# The size line of a chunk: hexadecimal, then perhaps an extension.
cdef void http_chunk_size(Http* http) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i = 0
    cdef char c
    while i < http.line_bytes:
        c = lower(http.line[i])
        if 48 <= c <= 57:
            value = value * 16 + (c - 48)
        elif 97 <= c <= 102:
            value = value * 16 + (c - 87)
        else:
            break
        i += 1
    if i == 0 or i > 15 or (i < http.line_bytes and http.line[i] not in (32, 9, 59)):
        http_fail(http, FAULT_BAD_CHUNK)
    elif value == 0:
        http.state = HTTP_COMPLETE          # trailers say nothing that is asked for
    else:
        http.left = value
        http.state = HTTP_CHUNK_DATA


# Keep some of the body. True when the limit is reached: what is there is what gets searched.
cdef bint http_keep(Http* http, const uint8_t* data, size_t length) noexcept nogil:
    cdef size_t room = HTTP_MAX_BODY - http.body_bytes
    cdef uint32_t space
    cdef uint8_t* grown
    if length > room:
        length = room
    if http.body_bytes + length > http.body_space:
        space = 4096 if http.body_space == 0 else http.body_space
        while space < http.body_bytes + length:
            space *= 2
        grown = <uint8_t*>realloc(http.body, space)
        if grown is NULL:
            http.no_memory = True
            http_fail(http, FAULT_NONE)
            return False
        http.body = grown
        http.body_space = space
    memcpy(http.body + http.body_bytes, data, length)
    http.body_bytes += <uint32_t>length
    return http.body_bytes == HTTP_MAX_BODY


# A copy of the body as far as it has come, which the caller frees; NULL: no memory.
cdef uint8_t* http_copy(const Http* http) noexcept nogil:
    cdef uint8_t* copy = <uint8_t*>malloc(http.body_bytes)
    if copy is not NULL:
        memcpy(copy, http.body, http.body_bytes)
    return copy


# Take bytes of a body: keep them, or count them. True: no more than that.
cdef inline bint http_take(Http* http, const uint8_t* data, size_t length) noexcept nogil:
    if not http.skipping:
        return http_keep(http, data, length)
    if length > HTTP_MAX_BODY - http.skipped:
        return True
    http.skipped += <uint32_t>length
    return False


# Take `length` bytes. Stops at the end of the response; later bytes do not matter. Returns how many it has taken.
cdef size_t http_feed(Http* http, const uint8_t* data, size_t length) noexcept nogil:
    cdef size_t i = 0
    cdef size_t part
    cdef uint8_t byte
    while i < length and http.state < HTTP_COMPLETE:
        if http.state == HTTP_BODY or http.state == HTTP_CHUNK_DATA:
            part = length - i
            if (http.state == HTTP_CHUNK_DATA or http.framing == HTTP_LENGTH) and part > http.left:
                part = http.left
            if http_take(http, data + i, part):
                http.state = HTTP_COMPLETE
                return i + part
            i += part
            if http.state == HTTP_CHUNK_DATA:
                http.left -= part
                if http.left == 0:
                    http.state = HTTP_CHUNK_END
                    http.line_bytes = 0
            elif http.state == HTTP_BODY and http.framing == HTTP_LENGTH:
                http.left -= part
                if http.left == 0:
                    http.state = HTTP_COMPLETE
            continue
        byte, i = data[i], i + 1
        http.head_bytes += 1
        if http.foreign or (http.head_bytes == 1 and http_foreign(byte)):
            http_foreign_byte(http, byte)
        elif http.head_bytes > HTTP_MAX_HEAD and http.state <= HTTP_HEADERS:
            http_fail(http, FAULT_HEAD_TOO_LONG)
        elif byte == 10:
            if http.line_bytes and http.line_bytes <= HTTP_LINE and http.line[http.line_bytes - 1] == 13:
                http.line_bytes -= 1
            if http.line_bytes > HTTP_LINE:
                http.line_bytes = HTTP_LINE
            if http.state == HTTP_CHUNK_SIZE:
                http_chunk_size(http)
            elif http.state == HTTP_CHUNK_END:
                if http.line_bytes:
                    http_fail(http, FAULT_BAD_CHUNK)
                else:
                    http.state = HTTP_CHUNK_SIZE
            else:
                http_line(http)
            http.line_bytes = 0
        elif byte == 0:
            http_fail(http, FAULT_NOT_HTTP if http.state == HTTP_STATUS_LINE else FAULT_BAD_HEADER)
        elif http.state == HTTP_STATUS_LINE and not (
            http_status_byte_ok(http.line_bytes, byte) or (http.line_bytes == 12 and byte == 13)
        ):
            http_fail(http, FAULT_NOT_HTTP)
        elif http.state == HTTP_CHUNK_END and not (http.line_bytes == 0 and byte == 13):
            http_fail(http, FAULT_BAD_CHUNK)
        elif http.line_bytes < HTTP_LINE:
            http.line[http.line_bytes] = <char>byte
            http.line_bytes += 1
        elif http.state == HTTP_CHUNK_SIZE:
            http_fail(http, FAULT_BAD_CHUNK)    # a size with an endless extension
        else:
            http.line_bytes = HTTP_LINE + 1     # longer than the kept part of a line
    return i


# The verdict is made: look for the end of the response in what follows. At its end `rest` is 0; so it is where there is
# more than is worth reading, or no body after all.
cdef void http_skip(Http* http, const uint8_t* data, size_t length) noexcept nogil:
    if http.rest == 0:
        return
    http.state = http.rest
    http.skipping = True
    http_feed(http, data, length)
    http.rest = 0 if http.state >= HTTP_COMPLETE else http.state
    http.state = HTTP_COMPLETE
    http.fault = FAULT_NONE         # bad chunks after the verdict end the reading, and mean no more

# The server has closed. A body without a length ends so; anything else is cut off.
cdef void http_eof(Http* http) noexcept nogil:
    if http.state >= HTTP_COMPLETE:
        return
    if http.state == HTTP_BODY and http.framing == HTTP_UNTIL_CLOSE:
        http.state = HTTP_COMPLETE
    elif http.state == HTTP_STATUS_LINE and http.head_bytes == 0:
        http_fail(http, FAULT_CLOSED_EMPTY)
    elif http.foreign:
        http_fail(http, FAULT_NOT_HTTP)
    elif http.state <= HTTP_HEADERS:
        http_fail(http, FAULT_CLOSED_HEAD)
    else:
        http_fail(http, FAULT_CLOSED_BODY)
