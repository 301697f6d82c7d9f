"""Problems of a configuration, with the path of the value and, for YAML, its line and column."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass

# A place in the configuration as a linked list from the leaf up: ((((), "maglev"), "frontends"), "www"). A mapping's
# key is a str, a list's index an int. Building one costs a tuple, which matters for 100,000 values without an error.
Path = tuple["Path", str | int] | tuple[()]

MOST = 1000  # problems of one kind that are reported; a file with more has one mistake many times
MOST_SUGGESTIONS = 50
LARGEST_VOCABULARY = 5000  # names among which a nearest one is looked for; it takes microseconds a name
_SHOWN = 60  # characters of a bad value that a message quotes


class ProblemKind(enum.Enum):
    """The class of a problem. Exit codes, gRPC, logs and metrics keep the first two apart."""

    PARSE = "parse"
    SEMANTIC = "semantic"
    WARNING = "warning"

    def __str__(self) -> str:
        return self.value

    @property
    def title(self) -> str:
        """``parse error``, ``semantic error`` or ``warning``."""
        return self.value if self is ProblemKind.WARNING else f"{self.value} error"


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. ``line`` and ``column`` count from 1; 0 means not known (JSON below its syntax)."""

    kind: ProblemKind
    path: str
    message: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def render(self, filename: str) -> str:
        """The problem as ``file:line:col: path: message [class]``; no line where none is known."""
        place = f"{filename}:{self.line}:{self.column}" if self.line else filename
        return f"{place}: {self} [{self.kind.title}]"


def segments(path: Path) -> list[str | int]:
    """The segments of a path from the root down."""
    found: list[str | int] = []
    while path:
        path, segment = path
        found.append(segment)
    found.reverse()
    return found


def make_path(*parts: str | int) -> Path:
    """The path of the given segments from the root down."""
    path: Path = ()
    for part in parts:
        path = (path, part)
    return path


def format_path(path: Path) -> str:
    """A path as operators read it: ``maglev.frontends.www-v6.pools[0].backends.x``."""
    text = ""
    for segment in segments(path):
        if isinstance(segment, int):
            text += f"[{segment}]"
        else:
            text += f"{'.' if text else ''}{abbreviate(segment, 63) or quote(segment)}"
    return text


def abbreviate(text: str, longest: int = _SHOWN) -> str:
    """``text`` on one line and not too long, with everything that a terminal could act on escaped."""
    cut = text[:longest]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return safe + ("…" if len(text) > longest else "")


def quote(value: object) -> str:
    """A value of the file in quotes, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{abbreviate(str(value))}'"


Locator = Callable[[Path, bool], tuple[int, int]]


class Report:
    """Collects problems; finds the line and column of each by asking ``locate(path, at_key)``.

    One report is passed down through reading and checking, and everything that finds a problem adds to it. Reading
    goes on after a problem, so a return value could not carry both.

    ``numbers_are_typed``: the source distinguishes numbers and booleans from strings, as JSON does; a string of digits
    is then refused where a number belongs.
    """

    def __init__(self, locate: Locator | None = None, *, numbers_are_typed: bool = False) -> None:
        self.numbers_are_typed = numbers_are_typed
        self._locate = locate
        self._found: dict[ProblemKind, list[Problem]] = {kind: [] for kind in ProblemKind}
        self._left_out = dict.fromkeys(ProblemKind, 0)
        self._suggestions = 0
        self._wrong: set[str] = set()  # paths with a semantic error

    def parse(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Record a parse error at ``path``: at its value, or with ``at_key`` at its key."""
        self._add(ProblemKind.PARSE, path, message, at_key)

    def semantic(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Record a semantic error."""
        self._wrong.add(format_path(path))
        self._add(ProblemKind.SEMANTIC, path, message, at_key)

    @property
    def refused(self) -> bool:
        """Whether a semantic error was recorded: the file will not be used."""
        return bool(self._wrong)

    def warn(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Record a warning, unless the value has an error already: what it would mean is then not known."""
        if format_path(path) in self._wrong:
            return
        self._add(ProblemKind.WARNING, path, message, at_key)

    def add(self, problem: Problem) -> None:
        """Record a problem whose place is known already."""
        found = self._found[problem.kind]
        if len(found) < MOST:
            found.append(problem)
        else:
            self._left_out[problem.kind] += 1

    def has(self, kind: ProblemKind) -> bool:
        """Whether any problem of that kind was recorded."""
        return bool(self._found[kind])

    def suggest(self, name: str, known: Collection[str]) -> str:
        """``; did you mean x?`` if a known word is near to ``name``, else nothing.

        A file with very many mistakes gets no more of them after a while: finding them is what would take long.
        """
        if len(name) > 63 or len(known) > LARGEST_VOCABULARY or self._suggestions >= MOST_SUGGESTIONS:
            return ""
        self._suggestions += 1
        near = difflib.get_close_matches(name, known, n=1)
        return f"; did you mean {abbreviate(near[0])}?" if near else ""

    def problems(self, *kinds: ProblemKind) -> tuple[Problem, ...]:
        """The problems of those kinds, each kind in the order of the file as far as lines are known."""
        out: list[Problem] = []
        for kind in kinds:
            out += sorted(self._found[kind], key=lambda problem: (problem.line, problem.column))
            if self._left_out[kind]:
                out.append(Problem(kind, "", f"and {self._left_out[kind]} more of this kind"))
        return tuple(out)

    def _add(self, kind: ProblemKind, path: Path, message: str, at_key: bool) -> None:
        if len(self._found[kind]) >= MOST:
            self._left_out[kind] += 1
            return
        line, column = self._locate(path, at_key) if self._locate is not None else (0, 0)
        self.add(Problem(kind, format_path(path), message, line, column))
