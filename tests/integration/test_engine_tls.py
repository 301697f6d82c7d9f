"""TLS checks against real servers: whose certificate is believed, what a transition says, and what is resumed."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maglev.base.states import CheckType, Code, State
from maglev.config.model import HealthCheck, HttpParams, TcpParams
from tests.helpers.engine import MS, check, listener, packed, port_of, probing
from tests.helpers.tls import RESPONSE, Certificate, Handshakes, https, server, tls

# A probe ends with its interval at the latest, and a busy machine lets the tests' servers wait.
TIMES = ("interval", "fast_interval", "down_interval", "timeout")
LOOSE = dict.fromkeys(TIMES, 500 * MS)
ONCE = dict.fromkeys(TIMES, 10_000 * MS)
NAME = "www.example.org"


def tls_check(params: HttpParams | TcpParams, port: int, **changes: Any) -> HealthCheck:
    """An https check or a tcp check with TLS, by its parameters; patient unless told otherwise."""
    kind = CheckType.HTTPS if isinstance(params, HttpParams) else CheckType.TCP
    return check("http", port, type=kind, params=params, **{**LOOSE, **changes})


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return Certificate(["maglev test authority"], ca=True)


@pytest.fixture
def ca(authority: Certificate, tmp_path: Path) -> Path:
    return authority.write(tmp_path / "ca.pem")


@pytest.fixture
def good(authority: Certificate, tmp_path: Path) -> ssl.SSLContext:
    return Certificate([NAME, "127.0.0.1", "::1"], authority).context(tmp_path)


def verdict(
    talk: Callable[[socket.socket], None], params: HttpParams | TcpParams, address: str = "127.0.0.1", **changes: Any
) -> tuple[State, Code, str]:
    """The first verdict on a server."""
    with server(talk, address) as one, probing() as p:
        target = p.add(tls_check(params, one.port, **{**ONCE, **changes}), address)
        p.wait(lambda: p.of(target), "a verdict")
        first = p.of(target)[0]
        return State(first.to_state), Code(first.code), first.detail


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_good_server_is_up_by_its_status(ca: Path, good: ssl.SSLContext, address: str) -> None:
    seen = Handshakes(good)
    assert verdict(seen, https(ca), address) == (State.UP, Code.L7OK, "200")
    assert seen.protocols[0] == "http/1.1"
    host = f"[{address}]" if ":" in address else address
    assert seen.requests[0].startswith(f"GET / HTTP/1.1\r\nHost: {host}:".encode())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tcp_check_ends_with_the_handshake(ca: Path, good: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    good.minimum_version = good.maximum_version = version
    seen = Handshakes(good)
    assert verdict(seen, tls(ca)) == (State.UP, Code.L6OK, "")
    assert seen.protocols[0] is None
    assert seen.requests == []


def test_a_server_of_tls_12_alone_is_up(ca: Path, good: ssl.SSLContext) -> None:
    good.maximum_version = ssl.TLSVersion.TLSv1_2
    seen = Handshakes(good)
    assert verdict(seen, https(ca)) == (State.UP, Code.L7OK, "200")
    assert seen.versions[0] == "TLSv1.2"


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"404 Not Found"])
def test_a_bad_status_is_of_layer_7(ca: Path, good: ssl.SSLContext, status: bytes) -> None:
    seen = Handshakes(good, b"HTTP/1.1 " + status + b"\r\n\r\n")
    assert verdict(seen, https(ca)) == (State.DOWN, Code.L7STS, status[:3].decode())


@pytest.mark.parametrize(
    ("response", "state", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok 17", State.UP, Code.L7OK),
        (b"HTTP/1.0 200 OK\r\n\r\nok 17", State.UP, Code.L7OK),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nok 17" + b"." * 99_995, State.UP, Code.L7OK),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsorry", State.DOWN, Code.L7RSP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", State.DOWN, Code.L7RSP),
    ],
)
def test_a_body_is_searched(ca: Path, good: ssl.SSLContext, response: bytes, state: State, code: Code) -> None:
    assert verdict(Handshakes(good, response), https(ca, response_regexp=r"^ok \d+"))[:2] == (state, code)


def certificate(kind: str, authority: Certificate) -> Certificate:
    """A certificate that is not to be believed."""
    if kind == "unknown":
        return Certificate(["127.0.0.1", NAME], Certificate(["somebody else"], ca=True))
    if kind == "self-signed":
        return Certificate(["127.0.0.1", NAME])
    if kind == "wrong name":
        return Certificate(["mail.example.org"], authority)
    return Certificate(["127.0.0.1", NAME], authority, days=(-2, -1) if kind == "expired" else (1, 2))


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("expired", "certificate has expired"),
        ("early", "certificate is not yet valid"),
        ("wrong name", f"certificate is not valid for {NAME}"),
        ("unknown", "certificate signed by unknown authority"),
        ("self-signed", "certificate is self-signed"),
    ],
)
@pytest.mark.parametrize("make", [https, tls])
def test_what_is_wrong_with_a_certificate_is_the_detail(
    make: Callable[..., HttpParams | TcpParams],
    ca: Path,
    authority: Certificate,
    tmp_path: Path,
    kind: str,
    detail: str,
) -> None:
    seen = Handshakes(certificate(kind, authority).context(tmp_path))
    assert verdict(seen, make(ca, server_name=NAME)) == (State.DOWN, Code.L6RSP, detail)
    assert seen.requests == []
    skip = Handshakes(certificate(kind, authority).context(tmp_path))
    assert verdict(skip, make(server_name=NAME, insecure_skip_verify=True))[0] is State.UP


def test_the_system_authorities_are_believed_by_default(good: ssl.SSLContext) -> None:
    detail = "certificate signed by unknown authority"
    assert verdict(Handshakes(good), https()) == (State.DOWN, Code.L6RSP, detail)


def test_without_a_name_the_address_is_verified(ca: Path, authority: Certificate, tmp_path: Path) -> None:
    named = Certificate([NAME], authority).context(tmp_path)
    detail = "certificate is not valid for 127.0.0.1"
    assert verdict(Handshakes(named), https(ca)) == (State.DOWN, Code.L6RSP, detail)
    numbered = Certificate(["127.0.0.1"], authority).context(tmp_path)
    seen = Handshakes(numbered)
    assert verdict(seen, tls(ca))[0] is State.UP
    assert seen.names[0] is None


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"server_name": NAME}, NAME),
        ({"host": NAME}, NAME),
        ({"host": f"{NAME}:8443"}, NAME),
        ({"host": "other.example.org", "server_name": NAME}, NAME),
        ({"host": "[::1]:443"}, None),
        ({"server_name": "127.0.0.1"}, None),
    ],
)
def test_the_server_is_told_the_name_that_is_verified(
    ca: Path, good: ssl.SSLContext, params: dict[str, str], name: str | None
) -> None:
    seen = Handshakes(good)
    assert verdict(seen, https(ca, **params))[0] is State.UP
    assert seen.names[0] == name


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("make", [https, tls])
def test_the_second_handshake_is_a_resumption(
    make: Callable[..., HttpParams | TcpParams], ca: Path, good: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    good.minimum_version = good.maximum_version = version
    seen = Handshakes(good)
    with server(seen) as one, probing() as p:
        target = p.add(tls_check(make(ca), one.port), "127.0.0.1")
        p.wait_probes(target, 4)
        stats = p.engine.stats()
        # Of TLS 1.3 the client has done its part before the server.
        p.wait(lambda: len(seen.reused) >= 4, "the server's side of them")
        assert seen.reused[:4] == [False, True, True, True]
        assert (stats["tls_full"], stats["failed"]) == (1, 0)
        assert stats["tls_resumed"] >= 3
        assert 0 < stats["tls_session_bytes"] < 1024
        # Another check of the same target starts anew, and so does a target that was removed.
        p.engine.change_check(target, p.engine.add_check(tls_check(make(ca, server_name=NAME), one.port)))
        p.wait_probes(target, 2)
        assert p.engine.stats()["tls_full"] == 2
        p.engine.remove_target(target)
        p.wait(lambda: p.engine.stats()["tls_session_bytes"] == 0, "the session to be forgotten")


def test_a_certificate_that_expires_is_noticed_although_sessions_are_resumed(
    ca: Path, authority: Certificate, tmp_path: Path
) -> None:
    brief = Certificate(["127.0.0.1"], authority, days=(-1, 5 / 86400)).context(tmp_path)
    seen = Handshakes(brief)
    with server(seen) as one, probing() as p:
        target = p.add(tls_check(https(ca), one.port), "127.0.0.1")
        p.becomes(target, State.UP)
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L6RSP, "certificate has expired")
        assert True in seen.reused


def test_changed_authorities_are_read_again_on_request(ca: Path, good: ssl.SSLContext, authority: Certificate) -> None:
    other = Certificate(["another authority"], ca=True)
    other.write(ca)
    with server(Handshakes(good)) as one, probing() as p:
        target = p.add(tls_check(https(ca), one.port), "127.0.0.1")
        assert p.becomes(target, State.DOWN).detail == "certificate signed by unknown authority"
        authority.write(ca)
        p.wait_probes(target, 2)
        assert p.last(target)[0] is Code.L6RSP
        p.engine.reread_authorities()
        p.becomes(target, State.UP)
        other.write(ca)
        p.engine.reread_authorities()
        p.becomes(target, State.DOWN)  # what was resumed has been verified by authorities that are gone
        authority.write(ca)
        p.engine.reread_authorities()
        p.becomes(target, State.UP)
        ca.unlink()
        p.engine.reread_authorities()
        p.wait_probes(target, 3)
        assert p.last(target) == (Code.L7OK, "200")  # what cannot be read any more stays in force


def test_authorities_that_cannot_be_read_are_no_verdict(
    tmp_path: Path, good: ssl.SSLContext, authority: Certificate
) -> None:
    path = tmp_path / "later.pem"
    with server(Handshakes(good)) as one, probing() as p:
        target = p.add(tls_check(https(path), one.port), "127.0.0.1", state=State.UP)
        reason = p.blocked(target)
        assert reason == f"ENOENT: cannot read the certificate authorities {str(path)!r}: no such file or directory"
        path.write_text("no certificate")
        p.wait(lambda: p.engine.target_info(target).blocked_reason.startswith("EINVAL"), "the new reason")
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").rename(path)
        p.wait(lambda: p.engine.stats()["local_errors"] > 4, "more attempts")
        authority.write(tmp_path / "whole.pem").rename(path)
        p.unblocked(target)
        p.wait_probes(target, 1)
        assert p.last(target) == (Code.L7OK, "200")
        assert p.transitions == []


def mail(client: socket.socket) -> None:
    client.sendall(b"220 mail.example.org ESMTP\r\n")
    client.recv(65536)


def garbage(client: socket.socket) -> None:
    client.recv(65536)
    client.sendall(bytes(range(256)) * 8)


def closing(client: socket.socket) -> None:
    client.recv(65536)


def resetting(client: socket.socket) -> None:
    client.recv(16)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def alarming(client: socket.socket) -> None:
    client.recv(65536)
    client.sendall(bytes.fromhex("15 03 03 00 02 02 28"))


@pytest.mark.parametrize(
    ("talk", "detail"),
    [
        (mail, "not a TLS answer"),
        (garbage, "not a TLS answer"),
        (closing, "closed within the handshake"),
        (resetting, "connection reset by peer"),
        (alarming, "TLS alert: handshake failure"),
    ],
)
@pytest.mark.parametrize("make", [https, tls])
def test_what_is_no_handshake_is_down_and_says_why(
    make: Callable[..., HttpParams | TcpParams], talk: Callable[[socket.socket], None], detail: str
) -> None:
    assert verdict(talk, make(insecure_skip_verify=True)) == (State.DOWN, Code.L6RSP, detail)


@pytest.mark.parametrize(
    ("make", "detail"), [(https, "answers without TLS: use type http"), (tls, "answers without TLS")]
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_server_without_tls_is_called_so(
    make: Callable[..., HttpParams | TcpParams], detail: str, pieces: int
) -> None:
    def talk(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(65536)
        for byte in b"HTTP"[: pieces - 1]:
            client.sendall(bytes((byte,)))
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[pieces - 1 :])

    assert verdict(talk, make(insecure_skip_verify=True)) == (State.DOWN, Code.L6RSP, detail)


@pytest.mark.parametrize("make", [https, tls])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_certificate_of_us_is_down(
    make: Callable[..., HttpParams | TcpParams], ca: Path, good: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    good.minimum_version = good.maximum_version = version
    good.verify_mode = ssl.CERT_REQUIRED
    good.load_verify_locations(ca)
    word = "certificate required" if version is ssl.TLSVersion.TLSv1_3 else "handshake failure"
    assert verdict(Handshakes(good), make(ca)) == (State.DOWN, Code.L6RSP, f"TLS alert: {word}")


def test_a_server_without_a_version_in_common_is_down(ca: Path, good: ssl.SSLContext) -> None:
    good.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        good.minimum_version = good.maximum_version = ssl.TLSVersion.TLSv1_1
    assert verdict(Handshakes(good), https(ca)) == (State.DOWN, Code.L6RSP, "TLS alert: protocol version")


@pytest.mark.parametrize("make", [https, tls])
def test_a_server_that_stalls_in_the_handshake_is_a_time_out_of_layer_6(
    make: Callable[..., HttpParams | TcpParams],
) -> None:
    with listener() as sock, probing() as p:
        quick = dict.fromkeys(TIMES, 100 * MS) | {"timeout": 60 * MS}
        target = p.add(tls_check(make(insecure_skip_verify=True), port_of(sock), **quick), "127.0.0.1")
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L6TOUT, "no answer within 60ms")


def test_a_server_that_stalls_after_the_handshake_is_a_time_out_of_layer_7(ca: Path, good: ssl.SSLContext) -> None:
    def silent(client: socket.socket) -> None:
        with good.wrap_socket(client, server_side=True) as connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    quick = dict.fromkeys(("interval", "fast_interval", "timeout"), 500 * MS)
    assert verdict(silent, https(ca), "127.0.0.1", **quick) == (State.DOWN, Code.L7TOUT, "no answer within 500ms")


@contextlib.contextmanager
def relay(port: int, piece: int) -> Iterator[int]:
    """A way to a port that hands on ``piece`` bytes a packet, both ways. Yields its own port."""

    def talk(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as far:
            for sock in (client, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            other = {client: far, far: client}
            while True:
                for sock in select.select([client, far], [], [], 5)[0]:
                    data = sock.recv(65536)
                    if not data:
                        return
                    for at in range(0, len(data), piece):
                        other[sock].send(data[at : at + piece])

    with server(talk) as one:
        yield one.port


@pytest.mark.parametrize("piece", [1, 7])
def test_a_handshake_may_come_in_pieces(ca: Path, good: ssl.SSLContext, piece: int) -> None:
    seen = Handshakes(good)
    with server(seen) as one, relay(one.port, piece) as port, probing() as p:
        target = p.add(tls_check(https(ca), port), "127.0.0.1")
        assert p.becomes(target, State.UP).code == Code.L7OK
        p.wait_probes(target, 2)
        assert seen.failures == []


def test_a_chain_may_be_long_but_not_endless(ca: Path, authority: Certificate, tmp_path: Path) -> None:
    above = authority
    for level in range(4):
        above = Certificate([f"intermediate {level}"], above, ca=True)
    long = Certificate(["127.0.0.1"], above, padding=100).context(tmp_path)
    assert verdict(Handshakes(long), https(ca))[0] is State.UP
    huge = Certificate(["127.0.0.1"], authority, padding=1000).context(tmp_path)
    state, code, detail = verdict(Handshakes(huge), https(ca))
    assert (state, code, detail) == (State.DOWN, Code.L6RSP, "TLS: excessive message size")


def test_a_connection_is_closed_by_reset(ca: Path, good: ssl.SSLContext) -> None:
    ends: list[str] = []

    def watching(client: socket.socket) -> None:
        connection = good.wrap_socket(client, server_side=True)
        connection.recv(65536)
        connection.sendall(RESPONSE)
        with socket.socket(fileno=connection.detach()) as raw:
            raw.settimeout(5)
            try:
                ends.append("data" if raw.recv(1) else "end")
            except ConnectionResetError:
                ends.append("reset")

    with server(watching) as one, probing() as p:
        p.wait_probes(p.add(tls_check(https(ca), one.port), "127.0.0.1"), 2)
        p.wait(lambda: ends, "the end of the first connection")
        assert ends[0] == "reset"


def test_what_is_given_up_in_the_handshake_is_closed(good: ssl.SSLContext) -> None:
    with listener() as sock, probing() as p:
        target = p.add(tls_check(https(insecure_skip_verify=True), port_of(sock)), "127.0.0.1")
        client, _ = sock.accept()
        with client:
            client.settimeout(20)
            assert client.recv(65536)
            p.engine.remove_target(target)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        p.wait(lambda: p.engine.stats()["in_flight"] == 0, "the connection to be forgotten")


def test_an_engine_stops_with_handshakes_under_way() -> None:
    with listener("0.0.0.0") as sock, probing() as p:
        check_id = p.engine.add_check(tls_check(https(insecure_skip_verify=True), port_of(sock)))
        for n in range(1, 101):
            p.engine.add_target(check_id, packed(f"127.0.0.{n}"))
        p.wait(lambda: p.engine.stats()["in_flight"] == 100, "all to be under way")


def test_parameters_that_cannot_be_are_refused() -> None:
    with probing() as p:
        for params in (https(server_name="a\nb"), https(server_name=""), https(Path("a\0b"))):
            with pytest.raises(ValueError, match="name"):
                p.engine.add_check(tls_check(params, 443))
        with pytest.raises(ValueError, match="do not fit"):
            p.engine.add_check(check("http", 443, type=CheckType.HTTPS, params=HttpParams()))
        with pytest.raises(ValueError, match="do not fit"):
            p.engine.add_check(check("http", 80, type=CheckType.HTTP, params=https()))


class Crowd:
    """A server that shakes hands with many at once, one thread each of two."""

    def __init__(self, context: ssl.SSLContext, talkers: int = 2) -> None:
        self.sock = listener("0.0.0.0", backlog=4096)
        self.context = context
        self._stop = False
        self._threads = [threading.Thread(target=self._run) for _ in range(talkers)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop:
            with contextlib.suppress(OSError):
                client, _ = self.sock.accept()
                if self._stop:
                    client.close()
                    return
                client.settimeout(5)
                with self.context.wrap_socket(client, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(RESPONSE)

    def close(self) -> None:
        self._stop = True
        for _ in self._threads:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_of(self.sock))):
                pass
        for thread in self._threads:
            thread.join()
        self.sock.close()


def test_more_handshakes_than_can_be_done_fail_nobody(ca: Path, authority: Certificate, tmp_path: Path) -> None:
    """Two thousand servers at once are far too many: late they may be, but none fails, and no ping waits for them."""
    crowd = Crowd(Certificate([NAME], authority).context(tmp_path))
    try:
        with probing(capacity=4096) as p:
            rare = dict.fromkeys(TIMES, 20_000 * MS)
            plenty = p.engine.add_check(tls_check(https(ca, server_name=NAME), port_of(crowd.sock), **rare))
            pings = p.engine.add_check(check("icmp", rise=1, fall=1))
            many = [p.engine.add_target(plenty, packed(f"127.1.{n >> 8}.{n & 255}")) for n in range(1, 2001)]
            others = [p.engine.add_target(pings, packed(f"127.2.0.{n}")) for n in range(1, 101)]
            p.wait(lambda: len(p.transitions) >= len(many) + len(others), "all verdicts")
            assert {one.to_state for one in p.transitions} == {State.UP}
            assert all(p.engine.target_info(one).codes[Code.L3TOUT] == 0 for one in others)
    finally:
        crowd.close()


# A process of its own does handshakes until `count` have ended, says how large it is, and goes on for `more`.
LEAK = """
import sys
from maglev.config.model import HealthCheck, HttpParams, TlsParams
from maglev.base.states import CheckType
from tests.helpers.engine import MS, Probing, packed
def rss():
    with open("/proc/self/statm", encoding="ascii") as text:
        return int(text.read().split()[1]) * 4096
