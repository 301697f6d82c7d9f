"""Parts of all engine benchmarks: a network namespace, the programs that are compared in it, and their CPU time.

All contenders run one after the other in one namespace, at the same pace, each in a separate process, several rounds.
CPU is user and system time of the whole process by its own clock (nanoseconds), per probe that it has sent meanwhile.
The kernel answers on loopback within the sender's system call, and this kernel charges that to the sender; what it
would have put off to its own threads (ksoftirqd) is measured beside it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import Figure

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ROOT / "bench" / "loops"
PORT = 8080
ROUNDS = 5
SECONDS = 3.0
TICK_NS = 2_000_000  # the engine's tick: the bare loops are paced by it, too
HISTOGRAM = 2001  # steps of 50 us in the bare loop's counters


def addresses(count: int) -> list[str]:
    """The targets that all contenders probe."""
    numbers = range(0x7F010000, 0x7F010000 + count)
    return [f"127.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in numbers]


def missing(program: str) -> bool:
    """Whether a peer is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None


def cpu_ns(pid: int) -> int:
    """User and system time of a whole process, by its CPU clock."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def run_and_wait_ns(thread: int) -> tuple[int, int]:
    """For how long a thread ran, and for how long it could have run and had no CPU. A process is its first thread."""
    ran, waited, _ = Path(f"/proc/{thread}/schedstat").read_text(encoding="ascii").split()
    return int(ran), int(waited)


def machine_ns() -> tuple[int, int]:
    """The busy time of the whole machine, and that of its ksoftirqd threads."""
    with open("/proc/stat", encoding="ascii") as text:
        fields = [int(word) for word in text.readline().split()[1:]]
    busy = sum(fields[:8]) - fields[3] - fields[4]
    threads = 0
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("ksoftirqd/"):
                threads += int(path.with_name("schedstat").read_text().split()[0])
    return busy * (1_000_000_000 // os.sysconf("SC_CLK_TCK")), threads


class Rig:
    """A network namespace and a directory for one benchmark."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program inside; the process is the program itself."""
        inside = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(inside, text=True, cwd=ROOT, **options)

    def run(self, *command: str) -> None:
        """Run a program inside to its end; its complaint is the error."""
        done = subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

    def snmp(self, group: str, field: str) -> int:
        """A counter of the namespace: it counts for a program that does not count itself."""
        command = ["ip", "netns", "exec", self.name, "cat", "/proc/net/snmp"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in text.splitlines() if line.startswith(f"{group}:")]
        names, values = rows or ([], [])  # not there before the first packet
        return int(dict(zip(names, values, strict=True)).get(field, 0))

    def loop(self, name: str) -> str:
        """A program of ``loops``, compiled."""
        program = self.directory / name
        if not program.exists():
            subprocess.run(["cc", "-O2", "-o", str(program), str(LOOPS / f"{name}.c")], check=True)
        return str(program)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """A rig for one benchmark. Raw sockets and namespaces need root."""
    name = f"mgl-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory:
            one = Rig(name, Path(directory))
            one.run("ip", "link", "set", "lo", "up")
            one.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
            yield one
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def stop(process: subprocess.Popen[str]) -> None:
    """End a program and wait for it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def nginx(one: Rig) -> Iterator[None]:
    """A server on every address, for all that probe TCP and HTTP. RuntimeError where it is not installed."""
    if missing("nginx"):
        raise RuntimeError("nginx is not installed (make bench-deps): there is nothing that could be probed")
    config = one.directory / "nginx.conf"
    config.write_text(
        f"daemon off; pid {one.directory}/nginx.pid; error_log {one.directory}/nginx.log; worker_processes 1;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; server {{ listen {PORT} backlog=4096; location / {{ return 200 ok; }} }} }}\n"
    )
    command = ["nginx", "-c", str(config), "-p", str(one.directory)]
    with one.popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while not (one.directory / "nginx.pid").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((one.directory / "nginx.log").read_text())
                time.sleep(0.05)
            yield
        finally:
            stop(process)


class Contender(ABC):
    """A program that probes. ``probes`` counts what it has sent."""

    process: subprocess.Popen[str]

    def __init__(self, one: Rig, targets: int) -> None:
        self.rig = one
        self.targets = targets
        self.rate = float(targets)

    @abstractmethod
    def start(self) -> None:
        """Begin to probe, every target once a second."""

    @abstractmethod
    def probes(self) -> int:
        """Probes sent since the start."""

    def end(self) -> None:
        """Stop."""
        stop(self.process)


class Ours(Contender):
    """The engine, driven by ``bench._prober``."""

    def __init__(self, one: Rig, targets: int, kind: str, interval_ms: int = 1000) -> None:
        super().__init__(one, targets)
        self.kind = kind
        self.interval_ms = interval_ms
        self.rate = targets * 1000 / interval_ms

    def start(self) -> None:
        words = [self.kind, str(self.targets), str(self.interval_ms), "0" if self.kind == "icmp" else str(PORT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = self.rig.popen([sys.executable, "-m", "bench._prober", *words], **pipes)

    def ask(self, question: str = "stats") -> dict[str, Any]:
        """The engine's counters."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def probes(self) -> int:
        answer = self.ask()
        return int(sum(answer[f"sent_{kind}"] for kind in ("icmp", "syn", "connect", "http")))

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        stop(self.process)


