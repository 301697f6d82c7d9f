"""The cost of a SYN probe, beside HAProxy's TCP check and a bare loop at the same pace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench._rig import Bare, Contender, Haproxy, Ours, compare, missing, nginx, rig, table
from bench.harness import Figure

QUESTION = "What does a half-open TCP probe cost? (target 2)"


def run() -> list[Figure]:
    """10,000 and 50,000 targets once a second; HAProxy, which needs a core for 25,000, has 10,000."""
    figures = []
    with rig() as one, nginx(one):
        peer = 0.0
        for targets in (10_000, 50_000):
            contenders: dict[str, Callable[[], Contender]] = {
                "engine": partial(Ours, one, targets, "syn"),
                "bare loop": partial(Bare, one, targets, "syn"),
            }
            if not peer and not missing("haproxy"):
                contenders["haproxy"] = partial(Haproxy, one, targets, httpchk=False)
            costs = compare(contenders)
            figures += table(costs, targets, {"bare loop": 1.1, "haproxy": 0.5})
            if peer:
                ratio = costs["engine"].cpu_us / peer
                figures.append(Figure(f"{targets} targets: engine / haproxy with 10000", ratio, "x", 0.5))
            elif "haproxy" in costs:
                peer = costs["haproxy"].cpu_us
    return figures
