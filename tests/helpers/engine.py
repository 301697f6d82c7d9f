"""The common parts of engine tests: short checks, an engine that is always stopped, and waiting for what it reports."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maglev._probe import Engine, Result, Transition
from maglev.base.states import CheckType, Code, State
from maglev.config.model import HealthCheck, HttpParams, IcmpParams, TcpMode, TcpParams

MS = 1_000_000
PATIENCE = 20.0  # seconds: how long a test waits for what must come; only a failing test waits so long


def check(kind: str, port: int = 0, **changes: Any) -> HealthCheck:
    """A quick check: ``icmp``, ``syn``, ``connect`` or ``http``. ``params`` and all other fields may be given."""
    types = {
        "icmp": (CheckType.ICMP, IcmpParams()),
        "syn": (CheckType.TCP, TcpParams()),
        "connect": (CheckType.TCP, TcpParams(mode=TcpMode.CONNECT)),
        "http": (CheckType.HTTP, HttpParams()),
    }
    values: dict[str, Any] = {
        "name": kind,
        "type": types[kind][0],
        "params": types[kind][1],
        "port": port,
        "interval": 40 * MS,
        "fast_interval": 30 * MS,
        "down_interval": 40 * MS,
        "timeout": 30 * MS,
        "rise": 2,
        "fall": 2,
    }
    return HealthCheck(**{**values, **changes})


def packed(address: str) -> bytes:
    """4 or 16 bytes of an address."""
    return ipaddress.ip_address(address).packed


class Probing:
    """A running engine and its reports so far."""

    def __init__(self, **options: Any) -> None:
        self.engine = Engine(**{"capacity": 1024, **options})
        self.transitions: list[Transition] = []
        self.results: list[Result] = []
        self.engine.start()

    def add(self, a_check: HealthCheck, address: str, **options: Any) -> int:
        """A separate check and one target for it."""
        return self.engine.add_target(self.engine.add_check(a_check), packed(address), **options)

    def collect(self, seconds: float) -> None:
        """Wait at most that long for something to be reported, and take it."""
        if select.select([self.engine], [], [], max(0.0, seconds))[0]:
            self.transitions += self.engine.transitions()
            self.results += self.engine.results()

    def wait(self, done: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> None:
        """Collect until ``done()`` is true, for ``patience`` seconds at most."""
        deadline = time.monotonic() + patience
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"waited in vain for {what or done}: {self.transitions[-5:]} {self.engine.stats()}"
            self.collect(min(left, 0.02))

    def of(self, target: int) -> list[Transition]:
        """The transitions of one target."""
        return [one for one in self.transitions if one.target == target]

    def becomes(self, target: int, state: State) -> Transition:
        """Wait until the last transition of the target is one to ``state``; returns it."""
        self.wait(lambda: self.of(target) and self.of(target)[-1].to_state == state, f"{target} to be {state}")
        return self.of(target)[-1]

    def probes(self, target: int) -> int:
        """How many results the target has had."""
        return sum(self.engine.target_info(target).codes)

    def wait_probes(self, target: int, more: int = 3) -> None:
        """Wait for ``more`` further results."""
        self.wait_probes_of_all([target], more)

    def wait_probes_of_all(self, targets: Sequence[int], more: int = 3) -> None:
        """Wait for ``more`` further results of each target, of all at the same time."""
        ends = [self.probes(target) + more for target in targets]
        self.wait(
            lambda: all(self.probes(target) >= end for target, end in zip(targets, ends, strict=True)),
            f"{more} results of {targets}",
        )

    def blocked(self, target: int) -> str:
        """Wait until the target cannot be probed; returns why."""
        self.wait(lambda: self.engine.target_info(target).blocked_since_ns, f"{target} to be blocked")
        return self.engine.target_info(target).blocked_reason

    def unblocked(self, target: int) -> None:
        """Wait until the target can be probed again, and has been."""
        self.wait(lambda: not self.engine.target_info(target).blocked_since_ns, f"{target} to be probed again")

    def last(self, target: int) -> tuple[Code, str]:
        """Code and detail of the last result."""
        info = self.engine.target_info(target)
        return Code(info.last_code), info.last_detail


@contextlib.contextmanager
def probing(**options: Any) -> Iterator[Probing]:
    """An engine for one test."""
    one = Probing(**options)
    try:
        yield one
    finally:
        one.engine.stop()


def listener(address: str = "127.0.0.1", port: int = 0, backlog: int = 128) -> socket.socket:
    """A listening socket on a free port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def port_of(sock: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(sock.getsockname()[1])
