"""Packets that nobody should believe, and the errors that everybody should, in network namespaces of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from maglev.config.model import HealthCheck
from maglev.states import Code, State
from tests.helpers.engine import MS, Probing, check, listener, packed, port_of, probing
from tests.helpers.netns import (
    ETH_P_IP,
    SERVER,
    SERVER6,
    Pair,
    echo_reply,
    flipped,
    icmp_error,
    inside,
    ip,
    ip4,
    pair,
    stranger,
    tcp_reply,
)

SILENT = "198.51.100.7"
OTHER = socket.inet_aton("198.51.100.8")
SYN, RST, PSH, ACK = 2, 4, 8, 16


@pytest.fixture(scope="module")
def nets() -> Iterator[Pair]:
    with pair() as one:
        yield one


@pytest.fixture
def probes() -> Iterator[Probing]:
    with probing() as one:
        yield one


def there(kind: str, nets: Pair, port: int = 80, **changes: Any) -> HealthCheck:
    """A check from the client's namespace, with time enough for a stranger to answer."""
    slow = {"interval": 300 * MS, "fast_interval": 300 * MS, "down_interval": 300 * MS, "timeout": 250 * MS}
    return check(kind, 0 if kind == "icmp" else port, netns=nets.client, **{**slow, **changes})


@pytest.mark.parametrize("address", [SERVER, SERVER6])
@pytest.mark.parametrize("kind", ["icmp", "syn", "connect"])
def test_probes_leave_from_the_namespace_of_their_check(nets: Pair, probes: Probing, kind: str, address: str) -> None:
    with inside(nets.server, lambda: listener(address)) as sock:
        port = 0 if kind == "icmp" else port_of(sock)
        target = probes.add(check(kind, port, netns=nets.client), address)
        probes.becomes(target, State.UP)
        # The same address from the daemon's own namespace leads nowhere: loopback is all it has in common.
        lost = probes.add(check("connect", 9, netns=nets.client), "127.0.0.1")
        assert probes.becomes(lost, State.DOWN).code == Code.L4CON


@pytest.mark.parametrize("kind", ["icmp", "syn", "connect"])
def test_no_route_is_an_answer(nets: Pair, probes: Probing, kind: str) -> None:
    down = probes.becomes(probes.add(there(kind, nets), "203.0.113.1"), State.DOWN)
    assert down.code == (Code.L3ERR if kind == "icmp" else Code.L4CON)
    assert down.detail == "network is unreachable"


def test_a_true_reply_is_believed_with_ip_options_too(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [echo_reply(p, options=b"\x01" * 8)]):
        assert probes.becomes(probes.add(there("icmp", nets), SILENT), State.UP).code == Code.L3OK


def test_a_reply_in_fragments_is_believed(nets: Pair, probes: Probing) -> None:
    def fragments(request: bytes) -> list[bytes]:
        whole = echo_reply(request)
        first, second = whole[20:52], whole[52:]
        return [
            ip4(whole[12:16], whole[16:20], 1, first, fragment=0x2000),
            ip4(whole[12:16], whole[16:20], 1, second, fragment=4),
        ]

    with stranger(nets.server, fragments):
        assert probes.becomes(probes.add(there("icmp", nets), SILENT), State.UP).code == Code.L3OK


