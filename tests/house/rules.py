"""The checks of the house rules. Each returns findings and changes nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from grimp import ImportGraph

MAX_ATTRIBUTES: Final = 25
"""Instance attributes of a class, inherited ones not counted."""
MAX_LINES: Final = 60
"""Lines of a function from its ``def`` to its end, comments and blank lines included, the docstring excluded."""

_REASON: Final = re.compile(r"#\s*long: *\S")
_NATIVE_DEF: Final = re.compile(r"\s*(?:async def|c?p?def)\s+(?!class\b|struct\b|enum\b|union\b|extern\b|packed\b)")
_NAME: Final = re.compile(r"(\w+)\s*\(")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One violation. ``rule``, ``path`` (relative to the root) and ``name`` identify it in the list of known ones."""

    path: str
    line: int
    rule: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}: {self.text}"


# --------------------------------------------------------------------------------------------------------- Python


def python(path: str, source: str) -> Iterator[Finding]:
    """Classes with too many attributes and functions with too many lines in a Python module. Raises SyntaxError."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.ClassDef):
            count = len(instance_attributes(node))
            if count > MAX_ATTRIBUTES:
                text = f"{count} instance attributes (at most {MAX_ATTRIBUTES})"
                yield Finding(path, node.lineno, "attributes", node.name, text)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function(path, lines, node)


def _function(path: str, lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Finding]:
    assert node.end_lineno is not None
    count = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None and first.end_lineno is not None:
        count -= first.end_lineno - first.lineno + 1
    top = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    reason = _has_reason(lines, top, _end_of_statement(lines, node.lineno - 1) + 1)
    yield from _length(path, node.lineno, node.name, count, reason)


def instance_attributes(node: ast.ClassDef) -> set[str]:
    """The names of the attributes that a class gives its instances.

    Counted are assignments to ``self.x`` in any method, ``__slots__``, and names with an annotation in the body: fields
    of a dataclass or declarations. Constants of the class (``ClassVar``; ``Final`` with a value) are not.
    """
    names: set[str] = set()
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value):
                if not _is_constant(annotation, value):
                    names.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=slots) | ast.List(elts=slots)):
                names.update(str(slot.value) for slot in slots if isinstance(slot, ast.Constant))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names |= _assigned(statement)
    return names


def _is_constant(annotation: ast.expr, value: ast.expr | None) -> bool:
    name = ast.unparse(annotation).partition("[")[0].rpartition(".")[2]
    return name in ("ClassVar", "InitVar") or (name == "Final" and value is not None)


def _assigned(method: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    # Every attribute of the first parameter that is a target: also in tuples, loops, ``with`` and ``+=``.
    parameters = [*method.args.posonlyargs, *method.args.args]
    decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
    if not parameters or decorators & {"staticmethod", "classmethod"}:
        return set()
    names = set()
    for node in ast.walk(method):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=name, ctx=ast.Store()) if owner == parameters[0].arg:
                names.add(name)
    return names


# --------------------------------------------------------------------------------------------------------- Cython


def native(path: str, source: str) -> Iterator[Finding]:
    """Functions with too many lines in a Cython file.

    No parser of Cython's is needed: a function is a line that begins with ``def``, ``cdef`` or ``cpdef`` and whose
    statement ends with a colon, and its body is all that is indented deeper.
    """
    lines = source.splitlines()
    for start, line in enumerate(lines):
        if not _NATIVE_DEF.match(line):
            continue
        head = _end_of_statement(lines, start)
        code = " ".join(part.partition("#")[0].strip() for part in lines[start : head + 1])
        name = _NAME.search(code)
        if name is None or not code.rstrip().endswith(":"):
            continue  # a declaration, or a variable
        end = _end_of_body(lines, head, len(line) - len(line.lstrip()))
        count = end - start + 1 - _docstring_lines(lines, head, end)
        yield from _length(path, start + 1, name[1], count, _has_reason(lines, start + 1, head + 1))


def _end_of_body(lines: list[str], head: int, indent: int) -> int:
    # The index of the last line that is indented deeper than ``indent``; blank lines at the end do not count.
    end = head
    for index in range(head + 1, len(lines)):
        line = lines[index]
        if not line.strip():
            continue
        if len(line) - len(line.lstrip()) <= indent:
            break
        end = index
    return end


def _docstring_lines(lines: list[str], head: int, end: int) -> int:
    if head == end or not lines[head + 1].lstrip().startswith('"""'):
        return 0
    rest = "\n".join(lines[head + 1 : end + 1]).lstrip()
    return rest[: rest.index('"""', 3)].count("\n") + 1


# ------------------------------------------------------------------------------------------------- length of both


def _end_of_statement(lines: list[str], start: int) -> int:
    # The index of the line on which the brackets that ``start`` opens are closed.
    depth = 0
    for index in range(start, len(lines)):
        code = lines[index].partition("#")[0]
        depth += sum(code.count(mark) for mark in "([{") - sum(code.count(mark) for mark in ")]}")
        if depth <= 0:
            return index
    return len(lines) - 1


def _has_reason(lines: list[str], first: int, last: int) -> bool:
    """True if a ``# long:`` comment stands on lines ``first`` to ``last`` (from 1) or in the comment above them."""
    while first > 1 and lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return any(_REASON.search(line) for line in lines[first - 1 : last])


def _length(path: str, line: int, name: str, count: int, reason: bool) -> Iterator[Finding]:
    if count > MAX_LINES and not reason:
        text = f"{count} lines (at most {MAX_LINES}, or a comment '# long: REASON' at the def)"
        yield Finding(path, line, "lines", name, text)
    elif reason and count <= MAX_LINES:
        yield Finding(path, line, "reason", name, f"'# long:' is not needed: it has {count} lines")


# -------------------------------------------------------------------------------------------------------- imports


def circles(graph: ImportGraph, source: str) -> Iterator[Finding]:
    """Modules that import their own package while its ``__init__`` imports them.

    The contract ``acyclic_siblings`` in pyproject.toml forbids all other circles. It compares siblings only, and a
    package is not a sibling of its modules. ``graph`` holds the imports of the packages below the directory ``source``
    as grimp reads them from the code: also those within functions and below ``if TYPE_CHECKING``.
    """
    for package in sorted(graph.modules):
        for module in sorted(graph.find_modules_that_directly_import(package) & graph.find_descendants(package)):
            if graph.find_shortest_chain(importer=package, imported=module) is not None:
                path = f"{source}/{module.replace('.', '/')}.py"
                yield Finding(path, 1, "circle", module, f"imports {package}, which imports it")
