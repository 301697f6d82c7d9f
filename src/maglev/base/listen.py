"""Listening addresses as flags give them: ``host:port``, ``[v6]:port``, ``:port`` for all addresses."""

from __future__ import annotations

from ipaddress import ip_address


def parse_listen(text: str) -> tuple[str | None, int]:
    """Host and port; host None means all addresses. Raises ``ValueError`` with words for the operator."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:{port}")
    if not host:
        return None, int(port)
    if host != "localhost":
        try:
            ip_address(host.partition("%")[0])
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is no address") from None
    return host, int(port)


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach a listener on ``host``."""
    if host is None:
        return False
    return host == "localhost" or ip_address(host.partition("%")[0]).is_loopback
