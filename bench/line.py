"""50,000 targets a second: is every one probed in time, also while Python holds its lock?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench._rig import HISTOGRAM, Bare, Ours, cpu_ns, nginx, rig, settle
from bench.harness import Figure

QUESTION = "Are 50,000 SYN targets probed in time, engine alone and with Python busy? (targets 6 and 7)"

TARGETS = 50_000
SECONDS = 10.0
HOLD_SECONDS = 2.0


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


def run() -> list[Figure]:
    """One run of ten seconds, then one of as long in which the lock is held for two."""
    figures = []
    edges_timer = [(step + 1) * 0.05 for step in range(HISTOGRAM)]
    with rig() as one, nginx(one):
        ours, timer = Ours(one, TARGETS, "syn"), Bare(one, 1, "timer")
        timer.start()
        settle(ours)
        try:
            for words in ("engine alone", f"Python's lock held for {HOLD_SECONDS:g} s"):
                before, late_before = ours.ask(), timer.late()
                cpu, began = cpu_ns(ours.process.pid), time.monotonic()
                if words == "engine alone":
                    time.sleep(SECONDS)
                    after = ours.ask()
                else:
                    after = ours.ask(f"hold {HOLD_SECONDS}")
                elapsed = time.monotonic() - began
                cpu = cpu_ns(ours.process.pid) - cpu
                late_after = timer.late()
                edges = [1000 * bound for bound in after["bounds"]]
                late = [b - a for a, b in zip(before["late"], after["late"], strict=True)]
                timer_late = [b - a for a, b in zip(late_before, late_after, strict=True)]
                sent = after["sent_syn"] - before["sent_syn"]
                verdicts = after["transitions"] - before["transitions"]
                if words == "engine alone":
                    figures.append(Figure(f"{words}: cores", cpu / 1e9 / elapsed, "cores", 1.0))
                figures += [
                    Figure(f"{words}: probes a target and second", sent / elapsed / TARGETS, ""),
                    Figure(f"{words}: verdicts that changed", verdicts, "", 0),
                ]
                limits = (5.0, None) if words == "engine alone" else (None, None)
                for (share, name), limit in zip(((0.99, "p99"), (0.999, "p99.9")), limits, strict=True):
                    figures.append(Figure(f"{words}: send lateness {name}", quantile(edges, late, share), "ms", limit))
                    figures.append(
                        Figure(f"{words}: bare timer {name}", quantile(edges_timer, timer_late, share), "ms")
                    )
        finally:
            ours.end()
            timer.end()
    return figures
