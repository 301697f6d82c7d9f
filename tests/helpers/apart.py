"""An engine in a separate process, which a test can stop, starve of CPU and give another clock.

``python -m tests.helpers.apart TARGETS LIMIT OPTIONS`` is that process: it probes what the JSON list TARGETS names
(fields of ``Target``), with LIMIT file descriptors where that is not 0 and an engine made with the JSON object OPTIONS,
and prints what its engine knows for each line it reads.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maglev.base.states import CheckType, Code, State
from tests.helpers.engine import PATIENCE, Probing, check
from tests.helpers.tls import https, tls


@dataclass(frozen=True)
class Target:
    """One target: ``kind`` as ``check`` takes it, ``https`` or ``tls``; ``changes``: other fields of the check."""

    kind: str
    address: str
    port: int = 0
    ca: str | None = None
    first_delay: int = 0
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: int = State.UP


@dataclass(frozen=True)
class Report:
    """The engine's counters. ``failures``, ``probes`` and ``blocked`` have one item a target, in their order.

    ``failures``: how often it failed, by code. ``moves``: the transitions so far, as target, code and detail.
    ``late``: probes that were sent more than five seconds late.
    """

    failures: list[dict[str, int]]
    probes: list[int]
    moves: list[tuple[int, str, str]]
    last_at_ns: int
    late: int
    blocked: list[str]
    anchor: int
    stats: dict[str, int]


class Apart:
    """The process, asked over its standard input."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self) -> Report:
        """The present counters of its engine."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Report(**json.loads(self.process.stdout.readline()))

    def until(self, done: Callable[[Report], bool], patience: float = PATIENCE) -> Report:
        """Ask until ``done`` holds."""
        deadline = time.monotonic() + patience
        while not done(report := self.ask()):
            assert time.monotonic() < deadline, report
            time.sleep(0.01)  # each question costs it a little time, too
        return report

    def all_probed_again(self, times: int = 2) -> Report:
        """Wait until each target has had so many results more."""
        before = self.ask().probes
        return self.until(
            lambda report: all(now >= old + times for now, old in zip(report.probes, before, strict=True))
        )

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it do nothing at all meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


def compiled(name: str, directory: Path, *options: str) -> Path:
    """A program or library of ``tests/helpers/NAME.c``."""
    out = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", *options, "-o", str(out), str(source)], check=True)
    return out


@contextlib.contextmanager
def apart(
    targets: Sequence[Target],
    *,
    limit: int = 0,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Apart]:
    """The process for one test. ``options``: of its engine."""
    told = json.dumps([dataclasses.asdict(target) for target in targets])
    command = [sys.executable, "-m", "tests.helpers.apart", told, str(limit), json.dumps(options or {})]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as process:
        try:
            yield Apart(process)
            assert process.stdin
            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _check(target: Target) -> Any:
    changes = dict(target.changes)
    if target.kind in ("https", "tls"):
        ca = Path(target.ca) if target.ca else None
        changes["params"] = https(ca) if target.kind == "https" else tls(ca)
        changes["type"] = CheckType.HTTPS if target.kind == "https" else CheckType.TCP
        return check("http", target.port, **changes)
    return check(target.kind, target.port, **changes)


def _main(told: str, limit: str, options: str) -> None:
    targets = [Target(**fields) for fields in json.loads(told)]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
    passes = {Code.L3OK, Code.L4OK, Code.L6OK, Code.L7OK}
    p = Probing(**{"capacity": 4096, **json.loads(options)})
    ids = [p.add(_check(one), one.address, first_delay=one.first_delay, state=State(one.state)) for one in targets]
    for _ in sys.stdin:
        p.collect(0)
        lateness = p.engine.lateness()
        infos = [p.engine.target_info(one) for one in ids]
        report = Report(
            failures=[
                {Code(code).name: count for code, count in enumerate(info.codes) if count and code not in passes}
                for info in infos
            ],
            probes=[sum(info.codes) for info in infos],
            moves=[(one.target, Code(one.code).name, one.detail) for one in p.transitions],
            last_at_ns=max(info.last_at_ns for info in infos),
            late=sum(lateness.counts[bisect.bisect(lateness.bounds, 5.0) :]),
            blocked=[info.blocked_reason for info in infos],
            anchor=p.engine.clock_anchor,
            stats=p.engine.stats(),
        )
        print(json.dumps(dataclasses.asdict(report)), flush=True)
    p.engine.stop()


if __name__ == "__main__":
    _main(*sys.argv[1:])
