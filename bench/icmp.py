"""The cost of an ICMP probe, beside fping and a bare loop at the same pace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench._rig import Bare, Contender, Fping, Ours, compare, missing, rig, table
from bench.harness import Figure

# The engine sets Don't Fragment, as it may with so small a packet, and spares the kernel the identification, for which
# a loop that does not think of it pays; the second loop does think of it.
QUESTION = "What does an ICMP probe cost? (target 1)"


def run() -> list[Figure]:
    """10,000 and 50,000 targets, each probed once a second."""
    figures = []
    with rig() as one:
        for targets in (10_000, 50_000):
            contenders: dict[str, Callable[[], Contender]] = {
                "engine": partial(Ours, one, targets, "icmp"),
                "bare loop": partial(Bare, one, targets, "icmp"),
                "bare loop, DF": partial(Bare, one, targets, "icmp-df"),
            }
            if not missing("fping"):
                contenders["fping"] = partial(Fping, one, targets)
            figures += table(compare(contenders), targets, {"bare loop": 1.1, "bare loop, DF": 1.1, "fping": 0.4})
    return figures
