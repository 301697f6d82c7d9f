"""CONTRIBUTING.md, the hooks and .editorconfig agree with the tree: verbs, paths, modules, names, limits, layout."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

import bench.__main__
from tests import run
from tests.helpers.books import ROOT, blocks
from tests.house import rules

BOOK = ROOT / "CONTRIBUTING.md"
TEXT = BOOK.read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TOP = r"(?:src|ext|tests|docs|bench|proto|debian|docker)/[\w./-]*"
"""A path below the root of the project. Build products do not count."""


def spans(text: str) -> list[str]:
    """The code spans of a text outside its blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands() -> list[str]:
    """All command lines."""
    lines = [line for block in blocks(BOOK) if block.language == "sh" for line in block.text.splitlines()]
    return lines + [span for span in spans(TEXT) if re.match(r"make\b|\S*/python |PYTHONPATH", span)]


def items() -> Iterator[str]:
    """The steps of the recipes."""
    yield from re.findall(r"^\d+\. .*?(?=\n\d+\. |\n\n|\Z)", TEXT.partition("## Recipes")[2], re.MULTILINE | re.DOTALL)


def test_every_verb_is_one_of_the_makefile() -> None:
    verbs = {
        word
        for command in commands()
        for words in [shlex.split(command)]
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word
    }
    assert {"check", "test", "build", "debug"} <= verbs
    assert verbs <= set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def test_every_path_exists() -> None:
    paths = {
        path.rstrip(".") for text in [*commands(), *spans(TEXT)] for path in re.findall(rf"(?<![\w/.-]){TOP}", text)
    }
    assert len(paths) > 40
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_module_test_step_and_benchmark_exists() -> None:
    steps = {name for step in run.STEPS for name in (step.name, *step.groups)}
    suite = (ROOT / "tests" / "01-maglevd" / "01-healthcheck.robot").read_text(encoding="utf-8")
    robot = re.findall(r"^(\S.*)$", suite.partition("*** Test Cases ***\n")[2].partition("***")[0], re.MULTILINE)
    for command in commands():
        words = shlex.split(command)
        if "-m" in words:
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, module
            if module == "tests.run":
                assert set(words[words.index("-m") + 2 :]) <= steps, command
        if "--test" in words:
            assert words[words.index("--test") + 1] in robot, command
        for name in re.findall(r"BENCH=(\w+)", command):
            assert name in bench.__main__.names(), command


def test_every_name_in_a_recipe_is_in_a_file_that_the_step_names() -> None:
    checked = 0
    for item in items():
        files = [ROOT / path.rstrip(".") for span in spans(item) for path in re.findall(TOP, span)]
        code = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
        for name in spans(item):
            if code and re.fullmatch(r"[A-Za-z_]*[A-Z_][A-Za-z_.]*", name):
                assert name.rpartition(".")[2] in code, f"{name} is in none of {[file.name for file in files]}"
                checked += 1
    assert checked > 10


def test_the_limits_are_those_of_the_rules() -> None:
    told = [int(limit) for limit in re.findall(r"^\| [^|]+ \| (\d+) \|", TEXT, re.MULTILINE)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert told == [
        rules.MAX_ATTRIBUTES,
        rules.MAX_LINES,
        project["tool"]["ruff"]["lint"]["mccabe"]["max-complexity"],
        0,
    ]


# ---------------------------------------------------------------------------------------------------------- hooks


def test_the_hooks_are_the_steps_of_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repo,) = config["repos"]
    named = [shlex.split(hook["entry"]) for hook in repo["hooks"]]
    assert [words[:3] for words in named] == [[".venv/bin/python", "-m", "tests.run"]] * len(named)
    assert [words[3:] for words in named] == [[step.name] for step in run.STEPS if "lint" in step.groups]
    assert [hook["name"] for hook in repo["hooks"]] == [words[3] for words in named]


def test_check_is_lint_and_the_tests_that_need_no_machine() -> None:
    names = [step.name for step in run.STEPS if "check" in step.groups]
    assert names == [*(step.name for step in run.STEPS if "lint" in step.groups), "unit, property"]


# --------------------------------------------------------------------------------------------------------- layout


def layout() -> list[tuple[str, dict[str, str]]]:
    """Pattern and settings of each section of .editorconfig, in order; alternatives in braces are taken apart."""
    parser = ConfigParser(default_section="")
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text(encoding="utf-8"))
    found = []
    for section in parser.sections()[1:]:
        braces = re.fullmatch(r"(.*)\{(.*)\}", section)
        patterns = [braces[1] + one for one in braces[2].split(",")] if braces else [section]
        found += [(pattern, dict(parser[section])) for pattern in patterns]
    return found


def settings(name: str) -> dict[str, str]:
    """The settings that hold for a file: those of every section that fits, later ones before earlier ones."""
    found: dict[str, str] = {}
    for pattern, values in layout():
        if fnmatchcase(name if "/" in pattern else Path(name).name, pattern):
            found |= values
    return found


def faults(name: str, data: bytes) -> Iterator[str]:
    """Where a file is not laid out as .editorconfig says. Line lengths are the linters' business."""
    wanted = settings(name)
    try:
        text = data.decode(wanted["charset"])
    except UnicodeDecodeError:
        yield "not a text"
        return
    if b"\r" in data:
        yield "a carriage return"
    if text and not text.endswith("\n") and wanted["insert_final_newline"] == "true":
        yield "no line end at the end"
    if re.search(r"[ \t]+$", text, re.MULTILINE):
        yield "blanks at the end of a line"
    if re.search(r"^ *\t", text, re.MULTILINE) and wanted["indent_style"] == "space":
        yield "a tab in the indentation"
    steps = {
        len(deeper) - len(line)
        for line, deeper in re.findall(r"^( *)[\w\"-].*[:{\[(]\n( +)[\w\"-]", text, re.MULTILINE)
    }
    if Path(name).suffix in (".yaml", ".yml", ".json", ".proto", ".pyx", ".pxd", ".robot") and steps:
        yield from (f"indented by {step}" for step in steps if step > 0 and step != int(wanted["indent_size"]))


def tracked() -> list[str]:
    """All files under version control."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_every_file_is_laid_out_as_editors_are_told() -> None:
    found = {name: list(faults(name, (ROOT / name).read_bytes())) for name in tracked() if (ROOT / name).is_file()}
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("a.py", b"x = 1", "no line end at the end"),
        ("a.py", b"x = 1 \n", "blanks at the end of a line"),
        ("a.py", b"if x:\n\ty()\n", "a tab in the indentation"),
        ("a.py", b"x = 1\r\n", "a carriage return"),
        ("a.whl", b"PK\x86", "not a text"),
        ("a.yaml", b"a:\n    b: 1\n", "indented by 4"),
    ],
)
def test_a_fault_in_the_layout_is_found(name: str, data: bytes, fault: str) -> None:
    assert fault in list(faults(name, data))


def test_recipes_of_make_are_indented_by_tabs() -> None:
    assert settings("Makefile")["indent_style"] == "tab"
    assert list(faults("Makefile", b"a:\n\tb\n")) == []
