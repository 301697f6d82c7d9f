"""Which sinks are in place, and at which level."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import IO

from maglev.base.events import Bus, LogEvent
from maglev.base.logs.journal import is_journal, prefixed
from maglev.base.logs.keeper import Keeper
from maglev.base.logs.lines import json_line, text_line
from maglev.base.logs.record import OFF, ROOT, Entry, Sink, level_name, parse_level, sinks
from maglev.base.logs.tap import Tap
from maglev.base.logs.writer import BOUND, OtherLibraries, Writer

FORMATS = ("text", "json")


class LogControl:
    """The daemon's logging: where it goes, at which level, and which records ``WatchEvents`` gets.

    ``start`` puts the sinks in place; ``end`` writes everything and removes them. A process has one at a time. All
    methods are called on one thread, once there is a loop on the event loop's.
    """

    def __init__(self, *, level: str = "info", form: str = "text", stream: IO[str] | None = None) -> None:
        self._level = parse_level(level)
        if form not in FORMATS:
            raise ValueError(f"{form!r} is not one of {', '.join(FORMATS)}")
        self._form = form
        self._stream = stream if stream is not None else sys.stderr
        self._writer: Writer | None = None
        self._lost = 0
        self._others: OtherLibraries | None = None
        self._tap: Tap | None = None
        self._keeper: Keeper | None = None
        self._watchers: list[int] = []

    @property
    def level(self) -> str:
        """The level of the lines on standard error."""
        return level_name(self._level)

    @level.setter
    def level(self, level: str) -> None:
        self._level = parse_level(level)
        self._apply()

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost if self._writer is not None else self._lost

    def start(self, *, bound: int = BOUND) -> None:
        """Write records of this process to the stream; at most ``bound`` lines wait for a slow reader."""
        line_of: Callable[[Entry], str] = json_line if self._form == "json" else text_line
        if is_journal(self._stream, os.environ):
            line_of = prefixed(line_of)
        self._writer = Writer(self._stream, bound, line_of, self._level)
        self._others = OtherLibraries(self._writer)
        logging.getLogger().addHandler(self._others)
        self._apply()

    def tap(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        """Publish records on the bus too, while there is a watcher. To be called on the loop's thread."""
        self._tap = Tap(bus, loop)
        self._apply()

    def keep(
        self, wants: Callable[[str], bool], keep: Callable[[LogEvent], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Give ``keep`` the records at info and above whose event name ``wants`` picks, from now to the end.

        To be called on the loop's thread, on which ``keep`` is called; ``keep`` must not log.
        """
        self._keeper = Keeper(wants, keep, loop)
        self._apply()

    def watch(self, level: str) -> Callable[[], None]:
        """Publish records of ``level`` and above on the bus; the returned function ends that.

        Raises ``ValueError`` for a level that does not exist.
        """
        number = parse_level(level)
        self._watchers.append(number)
        self._apply()
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._watchers.remove(number)
                self._apply()

        return end

    def end(self, seconds: float = 0.5) -> None:
        """Write what waits, for at most ``seconds``, and take the sinks away."""
        writer, self._writer, self._tap, self._keeper = self._writer, None, None, None
        self._apply()
        if self._others is not None:
            logging.getLogger().removeHandler(self._others)
            self._others = None
        if writer is not None:
            writer.end(seconds)
            self._lost = writer.lost

    def _apply(self) -> None:
        current: list[Sink] = []
        if self._writer is not None:
            self._writer.level = self._level
            current.append(self._writer)
        if self._tap is not None:
            self._tap.level = min(self._watchers, default=OFF)
            if self._watchers:
                current.append(self._tap)
        if self._keeper is not None:
            current.append(self._keeper)
        sinks.replace(current)
        # The level of Python's root of our loggers is what ``EventLogger`` asks first: it drops what no sink wants.
        logging.getLogger(ROOT).setLevel(min((sink.level for sink in current), default=self._level))
