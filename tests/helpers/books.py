"""The books, block by block.

What a block is stands behind its fence: ``yaml`` is a configuration, ``sh`` commands that succeed, ``console`` commands
(behind ``$``) with what they print, where ``...`` is anything, ``text`` is for people. All but the last are carried out
by the tests; ``sh untested`` marks commands that would change the machine on which they are typed, or that need a
checkout and a debugger, and is rare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

# Parts that change each time: times, durations, counts since the start, process ids, versions.
_CHANGING = (
    r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d+",
    r"\d\d:\d\d:\d\d\.\d+",
    r"\b(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h|d))+\b",
    r"\b\d+(?= (?:passed|failed)\b)",
    r"(?<=pid )\d+",
    r"\b\d{12,}\b",
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what stands behind its fence, its text, and where it is (``file:line``)."""

    language: str
    text: str
    place: str


def blocks(book: Path) -> Iterator[Block]:
    """The fenced blocks of a book."""
    text = book.read_text(encoding="utf-8")
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match[1], match[2], f"{book.name}:{line}")


def transcript(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with its expected output (nothing in a block of commands alone)."""
    text = block.text.replace("\\\n", " ")
    if block.language != "console":
        for line in text.splitlines():
            if line and not line.startswith("#"):
                yield line, ""
        return
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def masked(output: str, *, pattern: bool = True) -> str:
    """An output without its changing parts and without the widths of columns; or a regular expression for it."""
    for changing in _CHANGING:
        output = re.sub(changing, "#", output)
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    if not pattern:
        return "".join(f"{line}\n" for line in lines)
    return "".join(r"(?:.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n" for line in lines)
