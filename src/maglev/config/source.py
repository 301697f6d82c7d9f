"""From bytes to a tree of dict, list and text, for YAML and JSON alike, with the place of every value.

Nothing here knows what the keys mean. YAML is only composed, never constructed: scalars stay text, so that ``no``,
``on`` and ``12`` are names and no tag can make an object. The cost of a hostile file is bounded: its size, its
depth, and the number of values that its aliases stand for.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from maglev.config.yamlhints import explain
from maglev.schema.problems import Path, Problem, ProblemKind, Report, abbreviate, format_path, segments
from maglev.schema.types import Number

MAX_BYTES = 64 << 20
MAX_DEPTH = 32  # a valid file is 10 deep at most
MAX_VALUES = (
    4_000_000  # of a YAML file; each takes half a kilobyte while it is read, 50,000 backends have half a million
)
MAX_ALIASED = 1_000_000  # values that aliases may stand for, all together


class _TooMuch(Exception):
    """The file is beyond a bound; the text says which."""


class Document:
    """A file's content as dict, list, ``str`` (JSON also: ``Number``, bool) and None, and the places of its values."""

    def __init__(self, value: object, root: yaml.Node | None = None) -> None:
        self.value = value
        self._root = root
        self._indexes: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}

    def locate(self, path: Path, at_key: bool) -> tuple[int, int]:
        """Line and column, from 1, of the value at ``path`` or of its key; its nearest parent's if it is not there."""
        node = self._root
        if node is None:
            return 0, 0
        mark = node.start_mark
        for segment in segments(path):
            if isinstance(segment, str):
                pair = self._index(node).get(segment) if isinstance(node, yaml.MappingNode) else None
                if pair is None:
                    break
                key, node = pair
                mark = key.start_mark if at_key or _is_null(node) else node.start_mark
            else:
                if not isinstance(node, yaml.SequenceNode) or segment >= len(node.value):
                    break
                node = node.value[segment]
                mark = node.start_mark
        return mark.line + 1, mark.column + 1

    def _index(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        found = self._indexes.get(id(node))
        if found is None:
            found = self._indexes[id(node)] = {}
            merged: list[yaml.MappingNode] = []
            for key, value in node.value:
                if _is_merge(key):
                    sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                    merged += [source for source in sources if isinstance(source, yaml.MappingNode)]
                elif isinstance(key, yaml.ScalarNode):
                    found.setdefault(key.value, (key, value))
            for other in merged:
                for name, pair in self._index(other).items():
                    found.setdefault(name, pair)
        return found


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep the cyclic collector from walking a million new and very much alive objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read(text: str | bytes, *, is_json: bool) -> tuple[Document | None, Report]:
    """Parse ``text``. Returns None and a report with parse errors if it cannot be read; never raises for its content.

    The report of a good document locates later problems in it.
    """
    report = Report()
    if len(text) > MAX_BYTES:
        _fail(report, f"the file is larger than {MAX_BYTES >> 20} MiB")
        return None, report
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = before.count(b"\n") + 1
            column = len(before) - before.rfind(b"\n")
            _fail(report, f"the file is not UTF-8 (byte {error.object[error.start]:#04x})", line, column)
            return None, report
    else:
        text = text.removeprefix("\ufeff")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            _fail(report, f"the text is not valid Unicode (character {error.start})")
            return None, report
    return _read_json(text) if is_json else _read_yaml(text)


def _fail(report: Report, message: str, line: int = 0, column: int = 0) -> None:
    report.add(Problem(ProblemKind.PARSE, "", message, line, column))


# JSON


class _Object(dict[str, object]):
    """A JSON object that had keys twice; ``twice`` names them."""

    __slots__ = ("twice",)
    twice: list[str]


def _read_json(text: str) -> tuple[Document | None, Report]:
    report = Report(numbers_are_typed=True)
    doubled = False

    def make(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal doubled
        made = dict(pairs)
        if len(made) != len(pairs):
            doubled = True
            seen: set[str] = set()
            made = _Object(made)
            made.twice = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        return made

    try:
        value = json.loads(text, object_pairs_hook=make, parse_int=Number, parse_float=Number, parse_constant=Number)
    except json.JSONDecodeError as error:
        _fail(report, f"not valid JSON: {error.msg}", error.lineno, error.colno)
        return None, report
    except RecursionError:
        _fail(report, "the file is nested too deeply")
        return None, report
    if doubled:
        _report_doubled(value, report)
    return Document(value), report


def _report_doubled(value: object, report: Report) -> None:
    waiting: list[tuple[object, Path]] = [(value, ())]
    while waiting:
        item, path = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item, _Object):
                for key in dict.fromkeys(item.twice):
                    report.parse((path, key), f"the key '{abbreviate(key)}' is there more than once")
            # Backwards, because the last one waiting is taken first.
            waiting += [(child, (path, key)) for key, child in reversed(item.items())]
        elif isinstance(item, list):
            waiting += [(child, (path, index)) for index, child in reversed(list(enumerate(item)))]


# YAML


class _Composer(yaml.CSafeLoader):
    """Composes nodes and resolves nothing: every scalar is text, whatever it looks like.

    The composer calls itself for each level, in C, so the depth is bounded while it works and not after; so is
    the number of nodes, of which a short file can have very many.
    """

    depth = 0
    values = 0

    def descend_resolver(self, current_node: object, current_index: object) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise _TooMuch(f"the file is nested more than {MAX_DEPTH} levels deep")
        self.values += 1
        if self.values > MAX_VALUES:
            raise _TooMuch(f"the file has more than {MAX_VALUES} values")

    def ascend_resolver(self) -> None:
        self.depth -= 1

    def resolve(self, kind: object, value: object, implicit: object) -> str:
        return ""


def _read_yaml(text: str) -> tuple[Document | None, Report]:
    report = Report()
    try:
        composer = _Composer(text)
        try:
            root = composer.get_single_node()
        finally:
            composer.dispose()
        if root is None:
            _fail(report, "the file is empty")
            return None, report
        document = Document(None, root)
        report = Report(document.locate)
        document.value = _Converter(report).convert(root, (), 0)
    except yaml.MarkedYAMLError as error:
        hint = explain(text, error)
        if hint is not None:
            _fail(report, f"not valid YAML: {hint[0]}", *hint[1:])
            return None, report
        mark = error.problem_mark or error.context_mark
        what = "; ".join(part for part in (error.context, error.problem) if part)
        _fail(report, f"not valid YAML: {abbreviate(what, 200)}", *((mark.line + 1, mark.column + 1) if mark else ()))
    except yaml.reader.ReaderError as error:
        _fail(report, *_unreadable(text, error))
    except (yaml.YAMLError, _TooMuch) as error:
        _fail(report, abbreviate(str(error)))
    else:
        return document, report
    return None, report


def _unreadable(text: str, error: yaml.reader.ReaderError) -> tuple[str, int, int]:
    # libyaml does not say where; the first character that YAML 1.1 does not allow is the one it stopped at.
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found is None:
        return f"not valid YAML: {error.reason}", 0, 0
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    return f"not valid YAML: character U+{ord(found[0]):04X} is not allowed", line, column


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in ("", "~")


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value == "<<"


class _Converter:
    """Turns composed nodes into dict, list and text; finds duplicate keys, refuses tags, bounds aliases."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: set[int] = set()
        self._aliased = 0

    def convert(self, node: yaml.Node, path: Path, depth: int) -> object:
        if node.tag:
            self._report.parse(path, f"the tag '{abbreviate(node.tag)}' has no meaning here")
        if isinstance(node, yaml.ScalarNode):
            return None if _is_null(node) else node.value
        if id(node) in self._seen:
            self._aliased += 1 + len(node.value)
            if self._aliased > MAX_ALIASED:
                raise _TooMuch(f"the file's aliases stand for more than {MAX_ALIASED} values")
        self._seen.add(id(node))
        if depth > MAX_DEPTH:
            raise _TooMuch(f"{abbreviate(format_path(path))}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(child, (path, index), depth + 1) for index, child in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path, depth)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        merges: list[yaml.Node] = []
        first_lines: dict[str, int] = {}
        scalar = yaml.ScalarNode
        for key, value in node.value:
            if type(key) is not scalar:
                self._complain(key, path, "a key must be a word, not a mapping or a list")
                continue
            name = key.value
            if name == "<<" and _is_merge(key):
                merges.append(value)
                continue
            if key.tag:
                self._complain(key, (path, name), f"the tag '{abbreviate(key.tag)}' has no meaning here")
            if name in made:
                if not first_lines:
                    # Backwards, so that the first of several is what stays.
                    first_lines = {str(other.value): other.start_mark.line + 1 for other, _ in reversed(node.value)}
                self._complain(
                    key,
                    (path, name),
                    f"the key '{abbreviate(name)}' is there more than once (first in line {first_lines[name]})",
                )
                continue
            # Most values are plain text: spare them the call.
            if type(value) is scalar and not value.tag and value.value not in ("", "~"):
                made[name] = value.value
            else:
                made[name] = self.convert(value, (path, name), depth + 1)
        for merge in merges:
            self._merge(merge, made, path, depth)
        return made

    def _merge(self, node: yaml.Node, made: dict[str, object], path: Path, depth: int) -> None:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._complain(node, (path, "<<"), "only mappings can be merged")
                continue
            merged = self.convert(source, path, depth + 1)
            assert isinstance(merged, dict)
            for name, value in merged.items():
                made.setdefault(name, value)

    def _complain(self, node: yaml.Node, path: Path, message: str) -> None:
        mark = node.start_mark
        self._report.add(Problem(ProblemKind.PARSE, format_path(path), message, mark.line + 1, mark.column + 1))
