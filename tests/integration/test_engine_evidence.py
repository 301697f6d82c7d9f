"""A probe that did not leave this host is no verdict; a server that is dead behind the same trouble goes down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from maglev.base.states import State
from maglev.config.model import HealthCheck
from tests.helpers.engine import MS, Probing, check, listener, port_of, probing
from tests.helpers.netns import CLIENT, SERVER, SERVER6, SILENT, SILENT6, Pair, inside, ip, pair
from tests.helpers.trouble import (
    firewall,
    full_neighbour_table,
    no_carrier,
    permanent,
    refusing_queue,
    silent_queue,
    slow_queue,
)

QUICK: dict[str, Any] = {
    **dict.fromkeys(("interval", "fast_interval", "down_interval"), 100 * MS), "timeout": 60 * MS, "fall": 2,
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", ["icmp", "syn"])
FAMILIES = pytest.mark.parametrize("address", [SERVER, SERVER6])

Trouble = Callable[[Pair], AbstractContextManager[None]]


@pytest.fixture
def nets() -> Iterator[Pair]:
    with pair() as one:
        permanent(one)
        yield one


def quick(kind: str, nets: Pair, port: int = 0, **changes: Any) -> HealthCheck:
    return check(kind, port, netns=nets.client, **{**QUICK, **changes})


@pytest.fixture
def port(nets: Pair) -> Iterator[int]:
    with inside(nets.server, lambda: listener("::")) as sock:
        yield port_of(sock)


def rounds(p: Probing, target: int, count: int = 8) -> None:
    """Wait until a target was tried so many times: results, or probes that gave none."""

    def tried() -> int:
        return p.probes(target) + p.engine.stats()["local_errors"] + p.engine.stats()["repeated"]

    start = tried()
    p.wait(lambda: tried() >= start + count, "more tries")


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "a queue that refuses": (lambda nets: refusing_queue(nets.client), "own queue dropped it|no buffer"),
    "a queue that drops another": (lambda nets: silent_queue(nets.client), "own queue dropped it"),
    "a queue that is slow": (lambda nets: slow_queue(nets.client), "own queue dropped it"),
    "no carrier": (no_carrier, "link down"),
    "our firewall": (lambda nets: firewall(nets.client, "meta l4proto { icmp, ipv6-icmp, tcp } drop"), "firewall"),
    "our firewall behind routing": (
        lambda nets: firewall(nets.client, "meta l4proto { icmp, ipv6-icmp, tcp } drop", hook="postrouting"),
        "firewall",
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@FAMILIES
@KINDS
def test_a_probe_that_does_not_leave_is_no_verdict(
    nets: Pair, port: int, kind: str, address: str, trouble: str
) -> None:
    make, words = TROUBLES[trouble]
    with probing() as p:
        target = p.add(quick(kind, nets, port if kind == "syn" else 0), address)
        p.becomes(target, State.UP)
        p.wait_probes(target, 3)
        with make(nets):
            assert p.blocked(target).removeprefix("not probed: ").split(":")[0] in words.split("|")
            rounds(p, target)
            assert [one.to_state for one in p.of(target)] == [State.UP]
        p.unblocked(target)
        assert [one.to_state for one in p.of(target)] == [State.UP]
        # And a server that dies is found out.
        ip("-n", nets.server, "addr", "del", address + ("/64" if ":" in address else "/24"), "dev", "veth0")
        p.becomes(target, State.DOWN)
