"""The metric families that the daemon can expose, read from its code and from the engine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from maglev._probe import Engine
from maglev.metrics.engine import EngineFamilies

ROOT = Path(__file__).resolve().parents[2]
MAKERS = ("Family", "single", "labelled")


def families() -> dict[str, tuple[str, str]]:
    """Kind and help of every family by its name."""
    found = {}
    for source in (*(ROOT / "src/maglev/metrics").glob("*.py"), ROOT / "src/maglev/daemon/figures.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS:
                words = [word.value for word in node.args[:3] if isinstance(word, ast.Constant)]
                if len(words) == 3:
                    found[str(words[0])] = (str(words[1]), str(words[2]))
    engine = Engine(capacity=16)
    found.update({family.name: (family.kind, family.help) for family in EngineFamilies(engine).families()})
    return found


def used(text: str) -> set[str]:
    """The names of our families in a text: samples of histograms and summaries count for their family."""
    known = families()
    names = set()
    for name in re.findall(r"\bmaglev_[a-z0-9_]+", text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        names.add(base if known.get(base, ("", ""))[0] in ("histogram", "summary") else name)
    return names


def documented() -> dict[str, set[str]]:
    """Labels of every series by its name, as the tables of the user guide have them."""
    text = (ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8")
    below = text[text.index("\n## Metrics\n") :]
    found = {}
    # Marks of generated text are invisible to readers of the book, and may stand around the names.
    below = re.sub(r"<!--.*?-->", "", below)
    for cell in re.findall(r"^\| ((?:`[^`]*`(?:, )?)+) \|", below, re.MULTILINE):
        for name, labels in re.findall(r"`([a-z0-9_]+)(?:\{([a-z,_]*)\})?`", cell):
            assert name not in found, f"{name} stands in two rows"
            found[name] = set(labels.split(",")) - {""}
    return found
