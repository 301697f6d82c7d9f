"""A connection tracking table without room for another connection."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.alone import alone
from tests.helpers.netns import SERVER, Pair, inside
from tests.helpers.trouble import firewall

_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_HELD = 300


@contextlib.contextmanager
def full_conntrack(nets: Pair, port: int) -> Iterator[None]:
    """The client's namespace tracks connections, and holds as many to ``port`` as the machine allows in a namespace.

    The limit is the machine's, the count each namespace's: one test at a time, and as it was at the end. The kernel
    makes room by dropping connections that were never answered, so these are established.
    """
    held: list[socket.socket] = []
    with alone("conntrack"):
        before = _MAX.read_text()
        try:
            with firewall(nets.client, "ct state invalid,new,established accept"):
                for _ in range(_HELD):
                    held.append(inside(nets.client, lambda: socket.create_connection((SERVER, port), timeout=5)))
                _MAX.write_text(str(_HELD - 50))
                yield
        finally:
            _MAX.write_text(before)
            for sock in held:
                sock.close()
