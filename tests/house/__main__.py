"""``python -m tests.house``: check the house rules. The exit status is 1 if there is a violation that is not known."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import grimp

from tests.house import rules
from tests.house.pending import PENDING
from tests.house.rules import Finding

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = ("src", "tests", "bench", "debian", "ext", "setup.py")
GENERATED: Final = ("src/maglev/pb/", "src/maglev/_version.py")


def files() -> Iterable[Path]:
    """All source files that are written by hand, in Python and Cython."""
    for name in SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd", ".pxi") and not _name(path).startswith(GENERATED):
                yield path


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def check() -> list[Finding]:
    """All violations in the tree."""
    found: list[Finding] = []
    for path in files():
        judge = rules.python if path.suffix == ".py" else rules.native
        found += judge(_name(path), path.read_text(encoding="utf-8"))
    found += rules.circles(grimp.build_graph("maglev", cache_dir=None), "src")
    return sorted(found)


def report(found: Collection[Finding], pending: Collection[tuple[str, str, str]]) -> list[str]:
    """The lines to print: violations that are not known, and known ones that exist no longer."""
    present = {(one.rule, one.path, one.name) for one in found}
    lines = [str(one) for one in found if (one.rule, one.path, one.name) not in pending]
    lines += [
        f"tests/house/pending.py: {' '.join(entry)}: fixed, remove the entry"
        for entry in sorted(pending)
        if entry not in present
    ]
    return lines


def main() -> int:
    """Check and print. Returns the exit status."""
    lines = report(check(), PENDING)
    print(*lines, f"{len(lines)} problems, {len(PENDING)} known violations are pending", sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
