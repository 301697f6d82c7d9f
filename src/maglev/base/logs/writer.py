"""The writer: a bounded queue of records, and the thread that makes lines of them and writes the lines.

Making a line takes about ten microseconds of the interpreter's lock, so in a mass failure it would delay the calls to
VPP. The thread therefore makes a few lines at a time and sleeps in between.

Hand-over
    ``_entries`` holds records, oldest first; ``_lines`` holds lines of records that were before those.

    - Any thread appends to ``_entries``; a deque's ``append`` and ``popleft`` are atomic.
    - Only the holder of ``_making`` removes from ``_entries``. It keeps the lock until the lines of the removed records
      are in ``_lines``, or in the hands of the writer. The writer takes ``_lines`` before it makes lines. So lines are
      written in the order of their records.
    - ``_ready`` guards ``_lines``, ``_resting``, ``_ending`` and ``lost``, and wakes the writer.

Wake-up
    Waking the writer costs a thread that logs as much as the record itself, so it is woken only while it rests. It sets
    ``_resting`` before it looks for records the last time; a thread that logs appends before it looks at ``_resting``.
    Whichever comes second sees the other, so no record waits for the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

from maglev.base.logs.record import Entry

BOUND = 32_768
"""Records that may wait to be written: about half a kilobyte each."""

HELP = 7 / 8
"""Share of the bound from which on a thread that logs makes lines too, so that logging slows down before it drops."""

AT_ONCE = 32
"""Lines that are made in one go: a fraction of a millisecond."""

PAUSE = 0.005
"""Seconds between two goes. Formatting is deferred until VPP is programmed, and records gather meanwhile."""


class Writer:
    """Makes and writes lines on its thread; at most ``bound`` records wait, ``lost`` counts those beyond.

    ``lost`` also counts records of which no line could be made, and lines that could not be written.
    """

    def __init__(self, stream: IO[str], bound: int, line_of: Callable[[Entry], str], level: int) -> None:
        self.level = level
        self._stream = stream
        self._bound = bound
        self._line_of = line_of
        self._entries: deque[Entry] = deque()
        self._lines: list[str] = []
        self._making = threading.Lock()
        self._ready = threading.Condition()
        self._resting = False
        self._ending = False
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="maglev-log", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------- on the thread that logs

    def put(self, entry: Entry) -> None:
        """Queue one record, or drop and count it."""
        if len(self._entries) + len(self._lines) >= self._bound or self._ending:
            self.lose(1)
            return
        self._entries.append(entry)
        # After the append: see the module, Wake-up.
        if self._resting:
            with self._ready:
                self._ready.notify()
        if len(self._entries) > self._bound * HELP and self._making.acquire(blocking=False):
            try:
                lines = self._make(AT_ONCE)
                with self._ready:
                    self._lines += lines
            finally:
                self._making.release()

    def lose(self, many: int) -> None:
        """Count records that are not written."""
        with self._ready:
            self.lost += many

    def end(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``, and stop the thread."""
        with self._ready:
            self._ending = True
            self._ready.notify()
        self._thread.join(seconds)

    # ----------------------------------------------------------------------------------------------- on both threads

    def _make(self, most: int) -> list[str]:
        """Lines of the oldest records. To be called with ``_making`` held."""
        lines: list[str] = []
        for _ in range(min(most, len(self._entries))):
            try:
                lines.append(self._line_of(self._entries.popleft()))
            except Exception:
                # A record without words must not end the task that logged it, nor this thread.
                self.lose(1)
        return lines

    # -------------------------------------------------------------------------------------------- on the own thread

    def _take(self) -> list[str] | None:
        """Wait for lines to write. None at the end; empty if no line could be made of the records that came."""
        with self._ready:
            self._resting = True
            while not (self._entries or self._lines or self._ending):
                self._ready.wait()
            self._resting = False
            ending = self._ending
        with self._making:
            with self._ready:
                lines, self._lines = self._lines, []
            lines = lines or self._make(AT_ONCE)
        return None if ending and not lines and not self._entries else lines

    def _write(self) -> None:
        while (lines := self._take()) is not None:
            if not lines:
                continue
            try:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                # Standard error is closed or full. No other place is left to say so; the count says it.
                self.lose(len(lines))
            if not self._ending:
                time.sleep(PAUSE)


class OtherLibraries(logging.Handler):
    """Hands records of other libraries (grpc, asyncio) to the writer, in the same form as ours."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record, on the thread that logs."""
        if record.levelno < self._writer.level:
            return
        try:
            entry = Entry.of(record)
        except Exception:
            # Its arguments do not fit its format. That must not end the task that logged it.
            self._writer.lose(1)
            return
        self._writer.put(entry)
