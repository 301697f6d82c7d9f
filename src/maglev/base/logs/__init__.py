"""Structured logs: every record has a stable event name and fields; text for people, JSON for machines.

``log = logs.get(__name__)`` gives a part its logger. Rooms:

- ``record``: a record on its way, its levels, and the sinks of this process
- ``logger``: what the rest of the daemon calls
- ``lines``: records as lines of text or JSON
- ``journal``: priorities for the systemd journal
- ``writer``: the thread that makes and writes those lines
- ``tap``: records as events on the bus, for ``WatchEvents``
- ``keeper``: some records for one reader, whatever the level
- ``control``: which sinks are in place, and at which level

Threads
    Any thread of Python may log; nearly all records come from the event loop. The native engine has no interpreter and
    never logs. A logger hands a record to each sink at once, on the thread that logs. The writer's sink only queues
    it; the writer's thread makes and writes the lines. So a stalled reader of standard error never holds the event
    loop, and formatting is deferred until VPP is programmed. The bus's sink publishes on the event loop's thread;
    records of other threads reach it by ``call_soon_threadsafe``.

    Because the lines are made later, messages and fields must be values that do not change any more.

Order
    Each thread's records are written in the order in which they were logged (``writer`` explains how).

Bounds
    The queue is bounded. Records that do not fit are dropped and counted (``LogControl.lost``).
"""

from maglev.base.logs.control import FORMATS, LogControl
from maglev.base.logs.lines import counted, escape
from maglev.base.logs.logger import EventLogger, get, muted
from maglev.base.logs.record import LEVELS, ROOT, level_name, parse_level

__all__ = [
    "FORMATS",
    "LEVELS",
    "ROOT",
    "EventLogger",
    "LogControl",
    "counted",
    "escape",
    "get",
    "level_name",
    "muted",
    "parse_level",
]
