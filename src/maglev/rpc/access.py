"""Callers and their roles.

A caller on the Unix socket is an operator: the mode of its directory decides which users can open it. A caller on TCP
has the role that the daemon was started with. A caller with a client certificate has the role that the organizational
units in the certificate's subject give it (``OU=operator``). Events, log records and overrides name the caller by
``Caller.name``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

SERVICE = "maglev.Maglev"

# Calls that change something: for operators only. Every caller that can connect may make the others.
OPERATOR_CALLS = frozenset(
    f"/{SERVICE}/{call}"
    for call in (
        "PauseBackend",
        "ResumeBackend",
        "EnableBackend",
        "DisableBackend",
        "DrainBackend",
        "UndrainBackend",
        "SetFrontendPoolBackendWeight",
        # Changes nothing, but stops VPP for some milliseconds.
        "GetBackendFlows",
        "ReloadConfig",
        "SyncVPPLBState",
        "ReleaseBrake",
    )
)


class Role(enum.Enum):
    """The role of a caller: a viewer reads, an operator changes too."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller (``unix:LOGIN``, ``unix`` without a proved login, ``tcp:ADDRESS``, ``tls:COMMON NAME``) and its role."""

    name: str
    role: Role

    def may(self, method: str) -> bool:
        """True if it may call ``method`` ("/maglev.Maglev/PauseBackend")."""
        return self.role is Role.OPERATOR or method not in OPERATOR_CALLS


_HEX = frozenset(b"0123456789abcdefABCDEF")

# A common name has 64 characters at most (RFC 5280); an authority that grants longer ones does not fill our log.
MAX_NAME = 64

Identity = Mapping[str, Iterable[bytes]]
"""The peer's identity as gRPC gives it (``auth_context``): x509_subject and others, absent without a certificate."""


def caller_of(peer: str, tcp_role: Role, identity: Identity | None = None, login: str = "") -> Caller:
    """The caller of a gRPC peer: ``unix:...``, ``ipv4:192.0.2.1:4711`` or ``ipv6:%5B2001:db8::1%5D:4711``.

    ``identity``: the peer's, proved in a TLS handshake. ``login``: the user on a Unix socket, proved by the kernel
    (``maglev.rpc.logins``); empty: not known. A peer of any kind but a Unix socket gets the role of TCP, so a
    peer of an unknown kind never gets more. A certificate that names no role makes a viewer.
    """
    if is_local(peer):
        return Caller(f"unix:{login}" if login else "unix", Role.OPERATOR)
    subjects = [data.decode("utf-8", "replace") for data in (identity or {}).get("x509_subject", ())]
    if subjects:
        return _certified(subjects[0])
    return Caller(f"tcp:{address_of(peer)}", tcp_role)


def is_local(peer: str) -> bool:
    """Whether a gRPC peer came by the Unix socket."""
    return peer.startswith("unix:")


def address_of(peer: str) -> str:
    """The address of a gRPC peer, without its port; ``unix`` for a Unix socket."""
    if is_local(peer):
        return "unix"
    _, _, rest = peer.partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]")


def _certified(subject: str) -> Caller:
    parts = list(attributes(subject))
    operator = any(key == "OU" and value == Role.OPERATOR.value for key, value in parts)
    name = next((value for key, value in parts if key == "CN" and value), subject)
    return Caller(f"tls:{name[:MAX_NAME]}", Role.OPERATOR if operator else Role.VIEWER)


def attributes(subject: str) -> Iterator[tuple[str, str]]:
    """Types and values of a distinguished name in the form of RFC 2253: ``CN=ann\\, o,OU=operator``."""
    key, value, at = "", bytearray(), 0
    data = subject.encode()
    reading_key = True
    while at < len(data):
        byte = data[at : at + 1]
        if byte == b"\\" and not reading_key:
            # Two hexadecimal digits are a byte, anything else stands for itself.
            pair = data[at + 1 : at + 3]
            if len(pair) == 2 and all(digit in _HEX for digit in pair):
                value.append(int(pair, 16))
                at += 3
            else:
                value += pair[:1]
                at += 2
            continue
        if byte in b",+":
            yield key, value.decode("utf-8", "replace")
            key, value, reading_key = "", bytearray(), True
        elif byte == b"=" and reading_key:
            reading_key = False
        elif reading_key:
            key += byte.decode("latin-1")
        else:
            value += byte
        at += 1
    if key:
        yield key, value.decode("utf-8", "replace")
