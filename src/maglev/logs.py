"""Structured logs: every record has a stable event name and fields; text for people, JSON for machines.

Built on the standard library's ``logging``, so that records of other libraries come out the same way. Lines are
written by a thread behind a bounded queue: a reader of standard error that stalls never holds the event loop, and
what had to be thrown away is counted (``LogControl.lost``).

``WatchEvents`` sees records at its subscribers' level, whatever the daemon's own level is: a second handler hands
them to the bus, and only while somebody subscribed (``LogControl.watch``).
"""

from __future__ import annotations

import asyncio
import datetime
import enum
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO

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
        trace = (type(error), error, error.__traceback__) if error is not None else None
        # No search for the caller's file and line: the event name says it, and the search costs more than the rest.
        record = self._logger.makeRecord(self._logger.name, level, "", 0, message, (), trace)
        record.maglev_event = event
        record.maglev_fields = fields
        self._logger.handle(record)


def get(name: str) -> EventLogger:
    """The logger of a part: ``log = logs.get(__name__)``."""
    return EventLogger(name)


def _event(record: logging.LogRecord) -> str:
    event = getattr(record, "maglev_event", None)
    return event if isinstance(event, str) else "log"


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "maglev_fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip()


class TextFormatter(logging.Formatter):
    """``2026-11-22T12:00:00.123Z info  message  event=name key=value``: one line, with tracebacks indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """The line (lines, with a traceback), without a line break at its end."""
        parts = [_time(record.created), f"{level_name(record.levelno):<7}", escape(record.getMessage())]
        parts.append(f"event={_event(record)}")
        parts.extend(f"{key}={_quoted(value)}" for key, value in _fields(record).items())
        line = " ".join(parts)
        trace = _traceback(record)
        if trace:
            line += "".join(f"\n    {escape(row)}" for row in trace.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time level event message logger``, then the fields, then ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """The object as text, without a line break at its end."""
        value: dict[str, object] = {
            "time": _time(record.created),
            "level": level_name(record.levelno),
            "event": _event(record),
            "message": record.getMessage(),
            "logger": record.name,
        }
        for key, item in _fields(record).items():
            # A field never hides one of the above.
            value[f"{key}_" if key in value else key] = _json(item)
        trace = _traceback(record)
        if trace:
            value["traceback"] = trace
        try:
            return orjson.dumps(value, default=str).decode()
        except TypeError:
            # A lone surrogate or an integer beyond 64 bits: write such things as text, lose nothing.
            return orjson.dumps({key: _plain(item) for key, item in value.items()}).decode()


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: object) -> object:
    # Left alone, states and codes would come out as the engine's numbers.
    return str(value) if isinstance(value, enum.Enum) else value


def _plain(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


def _quoted(value: object) -> str:
    text = escape(str(value))
    if not text or any(c in text for c in ' "='):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


class _Writer(logging.Handler):
    """Formats on the caller's side, writes in a thread; at most ``bound`` lines wait, further ones are counted."""

    def __init__(self, stream: IO[str], bound: int) -> None:
        super().__init__()
        self._stream = stream
        self._bound = bound
        self._lines: deque[str] = deque()
        self._ready = threading.Condition()
        self._ending = False
        self.lost = 0
        self._thread = threading.Thread(target=self._write, name="maglev-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            # A record that cannot be written must not end the task that logged it; it shows in the count.
            self.lost += 1
            return
        with self._ready:
            if len(self._lines) >= self._bound or self._ending:
                self.lost += 1
                return
            self._lines.append(line)
            self._ready.notify()

    def _write(self) -> None:
        while True:
            with self._ready:
                while not self._lines and not self._ending:
                    self._ready.wait()
                lines = list(self._lines)
                self._lines.clear()
                if not lines and self._ending:
                    return
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
        fields = {key: str(value) for key, value in _fields(record).items()}
        trace = _traceback(record)
        if trace:
            fields["traceback"] = trace
        event = LogEvent(
            level=level_name(record.levelno),
            event=_event(record),
            message=record.getMessage(),
            at_ns=int(record.created * 1e9),
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

    def start(self, *, bound: int = 10_000) -> None:
        """Write records of this process to the stream; at most ``bound`` lines wait for a slow reader."""
        self._writer = _Writer(self._stream, bound)
        self._writer.setFormatter(JsonFormatter() if self._form == "json" else TextFormatter())
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
