"""The cost of an HTTP check, beside HAProxy's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench._rig import Contender, Haproxy, Ours, compare, missing, nginx, rig, table
from bench.harness import Figure

QUESTION = "What does an HTTP check cost? (target 4)"

TARGETS = 10_000


def run() -> list[Figure]:
    """10,000 targets once a second."""
    with rig() as one, nginx(one):
        contenders: dict[str, Callable[[], Contender]] = {"engine": partial(Ours, one, TARGETS, "http")}
        if not missing("haproxy"):
            contenders["haproxy"] = partial(Haproxy, one, TARGETS, httpchk=True)
        return table(compare(contenders), TARGETS, {"haproxy": 0.7})
