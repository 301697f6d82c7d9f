"""Logs advice when the probes' receive queues overflow: the sysctl to set, and its present value.

A process without CAP_NET_ADMIN gets no larger receive buffer than ``net.core.rmem_max``. An overflow costs no backend
its state, since the probes in flight are repeated; but it costs probes, and the operator can end it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from maglev.base import logs
from maglev.base.clock import Clock

log = logs.get(__name__)

RMEM_MAX = Path("/proc/sys/net/core/rmem_max")
WANTED_BYTES = 4 << 20  # what the engine asks for; the kernel doubles it for its own records
QUIET_NS = 60_000_000_000


class ReceiveQueueWatch:
    """``look`` is called now and then; it logs a rise of ``rx_drops``, at most once a minute."""

    def __init__(self, stats: Callable[[], Mapping[str, int]], clock: Clock, rmem_max: Path = RMEM_MAX) -> None:
        self._stats = stats
        self._clock = clock
        self._rmem_max = rmem_max
        self._told = 0
        self._quiet_until = 0

    def look(self) -> None:
        """Compare with the last time, and say what has changed."""
        stats = self._stats()
        drops, buffer = stats["rx_drops"], stats["rx_buffer"]
        now = self._clock.monotonic_ns()
        if drops <= self._told or now < self._quiet_until:
            return
        lost, self._told, self._quiet_until = drops - self._told, drops, now + QUIET_NS
        limit = self._limit()
        if buffer < 2 * WANTED_BYTES:
            now_is = f" (now {limit})" if limit is not None else ""
            advice = f"set the sysctl net.core.rmem_max{now_is} to {WANTED_BYTES} or more, and restart"
        else:
            advice = "the receive buffer is as large as it is asked for: this host is short of CPU, or is being flooded"
        log.warning(
            "receive-queue-overflow",
            f"{lost} packets for the probes were dropped on this host; the probes that were out are repeated; {advice}",
            dropped=lost,
            rmem_max=limit,
            receive_buffer=buffer,
        )

    def _limit(self) -> int | None:
        try:
            return int(self._rmem_max.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
