"""The house rules fail when they should: each on a piece of code that breaks it, and not on its neighbours."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest

from tests.house import rules
from tests.house.__main__ import ROOT, report
from tests.house.rules import MAX_ATTRIBUTES, MAX_LINES, Finding
from tests.run import BIN

Rule = Callable[[str, str], Iterator[Finding]]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def found(findings: list[Finding]) -> list[tuple[str, str, int]]:
    """Rule, name and line of each finding."""
    return [(one.rule, one.name, one.line) for one in findings]


def attributes(body: str) -> set[str]:
    """The attributes that the rule counts in a class with this body."""
    node = ast.parse("class Some:\n" + textwrap.indent(textwrap.dedent(body), "    ")).body[0]
    assert isinstance(node, ast.ClassDef)
    return rules.instance_attributes(node)


# ----------------------------------------------------------------------------------------------------- attributes


def test_a_class_has_at_most_so_many_attributes() -> None:
    lines = [f"        self.a{number} = {number}" for number in range(MAX_ATTRIBUTES)]
    allowed = "\n".join(["class Large:", "    def __init__(self):", *lines])
    assert list(rules.python("x.py", allowed)) == []
    assert found(list(rules.python("x.py", allowed + "\n        self.more = 1"))) == [("attributes", "Large", 1)]


@pytest.mark.parametrize(
    "body",
    [
        "def f(self): self.a = 1; self.b += 1",
        "def f(self): self.a, self.b = 1, 2",
        "def f(self):\n    self.a: int = 1\n    with open('x') as self.b: pass",
        "def f(self):\n    for self.a in (): pass\ndef g(self): self.b = self.a = 1",
        "async def f(this):\n    this.a = 1\n    def inner(): this.b = 1",
        "__slots__ = ('a', 'b')",
        "a: int\nb: list[int] = field(default_factory=list)",
        "a: Final[int]\ndef f(self): self.a = self.b = 1",
    ],
)
def test_every_way_to_set_an_attribute_counts(body: str) -> None:
    assert attributes(body) == {"a", "b"}


@pytest.mark.parametrize(
    "body",
    [
        "A = 1\nB: Final = 2\nC: Final[int] = 3\nD: ClassVar[int]\nE: typing.ClassVar[int] = 1",
        "def f(self): self.other.a = 1; self.items['a'] = 2; return self.b",
        "@staticmethod\ndef f(one): one.a = 1",
        "@classmethod\ndef f(cls): cls.a = 1",
        "class Inner:\n    a: int",
        "def f(): a = 1",
    ],
)
def test_what_is_no_attribute_of_the_instance_does_not_count(body: str) -> None:
    assert attributes(body) == set()


# ---------------------------------------------------------------------------------------------------------- lines


def function(lines: int, head: str = "def long():", docstring: str = "") -> str:
    """A function with so many lines, the docstring excluded."""
    body = [f"    {docstring}"] if docstring else []
    return "\n".join([head, *body, *["    pass"] * (lines - 1 - head.count("\n"))]) + "\n"


@pytest.mark.parametrize("judge", [rules.python, rules.native])
def test_a_function_has_at_most_so_many_lines(judge: Rule) -> None:
    assert list(judge("x", function(MAX_LINES))) == []
    assert found(list(judge("x", "\n" + function(MAX_LINES + 1)))) == [("lines", "long", 2)]
    assert list(judge("x", function(MAX_LINES, docstring='"""One.\n\n    Two.\n    """'))) == []
    assert found(list(judge("x", function(MAX_LINES + 1, docstring='"""One."""')))) == [("lines", "long", 1)]


REASONS = (
    "def f():  # long: a table",
    "# long: a table\n# of many rows\ndef f():",
    "def f(\n    a,  # long: a table\n):",
)
NO_REASONS = (
    "def f():  # long:",
    "def f():\n    # long: a table",
    "# long: a table\n\ndef f():",
    "def f(long):  # so long",
)


@pytest.mark.parametrize("judge", [rules.python, rules.native])
@pytest.mark.parametrize("head", REASONS)
def test_a_reason_at_the_def_excuses_a_long_function_and_only_that(judge: Rule, head: str) -> None:
    assert list(judge("x", function(MAX_LINES * 2, head))) == []
    assert [one.rule for one in judge("x", function(MAX_LINES // 2, head))] == ["reason"]


@pytest.mark.parametrize("judge", [rules.python, rules.native])
@pytest.mark.parametrize("head", NO_REASONS)
def test_a_reason_without_words_or_elsewhere_is_none(judge: Rule, head: str) -> None:
    assert [one.rule for one in judge("x", function(MAX_LINES + 10, head))] == ["lines"]


def test_a_reason_above_a_decorator_counts() -> None:
    assert list(rules.python("x.py", "# long: a table\n" + function(MAX_LINES + 2, "@property\ndef f():"))) == []


@pytest.mark.parametrize(
    "head",
    [
        "cdef void f(int a) noexcept nogil:",
        "cdef inline int f(\n    int a,\n    int b\n) except -1 nogil:",
        "cpdef object f(a, b=(1, 2)):",
        "async def f(a):",
        "cdef int (*f(int a))(int):",
    ],
)
def test_native_functions_are_found_in_every_form(head: str) -> None:
    assert [one.rule for one in rules.native("x.pyx", function(MAX_LINES + 5, head))] == ["lines"]


@pytest.mark.parametrize(
    "head", ["cdef class Some:", "cdef struct some:", "cdef extern from 'x.h' nogil:", "cdef packed struct some:"]
)
def test_native_types_are_no_functions_but_their_methods_are(head: str) -> None:
    many = "\n".join(f"    int a{number}" for number in range(MAX_LINES * 2))
    assert list(rules.native("x.pyx", f"{head}\n{many}\n    cdef int f(self)\n")) == []
    method = textwrap.indent(function(MAX_LINES + 1, "def f(self):"), "    ")
    assert found(list(rules.native("x.pyx", f"cdef class Some:\n{method}\ncdef int x = 1\n"))) == [("lines", "f", 2)]


def test_native_functions_end_where_the_indentation_does() -> None:
    short = function(MAX_LINES // 2 + 1, "cdef int f():") + "\n\n"
    assert list(rules.native("x.pyx", short * 5)) == []


# ----------------------------------------------------------------------------------------------------- complexity


def test_ruff_limits_the_complexity_without_an_exception(tmp_path: Path) -> None:
    settings = project()["tool"]["ruff"]["lint"]
    assert "C901" in settings["select"]
    assert "per-file-ignores" not in settings
    limit = settings["mccabe"]["max-complexity"]
    branches = [f"    if a == {number}:\n        return {number}" for number in range(limit)]
    (tmp_path / "x.py").write_text("\n".join(["def allowed(a):", *branches[1:], "def tangled(a):", *branches]))
    words = [str(BIN / "ruff"), "check", "--config", str(ROOT / "pyproject.toml"), "--select", "C901", "x.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert re.findall(r"`(\w+)` is too complex", done.stdout) == ["tangled"]


# -------------------------------------------------------------------------------------------------------- imports


def package(root: Path, files: dict[str, str]) -> None:
    """Write the modules of a package ``house``."""
    for path, text in {"__init__": "", **files}.items():
        module = root / "house" / f"{path}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        (module.parent / "__init__.py").touch()
        module.write_text(text)


def contract() -> dict[str, object]:
    """The contract in pyproject.toml that forbids circles."""
    contracts = project()["tool"]["importlinter"]["contracts"]
    (found,) = [one for one in contracts if one["type"] == "acyclic_siblings"]
    assert isinstance(found, dict)
    return found


def test_the_contract_is_for_the_whole_program_without_an_exception() -> None:
    assert contract().keys() == {"name", "type", "ancestors"}
    assert contract()["ancestors"] == ["maglev"]


FUNCTION = "def f():\n    from house.{0} import {1}\n"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.{0} import {1}\n"


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"a": "from house import b", "b": "from house import a"}, "house"),
        ({"a": "from house import b", "b": FUNCTION.format("a", "x")}, "house"),
        ({"a": "from house import b", "b": TYPES.format("a", "x")}, "house"),
        ({"a": "from . import b", "b": FUNCTION.format("c", "x"), "c": "import house.a"}, "house"),
        ({"p/a": "from house.q import b", "q/b": "", "q/c": "from house.p import d", "p/d": ""}, "house"),
        ({"p/a": "from house.p import b", "p/b": FUNCTION.format("p", "a")}, "house.p"),
        ({"a": "from house import b", "b": "from house.p import c", "p/c": "from house.p import d", "p/d": ""}, None),
    ],
)
def test_the_contract_finds_every_circle(tmp_path: Path, files: dict[str, str], where: str | None) -> None:
    package(tmp_path, files)
    (tmp_path / "contracts.ini").write_text(
        "[importlinter]\nroot_package=house\n"
        f"[importlinter:contract:1]\nname=circles\ntype={contract()['type']}\nancestors=house\n"
    )
    words = [str(BIN / "lint-imports"), "--no-logo", "--no-cache", "contracts.ini"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert re.findall(r"No cycles are allowed in (\S+)\.\n", done.stdout) == ([where] if where else []), done.stdout
    assert done.returncode == int(where is not None), done.stderr


def test_a_module_must_not_import_its_package_if_that_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"p/__init__": "from house.p.a import x", "p/a": FUNCTION.format("p", "y"), "p/b": "from house import p"}
    package(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    (one,) = rules.circles(grimp.build_graph("house", cache_dir=None), "src")
    assert (one.path, one.rule, one.name) == ("src/house/p/a.py", "circle", "house.p.a")


# -------------------------------------------------------------------------------------------------------- pending


def test_a_known_violation_is_silent_until_it_is_fixed() -> None:
    one = Finding("src/x.py", 3, "lines", "f", "70 lines")
    other = Finding("src/x.py", 99, "lines", "g", "80 lines")
    known = ("lines", "src/x.py", "f")
    assert report([one], {known}) == []
    assert report([one, other], {known}) == ["src/x.py:99: g: 80 lines"]
    assert report([], {known}) == ["tests/house/pending.py: lines src/x.py f: fixed, remove the entry"]
    assert report([one], ()) == ["src/x.py:3: f: 70 lines"]
