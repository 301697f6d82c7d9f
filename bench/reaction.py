"""From the packet that decides to the call on VPP's socket, with the installed daemon and 50,000 backends.

The moment of the reply is the kernel's, from a packet socket; that of the call is when the stand-in, a process of its
own, reads it: what the machine needs to wake that process is in it. A bare timer shows the share of the machine itself.
For how long the loop could have run and had no CPU is printed beside it: the servers, the stand-in and the child that
loads run on the same ones.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from bench import _flipper
from bench._daemon import BACKENDS, Daemon, daemon, servers
from bench._dataplane import stand_in
from bench._rig import HISTOGRAM, Bare, Rig, cpu_ns, rig, run_and_wait_ns
from bench.harness import Figure
from bench.line import quantile

QUESTION = "How long from the deciding reply to the weight call, while 50,000 backends are probed each second?"

RATE = 60.0
SECONDS = 25.0


def run() -> list[Figure]:
    """Full syncs every five seconds in all rounds, and one after each reload of the 50,000."""
    with rig() as one, tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory:
        return asyncio.run(_measure(one, Path(directory)))


async def _measure(one: Rig, directory: Path) -> list[Figure]:
    figures = []
    timer = Bare(one, 1, "timer")
    timer.start()
    told = directory / "told"
    try:
        with servers(one) as flipper:
            async with stand_in(directory, told) as vpp, daemon(directory, one.name, vpp) as maglevd:
                for words, meanwhile in ROUNDS.items():
                    figures += await _round(words, meanwhile, maglevd, flipper, timer, told)
    finally:
        timer.end()
    return figures


async def _nothing(maglevd: Daemon) -> None:
    await asyncio.Event().wait()


async def _reloads(what: str, maglevd: Daemon) -> None:
    """One reload after the other, each of a file in which this differs."""
    while True:
        maglevd.rewrite(what)
        seen = len(maglevd.log)
        maglevd.signal(signal.SIGHUP)
        await maglevd.came("config-applied", start=seen)


ROUNDS: Mapping[str, Callable[[Daemon], Awaitable[object]]] = {
    "probing alone": _nothing,
    "reloads, one value differs": partial(_reloads, "value"),
    "reloads, all members differ": partial(_reloads, "members"),
}


async def _round(
    words: str,
    meanwhile: Callable[[Daemon], Awaitable[object]],
    maglevd: Daemon,
    flipper: subprocess.Popen[str],
    timer: Bare,
    told: Path,
) -> list[Figure]:
    assert flipper.stdin is not None
    assert flipper.stdout is not None
    assert maglevd.process is not None
    told_before = _size(told)
    seen, late, cpu = len(maglevd.log), timer.late(), cpu_ns(maglevd.process.pid)
    loop, began = run_and_wait_ns(maglevd.process.pid), time.monotonic_ns()
    flipper.stdin.write(f"{RATE} {SECONDS}\n")
    flipper.stdin.flush()
    busy = asyncio.ensure_future(meanwhile(maglevd))
    replies = json.loads(await asyncio.to_thread(flipper.stdout.readline))
    busy.cancel()
    cpu = cpu_ns(maglevd.process.pid) - cpu
    ran, waited = (
        (after - before) / (time.monotonic_ns() - began)
        for before, after in zip(loop, run_and_wait_ns(maglevd.process.pid), strict=True)
    )
    late = [after - before for before, after in zip(late, timer.late(), strict=True)]
    milliseconds, lost = _matched(replies, _read(told, told_before))
    edges = [(step + 1) * 0.05 for step in range(HISTOGRAM)]
    reloads = len(maglevd.records("config-applied", seen))
    return [
        Figure(f"{words}: p99", _share(milliseconds, 0.99), "ms", 5),
        Figure(f"{words}: median", _share(milliseconds, 0.5), "ms"),
        Figure(f"{words}: longest", milliseconds[-1], "ms"),
        Figure(f"{words}: bare timer p99", quantile(edges, late, 0.99), "ms"),
        Figure(f"{words}: verdicts", len(milliseconds), ""),
        Figure(f"{words}: never told to VPP", lost, "", 0),
        Figure(f"{words}: reloads", reloads, ""),
        Figure(f"{words}: daemon", cpu / 1e9 / (SECONDS + 2), "cores"),
        Figure(f"{words}: its loop's thread ran", 100 * ran, "%"),
        Figure(f"{words}: its loop's thread waited for a CPU", 100 * waited, "%"),
    ]


def _size(path: Path) -> int:
    return path.stat().st_size


def _read(path: Path, start: int) -> str:
    return path.read_text(encoding="ascii")[start:]


def _share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _matched(replies: list[tuple[int, int, bool]], told: str) -> tuple[list[float], int]:
    """Milliseconds from each reply to the first later call that says the same, ascending; and how many had none."""
    calls: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for line in told.splitlines():
        written, address, weight = line.split()
        calls[address, int(weight) > 0].append(int(written))
    found, lost = [], 0
    for at, index, up in replies:
        times = calls[f"{_flipper.BASE + index:08x}", up]
        place = bisect_left(times, at)
        if place == len(times):
            lost += 1
        else:
            found.append((times[place] - at) / 1e6)
    assert found, f"no reply was seen of {BACKENDS} backends"
    return sorted(found), lost
