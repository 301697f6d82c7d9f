"""Text for people: escaping, times, durations, colours, tables."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence

from maglev.cli.errors import UsageError

_SECOND = 10**9
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def escape(text: str) -> str:
    """``text`` with everything that a terminal could act upon written out (``\\x1b``).

    That includes line breaks and characters that change the direction of writing: what came from the network must
    not be able to look like something else.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def escape_json(text: str) -> str:
    """The same for a JSON document: such characters become ``\\u`` escapes, which leaves its meaning as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration as Go writes it (``90s``, ``1h30m``, ``1.5h``). Raises ``UsageError``."""
    total = 0.0
    at = 0
    while (part := _PART.match(text, at)) is not None:
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not text or at < len(text) or not 0 < total < 2**62:
        raise UsageError(f"{escape(text)!r} is no duration: as in 90s, 30m, 1h30m")
    return round(total)


def duration(ns: int) -> str:
    """A length of time for people, in two units at most: ``1.2ms``, ``3.4s``, ``5m12s``, ``2d3h``."""
    if ns < 0:
        return "-" + duration(-ns)
    if ns < 1_000:
        return f"{ns}ns"
    for unit, name, limit in ((10**3, "us", 1000), (10**6, "ms", 1000), (_SECOND, "s", 60)):
        value = ns / unit
        # What rounds up to the limit belongs to the next unit.
        if value < limit - 0.5:
            return f"{value:.1f}".removesuffix(".0") + name if value < 9.95 else f"{value:.0f}{name}"
    seconds = round(ns / _SECOND)
    for size, big, small in ((60, "m", "s"), (3600, "h", "m"), (86400, "d", "h")):
        if seconds < size * (60 if big == "m" else 24) or big == "d":
            many, rest = divmod(seconds, size)
            few = rest // {"m": 1, "h": 60, "d": 3600}[big]
            return f"{many}{big}{few}{small}" if few else f"{many}{big}"
    raise AssertionError(ns)


def moment(ns: int) -> str:
    """A wall clock time in local time, to the millisecond; empty for 0."""
    if ns == 0:
        return ""
    seconds, rest = divmod(ns, _SECOND)
    local = datetime.datetime.fromtimestamp(seconds).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}.{rest // 10**6:03}"


_COLOURS = {
    "up": "32",
    "down": "31",
    "unknown": "33",
    "paused": "36",
    "disabled": "35",
    "drained": "36",
    "error": "31",
    "warning": "33",
    "bold": "1",
}


class Style:
    """Colours, or none."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour

    def paint(self, text: str, name: str) -> str:
        """``text`` in the colour of ``name`` ("up", "error"); as it is where there is none."""
        code = _COLOURS.get(name) if self.colour else None
        return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


class Table:
    """Rows in aligned columns, printed while they come.

    A column is as wide as its widest cell so far; no line ends in blanks. Cells are escaped. ``paint`` names the
    columns whose first word is also the name of its colour.
    """

    def __init__(self, style: Style, headings: Sequence[str], *, paint: Iterable[str] = ()) -> None:
        self._style = style
        self._headings = headings
        painted = frozenset(paint)
        self._painted = frozenset(at for at, heading in enumerate(headings) if heading in painted)
        self._widths = [len(heading) for heading in headings]
        self._begun = False

    def lines(self, rows: Iterable[Sequence[str]]) -> Iterator[str]:
        """The lines for some rows, behind the headings the first time."""
        cells = [[escape(cell) for cell in row] for row in rows]
        for row in cells:
            for at, cell in enumerate(row):
                self._widths[at] = max(self._widths[at], len(cell))
        if not self._begun:
            self._begun = True
            yield self._style.paint(self._line(self._headings, heading=True), "bold")
        for row in cells:
            yield self._line(row)

    def _line(self, row: Sequence[str], *, heading: bool = False) -> str:
        parts = []
        last = len(row) - 1
        while last > 0 and not row[last]:
            last -= 1
        for at, cell in enumerate(row[: last + 1]):
            padding = " " * (self._widths[at] - len(cell)) if at < last else ""
            painted = at in self._painted and not heading and cell
            parts.append((self._style.paint(cell, cell.split()[0]) if painted else cell) + padding)
        return "  ".join(parts)


def fields(style: Style, pairs: Iterable[tuple[str, str]], *, indent: int = 2) -> Iterator[str]:
    """``name  value`` lines, aligned; pairs with an empty value are left out."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        yield f"{' ' * indent}{name:<{width}}  {style.paint(escape(value), value)}"


def yes(value: bool) -> str:
    """``yes`` or ``no``."""
    return "yes" if value else "no"
