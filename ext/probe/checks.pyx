# Checks and origins, as Python's thread keeps them. Each becomes a native Check or Origin, which belongs to the engine
# once its command is pushed; its number and the count of its targets stay here.

_TYPES = {
    CheckType.ICMP: PROBE_ICMP,
    CheckType.TCP: PROBE_SYN,
    CheckType.HTTP: PROBE_HTTP,
    CheckType.HTTPS: PROBE_HTTP,
}
_CAPABILITIES = {"CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_DAY = 86400 * <int64_t>SECOND


def missing_capabilities(check):
    """Capabilities that ``check`` needs and this process lacks: CAP_NET_RAW (icmp, tcp syn), CAP_SYS_ADMIN (netns)."""
    needed = []
    if check.type == CheckType.ICMP or (
        check.type == CheckType.TCP and check.params.tls is None and check.params.mode is TcpMode.SYN
    ):
        needed.append("CAP_NET_RAW")
    if check.netns:
        needed.append("CAP_SYS_ADMIN")
    effective = 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return tuple(name for name in needed if not effective >> _CAPABILITIES[name] & 1)


def _clean(text, what):
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{what} contains a control character")
    return text


def _request(params, port, user_agent, usual_port):
    """The two parts of an HTTP request: before and after the target's address, the second empty with a fixed host."""
    method = params.method
    if method not in ("GET", "HEAD"):
        raise ValueError(f"method must be GET or HEAD, not {method!r}")
    path = _clean(params.path, "path")
    if not path.startswith("/") or " " in path:
        raise ValueError("path must start with / and contain no blank")
    start = f"{method} {path} HTTP/1.1\r\nHost: "
    suffix = "" if port == usual_port else f":{port}"
    rest = f"\r\nUser-Agent: {_clean(user_agent, 'user agent')}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    if params.host is None:
        return start.encode(), (suffix + rest).encode()
    # As written: a server that compares the whole header knows no port that the operator did not write. Only a bare
    # IPv6 address gets its brackets, which a Host header needs (RFC 9110, 7.2).
    host = _clean(params.host, "host")
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    return (start + host + rest).encode(), b""


def _server_name(params):
    """The name that a check over TLS asks for and verifies: server-name, else the host without its port, else None."""
    name = params.tls.server_name
    if name is None:
        name = getattr(params, "host", None)
        if name is not None:
            name = re.sub(r"(?<!:):\d+$", "", name) if name.count(":") < 2 or "]" in name else name
    if name is not None:
        name = _clean(name, "server name").strip("[]").rstrip(".")
        if not name or len(name.encode()) > 255:
            raise ValueError(f"{name!r} is no name of a server")
    return name


# One of each kind of bytes that an assertion of RE2 tells apart: a newline, one of words, another.
_NEXT_BYTES = tuple(bytes((code,)) for code in (10, 97, 32))


class _Expression:
    """A response-regexp, for bodies that have ended and for those that have not.

    What matches in an unfinished body counts only if no further byte can undo it. ``ok$`` matches in "ok" and not in
    "okay", and the same goes for ``\\b``: an assertion at the end of what has come depends on the next byte. Other
    assertions do not exist (RE2 looks at one byte on either side), and to these a byte is a newline, a letter of words,
    or another. So the match has to end before a byte of each of the three: each is appended once, and the expression is
    to be followed by any byte. A body that never ends does not match ``ok$``.
    """

    __slots__ = ("_ended", "_unfinished")

    def __init__(self, name, pattern):
        import re2

        options = re2.Options()
        options.log_errors = False
        pattern = pattern.encode()
        try:
            self._ended = re2.compile(pattern, options)
        except re2.error as error:
            raise ValueError(f"healthcheck {name!r}: response-regexp: {error}") from None
        try:
            self._unfinished = re2.compile(b"(?:" + pattern + rb")\C", options)
        except re2.error:
            self._unfinished = None     # an open \Q quotes what is put behind it: such a body is searched at its end

    def ended(self, body):
        """True if it is in a whole body."""
        return self._ended.search(body) is not None

    def unfinished(self, body):
        """True if it is in a body, whatever follows."""
        found = self._unfinished
        return found is not None and all(found.search(body + byte) is not None for byte in _NEXT_BYTES)


def _kind(check):
    """The PROBE_* of a check. ValueError: its parameters are those of another type."""
    tls = getattr(check.params, "tls", None)
    if check.type not in _TYPES:
        raise ValueError(f"healthcheck {check.name!r}: unknown type {check.type!r}")
    kind = _TYPES[check.type]
    if not isinstance(check.params, kind_of(check.type).params) or (
        kind == PROBE_HTTP and (tls is None) == (check.type == CheckType.HTTPS)
    ):
        raise ValueError(f"healthcheck {check.name!r}: parameters do not fit its type")
    if kind == PROBE_SYN and (check.params.mode is TcpMode.CONNECT or tls is not None):
        return PROBE_CONNECT
    return kind


def _validate(check, kind):
    """ValueError for what the engine cannot do."""
    spans = (check.interval, check.fast_interval, check.down_interval, check.timeout)
    if not 1 <= check.rise <= 100 or not 1 <= check.fall <= 100:
        raise ValueError(f"healthcheck {check.name!r}: rise and fall must be 1..100")
    if min(spans) < MS:
        raise ValueError(f"healthcheck {check.name!r}: intervals and timeout must be at least 1ms")
    if max(spans) > _DAY:
        raise ValueError(f"healthcheck {check.name!r}: intervals and timeout must be at most a day")
    if kind == PROBE_ICMP:
        if not ICMP_MIN_PAYLOAD <= check.params.size <= ICMP_MAX_PAYLOAD:
            raise ValueError(f"healthcheck {check.name!r}: size must be {ICMP_MIN_PAYLOAD}..{ICMP_MAX_PAYLOAD}")
    elif not 1 <= check.port <= 65535:
        raise ValueError(f"healthcheck {check.name!r}: port must be 1..65535")
    netns = check.netns
    if netns is not None and (not netns or len(netns.encode()) > 200 or "/" in netns or netns in (".", "..")):
        raise ValueError(f"healthcheck {check.name!r}: {netns!r} is no name of a network namespace")


# A copy that ends with a NUL; the engine frees it.
cdef char* _copied(bytes text) except NULL:
    cdef char* copy = <char*>malloc(len(text) + 1)
    if copy is NULL:
        raise MemoryError
    memcpy(copy, <const char*>text, len(text) + 1)
    return copy


# The fields of a Check that only HTTP needs.
cdef int _fill_http(Check* c, object params, bytes prefix, bytes suffix) except -1:
    c.head_request = params.method == "HEAD"
    c.regexp = params.response_regexp is not None
    c.host_is_address = params.host is None
    c.prefix_bytes = len(prefix)
    c.suffix_bytes = len(suffix)
    for low, high in params.response_codes:
        for code in range(max(low, 0), min(high, HTTP_CODES - 1) + 1):
            c.codes[code >> 6] |= <uint64_t>1 << (code & 63)
    c.request = _copied(prefix + suffix)
    return 0


# The context of a check over TLS; the authorities are read by a TLS thread, with the first probe.
cdef int _fill_tls(Check* c, object params) except -1:
    cdef TlsContext* context = <TlsContext*>calloc(1, sizeof(TlsContext))
    cdef bytes packed
    if context is NULL:
        raise MemoryError
    context.users = 1
    c.tls = context
    context.verify = not params.tls.insecure_skip_verify
    context.http = c.type == PROBE_HTTP
    name = _server_name(params)
    if name is not None:
        context.name = _copied(name.encode())
        try:
            packed = ipaddress.ip_address(name).packed
        except ValueError:
            pass
        else:
            context.name_is_ip = True
            context.ip_bytes = <uint8_t>len(packed)
            memcpy(context.ip, <const char*>packed, len(packed))
    if params.tls.ca_file is not None:
        packed = os.fsencode(params.tls.ca_file)
        if not packed or b"\0" in packed:
            raise ValueError(f"{params.tls.ca_file!r} is no file name")
        context.ca_file = _copied(packed)
    return 0


cdef class CheckEntry:
    """A check that was added: kept until it was removed and no target uses it any more."""
    cdef object check
    cdef object expression      # _Expression of the response's body; None without one
    cdef uint32_t number
    cdef uint32_t targets
    cdef uint8_t kind           # PROBE_*
    cdef bint removed


cdef class Checks:
    """All checks by number. A number is given again when its check is gone."""
    cdef Native native
    cdef str user_agent
    cdef dict table             # number -> CheckEntry
    cdef list unused

    def __cinit__(self, Native native, str user_agent):
        self.native = native
        self.user_agent = user_agent
        self.table = {}
        self.unused = []

    cdef CheckEntry entry(self, object number):
        """KeyError: unknown, or removed."""
        cdef CheckEntry entry = self.table.get(number)
        if entry is None or entry.removed:
            raise KeyError(number)
        return entry

    cdef object expression(self, uint32_t number):
        """The expression that the regexp thread looks for; None if the check was removed meanwhile."""
        cdef CheckEntry entry = self.table.get(number)
        return None if entry is None else entry.expression

    cdef int add(self, object check) except -1:
        cdef CheckEntry entry = CheckEntry.__new__(CheckEntry)
        cdef Check* c
        cdef Command command
        entry.check = check
        entry.kind = _kind(check)
        _validate(check, entry.kind)
        request = (b"", b"")
        if entry.kind == PROBE_HTTP:
            usual_port = 80 if check.params.tls is None else 443
            request = _request(check.params, check.port, self.user_agent, usual_port)
            if sum(map(len, request)) > MAX_REQUEST:
                raise ValueError(f"healthcheck {check.name!r}: the request is longer than {MAX_REQUEST} bytes")
            if check.params.response_regexp is not None:
                entry.expression = _Expression(check.name, check.params.response_regexp)
        entry.number = self.unused[len(self.unused) - 1] if self.unused else len(self.table)
        if entry.number == MAX_CHECKS:
            raise EngineError(f"more than {MAX_CHECKS} checks")
        c = <Check*>calloc(1, sizeof(Check))
        if c is NULL:
            raise MemoryError
        try:
            self.fill(c, entry, request)
            memset(&command, 0, sizeof(command))
            command.op = OP_CHECK_SET
            command.check = entry.number
            command.new_check = c
            self.native.push(&command)
        except BaseException:
            check_free(self.native.e, c)
            raise
        if self.unused:
            self.unused.pop()
        self.table[entry.number] = entry
        return entry.number

    cdef int fill(self, Check* c, CheckEntry entry, tuple request) except -1:
        check = entry.check
        c.id = entry.number
        c.type = entry.kind
        c.histogram = check.type
        c.interval = check.interval
        c.fast = check.fast_interval
        c.down = check.down_interval
        c.timeout = check.timeout
        c.rise = check.rise
        c.fall = check.fall
        c.port = check.port
        if entry.kind == PROBE_ICMP:
            c.icmp_size = check.params.size
        if entry.kind == PROBE_HTTP:
            _fill_http(c, check.params, request[0], request[1])
        if getattr(check.params, "tls", None) is not None:
            _fill_tls(c, check.params)
        return 0

    cdef int remove(self, object number) except -1:
        cdef CheckEntry entry = self.entry(number)
        entry.removed = True
        if entry.targets == 0:
            self.drop(entry)
        return 0

    cdef int release(self, uint32_t number) except -1:
        """One target less."""
        cdef CheckEntry entry = self.table[number]
        entry.targets -= 1
        if entry.targets == 0 and entry.removed:
            self.drop(entry)
        return 0

    cdef int drop(self, CheckEntry entry) except -1:
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.op = OP_CHECK_FREE
        command.check = entry.number
        self.native.push(&command)
        del self.table[entry.number]
        self.unused.append(entry.number)
        return 0


cdef class OriginEntry:
    """An origin that targets use."""
    cdef tuple key
    cdef uint32_t number
    cdef uint32_t targets
    cdef uint32_t vantage       # shared by all origins of one namespace, family and source


cdef class Origins:
    """All origins: made with the first target of a key, and forgotten with the last."""
    cdef Native native
    cdef dict by_key            # namespace, family, source, kind, ... -> OriginEntry
    cdef dict by_number
    cdef list unused

    def __cinit__(self, Native native):
        self.native = native
        self.by_key = {}
        self.by_number = {}
        self.unused = []

    cdef tuple key(self, CheckEntry entry, bint v6):
        """Targets share sockets if all of this is the same."""
        check = entry.check
        source = check.probe_ipv6_src if v6 else check.probe_ipv4_src
        whole = entry.kind == PROBE_ICMP and not v6 and check.params.size <= ICMP_WHOLE_PAYLOAD
        ports = 0
        if entry.kind == PROBE_SYN:
            # A port each 0.8 intervals: less apart the jitter does not bring two probes.
            quickest = min(check.interval, check.fast_interval, check.down_interval)
            ports = USUAL_PORTS
            while ports < MAX_PORTS and (ports - 2) * quickest * 4 // 5 < PORT_REST * <int64_t>SECOND:
                ports *= 2
        return (check.netns, v6, source, min(entry.kind, PROBE_CONNECT), whole, ports)

    cdef uint32_t take(self, CheckEntry entry, bint v6) except? 0xffffffff:
        """The origin for a check and a family, one target more."""
        cdef OriginEntry known
        key = self.key(entry, v6)
        known = self.by_key.get(key)
        if known is None:
            known = self.make(key)
        known.targets += 1
        return known.number

    cdef OriginEntry make(self, tuple key):
        cdef OriginEntry entry = OriginEntry.__new__(OriginEntry)
        cdef Origin* origin
        cdef Command command
        entry.key = key
        entry.number = self.unused[len(self.unused) - 1] if self.unused else len(self.by_key)
        if entry.number == MAX_ORIGINS:
            raise EngineError(f"more than {MAX_ORIGINS} combinations of namespace, source address and probe type")
        origin = <Origin*>calloc(1, sizeof(Origin))
        if origin is NULL:
            raise MemoryError
        try:
            self.fill(origin, entry)
            memset(&command, 0, sizeof(command))
            command.op = OP_ORIGIN_SET
            command.origin = entry.number
            command.new_origin = origin
            self.native.push(&command)
        except BaseException:
            free(origin)
            raise
        if self.unused:
            self.unused.pop()
        self.by_key[key] = self.by_number[entry.number] = entry
        return entry

    cdef uint32_t vantage(self, object netns, bint v6, object source):
        """The number that origins of one namespace, family and source address share; a free one for the first."""
        cdef OriginEntry known
        for key, known in self.by_key.items():
            if key[:3] == (netns, v6, source):
                return known.vantage
        taken = {known.vantage for known in self.by_key.values()}
        return min(set(range(len(taken) + 1)) - taken)

    cdef int fill(self, Origin* origin, OriginEntry entry) except -1:
        cdef bytes packed
        netns, v6, source, kind, whole, ports = entry.key
        origin.id = entry.number
        origin.v6 = v6
        origin.want_icmp = kind == PROBE_ICMP
        origin.whole = whole
        origin.want_tcp = kind == PROBE_SYN
        origin.ports.wanted = ports
        origin.icmp.fd = origin.tcp.fd = origin.resolver = origin.netlink = origin.aside[0] = origin.aside[1] = -1
        origin.vantage = entry.vantage = self.vantage(netns, v6, source)
        origin.failure.retry_delay = 250 * MS
        packed = os.urandom(8)
        memcpy(&origin.magic, <const char*>packed, 8)
        if source is not None:
            packed = source.packed
            origin.has_source = True
            memcpy(origin.source, <const char*>packed, len(packed))
        if netns:
            packed = netns.encode()
            memcpy(origin.netns.name, <const char*>packed, len(packed))
        return 0

    cdef int release(self, uint32_t number) except -1:
        """One target less."""
        cdef OriginEntry entry = self.by_number[number]
        cdef Command command
        entry.targets -= 1
        if entry.targets:
            return 0
        memset(&command, 0, sizeof(command))
        command.op = OP_ORIGIN_FREE
        command.origin = number
        self.native.push(&command)
        del self.by_key[entry.key]
        del self.by_number[number]
        self.unused.append(number)
        return 0
