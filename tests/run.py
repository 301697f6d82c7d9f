"""Runs the whole suite, or the steps named on the command line, and prints what ran and how long it took.

``python -m tests.run [lint | fuzz | alerts | pytest | debug | robot | package | soak | STEP ...]``: every step runs,
also when an earlier one failed, its output goes to the terminal as it comes, and the exit status is 1 if any failed.
The last line is ``N passed, N failed``: tests of pytest and Robot, and each other step as one. Reports are left in
``build/reports``.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "build" / "reports"
BIN = Path(sys.executable).parent

PYTEST_XML = REPORTS / "pytest.xml"
ROBOT_OUT = REPORTS / "robot"
DEBUG_XML = REPORTS / "debug.xml"
PACKAGE_XML = REPORTS / "package.xml"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests of a step passed and failed."""

    passed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the suite. ``counts`` reads its report; without it the step counts as one test."""

    name: str
    group: str
    command: tuple[str, ...]
    counts: Callable[[], Counts] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended; ``seconds`` by the wall, ``cpu`` those of all its processes."""

    step: Step
    status: int
    seconds: float
    cpu: float
    counts: Counts


def count_pytest(report: Path = PYTEST_XML) -> Counts:
    """Read a JUnit report of pytest's. A skipped test has not passed: it counts as failed."""
    passed = failed = 0
    for suite in ET.parse(report).getroot().iter("testsuite"):
        bad = sum(int(suite.get(key, "0")) for key in ("failures", "errors", "skipped"))
        failed += bad
        passed += int(suite.get("tests", "0")) - bad
    return Counts(passed, failed)


def count_robot() -> Counts:
    """Read the totals of Robot's report. A skipped test has not passed: it counts as failed."""
    total = ET.parse(ROBOT_OUT / "output.xml").getroot().find("statistics/total/stat")
    if total is None:
        return Counts(0, 1)
    return Counts(int(total.get("pass", "0")), int(total.get("fail", "0")) + int(total.get("skip", "0")))


def make(*words: str) -> tuple[str, ...]:
    """The command of a make verb."""
    return ("make", "--no-print-directory", *words)


def pytest(report: Path, *words: str) -> tuple[str, ...]:
    """The command of tests that leave a report."""
    return (sys.executable, "-m", "pytest", f"--junitxml={report}", *words)


STEPS = (
    Step("ruff check", "lint", (str(BIN / "ruff"), "check", ".")),
    Step("ruff format", "lint", (str(BIN / "ruff"), "format", "--check", ".")),
    Step("mypy", "lint", (str(BIN / "mypy"),)),
    Step("cython-lint", "lint", (str(BIN / "cython-lint"), "ext")),
    Step("import contracts", "lint", (str(BIN / "lint-imports"), "--no-logo")),
    Step("fuzz the parsers", "fuzz", make("fuzz", "FUZZ_SECONDS=10")),
    Step("alerts", "alerts", make("alerts")),
    Step("pytest", "pytest", pytest(PYTEST_XML), count_pytest),
    Step("debug build", "debug", make("test-debug"), lambda: count_pytest(DEBUG_XML)),
    Step(
        "robot",
        "robot",
        (sys.executable, "-m", "robot", "--consolewidth", "100", "--outputdir", str(ROBOT_OUT), "tests/01-maglevd"),
        count_robot,
    ),
    Step("build packages", "package", make("pkg-deb", "wheel")),
    Step(
        "install test",
        "package",
        pytest(PACKAGE_XML, "--durations=8", "tests/package"),
        lambda: count_pytest(PACKAGE_XML),
    ),
    Step("short soak", "soak", (sys.executable, "-m", "tests.soak", "--seconds", "120")),
)


def cpu_seconds() -> float:
    """CPU time, user and system, of all processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(step: Step) -> Outcome:
    """Run one step with its output on the terminal."""
    print(f"\n== {step.name}: {Path(step.command[0]).name} {' '.join(step.command[1:])}", flush=True)
    began, before = time.monotonic(), cpu_seconds()
    # cython-lint looks for pycodestyle on the path.
    environment = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}
    status = subprocess.run(step.command, cwd=ROOT, env=environment, check=False).returncode
    seconds, cpu = time.monotonic() - began, cpu_seconds() - before
    if status != 0:
        print(f"{step.name}: {f'killed by {signal.Signals(-status).name}' if status < 0 else f'status {status}'}")
    counts = Counts(int(status == 0), int(status != 0))
    if step.counts is not None:
        try:
            counts = step.counts()
        except (OSError, ET.ParseError) as error:
            print(f"{step.name} left no report: {error}", flush=True)
            counts = Counts(0, 1)
        if status != 0 and counts.failed == 0:
            # A collection error, a crash behind the last test, an empty run: red, whatever the report counts.
            counts = Counts(counts.passed, 1)
    return Outcome(step, status, seconds, cpu, counts)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table behind a run, with its closing line."""
    lines = ["", f"{'step':<18} {'result':<7} {'passed':>7} {'failed':>7} {'seconds':>8} {'CPU':>8}"]
    for outcome in outcomes:
        result = "ok" if outcome.status == 0 else "FAILED"
        counts = outcome.counts
        lines.append(
            f"{outcome.step.name:<18} {result:<7} {counts.passed:>7} {counts.failed:>7} {outcome.seconds:>8.1f}"
            f" {outcome.cpu:>8.1f}"
        )
    seconds, cpu = sum(outcome.seconds for outcome in outcomes), sum(outcome.cpu for outcome in outcomes)
    lines.append(f"{'all':<42} {seconds:>8.1f} {cpu:>8.1f}")
    passed = sum(o.counts.passed for o in outcomes)
    failed = sum(o.counts.failed for o in outcomes)
    lines.append(f"{passed} passed, {failed} failed")
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Run the steps (or groups of steps) in ``names``, all of them if it is empty."""
    known = {step.name for step in STEPS} | {step.group for step in STEPS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no step {unknown[0]!r}; there are: {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    wanted = [step for step in STEPS if not names or step.name in names or step.group in names]
    outcomes = [run(step) for step in wanted]
    print(summary(outcomes), flush=True)
    return int(any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
