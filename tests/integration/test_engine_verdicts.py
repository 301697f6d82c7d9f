"""The engine against real sockets on loopback: every probe type, both families, up and down."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator

import pytest

from maglev import _probe
from maglev.base.states import Code, State
from maglev.config.model import HttpParams
from tests.helpers.engine import MS, check, listener, packed, port_of, probing
from tests.helpers.netns import inside, pair

FAMILIES = pytest.mark.parametrize("address", ["127.0.0.2", "::1"])


@contextlib.contextmanager
def serving(answer: bytes, address: str = "127.0.0.1", requests: list[bytes] | None = None) -> Iterator[int]:
    """A server that reads one request a connection, answers, and closes. Yields its port."""
    sock = listener(address)
    stop = threading.Event()

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError):
                client, _ = sock.accept()
                with client:
                    if stop.is_set():
                        return
                    request = client.recv(65536)
                    if requests is not None:
                        requests.append(request)
                    client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield port_of(sock)
    finally:
        stop.set()
        with socket.create_connection(sock.getsockname()[:2]):
            thread.join()
        sock.close()


@FAMILIES
def test_a_host_that_answers_pings_is_up(address: str) -> None:
    with probing() as p:
        target = p.add(check("icmp"), address)
        transition = p.becomes(target, State.UP)
        assert (transition.from_state, transition.code, transition.counter) == (State.UNKNOWN, Code.L3OK, 3)
        assert transition.generation == p.engine.generation(target)
        p.wait_probes(target)
        info = p.engine.target_info(target)
        assert info.rtt_count == info.codes[Code.L3OK] == sum(info.codes)
        assert 0 < info.last_rtt_ns < 30 * MS


@pytest.mark.parametrize("size", [16, 56, 1400, 8000])
@FAMILIES
def test_pings_have_any_size(address: str, size: int) -> None:
    from maglev.config.model import IcmpParams

    with probing() as p:
        target = p.add(check("icmp", params=IcmpParams(size)), address)
        assert p.becomes(target, State.UP).code == Code.L3OK


@FAMILIES
@pytest.mark.parametrize("kind", ["syn", "connect"])
def test_a_listener_is_up_and_down_when_it_closes_and_up_again(kind: str, address: str) -> None:
    sock = listener(address)
    port = port_of(sock)
    with probing() as p:
        target = p.add(check(kind, port), address)
        assert p.becomes(target, State.UP).code == Code.L4OK
        sock.close()
        down = p.becomes(target, State.DOWN)
        assert (down.from_state, down.code, down.detail) == (State.UP, Code.L4CON, "connection refused")
        with listener(address, port):
            up = p.becomes(target, State.UP)
            assert (up.from_state, up.code) == (State.DOWN, Code.L4OK)
        assert [one.to_state for one in p.of(target)] == [State.UP, State.DOWN, State.UP]


@pytest.mark.parametrize("kind", ["syn", "connect"])
def test_a_listener_never_gets_to_accept_a_probe(kind: str) -> None:
    with listener() as sock, probing() as p:
        sock.settimeout(0)
        target = p.add(check(kind, port_of(sock)), "127.0.0.1")
        p.wait_probes(target, 5)
        with pytest.raises(BlockingIOError):
            sock.accept()


@pytest.mark.parametrize("kind", ["syn", "connect"])
def test_a_full_backlog_is_a_time_out(kind: str) -> None:
    with listener(backlog=0) as sock, socket.create_connection(sock.getsockname()), probing() as p:
        target = p.add(check(kind, port_of(sock)), "127.0.0.1")
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L4TOUT, "no answer within 30ms")


@FAMILIES
def test_a_good_status_is_up(address: str) -> None:
    requests: list[bytes] = []
    with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", address, requests) as port, probing() as p:
        target = p.add(check("http", port), address)
        up = p.becomes(target, State.UP)
        assert (up.code, up.detail) == (Code.L7OK, "200")
        host = f"[{address}]" if ":" in address else address
        assert (
            requests[0]
            == (
                f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: vpp-maglev\r\nAccept: */*\r\n"
                "Connection: close\r\n\r\n"
            ).encode()
        )


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("www.example.org", "www.example.org"),
        ("www.example.org:8443", "www.example.org:8443"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080"),
    ],
)
def test_a_configured_host_gets_no_port_that_was_not_written(host: str, sent: str) -> None:
    requests: list[bytes] = []
    with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "127.0.0.1", requests) as port, probing() as p:
        p.becomes(p.add(check("http", port, params=HttpParams(host=host)), "127.0.0.1"), State.UP)
    assert f"\r\nHost: {sent}\r\n".encode() in requests[0]


@pytest.mark.parametrize(
    ("answer", "code", "detail"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Code.L7STS, "503"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", Code.L7STS, "404"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Code.L7RSP, "not an HTTP response"),
        (b"", Code.L7RSP, "closed without a response"),
        (b"HTTP/1.1 200 OK\r\nServer: x\r\n", Code.L7RSP, "closed within the headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000, Code.L7RSP, "headers longer than 16 KiB"),
    ],
)
def test_anything_else_is_down_and_says_why(answer: bytes, code: Code, detail: str) -> None:
    with serving(answer) as port, probing() as p:
        target = p.add(check("http", port, timeout=1000 * MS, interval=1000 * MS, fast_interval=1000 * MS), "127.0.0.1")
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (code, detail)


def test_a_server_that_never_answers_is_a_time_out_of_layer_7() -> None:
    with listener() as sock, probing() as p:
        target = p.add(check("http", port_of(sock)), "127.0.0.1")
        assert p.becomes(target, State.DOWN).code == Code.L7TOUT


@pytest.mark.parametrize(
    ("answer", "state", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok 17", State.UP, Code.L7OK),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3\r\n 17\r\n0\r\n\r\n", State.UP, Code.L7OK),
        (b"HTTP/1.0 200 OK\r\n\r\nok 17", State.UP, Code.L7OK),
        (b"HTTP/1.1 200 OK\r\n\r\nok 17" + b"." * 100_000, State.UP, Code.L7OK),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsorry", State.DOWN, Code.L7RSP),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nok 17", State.DOWN, Code.L7STS),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok 17", State.DOWN, Code.L7RSP),
    ],
)
def test_a_body_is_searched_for_an_expression(answer: bytes, state: State, code: Code) -> None:
    slow = {"timeout": 1000 * MS, "interval": 1000 * MS, "fast_interval": 1000 * MS}
    with serving(answer) as port, probing() as p:
        target = p.add(check("http", port, params=HttpParams(response_regexp=r"^ok \d+"), **slow), "127.0.0.1")
        assert p.becomes(target, state).code == code


def test_a_paused_target_is_left_alone_until_it_is_resumed() -> None:
    with probing() as p:
        target = p.add(check("icmp"), "127.0.0.3")
        p.becomes(target, State.UP)
        generation = p.engine.generation(target)
        p.engine.pause_target(target)
        p.engine.pause_target(target)
        assert p.engine.generation(target) == generation + 1
        assert p.engine.target_info(target).state == State.PAUSED
        other = p.add(check("icmp"), "127.0.0.4")
        p.wait_probes(other)
        before = p.probes(target)
        p.wait_probes(other, 5)
        assert p.probes(target) == before
        p.engine.resume_target(target)
        p.wait(lambda: len(p.of(target)) == 2, "the verdict after the resume")
        assert p.of(target)[-1].from_state == State.UNKNOWN
        assert p.probes(target) > before


def test_a_removed_target_is_probed_no_more_and_its_id_is_used_again() -> None:
    with probing(capacity=1) as p:
        target = p.add(check("icmp"), "127.0.0.3")
        p.becomes(target, State.UP)
        p.engine.remove_target(target)
        with pytest.raises(KeyError):
            p.engine.target_info(target)
        sock = listener()
        port = port_of(sock)
        sock.close()
        again = p.add(check("syn", port), "127.0.0.1")
        assert again == target
        assert p.engine.target_info(again).codes == (0,) * 14
        p.wait(lambda: p.of(again)[-1].to_state == State.DOWN, "the new target's verdict")
        assert p.of(again)[-1].from_state == State.UNKNOWN


def test_a_changed_check_goes_on_in_the_present_state() -> None:
    with listener() as sock, probing() as p:
        target = p.add(check("icmp"), "127.0.0.1")
        p.becomes(target, State.UP)
        generation = p.engine.generation(target)
        p.engine.change_check(target, p.engine.add_check(check("syn", port_of(sock), rise=5, fall=7)))
        assert p.engine.generation(target) == generation + 1
        assert p.engine.target_info(target).state == State.UP
        assert p.engine.target_info(target).counter == 11
        p.wait(lambda: p.engine.target_info(target).codes[Code.L4OK] > 2, "SYN probes")
        assert len(p.of(target)) == 1


def test_presumed_good_takes_fall_failures() -> None:
    sock = listener()
    port = port_of(sock)
    sock.close()
    with probing() as p:
        target = p.add(check("connect", port, fall=3), "127.0.0.1", counter=4)
        first = p.add(check("connect", port, fall=3), "127.0.0.1")
        down = p.becomes(target, State.DOWN)
        p.becomes(first, State.DOWN)
        assert down.from_state == State.UNKNOWN
        p.wait_probes(target, 1)
        assert p.of(first)[0].at_ns < p.of(target)[0].at_ns


def test_traced_results_are_reported_one_by_one() -> None:
    with probing() as p:
        target = p.add(check("icmp"), "127.0.0.3")
        p.engine.trace(target, True)
        p.wait(lambda: len(p.results) >= 3, "three results")
        assert {(r.target, r.passed, r.code, r.state) for r in p.results} == {(target, True, Code.L3OK, State.UP)}
        assert all(r.rtt_ns > 0 for r in p.results)


def test_a_snapshot_holds_every_target() -> None:
    with probing() as p:
        targets = [p.add(check("icmp"), f"127.0.1.{i}") for i in range(1, 20)]
        p.wait(lambda: all(p.of(t) for t in targets), "all verdicts")
        p.engine.remove_target(targets.pop(3))
        records = list(struct.iter_unpack(_probe.SNAPSHOT_FORMAT, p.engine.snapshot()))
        assert [record[0] for record in records] == targets
        fields = len(_probe.SNAPSHOT_FIELDS)
        for record in records:
            assert len(record) == fields + _probe.CODES
            values = dict(zip(_probe.SNAPSHOT_FIELDS, record[:fields], strict=True))
            assert (values["state"], values["counter"], values["last_code"]) == (State.UP, 3, Code.L3OK)
            assert record[fields + Code.L3OK] >= 1


@pytest.mark.parametrize("_attempt", range(5))
def test_a_snapshot_is_whole_while_another_thread_adds_targets(_attempt: int) -> None:
    engine = _probe.Engine(capacity=50_000)
    a_check = engine.add_check(check("icmp"))

    def add() -> None:
        for _ in range(engine.capacity):
            engine.add_target(a_check, packed("127.0.0.1"))

    adding = threading.Thread(target=add)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        adding.start()
        while adding.is_alive():
            records = struct.iter_unpack(_probe.SNAPSHOT_FORMAT, engine.snapshot())
            assert all(at == record[0] for at, record in enumerate(records))
    finally:
        adding.join()
        sys.setswitchinterval(usual)
    assert len(engine.snapshot()) == engine.capacity * struct.calcsize(_probe.SNAPSHOT_FORMAT)


def test_two_engines_do_not_take_each_others_replies() -> None:
    # In a namespace where nobody else pings.
    with (
        pair() as nets,
        probing() as a,
        probing() as b,
        inside(nets.client, lambda: listener("0.0.0.0")) as sock,
    ):
        targets = [
            one.add(check(kind, 0 if kind == "icmp" else port_of(sock), netns=nets.client), "127.0.0.1")
            for one in (a, b)
            for kind in ("icmp", "syn")
        ]
        for one, target in zip((a, a, b, b), targets, strict=True):
            one.becomes(target, State.UP)
            one.wait_probes(target, 4)
        for one in (a, b):
            stats = one.engine.stats()
            # The ports of each are a run, as nobody else uses any: neither even sees what is for the other.
            for counter in ("failed", "duplicate", "late_replies", "foreign", "forged", "malformed"):
                assert stats[counter] == 0, counter


def test_a_source_address_that_is_not_ours_is_no_verdict() -> None:
    from ipaddress import IPv4Address

    with listener() as sock, probing() as p:
        for kind in ("icmp", "syn", "connect"):
            one = check(kind, 0 if kind == "icmp" else port_of(sock), probe_ipv4_src=IPv4Address("192.0.2.1"))
            target = p.add(one, "127.0.0.1", state=State.UP)
            p.blocked(target)
            info = p.engine.target_info(target)
            assert info.blocked_reason.startswith("EADDRNOTAVAIL: cannot use the source address")
            assert (info.state, sum(info.codes)) == (State.UP, 0)
        assert p.engine.stats()["local_errors"] > 0


def test_a_source_address_is_used() -> None:
    from ipaddress import IPv4Address

    requests: list[bytes] = []
    with serving(b"HTTP/1.1 200 OK\r\n\r\n", "127.0.0.7", requests) as port, probing() as p:
        for kind in ("icmp", "syn", "connect", "http"):
            one = check(kind, 0 if kind == "icmp" else port, probe_ipv4_src=IPv4Address("127.0.0.77"))
            p.becomes(p.add(one, "127.0.0.7"), State.UP)


def test_a_missing_namespace_is_no_verdict() -> None:
    with probing() as p:
        targets = [
            p.add(check(kind, 80 if kind != "icmp" else 0, netns="mgl-none"), "127.0.0.1", state=State.UP)
            for kind in ("icmp", "syn", "connect")
        ]
        for target in targets:
            p.blocked(target)
            info = p.engine.target_info(target)
            assert info.blocked_reason.startswith("ENOENT: cannot enter the network namespace 'mgl-none'")
            assert info.state == State.UP
        assert p.transitions == []


def test_impossible_checks_and_targets_are_refused() -> None:
    with probing(capacity=1) as p:
        for bad in (
            check("syn"),
            check("http", 80, params=HttpParams(path="/\r\nX: y")),
            check("http", 80, params=HttpParams(response_regexp="(")),
            check("http", 80, params=HttpParams(method="POST")),
            check("icmp", rise=0),
            check("icmp", interval=0),
            check("icmp", netns="../x"),
        ):
            with pytest.raises(ValueError, match=r"healthcheck|path|method"):
                p.engine.add_check(bad)
        good = p.engine.add_check(check("icmp"))
        with pytest.raises(ValueError, match="4 or 16 bytes"):
            p.engine.add_target(good, b"abc")
        with pytest.raises(KeyError):
            p.engine.add_target(good + 1, packed("127.0.0.1"))
        p.engine.add_target(good, packed("127.0.0.1"))
        with pytest.raises(RuntimeError, match="more than 1 targets"):
            p.engine.add_target(good, packed("127.0.0.1"))
        p.engine.remove_check(good)
        with pytest.raises(KeyError):
            p.engine.remove_check(good)


def test_an_engine_without_targets_has_a_pulse_that_ends_with_it() -> None:
    with probing() as one:
        seen = {one.engine.pulse()}

        def beats() -> bool:
            seen.add(one.engine.pulse())
            return len(seen) > 3

        one.wait(beats, "three rounds more")
    ended = one.engine.pulse()
    assert one.engine.pulse() == ended
