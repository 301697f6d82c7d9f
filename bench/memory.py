"""The memory of a target."""

from __future__ import annotations

import time

from bench._rig import Ours, nginx, rig, settle
from bench.harness import Figure

QUESTION = "How much memory does the engine need for a target? (target 8)"

COUNTS = (10_000, 100_000)


def run() -> list[Figure]:
    """Resident memory of the engine's process by the number of its targets; the difference is what a target costs."""
    figures = []
    with rig() as one, nginx(one):
        for kind in ("icmp", "syn", "connect", "http"):
            resident = []
            for targets in COUNTS:
                interval = targets // 10  # ms: 10,000 probes a second
                ours = Ours(one, targets, kind, interval)
                settle(ours)
                while (answer := ours.ask())["up"] < targets:
                    time.sleep(0.5)
                resident.append(answer["rss"])
                ours.end()
            each = (resident[1] - resident[0]) / (COUNTS[1] - COUNTS[0])
            figures.append(Figure(f"{kind}: a target", each, "bytes", 512))
            figures.append(Figure(f"{kind}: engine with {COUNTS[0]} targets", resident[0] / 2**20, "MiB"))
    return figures
