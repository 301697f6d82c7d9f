"""Records as lines, of text for people and of JSON for machines.

Texts in a record may come from the network. No line shows a character that a terminal could act upon.
"""

from __future__ import annotations

import datetime
import enum
import functools
import json
import math
import re

import orjson

from maglev.base.logs.record import Entry, level_name


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


def text_line(entry: Entry) -> str:
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


def json_line(entry: Entry) -> str:
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
        # A lone surrogate, or an integer beyond 64 bits: both are written as text.
        line = orjson.dumps({key: _plain(item) for key, item in value.items()}).decode()
    if line.isprintable():
        return line
    # JSON permits DEL and the control characters from U+0080 on unescaped; a terminal may act upon them.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _time(seconds: float) -> str:
    whole = math.floor(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _json(value: object) -> object:
    # States and codes are integers too: without this, JSON would show the engine's numbers.
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