@pytest.mark.parametrize(
    ("kind", "forge", "counter"),
    [
        ("icmp", lambda p: echo_reply(flipped(p, 24)), "forged"),
        ("icmp", lambda p: echo_reply(flipped(p, 27)), "forged"),
        ("icmp", lambda p: echo_reply(p, payload=flipped(p[28:], 15)), "forged"),
        ("icmp", lambda p: echo_reply(p, source=OTHER), "forged"),
        ("icmp", lambda p: echo_reply(p, payload=flipped(p[28:], 0)), None),  # the filter drops it
        ("icmp", lambda p: echo_reply(p)[:40], "malformed"),
        ("icmp", lambda p: icmp_error(flipped(p, 25), 3, 1), "foreign"),
        ("icmp", lambda p: icmp_error(flipped(p, 19), 3, 1), "foreign"),
        ("icmp", lambda p: icmp_error(p, 3, 1, quoted=4), "malformed"),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, ack=2), "forged"),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, source=OTHER), "forged"),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, ack=0), "forged"),
        ("syn", lambda p: tcp_reply(p, RST | ACK, ack=2), "forged"),
        ("syn", lambda p: tcp_reply(p, RST), "foreign"),
        ("syn", lambda p: tcp_reply(p, ACK), None),
        ("syn", lambda p: tcp_reply(p, SYN | ACK)[:32], None),
        ("syn", lambda p: icmp_error(flipped(p, 25), 3, 1), "forged"),
        ("syn", lambda p: icmp_error(flipped(p, 19), 3, 1), "forged"),
    ],
)
def test_a_forgery_is_counted_and_changes_nothing(
    nets: Pair, probes: Probing, kind: str, forge: Callable[[bytes], bytes], counter: str | None
) -> None:
    with stranger(nets.server, lambda p: [forge(p)]) as other:
        target = probes.add(there(kind, nets, fall=1), SILENT)
        down = probes.becomes(target, State.DOWN)
        assert down.code == (Code.L3TOUT if kind == "icmp" else Code.L4TOUT)
        assert other.seen
        stats = probes.engine.stats()
        for name in ("forged", "foreign", "malformed", "duplicate", "late_replies"):
            assert (stats[name] > 0) == (name == counter), name


@pytest.mark.parametrize("quoted", [8, 40])
@pytest.mark.parametrize(("kind", "code"), [("icmp", Code.L3ERR), ("syn", Code.L4CON)])
def test_an_icmp_error_ends_the_probe_at_once(nets: Pair, probes: Probing, kind: str, code: Code, quoted: int) -> None:
    minute = {"interval": 60_000 * MS, "fast_interval": 60_000 * MS, "timeout": 60_000 * MS}
    with stranger(nets.server, lambda p: [icmp_error(p, 3, 1, quoted)]):
        down = probes.becomes(probes.add(there(kind, nets, **minute), SILENT), State.DOWN)
        assert (down.code, down.detail) == (code, "host unreachable (ICMP 3/1)")
        assert probes.engine.stats()["icmp_errors"] == 1


def test_a_reset_instead_of_an_answer_is_a_refusal(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, RST | ACK)]):
        down = probes.becomes(probes.add(there("syn", nets), SILENT), State.DOWN)
        assert (down.code, down.detail) == (Code.L4CON, "connection refused")


def test_the_first_answer_counts_and_further_ones_are_duplicates(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK), tcp_reply(p, RST | ACK)] if p[33] & SYN else []):
        target = probes.add(there("syn", nets), SILENT)
        probes.becomes(target, State.UP)
        probes.wait(lambda: probes.engine.stats()["duplicate"] > 0, "the duplicate to be counted")
        assert probes.engine.target_info(target).codes[Code.L4CON] == 0
    with stranger(nets.server, lambda p: [echo_reply(p)] * 3):
        target = probes.add(there("icmp", nets), SILENT)
        probes.becomes(target, State.UP)
        before = probes.engine.stats()["duplicate"]
        probes.wait(lambda: probes.engine.stats()["duplicate"] >= before + 2, "two duplicates to be counted")


def test_a_reply_after_its_deadline_is_late(nets: Pair, probes: Probing) -> None:
    requests: list[bytes] = []

    def answer_the_one_before(request: bytes) -> list[bytes]:
        requests.append(request)
        return [echo_reply(requests[-2])] if len(requests) > 1 else []

    with stranger(nets.server, answer_the_one_before):
        target = probes.add(there("icmp", nets), SILENT)
        assert probes.becomes(target, State.DOWN).code == Code.L3TOUT
        probes.wait(lambda: probes.engine.stats()["late_replies"] >= 2, "late replies to be counted")
        assert probes.engine.target_info(target).codes[Code.L3OK] == 0


