"""The books and the code say the same: flags, commands, codes, exit statuses, keys. (Examples: tests/integration.)"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from maglev.base import stdio
from maglev.base.states import Code, State
from maglev.cli import docs, errors
from maglev.cli.grammar import parse as parse_command
from maglev.cli.grammar import usage
from maglev.cli.main import EXIT_STATUS, parse_flags
from maglev.cli.main import FLAGS as CLIENT_FLAGS
from maglev.config.load import load_text
from maglev.config.model import PanicAction, Pool
from maglev.daemon import exits
from maglev.daemon.options import EX_USAGE, FLAGS, SWITCHES
from maglev.daemon.options import parse as parse_daemon
from maglev.metrics import server as metrics
from maglev.rpc import gate, server, watch
from tests.helpers.books import BOOKS, ROOT, blocks

GUIDE = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
HEALTH = (ROOT / "docs" / "healthchecks.md").read_text(encoding="utf-8")


def rows(text: str, heading: str, first: str = "") -> list[list[str]]:
    """The cells of the first table below a heading (whose own first heading is ``first``), without its head."""
    below = text.partition(f"{heading}\n")[2]
    if first:
        below = below[below.index(f"| {first} |") :]
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


def test_the_guide_has_the_limits_for_strangers() -> None:
    told = [int(cells[1].replace(",", "")) for cells in rows(GUIDE, "### Limits")]
    assert told == [
        server.MAX_CONNECTIONS,
        gate.MAX_CALLS,
        server.MAX_STREAMS_PER_CONNECTION,
        watch.MAX_WATCHERS,
        watch.LOCAL_WATCHERS,
        watch.QUEUE,
        server.MAX_REQUEST_BYTES,
        server.HANDSHAKE_MS / 1_000,
        server.IDLE_MS / 1_000,
        server.PING_TIMEOUT_MS / 1_000,
        server.PATIENCE_SECONDS,
        metrics.MAX_CONNECTIONS,
        metrics.MAX_SCRAPES,
        metrics.MAX_REQUEST_BYTES,
        metrics.REQUEST_SECONDS,
        metrics.SCRAPE_SECONDS,
    ]
    assert server.PING_MS == 30_000


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


def commands() -> list[str]:
    """The commands of the guide, as it writes them: optional parts in brackets."""
    return [syntax for cells in rows(GUIDE, "## The command line: maglevc", "command") for syntax in code(cells[0])]


# What stands for a value in the guide, and one.
VALUES = {"NAME": "x", "FRONTEND": "x", "POOL": "p", "STATE": "up", "REGEX": "^x", "N": "3", "L": "info", "0-100": "50"}
VALUES |= {"SOURCE:PORT": "192.0.2.9:4711", "VIP:PORT": "192.0.2.1:80", "SERVER": "a", "SERVER...": "b"}


def test_the_guide_has_every_command_with_every_option() -> None:
    told = {way: syntax for syntax in commands() for way in variants(syntax)}
    behind = GUIDE.partition("Behind every `set`")[2].partition("\n\n")[0]
    for syntax, _ in usage():
        bare, *options = syntax.split(" [")
        if bare == "help":
            continue
        row = next((written for way, written in told.items() if _same(bare, way)), None)
        assert row is not None, f"{bare!r} is in no row"
        for option in options:
            word = re.split(r"[] ]", option)[0]
            assert f"[{word}" in row or re.search(f"`{word}[ `]", behind), f"{bare!r} can have {word!r}"


def test_every_command_of_the_guide_is_one() -> None:
    for syntax in commands():
        for way in variants(syntax):
            words = [VALUES.get(word, word) for word in way.split()]
            assert parse_command(words).action, way


def _same(one: str, other: str) -> bool:
    return [word.lower() for word in one.split()] == [word.lower() for word in other.split()]


def test_every_state_and_code_is_explained() -> None:
    states = {name for cells in rows(HEALTH, "## States") for name in code(cells[0])}
    assert states == {str(state) for state in State}
    codes = {name for cells in rows(HEALTH, "## Codes") for name in code(cells[0])}
    assert codes == {str(code) for code in Code if code is not Code.NONE}


def test_the_guide_has_every_flag_of_the_command_line() -> None:
    told = {flag for cells in rows(GUIDE, "## The command line: maglevc", "flag") for flag in written_flags(cells[0])}
    assert told == {name for flag, _ in CLIENT_FLAGS for name in written_flags(f"`{flag}`")}


def written_flags(cell: str) -> list[str]:
    """The names of the flags in a cell, without their values."""
    return [re.split(r"[ \[=]", flag)[0] for flag in code(cell)]


def test_the_guide_has_every_exit_status() -> None:
    daemon = [int(cells[0]) for cells in rows(GUIDE, "### Exit status of maglevd")]
    assert daemon == [
        exits.EXIT_OK,
        exits.EXIT_FAILED,
        exits.EXIT_SEMANTIC,
        EX_USAGE,
        stdio.EX_IOERR,
        exits.EXIT_NOT_READ,
    ]
    client = [int(cells[0]) for cells in rows(GUIDE, "### Exit status of maglevc")]
    known = [errors.DONE, errors.REFUSED, errors.USAGE, errors.UNREACHABLE, stdio.EX_IOERR, errors.INTERRUPTED]
    assert client == known
    assert [int(status) for status, _ in EXIT_STATUS] == client


def test_the_guide_has_the_present_keys_of_the_json_output() -> None:
    assert docs.guide(GUIDE) == GUIDE, "run: python -m maglev.cli.docs docs/user-guide.md"
    assert "| BackendInfo | `name`" in GUIDE


def test_every_block_says_what_it_is_and_few_are_left_untested() -> None:
    found = Counter((book.name, block.language) for book in BOOKS for block in blocks(book))
    assert {language for _, language in found} == {"yaml", "sh", "console", "text", "sh untested"}
    untested = {book: many for (book, language), many in found.items() if language == "sh untested"}
    # They install, build or start something outside; `make test-pkg` and `make run ONCE=1` do the same. The page on
    # debugging is for a checkout with a debugger.
    assert untested == {"README.md": 2, "debugging-the-engine.md": 9, "packages.md": 6}


def untested() -> list[tuple[str, str]]:
    """Command lines of ours in the blocks that are not carried out."""
    return [
        (block.place, line.partition("  #")[0])
        for book in BOOKS
        for block in blocks(book)
        if block.language == "sh untested"
        for line in block.text.splitlines()
        if line.startswith(("maglevc ", "maglevd "))
    ]


@pytest.mark.parametrize(("place", "line"), untested())
def test_we_understand_the_examples_that_are_not_carried_out(place: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "maglevd":
        assert parse_daemon(words, {})
    else:
        assert parse_command(parse_flags(words, {}).words).action


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_every_whole_configuration_in_a_book_is_valid(book: Path) -> None:
    for block in blocks(book):
        if block.language == "yaml" and block.text.startswith("maglev:"):
            loaded = load_text(block.text)
            assert loaded.config is not None, loaded.problems


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_no_link_between_books_is_broken(book: Path) -> None:
    text = book.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (book.parent / target).exists(), target


def test_the_page_on_judgement_has_every_mechanism() -> None:
    """Every key of the file that lets something else than a single verdict decide about a weight."""
    page = (ROOT / "docs" / "judgement.md").read_text(encoding="utf-8")
    told = set(code(page.replace("healthchecker.brake", "brake")))
    pool = {field.name.replace("_", "-") for field in dataclasses.fields(Pool)} - {"name", "members"}
    assert told >= {"brake", "panic", "slow-start", "on-all-down", *pool, *(action.value for action in PanicAction)}
