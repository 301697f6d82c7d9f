"""Structured logs: every record has a stable event name and fields; text for people, JSON for machines.

Built on the standard library's ``logging``, so that records of other libraries come out the same way. Lines are made
and written by a thread behind a bounded queue: a reader of standard error that stalls never holds the event loop, and
what had to be thrown away is counted (``LogControl.lost``). Fields are therefore values that do not change.

``WatchEvents`` sees records at its subscribers' level, whatever the daemon's own level is: a second handler hands
them to the bus, and only while somebody subscribed (``LogControl.watch``).
"""

from __future__ import annotations

import asyncio
import datetime
import enum
import functools
import json
import logging
import math
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, NamedTuple

import orjson

from maglev.events import Bus, LogEvent

ROOT = "maglev"
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("text", "json")

_OFF = logging.CRITICAL + 10

BOUND = 32_768
"""Records that may wait to be written: about half a kilobyte each."""
AT_ONCE = 32
"""Lines that are made in one go: a fraction of a millisecond."""


def level_name(level: int) -> str:
    """``debug``, ``info``, ``warning`` or ``error`` for a level of ``logging``."""
    if level >= logging.ERROR:
        return "error"
    if level >= logging.WARNING:
        return "warning"
    return "info" if level >= logging.INFO else "debug"


def parse_level(text: str) -> int:
    """The level of ``logging`` for ``debug | info | warning | error`` (``warn`` too); ``ValueError`` for others."""
    word = text.strip().lower()
    try:
        return LEVELS["warning" if word == "warn" else word]
    except KeyError:
        raise ValueError(f"{text!r} is not one of {', '.join(LEVELS)}") from None


def escape(text: str) -> str:
    """``text`` with everything that a terminal could act upon, and line breaks, written as ``\\x1b`` and the like.

    Also invisible and direction-changing characters (U+202E and its family): text that came from a network must not
    be able to look like another log line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(many: int, what: str) -> str:
    """``1 frontend``, ``2 frontends``."""
    return f"{many} {what}" if many == 1 else f"{many} {what}s"


_BLANK = vars(logging.LogRecord("", logging.NOTSET, "", 0, "", (), None))
"""A record in which nothing is said yet. It names no file and line: the event name is the better place to look for."""


class EventLogger:
    """A logger whose calls take an event name, a message for people, and fields for machines.

    ``log.info("backend-transition", "backend web0 is down", backend="web0")``. Event names are stable and
    documented; messages are not.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}")

    def enabled(self, level: int) -> bool:
        """Whether a record of this level goes anywhere: ask before working out costly fields."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, event: str, message: str, /, **fields: object) -> None:
        """One record. Fields are written with ``str`` unless they are numbers, booleans or None."""
        if self._logger.isEnabledFor(level):
            self._emit(level, event, message, fields, None)

    def debug(self, event: str, message: str, /, **fields: object) -> None:
        """A record of level debug."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._emit(logging.DEBUG, event, message, fields, None)

    def info(self, event: str, message: str, /, **fields: object) -> None:
        """A record of level info."""
        if self._logger.isEnabledFor(logging.INFO):
            self._emit(logging.INFO, event, message, fields, None)

    def warning(self, event: str, message: str, /, **fields: object) -> None:
        """A record of level warning."""
        self._emit(logging.WARNING, event, message, fields, None)

    def error(self, event: str, message: str, /, **fields: object) -> None:
        """A record of level error."""
        self._emit(logging.ERROR, event, message, fields, None)

    def exception(self, event: str, message: str, error: BaseException, /, **fields: object) -> None:
        """A record of level error with the traceback of ``error``."""
        self._emit(logging.ERROR, event, message, fields, error)

    def _emit(
        self, level: int, event: str, message: str, fields: Mapping[str, object], error: BaseException | None
    ) -> None:
        # Not by LogRecord's constructor, which takes apart the caller's path and looks up thread and process: in a mass
        # failure, with two records for each server, that was a tenth of all the daemon's time.
        now = time.time()
        record = logging.LogRecord.__new__(logging.LogRecord)
        vars(record).update(
            _BLANK,
            name=self._logger.name,
            msg=message,
            levelno=level,
            levelname=logging.getLevelName(level),
            created=now,
            msecs=now % 1 * 1000,
            exc_info=(type(error), error, error.__traceback__) if error is not None else None,
            maglev_event=event,
            maglev_fields=fields,
        )
        self._logger.handle(record)


