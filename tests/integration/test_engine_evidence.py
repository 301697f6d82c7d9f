"""A probe that did not leave this host does not count; a server that is dead at the same time goes down."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from maglev.base.states import State
from maglev.config.model import HealthCheck, IcmpParams
from tests.helpers.apart import Target, apart, compiled
from tests.helpers.engine import MS, Probing, check, listener, port_of, probing
from tests.helpers.netns import CLIENT, CLIENT6, SERVER, SERVER6, Pair, inside, ip, pair
from tests.helpers.trouble import (
    firewall,
    full_neighbour_table,
    neighbour_table_alone,
    no_carrier,
    permanent,
    refusing_queue,
    silent_queue,
    slow_queue,
)

QUICK: dict[str, Any] = {
    **dict.fromkeys(("interval", "fast_interval", "down_interval"), 100 * MS), "timeout": 60 * MS, "fall": 2,
}  # fmt: skip
ROUTE_AGAIN = 64
"""Passes of a target after which the engine asks for its route again."""
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

    def __init__(
        self, p: Probing, nets: Pair, port: int, addresses: tuple[str, ...] = (SERVER, SERVER6), **changes: Any
    ) -> None:
        self.p = p
        self.targets = [p.add(quick(kind, nets, port, **changes), one) for kind in ("icmp", "syn") for one in addresses]
        for target in self.targets:
            p.becomes(target, State.UP)
        p.wait_probes_of_all(self.targets)
        self.before = [len(p.of(target)) for target in self.targets]

    def reasons(self, tries: int = 4) -> list[str]:
        """Wait until none can be probed, and until each was tried so many times more; returns why."""
        for target in self.targets:
            self.p.blocked(target)
        start = self.p.engine.stats()["local_errors"]
        self.p.wait(lambda: self.p.engine.stats()["local_errors"] >= start + tries * len(self.targets), "more tries")
        return [self.p.engine.target_info(one).blocked_reason.removeprefix("not probed: ") for one in self.targets]

    def blocked_by(self, trouble: Callable[[], None]) -> None:
        """Make trouble again and again, until none can be probed."""

        def blocked() -> bool:
            if all(self.p.engine.target_info(one).blocked_since_ns for one in self.targets):
                return True
            trouble()
            return False

        self.p.wait(blocked, "all to be blocked")

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


def test_behind_a_bridge_dead_servers_go_down(nets: Pair, port: int) -> None:
    """Each interface on a packet's way gives stamps: the probe left by the one that its route names."""
    name = nets.client
    ip("-n", name, "link", "add", "br0", "type", "bridge")
    ip("-n", name, "addr", "flush", "dev", "veth0")
    ip("-n", name, "link", "set", "veth0", "master", "br0")
    for address in (f"{CLIENT}/24", f"{CLIENT6}/64"):
        ip("-n", name, "addr", "add", address, "dev", "br0", *(["nodad"] if ":" in address else []))
    ip("-n", name, "link", "set", "br0", "up")
    with probing() as p:
        watched = Watched(p, nets, port, interval=20 * MS)
        # The route is asked for again, and names the bridge.
        p.wait(lambda: all(p.probes(one) > 2 * ROUTE_AGAIN for one in watched.targets), "many passes")
        with firewall(nets.server, PROBES, "input"):
            watched.go_down()


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


@pytest.mark.machine
def test_a_neighbour_table_that_is_full_is_no_verdict(nets: Pair, port: int) -> None:
    for v6, address in ((False, SERVER), (True, SERVER6)):
        with probing() as p:
            watched = Watched(p, nets, port, (address,))
            with full_neighbour_table(nets.client, v6=v6) as forget:
                watched.blocked_by(lambda address=address, forget=forget: forget(address))  # type: ignore[misc]
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


