"""The wall clock of this host: a step of it is logged, and what a restart has to know of it is kept.

Within a run nothing depends on the wall clock: durations and intervals are monotonic, and the engine doubts a clock
that contradicts its last verifications (``ext/probe/dates.pyx``). A restart would lose that. So the state file says how
far the wall clock was ahead of CLOCK_BOOTTIME when the moments in it were written, and what the engine believed of it.
CLOCK_BOOTTIME goes on over a restart and is not moved when the wall clock is set. It starts at zero when the machine is
booted, so a boot id stands beside it, and the section of another boot counts for nothing.

The engine detects steps, at each of its rounds; this is called every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from maglev.base import logs
from maglev.base.clock import Clock

log = logs.get(__name__)

SECTION = "clock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KEPT_NS = 1_000_000_000
"""By how much the offset or the engine's anchor must have moved to be written again."""


class Kept(Protocol):
    """Sections of the state file."""

    def get(self, section: str) -> object: ...
    def set(self, section: str, value: object) -> None: ...


class EngineClock(Protocol):
    """Questions to the probe engine."""

    @property
    def clock_anchor(self) -> int: ...
    def stats(self) -> Mapping[str, int]: ...


def boottime_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class WallClock:
    """``kept_anchor``: the engine's, of the run before; 0: none. ``moved_ns``: steps since the state file was written.

    To be made after the state file was read, and before anything is set in it.
    """

    def __init__(
        self, kept: Kept, clock: Clock, *, boottime: Callable[[], int] = boottime_ns, boot_id: Path = BOOT_ID
    ) -> None:
        self._kept = kept
        self._clock = clock
        self._boottime = boottime
        self._boot_id = _read(boot_id)
        self._steps = 0
        self._offset, self.kept_anchor = self._before()
        self.moved_ns = self._offset_now() - self._offset if self._offset is not None else 0

    def look(self, engine: EngineClock, moved: Callable[[], None]) -> None:
        """Log steps since the last time and call ``moved`` after one; keep what a restart has to know."""
        stats = engine.stats()
        steps, self._steps = stats["clock_steps"] - self._steps, stats["clock_steps"]
        if steps:
            by = stats["clock_step_ns"] / 1e9
            log.warning(
                "clock-step",
                f"the wall clock was set by {by:+.3f} s; no backend, duration or interval depends on it",
                seconds=by,
                steps=steps,
            )
        offset, anchor = self._offset_now(), engine.clock_anchor
        if self._offset is None or abs(offset - self._offset) > KEPT_NS:
            moved()
        elif abs(anchor - self.kept_anchor) <= KEPT_NS and bool(anchor) == bool(self.kept_anchor):
            return
        if self._boot_id:
            self._offset, self.kept_anchor = offset, anchor
            self._kept.set(SECTION, {"boot_id": self._boot_id, "offset_ns": offset, "anchor": anchor})

    def _offset_now(self) -> int:
        before = self._boottime()
        return self._clock.time_ns() - before

    def _before(self) -> tuple[int | None, int]:
        """Offset and anchor of the run before; none if the machine was booted since."""
        section = self._kept.get(SECTION)
        if not isinstance(section, dict) or not self._boot_id or section.get("boot_id") != self._boot_id:
            return None, 0
        offset, anchor = section.get("offset_ns"), section.get("anchor")
        if type(offset) is not int or type(anchor) is not int or not -(1 << 63) <= anchor < 1 << 63:
            log.warning("clock-unreadable", "state file: what it says of the clock is not understood")
            return None, 0
        return offset, anchor


def _read(path: Path) -> str:
    """The boot id; empty where the kernel does not say."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
