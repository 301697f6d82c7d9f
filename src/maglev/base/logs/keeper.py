"""Some records as ``LogEvent``s for one reader, at info and above, whatever the level of the daemon's own log is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from maglev.base.events import LogEvent
from maglev.base.logs.record import Entry, level_name
from maglev.base.logs.tap import log_event


class Keeper:
    """A sink for records whose event name ``wants`` picks. To be made on the event loop's thread.

    ``keep`` is called on that thread: at once for its own records, by a callback of the loop for those of others.
    """

    def __init__(
        self, wants: Callable[[str], bool], keep: Callable[[LogEvent], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.level = logging.INFO
        self._wants = wants
        self._keep = keep
        self._loop = loop
        self._thread = threading.get_ident()

    def put(self, entry: Entry) -> None:
        """Keep one record, if it is wanted."""
        if not self._wants(entry.event):
            return
        try:
            event = log_event(entry)
        except Exception:
            # A record whose words cannot be made must not end the task that logged it. That it was made still counts.
            event = LogEvent(level_name(entry.level), entry.event, entry.event, int(entry.created * 1e9))
        if threading.get_ident() == self._thread:
            self._keep(event)
            return
        # RuntimeError: the loop is closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._keep, event)
