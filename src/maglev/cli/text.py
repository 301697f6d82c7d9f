"""Text for people: escaping, times, durations, colours, lines that fit the terminal, tables."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import zip_longest
from typing import IO

from maglev.base.limits import MAX_DURATION_NS
from maglev.cli.errors import UsageError
from maglev.schema import durations

_SECOND = 10**9


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
    """Nanoseconds of a duration above 0 as Go writes it (``90s``, ``1h30m``, ``1.5h``). Raises ``UsageError``.

    The grammar is that of the configuration file.
    """
    try:
        nanoseconds = durations.parse_duration(text)
    except ValueError:
        raise UsageError(f"{escape(text)!r} is no duration: write it as in 90s, 30m or 1h30m") from None
    if not 0 < nanoseconds <= MAX_DURATION_NS:
        raise UsageError(f"{escape(text)!r}: a duration here is above 0 and at most 366 days (8784h)")
    return nanoseconds


def parse_endpoint(text: str) -> tuple[str, int | None]:
    """Address and port of ``192.0.2.1:80``, ``[2001:db8::1]:80``, or of an address alone, whose port is None.

    Raises ``UsageError``.
    """
    address, port = text, ""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        port = rest[1:]
        if not bracket or (rest and (not rest.startswith(":") or not port)):
            address = ""
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
        address = address if port else ""
    try:
        found = str(ip_address(address))
    except ValueError:
        raise UsageError(
            f"{escape(text)!r} is no address: expected one as in 192.0.2.1, 192.0.2.1:80 or [2001:db8::1]:80"
        ) from None
    if not port:
        return found, None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise UsageError(f"{escape(text)!r}: {escape(port)!r} is no port: expected 0-65535")
    return found, int(port)


def duration(ns: int) -> str:
    """A length of time for people, in two units at most: ``1.2ms``, ``3.4s``, ``5m12s``, ``2d3h``."""
    if ns < 0:
        return "-" + duration(-ns)
    if ns < 1_000:
        return f"{ns}ns"
    for unit, name, limit in ((10**3, "us", 1000), (10**6, "ms", 1000), (_SECOND, "s", 60)):
        value = ns / unit
        # A value that rounds up to the limit belongs to the next unit.
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
    "panic": "31",
    "unknown": "33",
    "paused": "36",
    "disabled": "35",
    "drained": "36",
    "error": "31",
    "warning": "33",
    "bold": "1",
}


class Style:
    """Colours, or none; and how many columns the terminal has now, 0 where what is printed goes elsewhere."""

    def __init__(self, colour: bool, columns: Callable[[], int] = lambda: 0) -> None:
        self.colour = colour
        self._columns = columns

    @property
    def columns(self) -> int:
        """Columns that a line may take; 0: as many as it likes."""
        return self._columns()

    def paint(self, text: str, name: str) -> str:
        """``text`` in the colour of ``name`` ("up", "error"); as it is where there is none."""
        code = _COLOURS.get(name) if self.colour else None
        return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


# Help is laid out for so many columns; for fewer where the terminal has fewer.
HELP_COLUMNS = 80
# Terms of up to this length have their meaning beside them.
_BESIDE = 24
# A character of a line with the colours around it.
_CELL = re.compile(r"(?:\x1b\[\d+m)*[^\x1b](?:\x1b\[\d+m)*")
_COLOUR = re.compile(r"\x1b\[\d+m")


def terminal_columns(stream: IO[str]) -> int:
    """Columns of the terminal that ``stream`` is; 0: it is none, or does not know."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _pieces(text: str, width: int, first: int) -> Iterator[tuple[int, int]]:
    """Where each piece begins and ends that ``text`` is broken into; ``first``: the width of the first of them.

    Between words; a word that is too long for a line behind its punctuation, or anywhere.
    """
    start, size, room = 0, len(text.rstrip()), first
    while size - start > room:
        end = text.rfind(" ", start + 1, start + room + 1)
        if end < 0:
            end = max(text.rfind(mark, start + room // 2, start + room) for mark in ",:;./-_|") + 1 or start + room
        yield start, start + len(text[start:end].rstrip())
        start = end + len(text[end:]) - len(text[end:].lstrip())
        room = width
    yield start, size


def fold(text: str, width: int) -> list[str]:
    """``text`` in pieces of at most ``width`` characters, broken between words."""
    return [text[start:end] for start, end in _pieces(text, width, width)]


def wrap(line: str, columns: int, hang: int = 2) -> Iterator[str]:
    """A line in as many as it takes on a terminal of ``columns`` (0: there is none), broken between words.

    Those below the first are indented as it is and by ``hang`` more. Colours take no room, and go on.
    """
    text = _COLOUR.sub("", line)
    if not columns or len(text) <= columns:
        yield line
        return
    begin = len(text) - len(text.lstrip())
    indent, below = min(begin, columns // 2), min(begin + hang, columns // 2)
    pieces = [(begin + start, begin + end) for start, end in _pieces(text[begin:], columns - below, columns - indent)]
    # Only blanks are left out; the colours between them stay.
    cells = _CELL.findall(line)
    margin = " " * indent + "".join(cells[:begin]).replace(" ", "")
    for (start, end), (after, _) in zip(pieces, [*pieces[1:], (len(cells), 0)], strict=True):
        yield margin + "".join(cells[start:end]) + "".join(cells[end:after]).replace(" ", "")
        margin = " " * below


def complain(stream: IO[str], text: str) -> None:
    """A message of maglevc's own. Where standard error cannot be written, the exit status has to do."""
    with contextlib.suppress(OSError, ValueError):
        stream.writelines(f"{line}\n" for line in wrap(f"maglevc: {text}", terminal_columns(stream)))


def explained(pairs: Iterable[tuple[str, str]], columns: int, beside: int) -> Iterator[str]:
    """Terms, and what each means: beside it where it has ``beside`` characters at most and the terminal is wide enough
    for both, else below it. ``columns`` of the terminal; 0: there is none."""
    columns = min(columns or HELP_COLUMNS, HELP_COLUMNS)
    wide = columns - beside - 4 >= _BESIDE
    start = beside + 4 if wide else min(6, columns // 2)
    for term, text in pairs:
        said = fold(text, columns - start)
        if wide and len(term) <= beside:
            yield f"  {term:<{beside}}  {said.pop(0)}"
        else:
            yield from wrap(f"  {term}", columns, 4)
        yield from (" " * start + piece for piece in said)


def cut(text: str, width: int) -> str:
    """``text``, or where it has more than ``width`` characters its beginning with a mark of that."""
    return text if len(text) <= width else text[: width - 1] + "…"


# The least width of a shortened column.
LEAST_COLUMNS = 8


class Table:
    """Rows in aligned columns, printed while they come.

    A column is as wide as its widest cell so far; no line ends in blanks. Cells are escaped. On a terminal no line is
    wider than that: where the columns do not fit side by side, the rest of a row stands below its
    beginning, and so do the headings. The headings come again when that changes between pages. In a pipe a row is a
    line.

    Before any of that the columns that ``shorten`` names give way: what is too long in them ends with an ellipsis. The
    whole text is in a pipe, in JSON, and where the command shows a single object.

    ``paint`` names the columns whose first word is also the name of its colour, ``right`` those of numbers.
    """

    def __init__(
        self,
        style: Style,
        headings: Sequence[str],
        *,
        paint: Iterable[str] = (),
        right: Iterable[str] = (),
        shorten: Iterable[str] = (),
        indent: int = 0,
    ) -> None:
        self._style = style
        self._headings = headings
        painted, to_the_right, short = frozenset(paint), frozenset(right), frozenset(shorten)
        self._short = [at for at, heading in enumerate(headings) if heading in short]
        self._painted = [heading in painted for heading in headings]
        self._right = [heading in to_the_right for heading in headings]
        self._indent = indent
        self._widths = [len(heading) for heading in headings]
        # As printed last. Of each line its columns: which, from where on, how wide.
        self._layout: list[list[tuple[int, int, int]]] = []

    def lines(self, rows: Iterable[Sequence[str]]) -> Iterator[str]:
        """The lines for some rows, after the headings the first time."""
        cells = [[escape(cell) for cell in row] for row in rows]
        for row in cells:
            for at, cell in enumerate(row):
                self._widths[at] = max(self._widths[at], len(cell))
        columns = self._style.columns
        before, self._layout = self._layout, self._arrange(columns or sys.maxsize)
        if not before or (columns and before != self._layout):
            yield from (self._style.paint(line, "bold") for line in self._row(self._headings))
        for row in cells:
            if columns:
                self._shorten(row)
            colours = [
                cell.split()[0] if cell and painted else "" for cell, painted in zip(row, self._painted, strict=True)
            ]
            yield from self._row(row, colours)

    def _shorten(self, row: list[str]) -> None:
        """Cut the cells of a row that may be cut to the widths of their columns as they are arranged now."""
        for line in self._layout:
            for at, _, width in line:
                if at in self._short:
                    row[at] = cut(row[at], width)

    def _narrowed(self, columns: int) -> list[int]:
        """The widths of the columns, where those that may be shortened have given up what the terminal lacks."""
        widths = list(self._widths)
        over = self._indent + sum(widths) + 2 * (len(widths) - 1) - columns
        for at in self._short:
            least = min(widths[at], max(LEAST_COLUMNS, len(self._headings[at])))
            given = max(0, min(over, widths[at] - least))
            widths[at] -= given
            over -= given
        return widths

    def _arrange(self, columns: int) -> list[list[tuple[int, int, int]]]:
        layout: list[list[tuple[int, int, int]]] = []
        end = 0
        for at, width in enumerate(self._narrowed(columns)):
            if layout and end + 2 + width <= columns:
                start = end + 2
                layout[-1].append((at, start, width))
            else:
                start = self._indent + (2 if layout else 0)
                width = min(width, max(1, columns - start))
                layout.append([(at, start, width)])
            end = start + width
        for line in layout:
            at, start, width = line[-1]
            if at in self._short:
                # Where the rest of a row stands below, there is room again.
                line[-1] = (at, start, max(width, min(self._widths[at], columns - start)))
        return layout

    def _row(self, row: Sequence[str], colours: Sequence[str] = ()) -> Iterator[str]:
        for line in self._layout:
            if all(len(row[at]) <= width for at, _, width in line):
                yield from self._line(line, [row[at] for at, _, _ in line], colours)
                continue
            # A cell that is wider than the terminal goes on below.
            for cells in zip_longest(*(fold(row[at], width) for at, _, width in line), fillvalue=""):
                yield from self._line(line, cells, colours)

    def _line(
        self, line: Sequence[tuple[int, int, int]], cells: Sequence[str], colours: Sequence[str]
    ) -> Iterator[str]:
        text, end = "", 0
        for (at, start, width), cell in zip(line, cells, strict=True):
            if cell:
                start += width - len(cell) if self._right[at] else 0
                text += " " * (start - end) + (self._style.paint(cell, colours[at]) if colours else cell)
                end = start + len(cell)
        # Nothing is left of what would stand below, where a row has nothing to say there.
        if text:
            yield text


def fields(style: Style, pairs: Iterable[tuple[str, str]], *, indent: int = 2) -> Iterator[str]:
    """``name  value`` lines, aligned; pairs with an empty value are left out. On a terminal long values go on below."""
    kept = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in kept), default=0)
    room = max(1, style.columns - indent - width - 2) if style.columns else sys.maxsize
    for name, value in kept:
        first, *more = fold(escape(value), room)
        yield f"{' ' * indent}{name:<{width}}  {style.paint(first, value)}"
        yield from (f"{' ' * (indent + width + 2)}{piece}" for piece in more)


def yes(value: bool) -> str:
    """``yes`` or ``no``."""
    return "yes" if value else "no"
