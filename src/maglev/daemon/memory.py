"""Memory that strangers on TCP can make the daemon use: the listener is closed before the kernel kills the daemon.

gRPC's core obeys its limits of metadata and streams only once the caller has acknowledged them (SETTINGS), and an
unread answer keeps what was asked. Measured: 400 connections that acknowledge nothing and read nothing, and whose
headers refer 4,000 times to one entry of the HPACK table, take 500 MB a second. No option of gRPC's bounds that, so
the daemon watches its own resident memory. When it has grown by ``BUDGET`` above its quiet level, or has stayed a
quarter of that above it for an interval, the TCP listener is closed with all its connections, the memory goes back to
the kernel, and the listener opens again after a pause that doubles (``listening``). The memory in use then is the new
quiet level. Operators on the Unix socket, verdicts and VPP notice nothing.

The growth need not be the callers': a reload may need as much. Then TCP clients connect again, and that is all.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from maglev.base import background
from maglev.base.clock import Clock
from maglev.daemon.listening import Listener

BUDGET = 192 << 20
"""Bytes by which resident memory may grow above its quiet level before the listener is closed."""

LOOK_SECONDS = 0.05
QUIET_SECONDS = 60.0
"""The quiet level is the least resident memory of an interval of this length."""

RETURN_SECONDS = 0.2
RETURNS = 4
"""Freed memory is returned so often, with such pauses, while the listener is closed: gRPC frees it bit by bit."""

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Resident memory of this process in bytes. 10 us."""
    return int(_STATM.read_bytes().split(b" ", 2)[1]) * _PAGE


def give_back() -> None:
    """Return freed memory to the kernel. glibc keeps it otherwise, in pieces between blocks that are in use.

    It takes some milliseconds for each arena, and other threads' calls of malloc in that arena wait: for a background
    thread, and for rare occasions.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


class MemoryGuard:
    """Closes ``listener`` when resident memory has grown by ``budget`` bytes. ``run`` is a task."""

    def __init__(
        self, listener: Listener, clock: Clock, *, budget: int = BUDGET, read: Callable[[], int] = resident
    ) -> None:
        self._listener = listener
        self._clock = clock
        self._budget = budget
        self._read = read
        self._quiet = self._least = read()
        self._since_ns = clock.monotonic_ns()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if self.look():
                await self._return_memory()

    def look(self) -> bool:
        """Measure once; True where the listener is to be closed, and was asked to."""
        now, used = self._clock.monotonic_ns(), self._read()
        self._least = min(self._least, used)
        grown = used - self._quiet
        bound = self._budget
        if now - self._since_ns >= QUIET_SECONDS * 1e9:
            grown, bound = max(grown, self._least - self._quiet), self._budget // 4
            if self._least - self._quiet <= bound:
                self._settle(self._least)
                bound = self._budget
        if grown <= bound or not self._listener.up:
            return False
        self._listener.shed(f"memory has grown by {grown >> 20} MiB, which its callers may have caused")
        return True

    async def _return_memory(self) -> None:
        """Return what gRPC frees as it takes its connections down. The memory in use then is the new quiet level."""
        for _ in range(RETURNS):
            await self._clock.sleep(RETURN_SECONDS)
            await background.start("give-back", give_back)
        # Once the listener is open again, callers may use memory.
        if not self._listener.up:
            self._settle(self._read())

    def _settle(self, level: int) -> None:
        self._quiet = level
        self._least, self._since_ns = self._read(), self._clock.monotonic_ns()
