"""docs/log-events.md and the code name the same events, at the same levels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALLS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def logged() -> Iterator[tuple[str, str]]:
    """Event and level of every record that the daemon can make."""
    for path in sorted((ROOT / "src/maglev").rglob("*.py")):
        if "log = logs.get(__name__)" not in (text := path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner, call = node.func.value, node.func.attr
            if not (isinstance(owner, ast.Name) and owner.id == "log"):
                continue
            if call == "log":
                levels = {n.attr.lower() for n in ast.walk(node.args[0]) if isinstance(n, ast.Attribute)}
                event = node.args[1]
            elif call in CALLS:
                levels, event = {CALLS[call]}, node.args[0]
            else:
                continue
            names = [n.value for n in ast.walk(event) if isinstance(n, ast.Constant)]
            assert names, f"{path}:{node.lineno}: no name"
            for name in names:
                yield from ((str(name), level) for level in levels if level in CALLS)


def test_every_event_is_documented_with_its_level() -> None:
    found: dict[str, set[str]] = {}
    for name, level in logged():
        found.setdefault(name, set()).add(level)
    text = (ROOT / "docs/log-events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
    assert {name: set(levels.split(", ")) for name, levels in rows} == found
    assert [name for name, _ in rows] == sorted(name for name, _ in rows)
