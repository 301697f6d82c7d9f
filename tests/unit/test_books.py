"""The books and the code say the same: flags, commands, codes, exit statuses; and every example is one that works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from maglev.cli.grammar import parse as parse_command
from maglev.cli.grammar import usage
from maglev.cli.main import parse_flags
from maglev.config.load import load_text
from maglev.options import FLAGS, SWITCHES
from maglev.options import parse as parse_daemon
from maglev.states import Code, State

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
GUIDE = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
HEALTH = (ROOT / "docs" / "healthchecks.md").read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = text.partition(f"{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None, heading
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell: str) -> list[str]:
    """What is in code style in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def test_the_guide_has_every_flag_of_the_daemon_with_its_variable_and_default() -> None:
    told = {}
    for flags, variable, default, _ in rows(GUIDE, "### Flags"):
        for written in code(flags):
            told[written.removeprefix("--")] = (variable.strip("`"), default.strip("`"))
    assert told.keys() == {flag.name for flag in FLAGS} | SWITCHES.keys() - {"json"}
    for flag in FLAGS:
        default = "on" if flag.name == "reflection" else flag.default
        assert told[flag.name] == (flag.env, default)


def variants(syntax: str) -> Iterator[str]:
    """``a [b] c\\|d`` as ``a c``, ``a d``, ``a b c``, ``a b d``: the ways to write a command."""
    optional = re.search(r" ?\[([^][]*)\]", syntax)
    if optional is not None:
        for inner in ("", " " + optional[1]):
            yield from variants(syntax[: optional.start()] + inner + syntax[optional.end() :])
        return
    either = re.search(r"(\S+?)\\\|(\S+)", syntax)
    if either is not None:
        for word in (either[1], either[2]):
            yield from variants(syntax[: either.start()] + word + syntax[either.end() :])
        return
    yield syntax


def test_the_guide_has_every_command() -> None:
    table = "\n" + GUIDE[GUIDE.index("| command |") :]
    told = {way for cells in rows(table, "") for way in ways(cells)}
    for syntax, _ in usage():
        bare = syntax.partition(" [")[0]
        if bare != "help":
            assert any(_same(bare, way) for way in told), f"{bare!r} is in no row"


def ways(cells: list[str]) -> Iterator[str]:
    """The ways to write the commands of a row."""
    for syntax in code(cells[0]):
        yield from variants(syntax)


def _same(one: str, other: str) -> bool:
    return [word.lower() for word in one.split()] == [word.lower() for word in other.split()]


def test_every_state_and_code_is_explained() -> None:
    states = {name for cells in rows(HEALTH, "## States") for name in code(cells[0])}
    assert states == {str(state) for state in State}
    codes = {name for cells in rows(HEALTH, "## Codes") for name in code(cells[0])}
    assert codes == {str(code) for code in Code if code is not Code.NONE}


def blocks(book: Path) -> Iterator[tuple[str, str]]:
    """Language and text of the code blocks of a book."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", book.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def examples(program: str) -> list[tuple[str, str]]:
    """Command lines of a program in the blocks of all books; what is meant as syntax is left out."""
    found = []
    for book in BOOKS:
        for _, text in blocks(book):
            for line in text.replace("\\\n", " ").splitlines():
                words = line.removeprefix("$ ").removeprefix("sudo ").split("  #")[0]
                if words.split(maxsplit=1)[:1] == [program] and "[" not in words:
                    found.append((book.name, words))
    return found


@pytest.mark.parametrize(("book", "line"), examples("maglevc"))
def test_maglevc_understands_every_example(book: str, line: str) -> None:
    flags = parse_flags(shlex.split(line)[1:], {})
    if flags.words:
        assert parse_command(flags.words).action


@pytest.mark.parametrize(("book", "line"), examples("maglevd"))
def test_maglevd_understands_every_example(book: str, line: str) -> None:
    assert parse_daemon(shlex.split(line)[1:], {})


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_every_whole_configuration_in_a_book_is_valid(book: Path) -> None:
    for language, text in blocks(book):
        if language == "yaml" and text.startswith("maglev:"):
            loaded = load_text(text)
            assert loaded.config is not None, loaded.problems


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_no_link_between_books_is_broken(book: Path) -> None:
    text = book.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (book.parent / target).exists(), target


def test_the_books_tell_commands_that_are_there() -> None:
    assert len(examples("maglevc")) > 10
    assert examples("maglevd")
