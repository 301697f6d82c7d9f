"""How the cost of a probe and of an idle engine grows with the number of targets; also in DPVS's form of the table."""

from __future__ import annotations

import time

from bench._rig import Cost, Ours, Rig, measure, nginx, rig
from bench.harness import Figure, cpu_ms
from maglev._probe import Engine
from maglev.base.states import CheckType
from maglev.config.model import HealthCheck, IcmpParams

QUESTION = "How does the cost grow with the targets? (target 5)"

COUNTS = (1_000, 10_000, 50_000)
DPVS = (10_200, 20_400, 51_000, 102_000)
ROUNDS = 5
CHANGES = 10_000


def median(one: Rig, targets: int, kind: str, interval_ms: int = 1000, rounds: int = ROUNDS) -> Cost:
    """The median round by CPU a probe."""
    costs = [measure(Ours(one, targets, kind, interval_ms), 2.0) for _ in range(rounds)]
    return sorted(costs, key=lambda cost: cost.cpu_us)[rounds // 2]


def changes(targets: int) -> float:
    """Microseconds of CPU for one target that is added and removed while there are ``targets`` others."""
    hour = 3600 * 10**9
    engine = Engine(capacity=targets + CHANGES)
    engine.start()
    check = engine.add_check(HealthCheck("icmp", CheckType.ICMP, IcmpParams(), 0, hour, hour, hour))

    def settled(count: int) -> None:
        while engine.stats()["targets"] != count:
            time.sleep(0.001)

    def add_and_remove() -> None:
        added = [engine.add_target(check, bytes((127, 0, 0, 1)), first_delay=hour) for _ in range(CHANGES)]
        for one in added:
            engine.remove_target(one)
        settled(targets)

    for _ in range(targets):
        engine.add_target(check, bytes((127, 0, 0, 1)), first_delay=hour)
    settled(targets)
    try:
        return 1000 * cpu_ms({"": add_and_remove})[""] / CHANGES
    finally:
        engine.stop()


def run() -> list[Figure]:
    """One probe a target and second; DPVS's numbers of targets every 3 s; targets that come and go."""
    figures = [
        Figure(f"a target added and removed beside {targets} others", changes(targets), "us CPU")
        for targets in (COUNTS[0], COUNTS[-1])
    ]
    with rig() as one, nginx(one):
        for kind in ("icmp", "syn"):
            costs = {targets: median(one, targets, kind) for targets in COUNTS}
            for targets, cost in costs.items():
                figures.append(Figure(f"{kind}, {targets} targets a second: a probe", cost.cpu_us, "us CPU"))
            figures.append(Figure(f"{kind}, 1000 targets a second: of a core", 100 * costs[1_000].cores, "%", 10))
            ratio = costs[50_000].cpu_us / costs[10_000].cpu_us
            figures.append(Figure(f"{kind}: a probe of 50000 / of 10000 targets", ratio, "x", 1.0))
        for targets in DPVS:
            cost = median(one, targets, "syn", 3000, 1)
            figures.append(Figure(f"syn, {targets} targets every 3 s", 100 * cost.cores, "% core"))
    return figures
