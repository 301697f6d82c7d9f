"""A log record on its way, its levels, and the sinks that records of this process go to."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

ROOT = "maglev"
LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
OFF = logging.CRITICAL + 10


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


class Entry(NamedTuple):
    """A record on its way to the sinks. Nothing in it may change any more: its words are made on another thread."""

    created: float
    level: int
    event: str
    message: object
    logger: str
    fields: Mapping[str, object]
    trace: str = ""

    @classmethod
    def of(cls, record: logging.LogRecord) -> Entry:
        """A record of another library. Raises whatever making its message raises."""
        error = record.exc_info[1] if record.exc_info else None
        trace = trace_of(error) if error else ""
        return cls(record.created, record.levelno, "log", record.getMessage(), record.name, {}, trace)


def trace_of(error: BaseException) -> str:
    """The traceback of an error, without a line break at its end."""
    return "".join(traceback.format_exception(error)).rstrip()


class Sink(Protocol):
    """Takes records of ``level`` and above, on the thread that logs. ``put`` never waits and never raises."""

    level: int

    def put(self, entry: Entry) -> None:
        """Take one record."""
        ...


class Sinks:
    """The sinks of this process. ``LogControl`` replaces the tuple as a whole; loggers read it without a lock."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: tuple[Sink, ...] = ()

    def replace(self, sinks: Sequence[Sink]) -> None:
        """Put other sinks in place, from the next record on."""
        self.all = tuple(sinks)


sinks = Sinks()
