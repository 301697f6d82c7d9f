"""A probe that did not leave this host is no verdict; a server that is dead behind the same trouble goes down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from maglev.base.states import State
from maglev.config.model import HealthCheck
from tests.helpers.engine import MS, Probing, check, listener, port_of, probing
from tests.helpers.netns import SERVER, SERVER6, Pair, inside, ip, pair
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
PROBES = "meta l4proto { icmp, ipv6-icmp, tcp } drop"

Trouble = Callable[[Pair], AbstractContextManager[None]]


@pytest.fixture
def nets() -> Iterator[Pair]:
    with pair() as one:
        yield one


def quick(kind: str, nets: Pair, port: int = 0, **changes: Any) -> HealthCheck:
    return check(kind, 0 if kind == "icmp" else port, netns=nets.client, **{**QUICK, **changes})


@pytest.fixture
def port(nets: Pair) -> Iterator[int]:
    with inside(nets.server, lambda: listener("::")) as sock:
        yield port_of(sock)


class Watched:
    """One target of every raw kind and family, all up."""

    def __init__(self, p: Probing, nets: Pair, port: int, addresses: tuple[str, ...] = (SERVER, SERVER6)) -> None:
        self.p = p
        self.targets = [p.add(quick(kind, nets, port), one) for kind in ("icmp", "syn") for one in addresses]
        for target in self.targets:
            p.becomes(target, State.UP)
            p.wait_probes(target, 3)
        self.before = [len(p.of(target)) for target in self.targets]

    def reasons(self, tries: int = 4) -> list[str]:
        """Wait until none can be probed, and until each was tried so many times more; returns why."""
        for target in self.targets:
            self.p.blocked(target)
        start = self.p.engine.stats()["local_errors"]
        self.p.wait(lambda: self.p.engine.stats()["local_errors"] >= start + tries * len(self.targets), "more tries")
        return [self.p.engine.target_info(one).blocked_reason.removeprefix("not probed: ") for one in self.targets]

    def stay_up(self) -> None:
        """Nothing has changed since they came up."""
        changes = [self.p.of(one)[before:] for one, before in zip(self.targets, self.before, strict=True)]
        assert changes == [[]] * len(self.targets)

    def recover(self) -> None:
        """Wait until all are probed again; none went down meanwhile."""
        for target in self.targets:
            self.p.unblocked(target)
        self.stay_up()

    def go_down(self) -> None:
        """Wait until all are down."""
        for target in self.targets:
            self.p.becomes(target, State.DOWN)


TROUBLES: dict[str, tuple[Trouble, set[str]]] = {
    "a queue that refuses": (lambda nets: refusing_queue(nets.client), {"own queue dropped it", "no buffer: ENOBUFS"}),
    "a queue that drops another packet": (lambda nets: silent_queue(nets.client), {"own queue dropped it"}),
    "a queue that is slow": (lambda nets: slow_queue(nets.client), {"own queue dropped it"}),
    "no carrier": (no_carrier, {"link down", "link down: ENOBUFS"}),
    "our firewall": (lambda nets: firewall(nets.client, PROBES), {"firewall: EPERM"}),
    "our firewall behind routing": (lambda nets: firewall(nets.client, PROBES, "postrouting"), {"firewall: EPERM"}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_probe_that_does_not_leave_is_no_verdict(nets: Pair, port: int, trouble: str) -> None:
    permanent(nets)
    make, reasons = TROUBLES[trouble]
    with probing() as p:
        watched = Watched(p, nets, port)
        with make(nets):
            assert set(watched.reasons()) <= reasons
            watched.stay_up()
        watched.recover()
        with firewall(nets.server, PROBES, "input"):
            watched.go_down()


def no_route(nets: Pair) -> None:
    for family, net in (("-4", "198.51.100.0/24"), ("-6", "2001:db8:7::/64")):
        ip(family, "-n", nets.client, "route", "del", net)


def routed_to(kind: str) -> Callable[[Pair], None]:
    def change(nets: Pair) -> None:
        for family, net in (("-4", "198.51.100.0/24"), ("-6", "2001:db8:7::/64")):
            ip(family, "-n", nets.client, "route", "replace", kind, net)

    return change


def interface_down(nets: Pair) -> None:
    ip("-n", nets.client, "link", "set", "veth0", "down")


def another_way(nets: Pair) -> None:
    """The interface goes down, and a default route leads elsewhere: the kernel refuses nothing."""
    ip("-n", nets.client, "link", "add", "other0", "type", "veth", "peer", "name", "other1")
    for name in ("other0", "other1"):
        ip("-n", nets.client, "link", "set", name, "up")
    for family in ("-4", "-6"):
        ip(family, "-n", nets.client, "route", "add", "default", "dev", "other0")
    interface_down(nets)


def another_route(nets: Pair) -> None:
    """As above, but the interface stays up."""
    another_way(nets)
    ip("-n", nets.client, "link", "set", "veth0", "up")


ROUTES: dict[str, tuple[Callable[[Pair], None], set[str]]] = {
    "no route": (no_route, {"no route: ENETUNREACH"}),
    "unreachable": (routed_to("unreachable"), {"no route: EHOSTUNREACH"}),
    "prohibit": (routed_to("prohibit"), {"no route: EACCES"}),
    "blackhole": (routed_to("blackhole"), {"no route: EINVAL"}),
    "interface down": (interface_down, {"link down: ENETUNREACH"}),
    "interface down, default route": (another_way, {"link down"}),
    "route lost, default route": (another_route, {"no route"}),
}


@pytest.fixture
def beyond(nets: Pair, port: int) -> tuple[str, str]:
    """Two servers behind a router."""
    addresses = ("198.51.100.20", "2001:db8:7::20")
    ip("-n", nets.server, "-6", "route", "del", "blackhole", "2001:db8:7::/64")
    for one in addresses:
        ip("-n", nets.server, "addr", "add", one, "dev", "lo", *(["nodad"] if ":" in one else []))
    return addresses


@pytest.mark.parametrize("change", ROUTES)
def test_our_own_routing_that_refuses_is_no_verdict_while_nobody_passes(
    nets: Pair, port: int, beyond: tuple[str, str], change: str
) -> None:
    make, reasons = ROUTES[change]
    with probing() as p:
        watched = Watched(p, nets, port, beyond)
        make(nets)
        assert set(watched.reasons()) <= reasons
        watched.stay_up()


@pytest.mark.parametrize("change", ["no route", "unreachable", "prohibit", "blackhole"])
def test_our_own_routing_that_refuses_fails_a_server_while_another_passes(
    nets: Pair, port: int, beyond: tuple[str, str], change: str
) -> None:
    with probing() as p:
        others = [p.add(quick("icmp", nets), one) for one in (SERVER, SERVER6)]
        watched = Watched(p, nets, port, beyond)
        ROUTES[change][0](nets)
        watched.go_down()
        assert [p.of(one)[-1].to_state for one in others] == [State.UP, State.UP]


def test_a_neighbour_table_that_is_full_is_no_verdict(nets: Pair, port: int) -> None:
    for v6, address in ((False, SERVER), (True, SERVER6)):
        with probing() as p:
            watched = Watched(p, nets, port, (address,))
            with full_neighbour_table(nets.client, v6=v6) as forget:
                forget(address)
                family = "ipv6" if v6 else "ipv4"
                reasons = {one.removesuffix(": EINVAL") for one in watched.reasons()}
                assert reasons == {f"neighbour table full (net.{family}.neigh.default.gc_thresh3)"}
                watched.stay_up()
            watched.recover()


def test_a_dead_host_on_our_link_goes_down_and_comes_back(nets: Pair, port: int) -> None:
    addresses = ("192.0.2.77", "2001:db8::77")
    widths = ("/24", "/64")
    for one, width in zip(addresses, widths, strict=True):
        ip("-n", nets.server, "addr", "add", one + width, "dev", "veth0", *(["nodad"] if ":" in one else []))
    with probing() as p:
        watched = Watched(p, nets, port, addresses)
        for one, width in zip(addresses, widths, strict=True):
            ip("-n", nets.server, "addr", "del", one + width, "dev", "veth0")
            ip("-n", nets.client, "neigh", "del", one, "dev", "veth0")
        watched.go_down()
