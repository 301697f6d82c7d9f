"""Runs the whole suite, or the steps named on the command line, and prints what ran and how long it took.

``python -m tests.run [GROUP | STEP ...]``, where a group is one of check, lint, fuzz, alerts, pytest, debug, robot,
package, chaos and soak. Every step runs, even after a failed one, and prints to the terminal. The exit status is 1 if
any step failed. The last line is ``N passed, N failed``, which counts the tests of pytest and Robot, and each other
step as one. Reports go to ``build/reports``.
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

UNIT_XML = REPORTS / "unit.xml"
INTEGRATION_XML = REPORTS / "integration.xml"
MACHINE_XML = REPORTS / "integration-machine.xml"
ROBOT_OUT = REPORTS / "robot"
DEBUG_XML = (REPORTS / "debug.xml", REPORTS / "debug-machine.xml")
PACKAGE_XML = REPORTS / "package.xml"

CHAOS_SEED = "954970374"
"""The gate draws the same disturbances each time, so a failure is about the change; ``make chaos`` draws others."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests of a step passed and failed."""

    passed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the suite and the groups that it belongs to.

    ``counts`` reads the step's report; without it the step counts as one test.
    """

    name: str
    groups: tuple[str, ...]
    command: tuple[str, ...]
    counts: Callable[[], Counts] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step: exit status, wall-clock ``seconds``, and ``cpu`` seconds of all its processes."""

    step: Step
    status: int
    seconds: float
    cpu: float
    counts: Counts


def count_pytest(*reports: Path) -> Counts:
    """Read JUnit reports of pytest. A skipped test did not pass: it counts as failed."""
    passed = failed = 0
    for suite in (suite for report in reports for suite in ET.parse(report).getroot().iter("testsuite")):
        bad = sum(int(suite.get(key, "0")) for key in ("failures", "errors", "skipped"))
        failed += bad
        passed += int(suite.get("tests", "0")) - bad
    return Counts(passed, failed)


def count_robot() -> Counts:
    """Read the totals of Robot's report. A skipped test did not pass: it counts as failed."""
    total = ET.parse(ROBOT_OUT / "output.xml").getroot().find("statistics/total/stat")
    if total is None:
        return Counts(0, 1)
    return Counts(int(total.get("pass", "0")), int(total.get("fail", "0")) + int(total.get("skip", "0")))


def make(*words: str) -> tuple[str, ...]:
    """The command line of a make verb."""
    return ("make", "--no-print-directory", *words)


def pytest(report: Path, *words: str) -> tuple[str, ...]:
    """The command line of tests that write a report."""
    return (sys.executable, "-m", "pytest", f"--junitxml={report}", *words)


LINT = ("lint", "check")
"""Groups of a step that judges the source without running it."""

# Unit and property tests own their clocks, sockets and temporary directories, so they may run in parallel. A file stays
# on one worker, which builds its fixtures once.
PARALLEL = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile")

# Integration tests have namespaces, sockets and ports of their own, and wait for real time most of theirs: more of them
# than processors may run. Tests that fill a table of the whole machine come after them, one at a time.
WAITING = ("--numprocesses", "3", "--dist", "loadfile", "-m", "not machine")
MACHINE = ("-m", "machine")

STEPS = (
    Step("ruff check", LINT, (str(BIN / "ruff"), "check", ".")),
    Step("ruff format", LINT, (str(BIN / "ruff"), "format", "--check", ".")),
    Step("mypy", LINT, (str(BIN / "mypy"),)),
    Step("cython-lint", LINT, (str(BIN / "cython-lint"), "ext")),
    Step("import contracts", LINT, (str(BIN / "lint-imports"), "--no-logo")),
    Step("house rules", LINT, (sys.executable, "-m", "tests.house")),
    Step("fuzz the parsers", ("fuzz",), make("fuzz", "FUZZ_SECONDS=10")),
    Step("alerts", ("alerts",), make("alerts")),
    Step(
        "unit, property",
        ("pytest", "check"),
        pytest(UNIT_XML, "-q", *PARALLEL, "tests/unit", "tests/property"),
        lambda: count_pytest(UNIT_XML),
    ),
    Step(
        "integration",
        ("pytest",),
        pytest(INTEGRATION_XML, *WAITING, "tests/integration"),
        lambda: count_pytest(INTEGRATION_XML),
    ),
    Step(
        "integration, alone",
        ("pytest",),
        pytest(MACHINE_XML, *MACHINE, "tests/integration"),
        lambda: count_pytest(MACHINE_XML),
    ),
    Step("debug build", ("debug",), make("test-debug"), lambda: count_pytest(*DEBUG_XML)),
    Step(
        "robot",
        ("robot",),
        (sys.executable, "-m", "robot", "--consolewidth", "100", "--outputdir", str(ROBOT_OUT), "tests/01-maglevd"),
        count_robot,
    ),
    Step("build packages", ("package",), make("pkg-deb", "wheel")),
    Step(
        "install test",
        ("package",),
        pytest(PACKAGE_XML, "--durations=8", "tests/package"),
        lambda: count_pytest(PACKAGE_XML),
    ),
    Step(
        "chaos", ("chaos",), (sys.executable, "-m", "tests.chaos", "--seconds", "60", "--brief", "--seed", CHAOS_SEED)
    ),
    Step("short soak", ("soak",), (sys.executable, "-m", "tests.soak", "--seconds", "120")),
)


def cpu_seconds() -> float:
    """CPU time, user and system, of all processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(step: Step) -> Outcome:
    """Run one step with its output on the terminal."""
    print(f"\n== {step.name}: {Path(step.command[0]).name} {' '.join(step.command[1:])}", flush=True)
    began, before = time.monotonic(), cpu_seconds()
    # cython-lint runs pycodestyle, which it looks up on the path.
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
            # A collection error, a crash after the last test or an empty run fails the step, whatever the report says.
            counts = Counts(counts.passed, 1)
    return Outcome(step, status, seconds, cpu, counts)


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table that ends a run, with its closing line."""
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
    known = {name for step in STEPS for name in (step.name, *step.groups)}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no step {unknown[0]!r}; there are: {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    wanted = [step for step in STEPS if not names or {step.name, *step.groups} & set(names)]
    if any(step.counts is not None for step in wanted):
        # No step may count the report of an earlier run. A run of linters alone keeps what is there.
        shutil.rmtree(REPORTS, ignore_errors=True)
        REPORTS.mkdir(parents=True)
    outcomes = [run(step) for step in wanted]
    print(summary(outcomes), flush=True)
    return int(any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
