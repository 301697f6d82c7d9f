"""Packets that must not be believed, and errors that must, in separate network namespaces."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from maglev.base.states import Code, State
from maglev.config.model import HealthCheck
from tests.helpers.engine import MS, Probing, check, listener, packed, port_of, probing
from tests.helpers.netns import (
    ETH_P_IP,
    OTHER,
    OTHER6,
    SERVER,
    SERVER6,
    SILENT,
    SILENT6,
    Pair,
    echo_reply,
    flipped,
    head,
    icmp_error,
    in_fragments,
    inside,
    ip,
    pair,
    stranger,
    tcp_reply,
    with_options,
)

SYN, RST, PSH, ACK = 2, 4, 8, 16

FAMILIES = pytest.mark.parametrize("silent", [SILENT, SILENT6])
KINDS = pytest.mark.parametrize("kind", ["icmp", "syn"])


def is_syn(packet: bytes) -> bool:
    """A SYN, and not what the kernel says to the answer."""
    return bool(packet[head(packet) + 13] & SYN)


def answer(kind: str, packet: bytes) -> bytes:
    """The true answer to a probe."""
    return echo_reply(packet) if kind == "icmp" else tcp_reply(packet, SYN | ACK)


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
def test_no_route_is_an_answer_while_others_pass(nets: Pair, probes: Probing, kind: str) -> None:
    probes.becomes(probes.add(check("icmp", netns=nets.client), SERVER), State.UP)
    down = probes.becomes(probes.add(there(kind, nets), "203.0.113.1"), State.DOWN)
    assert down.code == (Code.L3ERR if kind == "icmp" else Code.L4CON)
    assert down.detail == "network is unreachable"


@FAMILIES
@KINDS
def test_a_true_answer_is_believed_with_ip_options_too(nets: Pair, probes: Probing, kind: str, silent: str) -> None:
    with stranger(nets.server, lambda p: [with_options(answer(kind, p))]):
        probes.becomes(probes.add(there(kind, nets), silent), State.UP)


@pytest.mark.parametrize(
    ("kind", "first", "silent"),
    [
        ("icmp", 8, SILENT),
        ("icmp", 24, SILENT),
        ("icmp", 8, SILENT6),
        ("icmp", 24, SILENT6),
        ("syn", 8, SILENT),
        ("syn", 16, SILENT),  # with IPv6 the first fragment must hold the whole header (RFC 7112)
    ],
)
def test_an_answer_in_fragments_is_believed(nets: Pair, probes: Probing, kind: str, first: int, silent: str) -> None:
    with stranger(nets.server, lambda p: in_fragments(answer(kind, p), first)):
        probes.becomes(probes.add(there(kind, nets), silent), State.UP)


def stranger_of(packet: bytes) -> str:
    return OTHER if head(packet) == 20 else OTHER6


@FAMILIES
@pytest.mark.parametrize(
    ("kind", "forge", "counter"),
    [
        ("icmp", lambda p: echo_reply(flipped(p, 4)), "forged"),
        ("icmp", lambda p: echo_reply(flipped(p, 7)), "forged"),
        ("icmp", lambda p: echo_reply(flipped(p, 23)), "forged"),
        ("icmp", lambda p: echo_reply(p, source=stranger_of(p)), "forged"),
        ("icmp", lambda p: echo_reply(flipped(p, 8)), None),  # the filter drops it
        ("icmp", lambda p: echo_reply(p, payload=12), "malformed"),
        ("icmp", lambda p: echo_reply(p, payload=4), None),
        ("icmp", lambda p: in_fragments(echo_reply(p), 16)[0], None),
        ("icmp", lambda p: in_fragments(echo_reply(p), 16)[1], None),
        ("icmp", lambda p: icmp_error(flipped(p, 5)), "foreign"),
        ("icmp", lambda p: icmp_error(flipped(p, -1)), "foreign"),
        ("icmp", lambda p: icmp_error(p, quoted=4), "malformed"),
        ("icmp", lambda p: icmp_error(in_fragments(p, 16)[1]), None),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, ack=2), "forged"),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, source=stranger_of(p)), "forged"),
        ("syn", lambda p: tcp_reply(p, SYN | ACK, ack=0), "forged"),
        ("syn", lambda p: tcp_reply(p, RST | ACK, ack=2), "forged"),
        ("syn", lambda p: tcp_reply(flipped(p, 3), SYN | ACK), "forged"),
        ("syn", lambda p: tcp_reply(p, RST), "foreign"),
        ("syn", lambda p: tcp_reply(p, ACK), None),
        ("syn", lambda p: icmp_error(flipped(p, 5)), "forged"),
        ("syn", lambda p: icmp_error(flipped(p, 3)), "forged"),
        ("syn", lambda p: icmp_error(flipped(p, -1)), "forged"),
        ("syn", lambda p: icmp_error(p, quoted=4), "malformed"),
    ],
)
def test_a_forgery_is_counted_and_changes_nothing(
    nets: Pair, probes: Probing, kind: str, forge: Callable[[bytes], bytes], counter: str | None, silent: str
) -> None:
    with stranger(nets.server, lambda p: [forge(p)] if kind == "icmp" or is_syn(p) else []) as other:
        target = probes.add(there(kind, nets, fall=1), silent)
        down = probes.becomes(target, State.DOWN)
        assert down.code == (Code.L3TOUT if kind == "icmp" else Code.L4TOUT)
        assert other.seen
        stats = probes.engine.stats()
        for name in ("forged", "foreign", "malformed", "duplicate", "late_replies", "rx_drops"):
            assert (stats[name] > 0) == (name == counter), name


@FAMILIES
@KINDS
def test_a_true_answer_after_a_forgery_is_believed(nets: Pair, probes: Probing, kind: str, silent: str) -> None:
    def forgeries_and_the_truth(packet: bytes) -> list[bytes]:
        if kind == "syn" and not is_syn(packet):
            return []
        return [answer(kind, flipped(packet, 5)), icmp_error(flipped(packet, 5)), answer(kind, packet)]

    with stranger(nets.server, forgeries_and_the_truth):
        target = probes.add(there(kind, nets), silent)
        probes.becomes(target, State.UP)
        probes.wait_probes(target, 3)
        assert probes.engine.stats()["failed"] == 0


@pytest.mark.parametrize("kind", ["icmp", "syn"])
def test_bad_checksums_are_no_overflow(nets: Pair, probes: Probing, kind: str) -> None:
    """The kernel drops them and counts them like what a full queue loses; a dead server would be asked for ever."""
    with stranger(nets.server, lambda p: [answer(kind, p)[:-1] + b"\x55"]):
        target = probes.add(there(kind, nets), SILENT6)
        assert probes.becomes(target, State.DOWN).code == (Code.L3TOUT if kind == "icmp" else Code.L4TOUT)
        stats = probes.engine.stats()
        assert stats["malformed"] > 0
        assert stats["rx_drops"] == 0


@FAMILIES
@pytest.mark.parametrize("quoted", [8, 40])
@pytest.mark.parametrize(("kind", "code"), [("icmp", Code.L3ERR), ("syn", Code.L4CON)])
def test_an_icmp_error_ends_the_probe_at_once(
    nets: Pair, probes: Probing, kind: str, code: Code, quoted: int, silent: str
) -> None:
    minute = {"interval": 60_000 * MS, "fast_interval": 60_000 * MS, "timeout": 60_000 * MS}
    with stranger(nets.server, lambda p: [icmp_error(p, quoted=quoted)]):
        down = probes.becomes(probes.add(there(kind, nets, **minute), silent), State.DOWN)
        detail = "host unreachable (ICMP 3/1)" if silent == SILENT else "address unreachable (ICMPv6 1/3)"
        assert (down.code, down.detail) == (code, detail)
        assert probes.engine.stats()["icmp_errors"] == 1


@FAMILIES
def test_a_reset_instead_of_an_answer_is_a_refusal(nets: Pair, probes: Probing, silent: str) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, RST | ACK)]):
        down = probes.becomes(probes.add(there("syn", nets), silent), State.DOWN)
        assert (down.code, down.detail) == (Code.L4CON, "connection refused")


@FAMILIES
def test_the_first_answer_counts_and_further_ones_are_duplicates(nets: Pair, probes: Probing, silent: str) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK), tcp_reply(p, RST | ACK)] if is_syn(p) else []):
        target = probes.add(there("syn", nets), silent)
        probes.becomes(target, State.UP)
        probes.wait(lambda: probes.engine.stats()["duplicate"] > 0, "the duplicate to be counted")
        assert probes.engine.target_info(target).codes[Code.L4CON] == 0
    with stranger(nets.server, lambda p: [echo_reply(p)] * 3):
        target = probes.add(there("icmp", nets), silent)
        probes.becomes(target, State.UP)
        before = probes.engine.stats()["duplicate"]
        probes.wait(lambda: probes.engine.stats()["duplicate"] >= before + 2, "two duplicates to be counted")


@FAMILIES
@KINDS
def test_an_answer_after_its_deadline_is_late(nets: Pair, probes: Probing, kind: str, silent: str) -> None:
    requests: list[bytes] = []

    def answer_the_one_before(request: bytes) -> list[bytes]:
        if kind == "syn" and not is_syn(request):
            return []
        requests.append(request)
        return [answer(kind, requests[-2])] if len(requests) > 1 else []

    with stranger(nets.server, answer_the_one_before):
        target = probes.add(there(kind, nets), silent)
        down = probes.becomes(target, State.DOWN)
        assert down.code == (Code.L3TOUT if kind == "icmp" else Code.L4TOUT)
        probes.wait(lambda: probes.engine.stats()["late_replies"] >= 2, "late replies to be counted")
        assert probes.engine.stats()["passed"] == 0


@FAMILIES
@KINDS
def test_an_answer_to_an_older_generation_is_dropped(nets: Pair, kind: str, silent: str) -> None:
    with probing(capacity=2) as p, stranger(nets.server, lambda _: []) as other:

        def probes_out() -> list[bytes]:
            return [one for one in other.seen if kind == "icmp" or is_syn(one)]

        a_check = p.engine.add_check(
            there(kind, nets, interval=20_000 * MS, fast_interval=20_000 * MS, timeout=20_000 * MS)
        )
        # Another target keeps the sockets open, so that the old answer gets past the filter.
        p.engine.add_target(a_check, packed(silent))
        old = p.engine.add_target(a_check, packed(silent))
        p.wait(lambda: len(probes_out()) == 2, "the first probes")
        p.engine.remove_target(old)
        again = p.engine.add_target(a_check, packed(silent))
        assert again == old
        p.wait(lambda: len(probes_out()) == 3, "the second probe")
        # Of the first two, one is of the target that stays.
        for packet in probes_out()[:2]:
            other.send(answer(kind, packet))
        p.wait(lambda: p.engine.stats()["late_replies"] and p.engine.stats()["passed"], "the old answers to be counted")
        assert sum(p.engine.target_info(again).codes) == 0
        assert p.engine.stats()["passed"] == 1
        other.send(answer(kind, probes_out()[2]))
        p.becomes(again, State.UP)


@FAMILIES
@KINDS
def test_an_answer_to_a_paused_target_is_dropped(nets: Pair, probes: Probing, kind: str, silent: str) -> None:
    with stranger(nets.server, lambda _: []) as other:
        target = probes.add(there(kind, nets, timeout=300 * MS), silent)
        probes.wait(lambda: other.seen, "the probe")
        probes.engine.pause_target(target)
        # Another target has the sockets read: who waits for nothing does not look.
        often = dict.fromkeys(("interval", "fast_interval", "down_interval"), 20 * MS) | {"timeout": 10 * MS}
        other_target = probes.add(there(kind, nets, **often), SERVER if silent == SILENT else SERVER6)
        probes.wait_probes(other_target, 1)
        other.send(answer(kind, other.seen[0]))
        probes.wait(lambda: probes.engine.stats()["duplicate"] == 1, "the answer to be counted")
        assert probes.of(target) == []
        assert sum(probes.engine.target_info(target).codes) == 0


def test_source_ports_take_turns(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK)] if is_syn(p) else []) as other:
        quick = {"interval": 10 * MS, "fast_interval": 10 * MS}
        target = probes.add(there("syn", nets, **quick), SILENT)
        probes.wait_probes(target, 40)
        ports = [int.from_bytes(p[20:22], "big") for p in other.seen if is_syn(p)]
        assert len(set(ports)) == len(ports)


def test_the_half_open_connection_is_reset(nets: Pair, probes: Probing) -> None:
    with stranger(nets.server, lambda p: [tcp_reply(p, SYN | ACK)] if is_syn(p) else []) as other:
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
