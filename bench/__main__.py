"""``make bench``: run every benchmark, or the ones named, print a table and leave ``build/bench/<name>.json``.

``python -m bench [NAME ...]``. Exit status 0 once everything has been measured, whatever the figures are: they are
read, not asserted. 2: the benchmark does not exist.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import bench
from bench.harness import Figure

OUT = Path(__file__).resolve().parent.parent / "build" / "bench"


def names() -> list[str]:
    """The benchmarks there are: every module here that asks a question."""
    found = (module.name for module in pkgutil.iter_modules(bench.__path__))
    return sorted(name for name in found if name != "harness" and not name.startswith("_"))


def machine() -> dict[str, str | int]:
    """The machine that the figures were taken on."""
    return {"machine": platform.machine(), "kernel": platform.release(), "cpus": os.cpu_count() or 0}


def measure(name: str) -> None:
    """Run one benchmark, print its table, write its JSON."""
    module = importlib.import_module(f"bench.{name}")
    began = time.monotonic()
    figures: list[Figure] = module.run()
    seconds = time.monotonic() - began
    print(f"\n{name}: {module.QUESTION}  ({seconds:.1f} s)")
    for figure in figures:
        target = "" if figure.target is None else f"at most {figure.target:g}"
        print(f"  {figure.what:<52} {figure.value:>10.4g} {figure.unit:<8} {target:<14} {figure.verdict}".rstrip())
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"name": name, "question": module.QUESTION, **machine(), "figures": [asdict(one) for one in figures]}
    (OUT / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(wanted: Sequence[str]) -> int:
    """Measure the benchmarks in ``wanted``, all of them if it is empty."""
    known = names()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    print("  ".join(f"{key} {value}" for key, value in machine().items()))
    for name in wanted or known:
        measure(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
