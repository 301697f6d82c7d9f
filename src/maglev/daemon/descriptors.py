"""Logs advice when probes have to wait for a descriptor: the limit to raise, and its present value.

A check by connect, HTTP or TLS needs a socket while it runs. Where no descriptor is free the probe waits for one: it is
late and never fails, so nothing else would tell the operator before backends are shown as not probed.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

from maglev.base import logs
from maglev.base.clock import Clock

log = logs.get(__name__)

QUIET_NS = 600_000_000_000


def open_files() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class DescriptorWatch:
    """``look`` is called now and then; it logs a rise of ``late_fd``, at most once in ten minutes."""

    def __init__(
        self, stats: Callable[[], Mapping[str, int]], clock: Clock, limit: Callable[[], int] = open_files
    ) -> None:
        self._stats = stats
        self._clock = clock
        self._limit = limit
        self._told = 0
        self._quiet_until = 0

    def look(self) -> None:
        """Compare with the last time, and say what has changed."""
        late = self._stats()["late_fd"]
        now = self._clock.monotonic_ns()
        if late <= self._told or now < self._quiet_until:
            return
        waited, self._told, self._quiet_until = late - self._told, late, now + QUIET_NS
        limit = self._limit()
        log.warning(
            "descriptors-exhausted",
            f"{waited} probes had to wait for a descriptor and are late; raise LimitNOFILE of the unit (now {limit}), "
            "or raise the intervals",
            waited=waited,
            limit=limit,
        )
