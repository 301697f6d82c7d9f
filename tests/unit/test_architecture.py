"""The architecture page's table of rooms names every module, in the row of its package, and no module that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.run import ROOT

ROWS = {
    match[1]: match[2]
    for match in re.finditer(r"^\| `([\w./]+)` \| (.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
}
PACKAGES = sorted(row for row in ROWS if row.startswith("maglev."))


def modules(directory: Path, *suffixes: str) -> set[str]:
    """The modules below a directory, by their names."""
    return {one.stem for one in directory.rglob("*") if one.suffix in suffixes and not one.stem.startswith("_")}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_s_row_names_its_modules(package: str) -> None:
    found = modules(ROOT / "src" / package.replace(".", "/"), ".py")
    named = set(re.findall(r"`(\w+)`", ROWS[package]))
    assert found - named == set()


def test_the_engine_s_row_names_its_files() -> None:
    named = set(re.findall(r"`(\w+)`", ROWS["ext/probe/"]))
    assert modules(ROOT / "ext/probe", ".pyx", ".pxd") - named == set()


def test_each_package_has_a_row() -> None:
    found = {
        "maglev." + ".".join(one.parent.relative_to(ROOT / "src/maglev").parts)
        for one in (ROOT / "src/maglev").rglob("*.py")
        if one.parent != ROOT / "src/maglev" and one.parent.name != "logs"
    } - {"maglev.pb", "maglev.vpp"}
    assert found - set(PACKAGES) == set()
