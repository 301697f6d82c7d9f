"""Structured logs: every record has a stable event name and fields; text for people, JSON for machines.

A record goes to the *sinks* that ``LogControl`` has put in place. Where there is none it goes to the standard library's
``logging``, and what other libraries log there comes out in the same form as ours. Lines are made and written by a
thread behind a bounded queue: a reader of standard error that stalls never holds the event loop, and what had to be
thrown away is counted (``LogControl.lost``). Messages and fields are therefore values that do not change.

``WatchEvents`` sees records at its subscribers' level, whatever the daemon's own level is: a second sink hands them to
the bus, and only while somebody subscribed (``LogControl.watch``).
"""

from __future__ import annotations

import asyncio
import contextlib
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
from typing import IO, NamedTuple, Protocol

import orjson

from maglev.base.events import Bus, LogEvent

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
HELP = 7 / 8
AT_ONCE = 32
"""Lines that are made in one go: a fraction of a millisecond."""
PAUSE = 0.005
"""Seconds between two such goes: what a mass failure has to say is put into words when VPP has been told of it. And
records come together meanwhile: to wake the writer costs who logs as much as the record does."""


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


class _Entry(NamedTuple):
    """A record on its way to the sinks: nothing in it may still change."""

    created: float
    level: int
    event: str
    message: object
    logger: str
    fields: Mapping[str, object]
    trace: str = ""

    @classmethod
    def of(cls, record: logging.LogRecord) -> _Entry:
        """What another library has logged. Raises what that has to say no better."""
        error = record.exc_info[1] if record.exc_info else None
        return cls(
            record.created, record.levelno, "log", record.getMessage(), record.name, {}, _trace(error) if error else ""
        )


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


class _Sink(Protocol):
    """Where records of ``level`` and above go. ``put`` never waits, and never raises."""

    level: int

    def put(self, entry: _Entry) -> None: ...


_sinks: tuple[_Sink, ...] = ()
"""Of this process; ``LogControl``'s."""


class EventLogger:
    """A logger whose calls take an event name, a message for people, and fields for machines.

    ``log.info("backend-transition", "backend web0 is down", backend="web0")``. Event names are stable and
    documented; messages are not. Both are put into words where they are written: ``str`` of a message, and of a field
    unless it is a number, a boolean or None.
    """

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name if name.startswith(ROOT) else f"{ROOT}.{name}"
        self._logger = logging.getLogger(self._name)

    def enabled(self, level: int) -> bool:
        """Whether a record of this level goes anywhere: ask before working out costly fields."""
        return self._logger.isEnabledFor(level)

    def log(self, level: int, event: str, message: object, /, **fields: object) -> None:
        """One record."""
        if self._logger.isEnabledFor(level):
            self._emit(level, event, message, fields)

    def debug(self, event: str, message: object, /, **fields: object) -> None:
        """A record of level debug."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._emit(logging.DEBUG, event, message, fields)

    def info(self, event: str, message: object, /, **fields: object) -> None:
        """A record of level info."""
        if self._logger.isEnabledFor(logging.INFO):
            self._emit(logging.INFO, event, message, fields)

    def warning(self, event: str, message: object, /, **fields: object) -> None:
        """A record of level warning."""
        self._emit(logging.WARNING, event, message, fields)

    def error(self, event: str, message: object, /, **fields: object) -> None:
        """A record of level error."""
        self._emit(logging.ERROR, event, message, fields)

    def exception(self, event: str, message: str, error: BaseException, /, **fields: object) -> None:
        """A record of level error with the traceback of ``error``."""
        self._emit(logging.ERROR, event, message, fields, error)

    def _emit(
        self, level: int, event: str, message: object, fields: Mapping[str, object], error: BaseException | None = None
    ) -> None:
        # Not through ``logging`` where it can be helped: in a mass failure, with two records for each server, its way
        # from a record to a handler was a tenth of all the daemon's time.
        sinks = _sinks
        if not sinks:
            extra = {"maglev_event": event, "maglev_fields": fields}
            self._logger.log(level, message, extra=extra, exc_info=error, stacklevel=3)
            return
        trace = _trace(error) if error is not None else ""
        entry = _Entry(time.time(), level, event, message, self._name, fields, trace)
        for sink in sinks:
            if level >= sink.level:
                sink.put(entry)


def get(name: str) -> EventLogger:
    """The logger of a part: ``log = logs.get(__name__)``."""
    return EventLogger(name)


def text_line(entry: _Entry) -> str:
    """``2026-11-22T12:00:00.123Z info  message  event=name key=value``: one line, with tracebacks indented below.

    Without a line break at its end.
    """
    parts = [f"{_time(entry.created)} {level_name(entry.level):<7} {escape(str(entry.message))} event={entry.event}"]
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
        "message": str(entry.message),
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


class _Writer:
    """Writes in a thread; at most ``bound`` records wait, further ones are counted.

    The thread makes the lines as well, a few at a time: it holds the interpreter's lock for that, and two lines for
    each server of a mass failure are not what VPP should wait for. While more than ``HELP`` of ``bound`` wait, who
    logs makes lines too.
    """

    def __init__(self, stream: IO[str], bound: int, line_of: Callable[[_Entry], str], level: int) -> None:
        self.level = level
        self._stream = stream
        self._bound = bound
        self._line_of = line_of
        self._entries: deque[_Entry] = deque()
        self._lines: list[str] = []  # of entries that were before those
        self._making = threading.Lock()  # what is taken from the entries becomes lines before others are taken
        self._ready = threading.Condition()
        self._resting = False
        self._ending = False
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="maglev-log", daemon=True)
        self._thread.start()

    def put(self, entry: _Entry) -> None:
        if len(self._entries) + len(self._lines) >= self._bound or self._ending:
            self.lose(1)
            return
        self._entries.append(entry)
        # The thread says that it rests before it looks for entries the last time: it sees this one, or we see that.
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
        """So many records are not written."""
        with self._ready:
            self.lost += many

    def _make(self, most: int) -> list[str]:
        """Lines of the oldest entries, in a moment in which nobody else makes any."""
        lines: list[str] = []
        for _ in range(min(most, len(self._entries))):
            try:
                lines.append(self._line_of(self._entries.popleft()))
            except Exception:
                # A record that cannot be written must not end the task that logged it; it shows in the count.
                self.lose(1)
        return lines

    def _take(self) -> list[str] | None:
        """Wait for something to write; None when that was all. Nothing, if no line could be made of what came."""
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
                # Standard error is closed or full: nowhere to say so but the count.
                self.lose(len(lines))
            if not self._ending:
                time.sleep(PAUSE)

    def end(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``, and stop the thread."""
        with self._ready:
            self._ending = True
            self._ready.notify()
        self._thread.join(seconds)


