"""Our own trouble is no verdict: a process that is stopped, an interpreter that is busy, too few descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from maglev.states import Code, State
from tests.helpers.engine import MS, check, listener, port_of, probing
from tests.helpers.netns import inside, pair

# A process of its own probes `count` targets of each kind and prints a line of JSON whenever it is asked.
CHILD = """
import json, resource, sys
port, count, limit = map(int, sys.argv[1:4])
if limit:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from maglev.states import Code, State
from tests.helpers.engine import MS, Probing, check
p = Probing(capacity=4096)
quick = dict(interval=100 * MS, fast_interval=100 * MS, timeout=50 * MS, rise=1, fall=1)
kinds = [("icmp", 0), ("syn", port), ("connect", port), ("http", port)]
targets = [
    p.add(check(kind, at, **quick), f"127.0.{n >> 8}.{n & 255}", first_delay=n * 100 * MS // count)
    for kind, at in kinds
    for n in range(1, count + 1)
]
p.wait(lambda: len(p.transitions) >= len(targets) - count, "all verdicts but those of http")
for line in sys.stdin:
    p.collect(0)
    down = sum(one.to_state == State.DOWN and one.target < 3 * count for one in p.transitions)
    infos = [p.engine.target_info(target) for target in targets]
    print(json.dumps({"down": down, "probes": [sum(info.codes) for info in infos],
        "last_at": max(info.last_at_ns for info in infos), **p.engine.stats()}), flush=True)
p.engine.stop()
"""


class Child:
    """The process, asked over its standard input."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self) -> dict[str, object]:
        """What its engine knows now."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def ask_until_more(self, field: str, than: int) -> dict[str, object]:
        """Ask until a counter has passed a value."""
        deadline = time.monotonic() + 20
        while True:
            answer = self.ask()
            value = answer[field]
            assert isinstance(value, int)
            if value > than:
                return answer
            assert time.monotonic() < deadline, answer


def compiled(name: str, directory: Path, *options: str) -> Path:
    """A program or library of ``tests/helpers/NAME.c``."""
    out = directory / name
    source = Path(__file__).parents[1] / "helpers" / f"{name}.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", *options, "-o", str(out), str(source)], check=True)
    return out


@contextlib.contextmanager
def child(port: int, count: int, limit: int = 0, environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    command = [sys.executable, "-c", CHILD, str(port), str(count), str(limit)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Child(process)
            assert process.stdin
            process.stdin.close()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_process_that_was_stopped_wakes_without_a_verdict() -> None:
    with listener("0.0.0.0", backlog=4096) as sock, child(port_of(sock), 50) as one:
        before = one.ask()
        assert before["down"] == 0
        for _ in range(3):
            os.kill(one.process.pid, signal.SIGSTOP)
            time.sleep(0.7)  # not a wait for an event: the length of the stall, several intervals and time-outs
            os.kill(one.process.pid, signal.SIGCONT)
            passed = one.ask()["passed"]
            assert isinstance(passed, int)
            after = one.ask_until_more("passed", passed + 300)
            assert after["down"] == 0
        stalls = after["stalls"]
        assert isinstance(stalls, int)
        assert stalls >= 3


def test_a_wall_clock_that_is_set_changes_no_verdict(tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.write_bytes(bytes(8))
    shim = compiled("clockstep", tmp_path, "-shared", "-fPIC")
    preload = " ".join([os.environ.get("LD_PRELOAD", ""), str(shim)]).strip()
    environment = {**os.environ, "LD_PRELOAD": preload, "CLOCKSTEP": str(step)}
    with listener("0.0.0.0", backlog=4096) as sock, child(port_of(sock), 50, environment=environment) as one:
        assert one.ask()["down"] == 0
        for seconds in (3600, -3600, 5, -5, 0.03, -0.03):
            with step.open("r+b") as file:
                file.write(struct.pack("=q", round(seconds * 1e9)))
            passed = one.ask()["passed"]
            assert isinstance(passed, int)
            after = one.ask_until_more("passed", passed + 300)
            assert after["down"] == 0
            at = after["last_at"]
            assert isinstance(at, int)
            # The wall clock did move for the process: what people read of the results moved with it.
            assert abs(at - time.time_ns() - seconds * 1e9) < 1e9 * min(2.0, abs(seconds) / 2 + 1)


def test_a_flood_of_strangers_changes_no_verdict(tmp_path: Path) -> None:
    flood = compiled("flood", tmp_path)
    with pair() as nets, inside(nets.client, lambda: listener("0.0.0.0", backlog=4096)) as sock, probing() as p:
        port = port_of(sock)
        quick = {"interval": 300 * MS, "fast_interval": 300 * MS, "timeout": 250 * MS, "netns": nets.client, "fall": 1}
        targets = [
            p.add(check(kind, at, **quick), f"127.1.{n >> 8}.{n & 255}", first_delay=n * 300 * MS // 500)
            for kind, at in (("icmp", 0), ("syn", port))
            for n in range(500)
        ]
        p.wait(lambda: len(p.transitions) == len(targets), "all to be up")
        before = [p.probes(target) for target in targets]
        command = ["ip", "netns", "exec", nets.client, str(flood), "400000", "200000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            p.wait(lambda: process.poll() is not None, "the flood to end")
            assert process.stdout
            assert int(process.stdout.read()) >= 400000
        p.wait(
            lambda: all(p.probes(target) > old + 2 for target, old in zip(targets, before, strict=True)), "more probes"
        )
        assert [one for one in p.transitions if one.to_state != State.UP] == []
        # Most of it was dropped by the filter; what went to a port of ours was looked at and not believed.
        assert p.engine.stats()["forged"] > 0


def test_too_few_descriptors_make_probes_late_and_never_fail_them() -> None:
    with listener("0.0.0.0", backlog=4096) as sock, child(port_of(sock), 200, 200) as one:
        # 200 http probes that are never answered hold their descriptors while 200 connect probes want theirs.
        answer = one.ask_until_more("late_fd", 100)
        passed = answer["sent_connect"]
        assert isinstance(passed, int)
        answer = one.ask_until_more("sent_connect", passed + 500)
        assert answer["down"] == 0


def test_probes_go_on_while_python_holds_the_interpreter_lock() -> None:
    import re

    with probing() as p:
        target = p.add(check("icmp", interval=20 * MS, fast_interval=20 * MS), "127.0.0.3")
        p.becomes(target, State.UP)
        before = p.probes(target)
        started = time.monotonic()
        # A regular expression that backtracks keeps the lock to itself from its beginning to its end.
        assert re.fullmatch(r"(a|aa)+b", "a" * 29) is None
        held = time.monotonic() - started
        assert p.probes(target) - before >= held / 0.022 / 2
        assert p.engine.stats()["failed"] == 0


def test_a_full_ring_loses_no_final_state() -> None:
    with listener() as sock, probing(ring=8) as p:
        port = port_of(sock)
        quick = {"interval": 10 * MS, "fast_interval": 10 * MS, "down_interval": 10 * MS, "timeout": 10 * MS}
        a_check = p.engine.add_check(check("syn", port, rise=1, fall=1, **quick))
        targets = [p.engine.add_target(a_check, bytes([127, 0, 0, 1]), state=State.UP) for n in range(50)]
        # Nothing is read while all go down and up and down again.
        counts = [0] * 50

        def all_had(code: Code) -> bool:
            infos = [p.engine.target_info(target) for target in targets]
            return all(info.codes[code] > before for info, before in zip(infos, counts, strict=True))

        def wait_for_all(code: Code) -> None:
            counts[:] = [p.engine.target_info(target).codes[code] for target in targets]
            deadline = time.monotonic() + 20
            while not all_had(code):
                assert time.monotonic() < deadline
                time.sleep(0.005)

        wait_for_all(Code.L4OK)
        sock.close()
        wait_for_all(Code.L4CON)
        with listener(port=port):
            wait_for_all(Code.L4OK)
        wait_for_all(Code.L4CON)
        stats = p.engine.stats()
        assert stats["transitions"] == 8
        assert stats["transitions_deferred"] >= 50
        p.wait(lambda: all(p.of(target) and p.of(target)[-1].to_state == State.DOWN for target in targets), "the rest")
        for target in targets:
            states = [State.UP, *(one.to_state for one in p.of(target))]
            assert [one.from_state for one in p.of(target)] == states[:-1]
