"""The logger that the parts of the daemon call."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

from maglev.base.logs.record import ROOT, Entry, sinks, trace_of

_muted: ContextVar[bool] = ContextVar("maglev_logs_muted", default=False)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop the records of this task, and of what it schedules within: it only tries a change."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


class EventLogger:
    """A logger whose calls take an event name, a message for people, and fields for machines.

    ``log.info("backend-transition", "backend web0 is down", backend="web0")``. Event names are stable and
    documented; messages are not. Words are made later, by the writer: ``str`` of the message, and of each field that is
    not a number, a boolean or None.
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
        if _muted.get():
            return
        # Records bypass ``logging`` once there are sinks. A mass failure logs two records for each server, and the way
        # through ``logging`` took a tenth of the daemon's CPU time. Without sinks (tests, tools) ``logging`` gets them.
        current = sinks.all
        if not current:
            extra = {"maglev_event": event, "maglev_fields": fields}
            self._logger.log(level, message, extra=extra, exc_info=error, stacklevel=3)
            return
        trace = trace_of(error) if error is not None else ""
        entry = Entry(time.time(), level, event, message, self._name, fields, trace)
        for sink in current:
            if level >= sink.level:
                sink.put(entry)


def get(name: str) -> EventLogger:
    """The logger of a part: ``log = logs.get(__name__)``."""
    return EventLogger(name)