def get(name: str) -> EventLogger:
    """The logger of a part: ``log = logs.get(__name__)``."""
    return EventLogger(name)


class _Entry(NamedTuple):
    """A record on its way to the stream: some of its bytes, and nothing that may still change."""

    created: float
    level: int
    event: str
    message: str
    logger: str
    fields: Mapping[str, object]
    trace: str

    @classmethod
    def of(cls, record: logging.LogRecord) -> _Entry:
        event, fields = getattr(record, "maglev_event", None), getattr(record, "maglev_fields", None)
        error = record.exc_info[1] if record.exc_info else None
        return cls(
            record.created,
            record.levelno,
            event if isinstance(event, str) else "log",
            record.getMessage(),
            record.name,
            fields if isinstance(fields, Mapping) else {},
            "" if error is None else "".join(traceback.format_exception(error)).rstrip(),
        )


def text_line(entry: _Entry) -> str:
    """``2026-11-22T12:00:00.123Z info  message  event=name key=value``: one line, with tracebacks indented below.

    Without a line break at its end.
    """
    parts = [f"{_time(entry.created)} {level_name(entry.level):<7} {escape(entry.message)} event={entry.event}"]
    for key, value in entry.fields.items():
        parts.append(f"{key}={_quoted(value)}")
    line = " ".join(parts)
    if entry.trace:
        line += "".join(f"\n    {escape(row)}" for row in entry.trace.splitlines())
    return line


