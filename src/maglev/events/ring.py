"""The last events of this run, in bounded memory.

The ring holds the events as they were published: no copy, and no further object for each. In a mass failure every
verdict comes through ``take``. A query makes one small record for each event that it returns.

Each event has a number, from 1. Numbers are what pages hold on to: events that come while pages are read have higher
numbers, and so no page repeats or skips one. The age of an event is measured by the monotonic clock, since a wall clock
that was set meanwhile would misplace events; the event itself has the wall clock's time.

Everything here runs on the event loop.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, Protocol

from maglev.base.clock import Clock
from maglev.base.events import BackendEvent, Event, LogEvent

MOST = 10_000
"""Events that are remembered."""

MOST_BYTES = 10 << 20
"""Bytes that they take together. Only unusually long texts make this the tighter limit."""

_FIXED = 400
"""Bytes of an event without its texts: the object, its numbers, and short names."""

_WIDE = 4
"""Bytes of a character in the worst case."""


class PastEvent(NamedTuple):
    """An event that is remembered: its number, how long ago it was, the event, and the number of its cause.

    ``cause`` 0: it has none, as of the events about the machine's clock (``maglev.events.causes``).
    """

    number: int
    age_ns: int
    event: Event
    cause: int = 0


class CauseSource(Protocol):
    """Finds the cause of an event (``maglev.events.causes.Causes``). Asked once for each event, in order."""

    def take(self, event: Event) -> int:
        """The number of the event's cause, 0 if it has none."""
        ...

    def notice(self, record: LogEvent) -> int:
        """The same of a log record that is remembered as an event."""
        ...


class EventRing:
    """The last events. ``take`` is a listener of the bus; the oldest events are forgotten first."""

    def __init__(self, clock: Clock, causes: CauseSource, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._clock = clock
        self._cause_of = causes
        self._most = most
        self._most_bytes = most_bytes
        # The event with number n, and the monotonic time at which it came, are at n modulo the size of the ring.
        self._events: list[Event | None] = [None] * most
        self._times = array("q", bytes(8 * most))
        self._causes = array("q", bytes(8 * most))
        self._oldest = 1
        self._next = 1
        self._bytes = 0

    def __len__(self) -> int:
        """Events that are remembered."""
        return self._next - self._oldest

    @property
    def forgotten(self) -> int:
        """Events since the start that are remembered no longer."""
        return self._oldest - 1

    @property
    def newest(self) -> int:
        """The number of the newest event; 0 before the first."""
        return self._next - 1

    @property
    def size(self) -> int:
        """Bytes that the events take, estimated from above."""
        return self._bytes

    def take(self, event: Event) -> None:
        """Remember an event. Log records of the bus exist only while they are watched, so they come by ``notice``."""
        if type(event) is not LogEvent:
            self._put(event, self._cause_of.take(event))

    def notice(self, record: LogEvent) -> None:
        """Remember a log record."""
        self._put(record, self._cause_of.notice(record))

    def get(self, number: int) -> PastEvent | None:
        """The event of that number; None for one that was forgotten or has not happened."""
        if not self._oldest <= number < self._next:
            return None
        at = number % self._most
        event = self._events[at]
        assert event is not None
        return PastEvent(number, self._clock.monotonic_ns() - self._times[at], event, self._causes[at])

    def _put(self, event: Event, cause: int) -> None:
        if self._next - self._oldest == self._most:
            self._forget()
        at = self._next % self._most
        self._events[at] = event
        self._times[at] = self._clock.monotonic_ns()
        self._causes[at] = cause
        self._next += 1
        self._bytes += _size(event)
        while self._bytes > self._most_bytes and self._next - self._oldest > 1:
            self._forget()

    def _forget(self) -> None:
        at = self._oldest % self._most
        event = self._events[at]
        assert event is not None
        self._bytes -= _size(event)
        self._events[at] = None
        self._oldest += 1


def _size(event: Event) -> int:
    """Bytes of an event, from above. Events never change, so it is the same when the event is forgotten."""
    if type(event) is BackendEvent:
        return _FIXED + _WIDE * (len(event.detail) + len(event.reason))
    if isinstance(event, LogEvent):
        texts = sum(len(key) + len(value) + 60 for key, value in event.fields.items())
        return _FIXED + _WIDE * (len(event.message) + texts)
    return _FIXED + _WIDE * (len(getattr(event, "reason", "")) + len(getattr(event, "cause", "")))
