# Texts for what the engine keeps as two numbers. Python's thread.


_ICMP4 = {
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 5): "source route failed",
    (3, 6): "network unknown",
    (3, 7): "host unknown",
    (3, 9): "network prohibited",
    (3, 10): "host prohibited",
    (3, 11): "network unreachable for this service",
    (3, 12): "host unreachable for this service",
    (3, 13): "prohibited by a filter",
    (11, 0): "time to live exceeded",
    (11, 1): "reassembly time exceeded",
}

_ICMP6 = {
    (1, 0): "no route",
    (1, 1): "prohibited by a filter",
    (1, 2): "beyond the scope of the source",
    (1, 3): "address unreachable",
    (1, 4): "port unreachable",
    (1, 5): "source address refused",
    (1, 6): "route rejected",
    (3, 0): "hop limit exceeded",
    (3, 1): "reassembly time exceeded",
}

HTTP_FAULTS = {
    FAULT_NOT_HTTP: "not an HTTP response",
    FAULT_HEAD_TOO_LONG: "headers longer than 16 KiB",
    FAULT_BAD_HEADER: "bad header",
    FAULT_BAD_LENGTH: "bad content length",
    FAULT_BAD_CHUNK: "bad chunk",
    FAULT_CLOSED_EMPTY: "closed without a response",
    FAULT_CLOSED_HEAD: "closed within the headers",
    FAULT_CLOSED_BODY: "closed within the body",
    FAULT_NO_MATCH: "body does not match",
    FAULT_STATUS: "status {status:03}",
    FAULT_TLS: "answers with TLS: use type https",
    FAULT_HTTP2: "answers with HTTP/2",
}

_BLOCKS = {
    BLOCK_SEND: "cannot send",
    BLOCK_SOCKET: "cannot open a socket",
    BLOCK_CONNECT: "cannot connect",
    BLOCK_RAW_ICMP: "cannot open a raw ICMP socket",
    BLOCK_RAW_TCP: "cannot open a raw TCP socket",
    BLOCK_SOURCE: "cannot use the source address",
    BLOCK_PORTS: "cannot reserve source ports",
    BLOCK_NETNS: "cannot enter the network namespace",
    BLOCK_FILTER: "cannot attach a packet filter",
    BLOCK_AUTHORITIES: "cannot read the certificate authorities",
    BLOCK_TLS: "cannot do TLS",
}

# Why a probe did not leave this host: its name in counters and logs, and words for people. In the order of BLOCK_*.
UNPROBED = {
    BLOCK_BUFFER: ("buffer", "no buffer"),
    BLOCK_ROUTE: ("route", "no route"),
    BLOCK_LINK: ("link", "link down"),
    BLOCK_FIREWALL: ("firewall", "firewall"),
    BLOCK_NEIGHBOURS: ("neighbours", "neighbour table full (net.{family}.neigh.default.gc_thresh3)"),
    BLOCK_QUEUE: ("queue", "own queue dropped it"),
}

_TLS = {
    TLS_FAULT_CLOSED: "closed within the handshake",
    TLS_FAULT_FLOOD: "far too much data",
    TLS_FAULT_PLAIN: "answers without TLS",
    TLS_FAULT_PLAIN_HTTP: "answers without TLS: use type http",
}

# OpenSSL's reasons against a certificate, where a transition needs plainer words.
_VERIFY = {
    2: "certificate signed by unknown authority",
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "certificate is self-signed",
    19: "certificate signed by unknown authority",
    20: "certificate signed by unknown authority",
    21: "certificate signed by unknown authority",
    22: "certificate chain is too long",
}

# Alerts that OpenSSL has no long words for (RFC 8446, 6).
_TLS_ALERTS = {
    109: "missing extension",
    110: "unsupported extension",
    112: "unrecognized name",
    115: "unknown PSK identity",
    116: "certificate required",
    120: "no application protocol",
}

# Reasons of libssl.
_TLS_REASONS = {
    258: "no TLS version in common",
    267: "not a TLS answer",
}