class Bare(Contender):
    """A loop of ``loops/PROGRAM.c``; of ``bare``: ``icmp``, ``icmp-df``, ``syn``, the ``timer`` that only wakes up."""

    def __init__(self, one: Rig, targets: int, *kind: str, program: str = "bare") -> None:
        super().__init__(one, targets)
        self.kind = kind
        self.program = program

    def start(self) -> None:
        path = self.rig.directory / f"{'-'.join(self.kind)}.counters"
        path.write_bytes(bytes(8 * (2 + HISTOGRAM)))
        with path.open("r+b") as file:
            self.counters = mmap.mmap(file.fileno(), 0)
        words = [*self.kind, str(path), str(self.targets), str(TICK_NS), str(PORT)]
        self.process = self.rig.popen([self.rig.loop(self.program), *words])

    def probes(self) -> int:
        sent, received = struct.unpack_from("=2Q", self.counters)
        if received < 0.9 * sent - 2000:
            raise RuntimeError(f"the bare loop sent {sent} and received {received}")
        return int(sent)

    def late(self) -> list[int]:
        """How many wake-ups were how late, in steps of 50 us."""
        return list(struct.unpack_from(f"={HISTOGRAM}Q", self.counters, 16))


class Fping(Contender):
    """fping, which sends one packet a wake-up."""

    def start(self) -> None:
        self.base = self.rig.snmp("IcmpMsg", "OutType8")
        words = ["-l", "-q", "-p", "1000", "-i", f"{1000 / self.targets:.3f}", "-f", "-"]
        self.process = self.rig.popen(
            ["fping", *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert self.process.stdin
        self.process.stdin.write("\n".join(addresses(self.targets)) + "\n")
        self.process.stdin.close()

    def probes(self) -> int:
        return self.rig.snmp("IcmpMsg", "OutType8") - self.base


class Haproxy(Contender):
    """HAProxy with one thread and a backend of all targets; ``httpchk`` or its TCP check."""

    def __init__(self, one: Rig, targets: int, httpchk: bool) -> None:
        super().__init__(one, targets)
        self.httpchk = httpchk

    def start(self) -> None:
        self.base = self.rig.snmp("Tcp", "ActiveOpens")
        path = self.rig.directory / "haproxy.cfg"
        servers = (f"  server s{i} {ip}:{PORT} check inter 1000" for i, ip in enumerate(addresses(self.targets)))
        check = "  option httpchk GET /\n  http-check expect status 200\n" if self.httpchk else ""
        path.write_text(
            "global\n  nbthread 1\n  maxconn 1000\n  ulimit-n 16000\n"
            f"defaults\n  mode {'http' if self.httpchk else 'tcp'}\n"
            "  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
            f"frontend f\n  bind unix@{self.rig.directory}/haproxy.sock\n  default_backend b\n"
            f"backend b\n{check}" + "\n".join(servers) + "\n"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = self.rig.popen(["haproxy", "-db", "-f", str(path)], **quiet)

    def probes(self) -> int:
        return self.rig.snmp("Tcp", "ActiveOpens") - self.base


@dataclass(slots=True)
class Cost:
    """Medians of one contender: microseconds of its own CPU and of ksoftirqd a probe, cores, probes a second."""

    cpu_us: float
    softirq_us: float
    machine_us: float
    cores: float
    rate: float


def settle(contender: Contender) -> None:
    """Let a contender come to its pace: every target has had a probe, and the rate is what was asked for.

    Some never reach that rate, or not on a busy machine; they are measured as they are.
    """
    contender.start()
    deadline = time.monotonic() + 60
    pace_deadline = 0.0
    before = contender.probes()
    while True:
        time.sleep(1)
        if contender.process.poll() is not None:
            raise RuntimeError(f"{type(contender).__name__} ended with {contender.process.returncode}")
        now = contender.probes()
        if now >= contender.targets:
            pace_deadline = pace_deadline or time.monotonic() + 4
            if now - before >= 0.9 * contender.rate or time.monotonic() > pace_deadline:
                return
        elif time.monotonic() > deadline:
            raise RuntimeError(f"{type(contender).__name__} has sent only {now} probes")
        before = now


def measure(contender: Contender, seconds: float = SECONDS) -> Cost:
    """One round of one contender."""
    try:
        settle(contender)
        busy, threads = machine_ns()
        probes, cpu, began = contender.probes(), cpu_ns(contender.process.pid), time.monotonic()
        time.sleep(seconds)
        probes, cpu = contender.probes() - probes, cpu_ns(contender.process.pid) - cpu
        elapsed = time.monotonic() - began
        busy_after, threads_after = machine_ns()
    finally:
        contender.end()
    each = 1000 * max(1, probes)
    return Cost(
        cpu / each, (threads_after - threads) / each, (busy_after - busy) / each, cpu / 1e9 / elapsed, probes / elapsed
    )


def compare(contenders: Mapping[str, Callable[[], Contender]], rounds: int = ROUNDS) -> dict[str, Cost]:
    """All contenders in turn, several rounds; the medians.

    A round in which a program gave up is said and left out; a program that always does has no figure.
    """
    taken: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, make in contenders.items():
            try:
                taken[name].append(measure(make()))
            except RuntimeError as error:
                print(f"  {name}: {error}", file=sys.stderr)
    return {
        name: Cost(*(statistics.median(getattr(cost, field) for cost in costs) for field in Cost.__slots__))
        for name, costs in taken.items()
        if costs
    }


def table(costs: Mapping[str, Cost], targets: int, limits: Mapping[str, float]) -> list[Figure]:
    """The cost of each, and the ratio of ours to each of the others; ``limits``: the highest ratios allowed."""
    figures = []
    for name, cost in costs.items():
        figures.append(Figure(f"{targets} targets: {name}", cost.cpu_us, "us CPU"))
        if cost.rate < 0.9 * targets:
            figures.append(Figure(f"{targets} targets: {name}, falls behind: probes a second", cost.rate, "/s"))
    ours = costs["engine"]
    for name, limit in limits.items():
        if name in costs:
            ratio = ours.cpu_us / costs[name].cpu_us
            figures.append(Figure(f"{targets} targets: engine / {name}", ratio, "x", limit))
    for name in ("engine", "bare loop"):
        if name in costs:
            figures.append(Figure(f"{targets} targets: {name}, ksoftirqd beside it", costs[name].softirq_us, "us CPU"))
            figures.append(Figure(f"{targets} targets: {name}, whole machine", costs[name].machine_us, "us CPU"))
    return figures