class _Others(logging.Handler):
    """What other libraries (grpc, asyncio) log, in the same form."""

    def __init__(self, writer: _Writer) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < self._writer.level:
            return
        try:
            entry = _Entry.of(record)
        except Exception:
            # A record without words must not end the task that logged it; it shows in the count.
            self._writer.lose(1)
            return
        self._writer.put(entry)


class _Tap:
    """Turns records into ``LogEvent``s on the bus, on the loop's thread."""

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        self.level = _OFF
        self._bus = bus
        self._loop = loop
        self._thread = threading.get_ident()
        self._publishing = False

    def put(self, entry: _Entry) -> None:
        own = threading.get_ident() == self._thread
        if own and self._publishing:
            # A listener that logs about a log record would never come to an end.
            return
        try:
            message = str(entry.message)
            fields = {key: str(value) for key, value in entry.fields.items()}
        except Exception:
            # As in the writer: it costs only itself.
            self._bus.failures += 1
            return
        if entry.trace:
            fields["traceback"] = entry.trace
        event = LogEvent(
            level=level_name(entry.level),
            event=entry.event,
            message=message,
            at_ns=int(entry.created * 1e9),
            fields=fields,
        )
        if own:
            self._publish(event)
            return
        # The loop may end at any moment, and those who watch with it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._publish, event)

    def _publish(self, event: LogEvent) -> None:
        self._publishing = True
        try:
            self._bus.publish(event)
        finally:
            self._publishing = False


class LogControl:
    """The daemon's logging: where it goes, at which level, and what ``WatchEvents`` gets of it.

    ``start`` puts the sinks in place and ``end`` takes them away again (with everything written). One at a time.
    """

    def __init__(self, *, level: str = "info", form: str = "text", stream: IO[str] | None = None) -> None:
        self._level = parse_level(level)
        if form not in FORMATS:
            raise ValueError(f"{form!r} is not one of {', '.join(FORMATS)}")
        self._form = form
        self._stream = stream if stream is not None else sys.stderr
        self._writer: _Writer | None = None
        self._lost = 0
        self._others: _Others | None = None
        self._tap: _Tap | None = None
        self._watchers: list[int] = []

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
        return self._writer.lost if self._writer is not None else self._lost

    def start(self, *, bound: int = BOUND) -> None:
        """Write records of this process to the stream; at most ``bound`` lines wait for a slow reader."""
        self._writer = _Writer(self._stream, bound, json_line if self._form == "json" else text_line, self._level)
        self._others = _Others(self._writer)
        logging.getLogger().addHandler(self._others)
        self._apply()

    def tap(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        """Give records to the bus as well, while there is a watcher. To be called on the loop's thread."""
        self._tap = _Tap(bus, loop)
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
        """Write what waits, for at most ``seconds``, and take the sinks away."""
        writer, self._writer, self._tap = self._writer, None, None
        self._apply()
        if self._others is not None:
            logging.getLogger().removeHandler(self._others)
            self._others = None
        if writer is not None:
            writer.end(seconds)
            self._lost = writer.lost

    def _apply(self) -> None:
        global _sinks
        sinks: list[_Sink] = []
        if self._writer is not None:
            self._writer.level = self._level
            sinks.append(self._writer)
        if self._tap is not None:
            self._tap.level = min(self._watchers, default=_OFF)
            if self._watchers:
                sinks.append(self._tap)
        _sinks = tuple(sinks)
        logging.getLogger(ROOT).setLevel(min((sink.level for sink in sinks), default=self._level))
