"""50,000 targets a second: is every one probed in time, whatever else goes on in the process?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench._rig import HISTOGRAM, Bare, Ours, cpu_ns, nginx, rig, settle
from bench.harness import Figure
from bench.https import FULL, NAME, tls_nginx

QUESTION = "Are 50,000 SYN targets probed in time, alone, beside a busy Python, a reload, TLS? (targets 6 and 7)"

TARGETS = 50_000
SECONDS = 10.0
HOLD_SECONDS = 2.0
TLS_TARGETS = 1000


def quantile(edges: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value below which ``share`` lie, linear within a bucket; ``edges[i]`` is the upper edge of ``counts[i]``."""
    wanted = share * sum(counts)
    seen = 0.0
    for index, count in enumerate(counts):
        if count and seen + count >= wanted:
            low = edges[index - 1] if index else 0.0
            return low + (edges[min(index, len(edges) - 1)] - low) * (wanted - seen) / count
        seen += count
    return edges[-1]


def settled(ours: Ours) -> None:
    """Wait until every target has its first verdict, which is none that changes."""
    settle(ours)
    deadline = time.monotonic() + 30
    while (answer := ours.ask())["up"] < TARGETS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {answer['up']} of {TARGETS} targets are up")
        time.sleep(0.2)


def run() -> list[Figure]:
    """Ten seconds of each, the timer always beside it."""
    phases = [("engine alone", "stats"), (f"Python's lock held for {HOLD_SECONDS:g} s", f"hold {HOLD_SECONDS}")]
    phases.append(("all removed and added again", "renew"))
    figures = []
    with rig() as one, nginx(one), tls_nginx(one):
        phases.append(
            (f"{TLS_TARGETS} full TLS handshakes/s", f"tls {FULL} {one.directory}/ca.pem {NAME} {TLS_TARGETS}")
        )
        ours, timer = Ours(one, TARGETS, "syn"), Bare(one, 1, "timer")
        timer.start()
        settled(ours)
        edges_timer = [(step + 1) * 0.05 for step in range(HISTOGRAM)]
        try:
            for words, command in phases:
                before, late_before = ours.ask(), timer.late()
                cpu, began = cpu_ns(ours.process.pid), time.monotonic()
                after = ours.ask(command)
                while (left := began + SECONDS - time.monotonic()) > 0:
                    if command.startswith("hold"):
                        after = ours.ask(command)
                    else:
                        time.sleep(left)
                        after = ours.ask()
                elapsed = time.monotonic() - began
                cpu = cpu_ns(ours.process.pid) - cpu
                late_after = timer.late()
                edges = [1000 * bound for bound in after["bounds"]]
                late = [b - a for a, b in zip(before["late"], after["late"], strict=True)]
                timer_late = [b - a for a, b in zip(late_before, late_after, strict=True)]
                sent = after["sent_syn"] - before["sent_syn"]
                if words == "engine alone":
                    figures.append(Figure(f"{words}: cores", cpu / 1e9 / elapsed, "cores", 1.0))
                figures += [
                    Figure(f"{words}: probes a target and second", sent / elapsed / TARGETS, ""),
                    Figure(f"{words}: targets that went down", after["down"] - before["down"], "", 0),
                ]
                if command.startswith("tls"):
                    figures.append(Figure(f"{words}: done", (after["tls_full"] - before["tls_full"]) / elapsed, "/s"))
                for share, name in ((0.99, "p99"), (0.999, "p99.9")):
                    bare = quantile(edges_timer, timer_late, share)
                    limit = 5.0 if name == "p99" else bare
                    figures.append(Figure(f"{words}: send lateness {name}", quantile(edges, late, share), "ms", limit))
                    figures.append(Figure(f"{words}: bare timer {name}", bare, "ms"))
        finally:
            ours.end()
            timer.end()
    return figures
