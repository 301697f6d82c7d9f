"""Durations as Go writes them (``300ms``, ``1m30s``), held as integers in nanoseconds.

Same grammar and same output as ``time.ParseDuration`` and ``Duration.String`` of Go, without the sign: a
configuration has no use for negative times.
"""

from __future__ import annotations

import re

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, the micro sign
    "μs": 1_000,  # U+03BC, the Greek letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_MAX = (1 << 63) - 1
_LONGEST = 64  # characters; no sensible duration comes near


def parse_duration(text: str) -> int:
    """The nanoseconds that ``text`` means. Raises ValueError, with a message for the operator, for any other text."""
    if text == "0":
        return 0
    if not text or len(text) > _LONGEST:
        raise ValueError("a duration is written as 200ms, 5s or 1m30s")
    total = 0
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None or not (part[1] or part[2]):
            if text[position:].replace(".", "", 1).isdecimal():
                raise ValueError(f"the duration {text!r} lacks a unit (ms, s, m or h)")
            raise ValueError(f"{text!r} is no duration; one is written as 200ms, 5s or 1m30s")
        unit = _UNITS[part[3]]
        total += int(part[1] or "0") * unit
        fraction = part[2] or ""
        if fraction:
            total += int(fraction) * unit // 10 ** len(fraction)
        if total > _MAX:
            raise ValueError(f"the duration {text!r} is too long")
        position = part.end()
    return total


def format_duration(nanoseconds: int) -> str:
    """``nanoseconds`` in Go's form: ``0s``, ``1.5ms``, ``1m30s``, ``1h0m0s``; a minus sign before what is negative."""
    if nanoseconds == 0:
        return "0s"
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest < _UNITS["s"]:
        for unit in ("ms", "µs", "ns"):
            if rest >= _UNITS[unit]:
                return f"{sign}{_decimal(rest, _UNITS[unit])}{unit}"
    hours, rest = divmod(rest, _UNITS["h"])
    minutes, rest = divmod(rest, _UNITS["m"])
    text = f"{_decimal(rest, _UNITS['s'])}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return sign + text


def _decimal(value: int, unit: int) -> str:
    whole, fraction = divmod(value, unit)
    if not fraction:
        return str(whole)
    digits = len(str(unit)) - 1
    return f"{whole}.{fraction:0{digits}d}".rstrip("0")