def test_a_reply_to_an_older_generation_is_dropped(nets: Pair) -> None:
    with probing(capacity=2) as p, stranger(nets.server, lambda _: []) as other:
        a_check = p.engine.add_check(there("icmp", nets, timeout=300 * MS))
        # Another target keeps the sockets open, so that the old reply gets past the filter.
        p.becomes(p.engine.add_target(a_check, packed(SERVER)), State.UP)
        old = p.engine.add_target(a_check, packed(SILENT))
        p.wait(lambda: other.seen, "the first probe")
        p.engine.remove_target(old)
        again = p.engine.add_target(a_check, packed(SILENT))
        assert again == old
        p.wait(lambda: len(other.seen) > 1, "the second probe")
        other.send(echo_reply(other.seen[0]))
        p.wait(lambda: p.engine.stats()["late_replies"] == 1, "the old reply to be counted")
        assert sum(p.engine.target_info(again).codes) == 0
        other.send(echo_reply(other.seen[-1]))
        p.becomes(again, State.UP)


def test_a_reply_to_a_paused_target_is_dropped(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda _: []) as other:
        target = probes.add(there("icmp", nets, timeout=300 * MS), SILENT)
        probes.wait(lambda: other.seen, "the probe")
        probes.engine.pause_target(target)
        probes.becomes(probes.add(there("icmp", nets, interval=20 * MS, timeout=10 * MS), SERVER), State.UP)
        other.send(echo_reply(other.seen[0]))
        probes.wait(lambda: probes.engine.stats()["duplicate"] == 1, "the reply to be counted")
        assert probes.of(target) == []
        assert sum(probes.engine.target_info(target).codes) == 0


def test_source_ports_take_turns(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK)] if p[33] & SYN else []) as other:
        quick = {"interval": 10 * MS, "fast_interval": 10 * MS}
        target = probes.add(there("syn", nets, **quick), SILENT)
        probes.wait_probes(target, 40)
        ports = [int.from_bytes(p[20:22], "big") for p in other.seen if p[33] & SYN]
        assert len(set(ports)) == len(ports)


def test_the_half_open_connection_is_reset(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK)] if p[33] & SYN else []) as other:
        probes.becomes(probes.add(there("syn", nets), SILENT), State.UP)
        probes.wait(lambda: any(p[33] & RST for p in other.seen), "the kernel's reset")


def test_a_namespace_that_goes_away_is_no_verdict_and_its_return_is_noticed(probes: Probing) -> None:
    kinds = ("icmp", "syn", "connect")
    with pair() as nets, inside(nets.server, lambda: listener(SERVER)) as sock:
        quick = {"interval": 60 * MS, "fast_interval": 60 * MS, "timeout": 50 * MS, "fall": 1, "netns": nets.client}
        targets = [probes.add(check(kind, 0 if kind == "icmp" else port_of(sock), **quick), SERVER) for kind in kinds]
        for target in targets:
            probes.becomes(target, State.UP)
        port = port_of(sock)
        nets.close()
        for target in targets:
            assert "ENOENT: cannot enter the network namespace" in probes.blocked(target)
        nets.open()
        with inside(nets.server, lambda: listener(SERVER, port)):
            for target in targets:
                probes.unblocked(target)
        assert all(len(probes.of(target)) == 1 for target in targets)


