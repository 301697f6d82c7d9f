"""Records as ``LogEvent``s on the bus, for ``WatchEvents``: at the watchers' level, whatever the daemon's own is."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from maglev.base.events import Bus, LogEvent
from maglev.base.logs.record import OFF, Entry, level_name


def log_event(entry: Entry) -> LogEvent:
    """A record as an event. Raises whatever making its words raises."""
    fields = {key: str(value) for key, value in entry.fields.items()}
    if entry.trace:
        fields["traceback"] = entry.trace
    return LogEvent(
        level=level_name(entry.level),
        event=entry.event,
        message=str(entry.message),
        at_ns=int(entry.created * 1e9),
        fields=fields,
    )


class Tap:
    """A sink that publishes on the bus. To be made on the event loop's thread; only that thread publishes."""

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        self.level = OFF
        self._bus = bus
        self._loop = loop
        self._thread = threading.get_ident()
        self._publishing = False

    def put(self, entry: Entry) -> None:
        """Publish one record: at once on the loop's thread, by a callback of the loop from any other."""
        own = threading.get_ident() == self._thread
        if own and self._publishing:
            # A listener that logs about a log record would never come to an end.
            return
        try:
            event = log_event(entry)
        except Exception:
            # A record without words must not end the task that logged it.
            self._bus.failures += 1
            return
        if own:
            self._publish(event)
            return
        # RuntimeError: the loop is closed, and its watchers are gone with it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._publish, event)

    def _publish(self, event: LogEvent) -> None:
        self._publishing = True
        try:
            self._bus.publish(event)
        finally:
            self._publishing = False
