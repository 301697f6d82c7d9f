"""The saving of io_uring for checks over TCP: bare loops with it and without, at the same pace, and the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench._rig import Bare, Contender, Ours, compare, nginx, rig
from bench.harness import Figure

QUESTION = "What would io_uring save of a check over TCP?"

TARGETS = 10_000


def run() -> list[Figure]:
    """10,000 targets once a second."""
    figures = []
    with rig() as one, nginx(one):
        for kind in ("connect", "http"):
            contenders: dict[str, Callable[[], Contender]] = {
                "direct calls": partial(Bare, one, TARGETS, kind, "direct", program="streams"),
                "io_uring": partial(Bare, one, TARGETS, kind, "uring", program="streams"),
                "engine": partial(Ours, one, TARGETS, kind),
            }
            costs = compare(contenders)
            figures += [Figure(f"{kind}: {name}", cost.cpu_us, "us CPU") for name, cost in costs.items()]
            if "io_uring" in costs and "direct calls" in costs:
                ratio = costs["io_uring"].cpu_us / costs["direct calls"].cpu_us
                figures.append(Figure(f"{kind}: io_uring / direct calls", ratio, "x"))
    return figures
