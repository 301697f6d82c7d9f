"""Routes that move, or differ by protocol, keep no dead server up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from maglev.base.states import State
from tests.helpers.engine import MS, Probing, check, listener, port_of, probing
from tests.helpers.netns import SERVER, Pair, inside, ip, pair
from tests.helpers.trouble import firewall, no_carrier, run

FAR, FAR6 = "198.51.100.20", "2001:db8:7::20"
NEAR, NEAR6 = "198.18.0.2", "2001:db8:18::2"
NETS = (("-4", "198.51.100.0/24", NEAR), ("-6", "2001:db8:7::/64", NEAR6))
KINDS = ("icmp", "syn", "connect")
INTERFACES = 32
"""Interfaces that the engine can distinguish in a namespace."""


@pytest.fixture
def nets() -> Iterator[Pair]:
    """Two links between the two, and a server that both lead to; its route leads over the first."""
    with pair() as one:
        ip("-n", one.client, "link", "add", "veth1", "type", "veth", "peer", "name", "veth1", "netns", one.server)
        for name, last in ((one.client, 1), (one.server, 2)):
            ip("-n", name, "link", "set", "veth1", "up")
            ip("-n", name, "addr", "add", f"198.18.0.{last}/24", "dev", "veth1")
            ip("-n", name, "addr", "add", f"2001:db8:18::{last}/64", "dev", "veth1", "nodad")
            for device in ("all", "veth0", "veth1"):
                rule = Path(f"/proc/sys/net/ipv4/conf/{device}/rp_filter")
                inside(name, lambda rule=rule: rule.write_text("0"))  # type: ignore[misc]
        ip("-n", one.server, "-6", "route", "del", "blackhole", "2001:db8:7::/64")
        ip("-n", one.server, "addr", "add", FAR, "dev", "lo")
        ip("-n", one.server, "addr", "add", FAR6, "dev", "lo", "nodad")
        yield one


@pytest.fixture
def port(nets: Pair) -> Iterator[int]:
    with inside(nets.server, lambda: listener("::")) as sock:
        yield port_of(sock)


def watched(p: Probing, nets: Pair, port: int, addresses: tuple[str, ...], passes: int) -> list[int]:
    """A target of each kind at each address, all up, after so many passes."""
    every = dict.fromkeys(("interval", "fast_interval", "down_interval"), 50 * MS)
    checks = [check(kind, 0 if kind == "icmp" else port, netns=nets.client, **every) for kind in KINDS]
    targets = [p.add(one, address) for one in checks for address in addresses]
    for target in targets:
        p.becomes(target, State.UP)
    p.wait_probes_of_all(targets, passes)
    return targets


def all_die(p: Probing, nets: Pair, targets: list[int], match: str = "") -> None:
    with firewall(nets.server, f"{match} meta l4proto {{ icmp, ipv6-icmp, tcp }} drop", "input"):
        for target in targets:
            p.becomes(target, State.DOWN)


def move(nets: Pair) -> None:
    """The server's routes lead over the second link."""
    for family, net, hop in NETS:
        ip("-n", nets.client, family, "route", "replace", net, "via", hop)


def test_servers_that_die_after_their_route_has_moved_go_down(nets: Pair, port: int) -> None:
    """They have passed by the new route: silence there is theirs, also where nothing else passes."""
    with probing() as p:
        targets = watched(p, nets, port, (FAR, FAR6), 10)
        move(nets)
        p.wait_probes_of_all(targets, 6)
        all_die(p, nets, targets)


def test_servers_that_die_after_their_old_interface_is_gone_go_down(nets: Pair, port: int) -> None:
    with probing() as p:
        targets = watched(p, nets, port, (FAR,), 10)
        other = p.add(check("icmp", netns=nets.client), NEAR)
        p.becomes(other, State.UP)
        move(nets)
        ip("-n", nets.client, "link", "del", "veth0")
        p.wait_probes_of_all(targets, 6)
        all_die(p, nets, targets, f"ip daddr {FAR}")
        assert [one.to_state for one in p.of(other)] == [State.UP]


def test_servers_with_a_route_by_protocol_go_down(nets: Pair, port: int) -> None:
    """Their probes leave by another interface than a packet of no protocol."""
    for (family, _, hop), icmp in zip(NETS, ("icmp", "ipv6-icmp"), strict=True):
        ip("-n", nets.client, family, "route", "add", "default", "via", hop, "table", "100")
        for number, protocol in enumerate((icmp, "tcp")):
            ip("-n", nets.client, family, "rule", "add", "ipproto", protocol, "table", "100", "pref", f"10{number}")
    with probing() as p:
        targets = watched(p, nets, port, (FAR, FAR6), 70)
        all_die(p, nets, targets)


def test_a_route_that_moves_and_leads_nowhere_is_still_no_verdict(nets: Pair, port: int) -> None:
    """Nothing passes by the new route."""
    ip("-n", nets.client, "link", "add", "other0", "type", "veth", "peer", "name", "other1")
    for name in ("other0", "other1"):
        ip("-n", nets.client, "link", "set", name, "up")
    with probing() as p:
        targets = watched(p, nets, port, (FAR, FAR6), 10)
        for family, net, _ in NETS:
            ip("-n", nets.client, family, "route", "replace", net, "dev", "other0")
        for target in targets:
            assert p.blocked(target).startswith("not probed: no route")
        # The kernel gives up the neighbours there after three seconds, and reports that for each probe.
        words = ["ip", "-n", nets.client, "neigh", "show", "dev", "other0", "nud", "failed"]
        p.wait(lambda: {FAR, FAR6} <= {line.split()[0] for line in run(*words).splitlines()}, "dead neighbours")
        tries = p.engine.stats()["local_errors"]
        p.wait(lambda: p.engine.stats()["local_errors"] >= tries + 12 * len(targets), "more tries")
        assert all([one.to_state for one in p.of(target)] == [State.UP] for target in targets)


@pytest.mark.parametrize("kind", KINDS)
def test_interfaces_that_are_gone_take_no_place_from_new_ones(nets: Pair, port: int, kind: str) -> None:
    """A carrier that is lost is our own trouble by whichever interface, however many there have been."""
    every = dict.fromkeys(("interval", "fast_interval", "down_interval"), 50 * MS)
    one = check(kind, 0 if kind == "icmp" else port, netns=nets.client, **every)
    with probing() as p:
        p.becomes(p.add(one, NEAR), State.UP)  # keeps what the engine knows of the namespace
        former = []
        for number in range(INTERFACES):
            name = f"old{number}"
            ip("-n", nets.client, "link", "add", name, "type", "veth", "peer", "name", name, "netns", nets.server)
            for space, last in ((nets.client, 1), (nets.server, 2)):
                ip("-n", space, "addr", "add", f"198.19.{number}.{last}/24", "dev", name)
                ip("-n", space, "link", "set", name, "up")
            former.append(p.add(one, f"198.19.{number}.2"))
        for target in former:
            p.becomes(target, State.UP)
        for target in former:
            p.engine.remove_target(target)
        for number in range(INTERFACES):
            ip("-n", nets.client, "link", "del", f"old{number}")
        p.transitions.clear()  # a new target may get the number of a former one
        target = p.add(one, SERVER)
        p.becomes(target, State.UP)
        p.wait_probes(target, 6)
        with no_carrier(nets):
            assert "link down" in p.blocked(target)
            tries = p.engine.stats()["local_errors"]
            p.wait(lambda: p.engine.stats()["local_errors"] >= tries + 6, "more tries")
        p.unblocked(target)
        assert [each.to_state for each in p.of(target)] == [State.UP]
