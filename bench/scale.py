"""The whole daemon with many servers, in the form in which DPVS publishes its health checker's figures.

Five servers a VIP, each checked every 3 s with a time-out of 1 s and down at the first failure. VPP, a stand-in, sends
traffic to all of them; then the daemon starts, and none of them answers. Seconds are counted from the daemon's process
on and, as DPVS does it, from the first server that is taken out; cores are those of the daemon's process (threads and
all), by its CPU clock, while every check fails, and beside it while every check passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from bench._rig import cpu_ns, stop
from bench.harness import Figure
from tests.helpers.netns import SERVER, Pair, inside, ip

QUESTION = "What do 10,200 to 102,000 backends take, checked every 3 s, and how soon are all out that fail together?"

COUNTS = (10_200, 20_400, 51_000, 102_000)
MEMBERS = 5
PORT = 80
SECONDS = 15.0
"""Five intervals."""

PATIENCE = 900.0
WEIGHT_CALLS = ("lb_add_del_as_v2", "lb_as_set_weight")
UNITS = 10
"""The weight in VPP for the configured weight of 100."""

NETWORK = "10.64.0.0/14"
FIRST = int(ip_address("10.64.1.0"))


def tree(servers: int) -> dict[str, object]:
    """The configuration."""
    check = {"type": "tcp", "port": PORT, "interval": "3s", "timeout": "1s", "rise": 1, "fall": 1}
    names = [f"server-{number}" for number in range(servers)]
    backends = {
        name: {"address": str(ip_address(FIRST + number)), "healthcheck": "web"} for number, name in enumerate(names)
    }
    frontends = {
        f"vip-{number}": {
            "address": str(ip_address("198.18.0.0") + number),
            "protocol": "tcp",
            "port": PORT,
            "new-flows-table-length": 1024,
            "pools": [{"name": "all", "backends": {name: {"weight": 100} for name in names[at : at + MEMBERS]}}],
        }
        for number, at in enumerate(range(0, servers, MEMBERS))
    }
    lb = {"ipv4-src-address": "192.0.2.1", "startup-min-delay": "0s"}
    return {"maglev": {"vpp": {"lb": lb}, "healthchecks": {"web": check}, "backends": backends, "frontends": frontends}}


class World:
    """Servers that answer all or not at all, the stand-in, and the calls that it got."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pair = Pair()
        self.calls = directory / "calls.jsonl"
        self.vpp = directory / "api.sock"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The namespaces and the stand-in, which is empty."""
        self.pair.open()
        listener = None
        stand_in = None
        try:
            ip("-n", self.pair.client, "route", "add", NETWORK, "via", SERVER)
            self.answer("local")
            listener = inside(self.pair.server, lambda: socket.create_server(("0.0.0.0", PORT), backlog=4096))
            command = [sys.executable, "-m", "maglev.vppsim", "--socket", self.vpp, "--log-calls", self.calls]
            stand_in = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL, text=True)
            deadline = time.monotonic() + 30
            while not self.vpp.exists():
                if stand_in.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the stand-in does not start")
                time.sleep(0.05)
            yield
        finally:
            if stand_in is not None:
                stop(stand_in)
            if listener is not None:
                listener.close()
            self.pair.close()

    def answer(self, how: str) -> None:
        """Let the kernel answer for all servers (``local``), or drop what is sent to them (``blackhole``)."""
        device = ("dev", "lo") if how == "local" else ()
        with contextlib.suppress(RuntimeError):
            ip("-n", self.pair.server, "route", "del", NETWORK, "table", "local")
        ip("-n", self.pair.server, "route", "add", how, NETWORK, *device, "table", "local")


class Daemon:
    """The daemon as a service manager has it; ``began`` is when its process was made."""

    def __init__(self, world: World, config: Path) -> None:
        path = world.directory / "notify.sock"
        path.unlink(missing_ok=True)
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(path))
        self._log = (world.directory / "maglevd.log").open("wb")
        command = [
            "ip", "netns", "exec", world.pair.client, sys.executable, "-m", "maglev.daemon.main", "--config", config,
            "--grpc-socket", world.directory / "maglevd.sock", "--grpc-addr=", "--metrics-addr=", "--vpp-stats-addr=",
            "--vpp-api-addr", world.vpp, "--state-file", world.directory / "state.json",
        ]  # fmt: skip
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, "NOTIFY_SOCKET": str(path)},
            stdout=self._log,
            stderr=self._log,
            text=True,
        )

    def told(self, pattern: str) -> float:
        """Wait until it tells the service manager this; the seconds since its start."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._ear.settimeout(max(0.01, deadline - time.monotonic()))
            if re.search(pattern, self._ear.recv(1 << 16).decode()):
                return time.monotonic() - self.began

    def load(self) -> tuple[float, float]:
        """Cores that it takes over five intervals, and its resident MiB."""
        before, began = cpu_ns(self.process.pid), time.monotonic()
        time.sleep(SECONDS)
        cores = (cpu_ns(self.process.pid) - before) / 1e9 / (time.monotonic() - began)
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        resident = re.search(r"VmRSS:\s+(\d+)", status)
        assert resident is not None
        return cores, int(resident[1]) / 1024

    def end(self) -> None:
        """Stop it."""
        stop(self.process)
        self._log.close()
        self._ear.close()


def written(world: World, since: int, marks: Sequence[int], weight: int) -> list[float]:
    """When so many servers had been given this weight, by the monotonic clock; ``since`` is a place in the log."""
    passed: list[float] = []
    count, rest = 0, b""
    deadline = time.monotonic() + PATIENCE
    with world.calls.open("rb") as file:
        file.seek(since)
        while len(passed) < len(marks):
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {count} of {marks[-1]} servers got weight {weight} in {PATIENCE:g} s")
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                call = json.loads(line)
                count += call["call"] in WEIGHT_CALLS and call["args"]["weight"] == weight and call["retval"] == 0
            now = time.monotonic()
            passed += [now for mark in marks[len(passed) :] if count >= mark]
            time.sleep(0.1)
    return passed


def measure(servers: int) -> list[Figure]:
    """All figures of one size."""
    with tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory:
        world = World(Path(directory))
        config = Path(directory) / "maglev.json"
        config.write_text(json.dumps(tree(servers)), encoding="ascii")
        with world.running():
            daemon = Daemon(world, config)
            try:
                written(world, 0, [servers], UNITS)
                passing, resident = daemon.load()
            finally:
                daemon.end()
            world.answer("blackhole")
            since = world.calls.stat().st_size
            daemon = Daemon(world, config)
            try:
                ready = daemon.told("READY=1")
                marks = [1, servers // 2, servers * 9 // 10, servers]
                first, half, most, last = written(world, since, marks, 0)
                failing, then = daemon.load()
            finally:
                daemon.end()
    return [
        Figure(f"{servers}: ready", ready, "s"),
        Figure(f"{servers}: first server taken out", first - daemon.began, "s"),
        Figure(f"{servers}: 50 % of them, from then on", half - first, "s"),
        Figure(f"{servers}: 90 %", most - first, "s"),
        Figure(f"{servers}: all", last - first, "s"),
        Figure(f"{servers}: while every check fails", failing, "cores"),
        Figure(f"{servers}: while every check passes", passing, "cores"),
        Figure(f"{servers}: memory", max(resident, then), "MiB"),
    ]


def run() -> list[Figure]:
    """Measure each size once: it takes minutes, and no figure of it is compared with another of this machine."""
    return [figure for servers in COUNTS for figure in measure(servers)]