port, ca, count, more = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
p = Probing(capacity=64)
fast = dict.fromkeys(("interval", "fast_interval", "down_interval"), 10 * MS) | {"timeout": 10_000 * MS}
def https(name):
    return HealthCheck(name, CheckType.HTTPS, HttpParams(tls=TlsParams(name, False, ca)), port, **fast)
checks = [p.engine.add_check(https(name)) for name in ("www.example.org", "wrong.example.org")]
targets = [p.engine.add_target(checks[n % 2], packed(f"127.3.0.{n}")) for n in range(1, 33)]
def done(count):
    stats = p.engine.stats()
    return stats["passed"] + stats["failed"] >= count
p.wait(lambda: done(count), "the first handshakes", 120)
before = rss()
for check in checks * 10:       # sessions, contexts and connections are given up, too
    for target in targets:
        p.engine.change_check(target, check)
    p.wait(lambda end=sum(map(p.probes, targets)) + more // 20: sum(map(p.probes, targets)) >= end, "more", 120)
print(before, rss(), p.engine.stats()["tls_session_bytes"])
p.engine.stop()
"""


def test_a_process_that_ends_without_stopping_its_engine_ends_well(
    ca: Path, authority: Certificate, tmp_path: Path
) -> None:
    crowd = Crowd(Certificate([NAME], authority).context(tmp_path))
    script = LEAK.partition("before = rss()")[0] + "raise SystemExit(7)\n"
    try:
        command = [sys.executable, "-c", script, str(port_of(crowd.sock)), str(ca), "200", "0"]
        # What can go wrong does not go wrong each time.
        for _ in range(10):
            assert subprocess.run(command, timeout=240).returncode == 7
    finally:
        crowd.close()


def test_ten_thousand_handshakes_leave_nothing_behind(ca: Path, authority: Certificate, tmp_path: Path) -> None:
    crowd = Crowd(Certificate([NAME], authority).context(tmp_path))
    try:
        command = [sys.executable, "-c", LEAK, str(port_of(crowd.sock)), str(ca), "1000", "10000"]
        # Under AddressSanitizer, what was freed would stay for a while, as much as a leak.
        environ = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"}
        told = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=environ).stdout
    finally:
        crowd.close()
    before, after, sessions = map(int, told.split())
    # A single kilobyte a handshake would be ten megabytes.
    assert after - before < 6 << 20
    assert sessions < 32 * 1024
