"""A tree whose extensions were never built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import maglev

ROOT = Path(maglev.__file__).parent


def test_an_import_without_the_extensions_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "maglev", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import maglev.judgement.weights"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: maglev._weights is not built: run 'make' in the checkout, or 'pip install .'"
    )


def test_every_extension_is_known() -> None:
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    modules = re.findall(r'^    "(maglev\._\w+)": "ext/', setup, re.MULTILINE)
    assert set(modules) == maglev._EXTENSIONS