@pytest.mark.parametrize(("kind", "wanted"), [("connect", [SYN, RST | ACK]), ("http", [SYN, PSH | ACK, RST | ACK])])
def test_a_check_over_tcp_sends_no_packet_that_says_nothing(
    nets: Pair, probes: Probing, kind: str, wanted: list[int]
) -> None:
    def one_check() -> list[int]:
        target = probes.add(there(kind, nets, **once, port=port_of(sock)), SERVER)
        if kind == "http":
            with sock.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                probes.becomes(target, State.UP)
        probes.becomes(target, State.UP)
        seen: list[int] = []
        while not seen or not seen[-1] & RST:
            packet = ears.recv(2048)
            if packet[9] == socket.IPPROTO_TCP:
                seen.append(packet[33])
        return seen

    once = {"interval": 60_000 * MS, "fast_interval": 60_000 * MS, "timeout": 60_000 * MS}
    with (
        inside(nets.server, lambda: listener(SERVER)) as sock,
        inside(nets.server, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))) as ears,
    ):
        sock.settimeout(20)
        ears.settimeout(20)
        # The handshake's third packet is the reset, or the request; the response is acknowledged by the reset. Only a
        # machine that stalls for longer than the kernel holds an acknowledgement back adds one: hence several checks.
        assert wanted in [one_check() for _ in range(5)]


@pytest.mark.parametrize(("server", "source"), [(SERVER, "192.0.2.50"), (SERVER6, "2001:db8::50")])
def test_a_source_address_that_goes_away_is_no_verdict(nets: Pair, probes: Probing, server: str, source: str) -> None:
    six = ":" in source
    own = [f"{source}/{64 if six else 24}", "dev", "veth0"]
    ip("-n", nets.client, "addr", "add", *own, *(["nodad"] if six else []))
    with inside(nets.server, lambda: listener(server)) as sock:
        quick = {
            "interval": 60 * MS,
            "fast_interval": 60 * MS,
            "timeout": 50 * MS,
            "fall": 1,
            "netns": nets.client,
            "probe_ipv6_src" if six else "probe_ipv4_src": ip_address(source),
        }
        targets = [
            probes.add(check(kind, 0 if kind == "icmp" else port_of(sock), **quick), server)
            for kind in ("icmp", "syn", "connect")
        ]
        for target in targets:
            probes.becomes(target, State.UP)
        ip("-n", nets.client, "addr", "del", *own)
        for target in targets:
            assert "cannot use the source address" in probes.blocked(target)
        ip("-n", nets.client, "addr", "add", *own, *(["nodad"] if six else []))
        for target in targets:
            probes.unblocked(target)
        assert all(len(probes.of(target)) == 1 for target in targets)
    ip("-n", nets.client, "addr", "del", *own)


@pytest.mark.parametrize(("kind", "code"), [("icmp", Code.L3ERR), ("syn", Code.L4CON), ("connect", Code.L4CON)])
def test_an_icmpv6_error_of_a_router_ends_the_probe_at_once(nets: Pair, probes: Probing, kind: str, code: Code) -> None:
    inside(nets.server, lambda: Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1"))
    ip("-n", nets.server, "-6", "route", "replace", "unreachable", "2001:db8:5::/64")
    ip("-n", nets.client, "-6", "route", "replace", "2001:db8:5::/64", "via", SERVER6)
    minute = {"interval": 60_000 * MS, "fast_interval": 60_000 * MS, "timeout": 60_000 * MS}
    down = probes.becomes(probes.add(there(kind, nets, **minute), "2001:db8:5::7"), State.DOWN)
    assert down.code == code
    assert "unreachable" in down.detail or "no route" in down.detail.lower()
    if kind != "connect":
        assert "ICMPv6 1/" in down.detail
        assert probes.engine.stats()["icmp_errors"] == 1


@pytest.mark.parametrize("address", [SERVER, SERVER6])
def test_a_host_that_goes_away_is_down_and_up_when_it_is_back(nets: Pair, probes: Probing, address: str) -> None:
    words = ["addr", "add", f"{address}/{64 if ':' in address else 24}", "dev", "veth0"]
    if ":" in address:
        words.append("nodad")
    target = probes.add(there("icmp", nets), address)
    probes.becomes(target, State.UP)
    ip("-n", nets.server, "addr", "del", *words[2:5])
    try:
        down = probes.becomes(target, State.DOWN)
        assert down.code in (Code.L3TOUT, Code.L3ERR)
    finally:
        ip("-n", nets.server, *words)
    assert probes.becomes(target, State.UP).code == Code.L3OK
