"""The cost of a TCP connect check, beside HAProxy's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench._rig import Contender, Haproxy, Ours, compare, missing, nginx, rig, table
from bench.harness import Figure

QUESTION = "What does a TCP connect check cost? (target 3)"

TARGETS = 10_000


def run() -> list[Figure]:
    """10,000 targets once a second."""
    with rig() as one, nginx(one):
        contenders: dict[str, Callable[[], Contender]] = {"engine": partial(Ours, one, TARGETS, "connect")}
        if not missing("haproxy"):
            contenders["haproxy"] = partial(Haproxy, one, TARGETS, httpchk=False)
        return table(compare(contenders), TARGETS, {"haproxy": 0.75})