def json_line(entry: _Entry) -> str:
    """One JSON object: ``time level event message logger``, then the fields, then ``traceback``; no line break."""
    value: dict[str, object] = {
        "time": _time(entry.created),
        "level": level_name(entry.level),
        "event": entry.event,
        "message": entry.message,
        "logger": entry.logger,
    }
    for key, item in entry.fields.items():
        # A field never hides one of the above.
        value[f"{key}_" if key in value else key] = _json(item)
    if entry.trace:
        value["traceback"] = entry.trace
    try:
        line = orjson.dumps(value, default=str).decode()
    except TypeError:
        # A lone surrogate or an integer beyond 64 bits: write such things as text, lose nothing.
        line = orjson.dumps({key: _plain(item) for key, item in value.items()}).decode()
    if line.isprintable():
        return line
    # JSON lets DEL and the control characters from U+0080 on stand as they are; a terminal may act upon them.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _time(seconds: float) -> str:
    whole = math.floor(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json(value: object) -> object:
    # Left alone, states and codes would come out as the engine's numbers.
    return str(value) if isinstance(value, enum.Enum) else value


def _plain(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


_bare = re.compile(r"[!#-<>-~]+").fullmatch
"""Matches printable ASCII that needs no quotes: no blank, no quotation mark, no equals sign."""


def _quoted(value: object) -> str:
    text = str(value)
    if _bare(text):
        return text
    text = escape(text)
    if not text or any(c in text for c in ' "='):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


class _Writer(logging.Handler):
    """Writes in a thread; at most ``bound`` records wait, further ones are counted.

    The thread makes the lines as well, a few at a time: it holds the interpreter's lock for that, and two lines for
    each server of a mass failure are not what VPP should wait for. While more than half of ``bound`` wait, who logs
    makes lines too.
    """

    def __init__(self, stream: IO[str], bound: int, line_of: Callable[[_Entry], str]) -> None:
        super().__init__()
        self._stream = stream
        self._bound = bound
        self._line_of = line_of
        self._entries: deque[_Entry] = deque()
        self._lines: list[str] = []  # of entries that were before those
        self._making = threading.Lock()  # what is taken from the entries becomes lines before others are taken
        self._ready = threading.Condition()
        self._ending = False
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="maglev-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = _Entry.of(record)
        except Exception:
            # A record that cannot be written must not end the task that logged it; it shows in the count.
            self.lost += 1
            return
        with self._ready:
            if len(self._entries) + len(self._lines) >= self._bound or self._ending:
                self.lost += 1
                return
            self._entries.append(entry)
            self._ready.notify()
        if len(self._entries) > self._bound // 2 and self._making.acquire(blocking=False):
            try:
                lines = self._make(AT_ONCE)
                with self._ready:
                    self._lines += lines
            finally:
                self._making.release()

    def _make(self, most: int) -> list[str]:
        """Lines of the oldest entries, in a moment in which nobody else makes any."""
        lines: list[str] = []
        for _ in range(min(most, len(self._entries))):
            try:
                lines.append(self._line_of(self._entries.popleft()))
            except Exception:
                self.lost += 1
        return lines

    def _take(self) -> list[str] | None:
        """Wait for something to write; None when that was all. Nothing, if no line could be made of what came."""
        with self._ready:
            while not (self._entries or self._lines or self._ending):
                self._ready.wait()
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
                # Standard error is closed or full: nowhere to say so but the count.
                self.lost += len(lines)

    def end(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``, and stop the thread."""
        with self._ready:
            self._ending = True
            self._ready.notify()
        self._thread.join(seconds)


class _BusHandler(logging.Handler):
    """Turns records into ``LogEvent``s on the bus, on the loop's thread."""

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(level=_OFF)
        self._bus = bus
        self._loop = loop
        self._thread = threading.get_ident()
        self._publishing = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._publishing:
            # A listener that logs about a log record would never come to an end.
            return
        entry = _Entry.of(record)
        fields = {key: str(value) for key, value in entry.fields.items()}
        if entry.trace:
            fields["traceback"] = entry.trace
        event = LogEvent(
            level=level_name(entry.level),
            event=entry.event,
            message=entry.message,
            at_ns=int(entry.created * 1e9),
            fields=fields,
        )
        if threading.get_ident() == self._thread:
            self._publish(event)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._publish, event)

    def _publish(self, event: LogEvent) -> None:
        self._publishing = True
        try:
            self._bus.publish(event)
        finally:
            self._publishing = False


class LogControl:
    """The daemon's logging: where it goes, at which level, and what ``WatchEvents`` gets of it.

    ``start`` puts the handlers in place and ``end`` takes them away again (with everything written).
    """

    def __init__(self, *, level: str = "info", form: str = "text", stream: IO[str] | None = None) -> None:
        self._level = parse_level(level)
        if form not in FORMATS:
            raise ValueError(f"{form!r} is not one of {', '.join(FORMATS)}")
        self._form = form
        self._stream = stream if stream is not None else sys.stderr
        self._writer: _Writer | None = None
        self._tap: _BusHandler | None = None
        self._watchers: list[int] = []
        self._root = logging.getLogger(ROOT)

    @property
    def level(self) -> str:
        """The level of what is written to standard error."""
        return level_name(self._level)

    @level.setter
    def level(self, level: str) -> None:
        self._level = parse_level(level)
        self._apply()

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._writer.lost if self._writer is not None else 0

    def start(self, *, bound: int = BOUND) -> None:
        """Write records of this process to the stream; at most ``bound`` lines wait for a slow reader."""
        self._writer = _Writer(self._stream, bound, json_line if self._form == "json" else text_line)
        self._root.addHandler(self._writer)
        self._root.propagate = False
        # Other libraries (grpc, asyncio): their warnings and errors, in the same form.
        logging.getLogger().addHandler(self._writer)
        self._apply()

    def tap(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        """Give records to the bus as well, while there is a watcher. To be called on the loop's thread."""
        self._tap = _BusHandler(bus, loop)
        self._root.addHandler(self._tap)
        self._apply()

    def watch(self, level: str) -> Callable[[], None]:
        """Somebody wants records of ``level`` and above on the bus; the returned function ends that.

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
        """Write what waits, for at most ``seconds``, and take the handlers away."""
        if self._tap is not None:
            self._root.removeHandler(self._tap)
            self._tap = None
        if self._writer is not None:
            self._root.removeHandler(self._writer)
            logging.getLogger().removeHandler(self._writer)
            self._writer.end(seconds)
            self._writer = None

    def _apply(self) -> None:
        watched = min(self._watchers, default=_OFF) if self._tap is not None else _OFF
        if self._writer is not None:
            self._writer.setLevel(self._level)
        if self._tap is not None:
            self._tap.setLevel(watched)
        self._root.setLevel(min(self._level, watched))