def _tls_error(error):
    """OpenSSL's words for one of its packed errors."""
    cdef const char* text
    if ERR_GET_LIB(error) == ERR_LIB_SSL and ERR_GET_REASON(error) in _TLS_REASONS:
        return _TLS_REASONS[ERR_GET_REASON(error)]
    text = ERR_reason_error_string(error)
    return f"TLS: {text.decode('ascii', 'replace')}" if text is not NULL else f"TLS: error {error:#x}"


def _span(ms):
    return f"{ms / 1000:g}s" if ms >= 1000 else f"{ms}ms"


def render_detail(int kind, unsigned int value, name=None):
    """The text of a detail as ``snapshot()`` packs it; short ASCII. ``name``: whom a certificate should be of."""
    if kind == DETAIL_ERRNO:
        return os.strerror(value).lower()
    if kind == DETAIL_ICMP4 or kind == DETAIL_ICMP6:
        number = value >> 8, value & 255
        name = "ICMP" if kind == DETAIL_ICMP4 else "ICMPv6"
        text = (_ICMP4 if kind == DETAIL_ICMP4 else _ICMP6).get(number, "error")
        return f"{text} ({name} {number[0]}/{number[1]})"
    if kind == DETAIL_STATUS:
        # No status at all, by its number: the word says what the number is.
        return str(value) if 100 <= value <= 599 else HTTP_FAULTS[FAULT_STATUS].format(status=value)
    if kind == DETAIL_HTTP:
        return HTTP_FAULTS.get(value, "")
    if kind == DETAIL_TIMEOUT:
        return f"no answer within {_span(value)}"
    if kind == DETAIL_TLS_VERIFY:
        if value in (X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH):
            return f"certificate is not valid for {name or 'this server'}"
        return _verify_text(value)
    if kind == DETAIL_TLS_ALERT:
        text = _TLS_ALERTS.get(value) or SSL_alert_desc_string_long(value).decode("ascii", "replace")
        return f"TLS alert: {text}"
    if kind == DETAIL_TLS_ERROR:
        return _tls_error(value)
    if kind == DETAIL_TLS_FAULT:
        return _TLS.get(value, "")
    if kind == DETAIL_SELF:
        return "nothing listens (connected to itself)"
    return ""


cdef str _verify_text(uint32_t code):
    """OpenSSL's reason to refuse a certificate."""
    return _VERIFY.get(code) or f"certificate: {X509_verify_cert_error_string(code).decode('ascii', 'replace')}"


def render_blocked(int kind, int error, netns=None, ca_file=None, bint v6=False):
    """Why a target cannot be probed: the errno's name, what failed, and what helps where that is known."""
    if kind == BLOCK_NONE:
        return ""
    if kind in UNPROBED:
        text = "not probed: " + UNPROBED[kind][1].format(family="ipv6" if v6 else "ipv4")
        return f"{text}: {errnos.errorcode.get(error, str(error))}" if error else text
    if kind == BLOCK_CLOCK:
        return f"not probed: clock: {_verify_text(error)} by this host's clock, which may be wrong"
    text = f"{errnos.errorcode.get(error, str(error))}: {_BLOCKS.get(kind, 'cannot probe')}"
    if kind == BLOCK_NETNS and netns:
        text += f" {netns!r}"
    if kind == BLOCK_AUTHORITIES and ca_file:
        text += f" {ca_file!r}"
    text += f": {os.strerror(error).lower()}"
    if error == EPERM and kind in (BLOCK_RAW_ICMP, BLOCK_RAW_TCP):
        text += " (needs CAP_NET_RAW)"
    elif error == EPERM and kind == BLOCK_NETNS:
        text += " (needs CAP_SYS_ADMIN)"
    elif error in (EMFILE, ENFILE):
        text += " (raise LimitNOFILE)"
    elif error == EADDRNOTAVAIL and kind == BLOCK_CONNECT:
        text += " (no free port: net.ipv4.ip_local_port_range)"
    return text
