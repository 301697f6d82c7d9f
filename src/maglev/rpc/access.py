"""Who calls, and what he may do.

A caller on the Unix socket is operator: the directory's mode decides who can open it. A caller on TCP has the role
that the daemon was started with. Whoever is asked for an identity by an event, a log record or an override finds
``Caller.name`` there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from urllib.parse import unquote

SERVICE = "maglev.Maglev"

# Calls that change something: for operators only. All others are for everybody who can connect.
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
        "ReloadConfig",
        "SyncVPPLBState",
    )
)


class Role(enum.Enum):
    """What a caller may do: a viewer reads, an operator changes too."""

    VIEWER = "viewer"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: ``unix`` or ``tcp:ADDRESS``, and his role."""

    name: str
    role: Role

    def may(self, method: str) -> bool:
        """Whether he may call ``method`` ("/maglev.Maglev/PauseBackend")."""
        return self.role is Role.OPERATOR or method not in OPERATOR_CALLS


def caller_of(peer: str, tcp_role: Role) -> Caller:
    """The caller behind a gRPC peer: ``unix:...``, ``ipv4:192.0.2.1:4711`` or ``ipv6:%5B2001:db8::1%5D:4711``.

    Anything that is not a Unix socket has the role of TCP: what cannot be told apart never gets more.
    """
    if peer.startswith("unix:"):
        return Caller("unix", Role.OPERATOR)
    _, _, rest = peer.partition(":")
    address = unquote(rest).rpartition(":")[0].strip("[]")
    return Caller(f"tcp:{address}", tcp_role)
