"""The caller of a call, for the gate and for the calls themselves."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from maglev.rpc.access import Caller, Role, caller_of, is_local
from maglev.rpc.logins import Logins

# Generic in the type stubs only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Callers:
    """Finds out who calls: by the listener, the certificate, or the login name on the Unix socket."""

    def __init__(self, tcp_role: Role, logins: Logins) -> None:
        self._tcp_role = tcp_role
        self._logins = logins

    def of(self, context: Context) -> Caller:
        """The caller of one call."""
        peer = context.peer()
        login = self._logins.name_of(context.invocation_metadata()) if is_local(peer) else ""
        return caller_of(peer, self._tcp_role, context.auth_context(), login)
