# The words for what the engine keeps as two numbers.

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

_HTTP = {
    FAULT_NOT_HTTP: "not an HTTP response",
    FAULT_HEAD_TOO_LONG: "headers longer than 16 KiB",
    FAULT_BAD_HEADER: "bad header",
    FAULT_BAD_LENGTH: "bad content length",
    FAULT_BAD_CHUNK: "bad chunk",
    FAULT_CLOSED_EMPTY: "closed without a response",
    FAULT_CLOSED_HEAD: "closed within the headers",
    FAULT_CLOSED_BODY: "closed within the body",
    FAULT_NO_MATCH: "body does not match",
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
}


def _span(ms):
    return f"{ms / 1000:g}s" if ms >= 1000 else f"{ms}ms"


def render_detail(int kind, unsigned int value):
    """The text of a detail as ``snapshot()`` packs it; short ASCII."""
    if kind == DETAIL_ERRNO:
        return os.strerror(value).lower()
    if kind == DETAIL_ICMP4 or kind == DETAIL_ICMP6:
        number = value >> 8, value & 255
        name = "ICMP" if kind == DETAIL_ICMP4 else "ICMPv6"
        text = (_ICMP4 if kind == DETAIL_ICMP4 else _ICMP6).get(number, "error")
        return f"{text} ({name} {number[0]}/{number[1]})"
    if kind == DETAIL_STATUS:
        return str(value)
    if kind == DETAIL_HTTP:
        return _HTTP.get(value, "")
    if kind == DETAIL_TIMEOUT:
        return f"no answer within {_span(value)}"
    if kind == DETAIL_SELF:
        return "nothing listens (connected to itself)"
    return ""


def render_blocked(int kind, int error, netns=None):
    """Why a target cannot be probed: the errno's name, what failed, and what helps where that is known."""
    if kind == BLOCK_NONE:
        return ""
    text = f"{errnos.errorcode.get(error, str(error))}: {_BLOCKS.get(kind, 'cannot probe')}"
    if kind == BLOCK_NETNS and netns:
        text += f" {netns!r}"
    text += f": {os.strerror(error).lower()}"
    if error == EPERM and kind in (BLOCK_RAW_ICMP, BLOCK_RAW_TCP):
        text += " (needs CAP_NET_RAW)"
    elif error == EPERM and kind == BLOCK_NETNS:
        text += " (needs CAP_SYS_ADMIN)"
    elif error in (EMFILE, ENFILE):
        text += " (raise LimitNOFILE)"
    return text
