"""A connection that did not leave this host is no verdict; one that a server refused or left unanswered is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from maglev.base.states import CheckType, Code, State
from maglev.config.model import HealthCheck, HttpParams
from tests.helpers.engine import MS, Probing, check, listener, port_of, probing
from tests.helpers.netns import CLIENT, SERVER, SERVER6, Pair, inside, ip, pair
from tests.helpers.tls import Certificate, https, tls
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
from tests.helpers.web import web

QUICK: dict[str, Any] = {
    **dict.fromkeys(("interval", "fast_interval", "down_interval"), 150 * MS), "timeout": 100 * MS, "fall": 2,
}  # fmt: skip
# A server in Python needs its time for a handshake.
SHAKING = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 400 * MS)
FAMILIES = pytest.mark.parametrize("address", [SERVER, SERVER6])
Trouble = Callable[[Pair, str, int], AbstractContextManager[None]]


@pytest.fixture
def nets() -> Iterator[Pair]:
    with pair() as one:
        permanent(one)
        for name in (one.client, one.server):
            # A link that goes down does not take its IPv6 addresses with it.
            inside(name, lambda: Path("/proc/sys/net/ipv6/conf/veth0/keep_addr_on_down").write_text("1"))
        yield one


@pytest.fixture
def port(nets: Pair) -> Iterator[int]:
    with inside(nets.server, lambda: listener("::")) as sock, web(sock):
        yield port_of(sock)


@pytest.fixture
def secret(nets: Pair, tmp_path: Path) -> Iterator[int]:
    context = Certificate(["127.0.0.1"]).context(tmp_path)
    with inside(nets.server, lambda: listener("::")) as sock, web(sock, context):
        yield port_of(sock)


def quick(kind: str, nets: Pair, port: int, **changes: Any) -> HealthCheck:
    changes = {"netns": nets.client, **QUICK, **changes}
    if kind == "https":
        return check("http", port, type=CheckType.HTTPS, params=https(insecure_skip_verify=True), **changes)
    if kind == "tls":
        return check("connect", port, params=tls(insecure_skip_verify=True), **changes)
    return check(kind, port, **changes)


def rounds(p: Probing, target: int, count: int = 3) -> None:
    """Wait until probes were tried so many times: results, or tries that gave none."""

    def tried() -> int:
        return p.probes(target) + p.engine.stats()["local_errors"] + p.engine.stats()["repeated"]

    start = tried()
    p.wait(lambda: tried() >= start + count, "more tries")


@contextlib.contextmanager
def without_route(nets: Pair, address: str, port: int) -> Iterator[None]:
    net = "2001:db8::/64" if ":" in address else "192.0.2.0/24"
    ip("-n", nets.client, "route", "del", net, "dev", "veth0")
    try:
        yield
    finally:
        own = ("src", CLIENT) if ":" not in address else ()
        ip("-n", nets.client, "route", "add", net, "dev", "veth0", *own)


@contextlib.contextmanager
def link_down(nets: Pair, address: str, port: int) -> Iterator[None]:
    ip("-n", nets.client, "link", "set", "veth0", "down")
    try:
        yield
    finally:
        ip("-n", nets.client, "link", "set", "veth0", "up")
        permanent(nets)


@contextlib.contextmanager
def unplugged(nets: Pair) -> Iterator[None]:
    with no_carrier(nets):
        yield
    permanent(nets)


def route_to(kind: str) -> Trouble:
    @contextlib.contextmanager
    def made(nets: Pair, address: str, port: int) -> Iterator[None]:
        one = f"{address}/128" if ":" in address else f"{address}/32"
        ip("-n", nets.client, "route", "add", kind, one)
        try:
            yield
        finally:
            ip("-n", nets.client, "route", "del", kind, one)

    return made


def rule(text: str, hook: str = "output") -> Trouble:
    return lambda nets, address, port: firewall(nets.client, f"tcp dport {port} {text}", hook)


TROUBLES: dict[str, tuple[Trouble, str]] = {
    "a queue that refuses": (lambda nets, *_: refusing_queue(nets.client), "own queue dropped it|no buffer"),
    "a queue that is slow": (lambda nets, *_: slow_queue(nets.client), "own queue dropped it"),
    "a queue that drops another": (lambda nets, *_: silent_queue(nets.client), "own queue dropped it"),
    "no carrier": (lambda nets, *_: unplugged(nets), "link down"),
    "link down": (link_down, "link down"),
    "no route": (without_route, "no route"),
    "an unreachable route": (route_to("unreachable"), "no route"),
    "a prohibited route": (route_to("prohibit"), "no route"),
    "a blackhole": (route_to("blackhole"), "no route"),
    "our firewall": (rule("drop"), "firewall"),
    "our firewall behind routing": (rule("drop", "postrouting"), "firewall"),
    "our firewall rejects": (rule("reject"), "firewall"),
    "our firewall says unreachable": (rule("reject with icmpx type host-unreachable"), "firewall"),
    "our firewall resets": (rule("reject with tcp reset"), "firewall"),
}
OF_ADDRESSES = {"no route", "an unreachable route", "a prohibited route", "a blackhole"}


@contextlib.contextmanager
def in_trouble(nets: Pair, trouble: str, port: int) -> Iterator[set[str]]:
    """One of ``TROUBLES``, for both families; yields the words that a target may be said not to be probed for."""
    make, words = TROUBLES[trouble]
    with contextlib.ExitStack() as stack:
        for address in (SERVER, SERVER6) if trouble in OF_ADDRESSES else (SERVER,):
            stack.enter_context(make(nets, address, port))
        yield set(words.split("|"))


def why(p: Probing, target: int) -> str:
    return p.blocked(target).removeprefix("not probed: ").split(":")[0]


def steady(p: Probing, targets: list[int], state: State = State.UP) -> bool:
    return all([one.to_state for one in p.of(target)] == [state] for target in targets)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_connection_that_does_not_leave_is_no_verdict(nets: Pair, port: int, trouble: str) -> None:
    with probing() as p:
        targets = [
            p.add(quick(kind, nets, port), address) for kind in ("connect", "http") for address in (SERVER, SERVER6)
        ]
        for target in targets:
            p.becomes(target, State.UP)
        p.wait_probes(targets[-1], 2)
        with in_trouble(nets, trouble, port) as words:
            assert {why(p, target) for target in targets} <= words
            rounds(p, targets[0], 2 * len(targets))
            assert steady(p, targets)
        for target in targets:
            p.unblocked(target)
        assert steady(p, targets)
        # And a server that dies is found out.
        for address in (SERVER, SERVER6):
            ip("-n", nets.server, "addr", "del", address + ("/64" if ":" in address else "/24"), "dev", "veth0")
        for target in targets:
            down = p.becomes(target, State.DOWN)
            assert (down.code, down.detail) == (Code.L4TOUT, "no answer within 100ms")


@pytest.mark.parametrize("trouble", ["our firewall", "our firewall rejects", "a queue that refuses", "no route"])
def test_nor_is_one_over_tls(nets: Pair, secret: int, trouble: str) -> None:
    with probing() as p:
        targets = [
            p.add(quick(kind, nets, secret, **SHAKING), address)
            for kind in ("tls", "https")
            for address in (SERVER, SERVER6)
        ]
        for target in targets:
            p.becomes(target, State.UP)
        with in_trouble(nets, trouble, secret) as words:
            assert {why(p, target) for target in targets} <= words
            rounds(p, targets[0], 2 * len(targets))
        for target in targets:
            p.unblocked(target)
        assert steady(p, targets)


@pytest.mark.parametrize("trouble", ["our firewall", "our firewall resets", "a queue that refuses", "link down"])
def test_a_target_without_a_verdict_gets_none_from_our_trouble(nets: Pair, port: int, trouble: str) -> None:
    with probing() as p:
        with in_trouble(nets, trouble, port) as words:
            targets = [
                p.add(quick(kind, nets, port), address) for kind in ("connect", "http") for address in (SERVER, SERVER6)
            ]
            # Nothing has passed, so the interface is not known, nor whether its driver gives stamps.
            assert {why(p, target) for target in targets} <= words | {"no route"}
            rounds(p, targets[0], 2 * len(targets))
            assert p.transitions == []
        for target in targets:
            assert p.becomes(target, State.UP).from_state == State.UNKNOWN


@FAMILIES
def test_a_connection_is_repeated_once_where_its_neighbour_entry_is_younger(
    nets: Pair, port: int, address: str
) -> None:
    """Its SYN may have met no entry where its twin met one: each failure is tried twice, and then counts."""
    fall = 3

    def forget() -> None:
        with contextlib.suppress(RuntimeError):
            ip("-n", nets.client, "neigh", "del", address, "dev", "veth0")

    with probing() as p:
        target = p.add(quick("connect", nets, port, fall=fall), address)
        p.wait_probes(target, 20)  # in the time after the first look at an interface, silence counts nowhere
        with firewall(nets.server, f"tcp dport {port} drop", "input"):
            before = p.engine.stats()["repeated"]

            def down() -> bool:
                forget()
                return p.of(target)[-1].to_state == State.DOWN

            p.wait(down, "the server to be down")
            assert 0 < p.engine.stats()["repeated"] - before <= fall


@FAMILIES
@pytest.mark.parametrize("kind", ["connect", "http"])
def test_a_server_that_dies_while_our_firewall_drops_another_goes_down(
    nets: Pair, port: int, kind: str, address: str
) -> None:
    with inside(nets.server, lambda: listener("::")) as sock, probing() as p, web(sock):
        other = port_of(sock)
        target, dead = (p.add(quick(kind, nets, number), address) for number in (port, other))
        for one in (target, dead):
            p.becomes(one, State.UP)
        with firewall(nets.client, f"tcp dport {port} drop"):
            p.blocked(target)
            with firewall(nets.server, f"tcp dport {other} drop", "input"):
                down = p.becomes(dead, State.DOWN)
                assert (down.code, down.detail) == (Code.L4TOUT, "no answer within 100ms")
                assert [one.to_state for one in p.of(target)] == [State.UP]


@pytest.mark.machine
def test_a_refusal_and_a_dead_host_on_our_link_are_verdicts(nets: Pair) -> None:
    patience = {**dict.fromkeys(("interval", "fast_interval", "timeout"), 5000 * MS)}
    expected: dict[int, set[tuple[Code, str]]] = {}
    silence = (Code.L4TOUT, "no answer within 5s")
    with neighbour_table_alone(), probing() as p:
        for kind in ("connect", "http"):
            for address, nobody in ((SERVER, "192.0.2.77"), (SERVER6, "2001:db8::77")):
                here, absent = quick(kind, nets, 9), quick(kind, nets, 9, **patience)
                expected[p.add(here, address)] = {(Code.L4CON, "connection refused")}
                expected[p.add(here, nobody)] = {(Code.L4TOUT, "no answer within 100ms")}
                # Three seconds later the kernel itself gives the neighbour up, and says so, if its limit of ICMP
                # messages (a thousand a second, on the whole machine) allows that.
                expected[p.add(absent, nobody[:-1] + "8")] = {(Code.L4CON, "no route to host"), silence}
        for target, verdicts in expected.items():
            down = p.becomes(target, State.DOWN)
            assert (down.code, down.detail) in verdicts


@FAMILIES
@pytest.mark.parametrize("kind", ["connect", "http"])
def test_a_refusal_by_routing_is_a_failure_once_another_target_passes(
    nets: Pair, port: int, kind: str, address: str
) -> None:
    second = "2001:db8::3" if ":" in address else "192.0.2.3"
    one = f"{address}/128" if ":" in address else f"{address}/32"
    ip("-n", nets.server, "addr", "add", second + ("/64" if ":" in address else "/24"), "dev", "veth0", *(
        ("nodad",) if ":" in address else ()
    ))  # fmt: skip
    with probing() as p:
        target, other = (p.add(quick(kind, nets, port), name) for name in (address, second))
        for each in (target, other):
            p.becomes(each, State.UP)
        ip("-n", nets.client, "route", "add", "unreachable", one)
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L4CON, "no route to host")
        assert [each.to_state for each in p.of(other)] == [State.UP]


@FAMILIES
def test_a_request_that_our_firewall_drops_is_no_verdict(nets: Pair, address: str) -> None:
    """Whatever is under way meets the rule: a SYN, or a request."""
    stop = threading.Event()
    with inside(nets.server, lambda: listener("::")) as sock, probing() as p:

        def serve() -> None:
            while not stop.is_set():
                client, _ = sock.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(1)
                    if client.recv(65536) and not stop.is_set():
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            target = p.add(quick("http", nets, port_of(sock)), address)
            p.becomes(target, State.UP)
            with firewall(nets.client, f"tcp dport {port_of(sock)} tcp flags & (syn|psh) != 0 drop"):
                assert p.blocked(target) == "not probed: firewall: EPERM"
                rounds(p, target)
            p.unblocked(target)
            assert [one.to_state for one in p.of(target)] == [State.UP]
            p.engine.remove_target(target)
        finally:
            stop.set()
            inside(nets.server, lambda: socket.create_connection((address, port_of(sock))).close())
            thread.join()


@FAMILIES
def test_a_server_that_takes_a_request_and_is_silent_is_a_time_out(nets: Pair, address: str) -> None:
    with inside(nets.server, lambda: listener("::")) as sock, probing() as p:
        target = p.add(quick("http", nets, port_of(sock), params=HttpParams()), address)
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L7TOUT, "no answer within 100ms")


def test_without_a_free_port_no_target_is_judged(nets: Pair, port: int) -> None:
    with probing() as p:
        target = p.add(quick("connect", nets, port), SERVER)
        p.becomes(target, State.UP)
        low = inside(nets.client, lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").read_text())
        inside(nets.client, lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40000"))
        holder = inside(nets.client, lambda: socket.create_connection((SERVER, port)))
        with holder:
            assert "ip_local_port_range" in p.blocked(target)
            rounds(p, target)
        inside(nets.client, lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(low))
        p.unblocked(target)
        assert [one.to_state for one in p.of(target)] == [State.UP]


@pytest.mark.machine
@pytest.mark.parametrize("address", ["192.0.2.3", "2001:db8::3"])
def test_a_full_neighbour_table_is_no_verdict(nets: Pair, port: int, address: str) -> None:
    v6 = ":" in address
    family = "ipv6" if v6 else "ipv4"
    ip("-n", nets.server, "addr", "add", f"{address}/{64 if v6 else 24}", "dev", "veth0", *(["nodad"] if v6 else []))
    with probing() as p:
        targets = [p.add(quick(kind, nets, port), address) for kind in ("connect", "http")]
        for target in targets:
            p.becomes(target, State.UP)
        with full_neighbour_table(nets.client, v6=v6) as forget:
            for target in targets:
                for _ in range(200):
                    if p.engine.target_info(target).blocked_since_ns:
                        break
                    forget(address)  # again, where the kernel has found room by forgetting another one
                    p.collect(0.3)
                reason = p.blocked(target).removesuffix(": EINVAL")
                assert reason == f"not probed: neighbour table full (net.{family}.neigh.default.gc_thresh3)"
            rounds(p, targets[0])
        for target in targets:
            p.unblocked(target)
        assert steady(p, targets)