def solicit(address: str) -> None:
    """Have the kernel look for a neighbour: a datagram to the discard port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (address, 9))


def test_neighbours_asked_for_without_carrier_before_the_start_make_no_dead_hosts(nets: Pair, port: int) -> None:
    with no_carrier(nets):
        for address in (SERVER, SERVER6):
            inside(nets.client, lambda address=address: solicit(address))  # type: ignore[misc]
    # The kernel repeats its question after a second; until then nothing that the engine sends leaves.
    with probing() as p:
        targets = [p.add(quick(kind, nets, port), one) for kind in ("icmp", "syn") for one in (SERVER, SERVER6)]
        for target in targets:
            p.becomes(target, State.UP)
            assert [one.to_state for one in p.of(target)] == [State.UP]


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many descriptors, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        for one in fillers:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def refused_by_firewall(p: Probing, target: int) -> None:
    """Wait until our own firewall is why a target cannot be probed."""
    p.wait(lambda: "firewall" in p.engine.target_info(target).blocked_reason, "the firewall to be noticed")


@pytest.mark.parametrize("address", [SERVER, SERVER6])
def test_a_lack_of_descriptors_at_the_start_costs_no_proof(nets: Pair, port: int, address: str) -> None:
    with firewall(nets.client, PROBES):
        for left in range(5):
            with probing() as p:
                with descriptors_left(left):
                    target = p.add(quick("connect", nets, port), address)
                    p.blocked(target)
                refused_by_firewall(p, target)
                assert p.of(target) == []


@pytest.fixture
def two_links(nets: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    """A second link between the two; a server at the end of the first, and one at the end of the second."""
    ip("-n", nets.client, "link", "add", "veth1", "type", "veth", "peer", "name", "veth1", "netns", nets.server)
    for name, last in ((nets.client, 1), (nets.server, 2)):
        ip("-n", name, "link", "set", "veth1", "up")
        ip("-n", name, "addr", "add", f"198.18.0.{last}/24", "dev", "veth1")
        ip("-n", name, "addr", "add", f"2001:db8:18::{last}/64", "dev", "veth1", "nodad")
    return (SERVER, SERVER6), ("198.18.0.2", "2001:db8:18::2")


def test_a_packet_that_fits_no_link_stops_no_other_probe(
    nets: Pair, two_links: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    """The far end of the first link has a smaller MTU: a buffer is what the kernel says is missing, for ever."""
    large = IcmpParams(size=1452)
    with probing() as p:
        small = [p.add(quick("icmp", nets, params=large), one) for one in two_links[0]]
        good = [p.add(quick("icmp", nets, params=large), one) for one in two_links[1]]
        for target in (*small, *good):
            p.becomes(target, State.UP)
        ip("-n", nets.server, "link", "set", "veth0", "mtu", "1300")
        for target in small:
            assert p.blocked(target) == "not probed: no buffer: ENOBUFS"
        p.wait_probes_of_all(good, 10)
        # One of the others dies.
        with firewall(nets.server, f'iifname "veth1" {PROBES}', "input"):
            for target in good:
                p.becomes(target, State.DOWN)
        assert [p.of(target)[-1].to_state for target in small] == [State.UP, State.UP]


@pytest.mark.machine
@pytest.mark.parametrize("kind", ["icmp", "syn"])
def test_dead_servers_on_our_link_keep_no_probe_of_live_ones_back(
    nets: Pair, port: int, kind: str, tmp_path: Path
) -> None:
    """The packets to each wait for three seconds in the send buffer, which the packets to 400 fill."""
    shim = compiled("smallbuffers", tmp_path, "-shared", "-fPIC")
    preload = " ".join([os.environ.get("LD_PRELOAD", ""), str(shim)]).strip()
    ip("-n", nets.client, "addr", "add", "198.18.0.1/16", "dev", "veth0")
    usual = {**QUICK, "interval": 500 * MS, "fast_interval": 500 * MS, "down_interval": 500 * MS, "timeout": 400 * MS}
    with neighbour_table_alone(), listener("0.0.0.0") as sock:

        def several(addresses: list[str], at: int, **changes: Any) -> list[Target]:
            first = 500 * MS // len(addresses)
            return [
                Target(kind, one, at, first_delay=n * first, changes={**usual, **changes})
                for n, one in enumerate(addresses)
            ]

        here = several(["127.0.7.1"] * 8, 0 if kind == "icmp" else port_of(sock))
        live = several([SERVER] * 8, 0 if kind == "icmp" else port, netns=nets.client)
        dead = several(
            [f"198.18.{n >> 8}.{n & 255}" for n in range(2, 402)], 0 if kind == "icmp" else 80, netns=nets.client
        )
        with apart(here + live + dead, environment={**os.environ, "LD_PRELOAD": preload}) as one:
            one.until(lambda report: len({at for at, _, _ in report.moves}) == len(dead), patience=60)
            before = one.ask()
            after = one.until(lambda report: report.probes[0] >= before.probes[0] + 10)
            # Live ones are probed as often as those of another namespace, which has no dead ones.
            probes = [new - old for new, old in zip(after.probes, before.probes, strict=True)]
            assert min(probes[8:16]) >= min(probes[:8]) - 2
            assert not any(report_failures for report_failures in after.failures[:16])
            # And the dead ones are still probed, if more seldom.
            assert sum(probes[16:]) > len(dead) // 4


def test_a_queue_that_drops_neighbour_discovery_too_makes_no_dead_host(nets: Pair, port: int) -> None:
    with probing() as p:
        watched = Watched(p, nets, port)
        with refusing_queue(nets.client):
            for address in (SERVER, SERVER6):
                ip("-n", nets.client, "neigh", "del", address, "dev", "veth0")
            assert set(watched.reasons(6)) <= {"own queue dropped it"}
            watched.stay_up()
        watched.recover()
