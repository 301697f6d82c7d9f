"""When a full sync is due: asked for, at a phase of the warm-up, or every sync interval. Pure.

Anything on the event loop may ``ask``; the rest belongs to the task of the full syncs. All times are of the monotonic
clock, in nanoseconds.
"""

from __future__ import annotations

import asyncio


class Timetable:
    """``asked`` is set while a full sync is asked for that has not been looked at."""

    def __init__(self, now_ns: int) -> None:
        self.asked = asyncio.Event()
        self._reason = ""
        self._last_ns = now_ns

    def ask(self, reason: str) -> None:
        """A full sync is due at once; ``reason`` is for the log."""
        self._reason = reason
        self.asked.set()

    def due_in(self, now_ns: int, interval_ns: int) -> int:
        """Until the next periodic sync."""
        return max(0, self._last_ns + interval_ns - now_ns)

    def take(self, now_ns: int, interval_ns: int, *, phase_changed: bool) -> str:
        """Why a full sync is due now, in a word; empty: none is. From now on it is due no longer."""
        asked = self.asked.is_set()
        self.asked.clear()
        periodic = now_ns - self._last_ns >= interval_ns
        if periodic:
            self._last_ns = now_ns
        if asked:
            return self._reason
        return "warm-up" if phase_changed else ("periodic" if periodic else "")
