"""HTTP checks against real servers, the odd and the hostile ones too; what the parser alone does is tested with it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from maglev.base.states import CheckType, Code, State
from maglev.config.model import HttpParams
from tests.helpers.engine import MS, check, probing
from tests.helpers.tls import Certificate, https, server

# One probe a test, with time enough for a busy machine.
ONCE = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 10_000 * MS)
HELLO = HttpParams(response_regexp="^hello$")


def verdict(talk: Callable[[socket.socket], None], params: HttpParams | None = None) -> tuple[State, Code, str]:
    """The first verdict on a server."""
    with server(talk) as one, probing() as p:
        target = p.add(check("http", one.port, params=params or HttpParams(), **ONCE), "127.0.0.1")
        p.wait(lambda: p.of(target), "a verdict")
        first = p.of(target)[0]
        return State(first.to_state), Code(first.code), first.detail


def saying(*parts: bytes, stay: bool = False) -> Callable[[socket.socket], None]:
    """Answers with these parts, each in a packet of its own, and closes; or stays until the client goes."""

    def talk(client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(65536)
        for part in parts:
            client.sendall(part)
        if stay:
            client.settimeout(20)
            client.recv(1)

    return talk


def each_byte(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX: y\r\n\r\n"


@pytest.mark.parametrize(
    "talk",
    [
        saying(*each_byte(LENGTH)),
        saying(*each_byte(CHUNKED)),
        saying(*each_byte(b"HTTP/1.0 200 OK\r\n\r\nhello")),
        saying(LENGTH, stay=True),
        saying(CHUNKED, stay=True),
        saying(b"HTTP/1.1 100 Continue\r\n\r\n", LENGTH),
        saying(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + LENGTH),
        saying(LENGTH + b"HTTP/1.1 500 What nobody asked for\r\n\r\n", stay=True),
    ],
)
def test_a_body_is_had_however_it_comes(talk: Callable[[socket.socket], None]) -> None:
    assert verdict(talk, HELLO) == (State.UP, Code.L7OK, "200")


def test_a_status_is_enough_where_nothing_is_asked_of_the_body() -> None:
    assert verdict(saying(b"HTTP/1.1 200 OK\r\n\r\n", stay=True)) == (State.UP, Code.L7OK, "200")


@pytest.mark.parametrize(
    ("status", "good"), [(200, True), (299, True), (304, True), (199 + 101, False), (302, False), (404, False)]
)
def test_statuses_are_lists_and_ranges(status: int, good: bool) -> None:
    params = HttpParams(response_codes=((200, 299), (304, 304)))
    state, code, detail = verdict(saying(b"HTTP/1.1 %d X\r\n\r\n" % status), params)
    assert (state is State.UP, code, detail) == (good, Code.L7OK if good else Code.L7STS, str(status))


def test_the_answer_to_head_has_no_body() -> None:
    requests: list[bytes] = []

    def talk(client: socket.socket) -> None:
        requests.append(client.recv(65536))
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        client.settimeout(20)
        client.recv(1)

    assert verdict(talk, HttpParams(method="HEAD", path="/healthz")) == (State.UP, Code.L7OK, "200")
    assert requests[0].startswith(b"HEAD /healthz HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("talk", "detail"),
    [
        (saying(), "closed without a response"),
        (saying(b"HTTP/1.1 200 OK\r\nServer: x"), "closed within the headers"),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n"), "closed within the headers"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello"), "closed within the body"),
        (saying(CHUNKED[:-20]), "closed within the body"),
        (saying(LENGTH.replace(b"hello", b"sorry")), "body does not match"),
    ],
)
def test_a_server_that_closes_early_is_down(talk: Callable[[socket.socket], None], detail: str) -> None:
    assert verdict(talk, HELLO) == (State.DOWN, Code.L7RSP, detail)


def test_a_server_that_resets_is_down() -> None:
    def talk(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    state, code, detail = verdict(talk)
    assert (state, code) == (State.DOWN, Code.L7RSP)
    assert detail in ("connection reset by peer", "closed within the headers")


def test_a_server_that_never_ends_its_answer_is_a_time_out() -> None:
    quick = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 200 * MS)
    with server(saying(b"HTTP/1.1 200 OK\r\n\r\nhello", stay=True)) as one, probing() as p:
        target = p.add(check("http", one.port, params=HELLO, **quick), "127.0.0.1")
        down = p.becomes(target, State.DOWN)
        assert (down.code, down.detail) == (Code.L7TOUT, "no answer within 200ms")


@pytest.mark.parametrize(
    ("start", "again", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100, (State.DOWN, Code.L7RSP, "headers longer than 16 KiB")),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000, (State.DOWN, Code.L7RSP, "headers longer than 16 KiB")),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50, (State.DOWN, Code.L7RSP, "headers longer than 16 KiB")),
        (b"HTTP/1.1 200 OK\r\n\r\nhello\n", b"." * 5000, (State.UP, Code.L7OK, "200")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\n\r\n",
            b"1\r\nx\r\n" * 900,
            (State.UP, Code.L7OK, "200"),
        ),
    ],
)
def test_a_flood_is_cut_off(start: bytes, again: bytes, expected: tuple[State, Code, str]) -> None:
    sent: list[int] = []

    def endless(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(start)
        total = 0
        with contextlib.suppress(OSError):
            while total < 1 << 26:
                client.sendall(again)
                total += len(again)
        sent.append(total)

    assert verdict(endless, HttpParams(response_regexp="(?m)^hello$")) == expected
    # The client has gone long before the server would have ended by itself.
    assert sent
    assert sent[0] < 1 << 26


ALERT = bytes.fromhex("15 03 01 00 02 02 46")
SETTINGS = bytes.fromhex("00 00 06 04 00 00 00 00 00 00 03 00 00 00 64")
GOAWAY = bytes.fromhex("00 00 08 07 00 00 00 00 00 00 00 00 00 00 00 00 01")


@pytest.mark.parametrize(
    ("parts", "code", "detail"),
    [
        ((b"HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n",), Code.L7STS, "status 600"),
        ((b"HTTP/1.1 099 What\r\n\r\n",), Code.L7STS, "status 099"),
        ((ALERT,), Code.L7RSP, "answers with TLS: use type https"),
        ((ALERT[:1], ALERT[1:]), Code.L7RSP, "answers with TLS: use type https"),
        ((SETTINGS, GOAWAY), Code.L7RSP, "answers with HTTP/2"),
        ((GOAWAY,), Code.L7RSP, "answers with HTTP/2"),
        (tuple(each_byte(SETTINGS)), Code.L7RSP, "answers with HTTP/2"),
        ((b"220 mail.example.org ESMTP\r\n",), Code.L7RSP, "not an HTTP response"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), Code.L7RSP, "not an HTTP response"),
    ],
)
def test_a_server_of_another_protocol_is_called_by_its_name(parts: tuple[bytes, ...], code: Code, detail: str) -> None:
    assert verdict(saying(*parts)) == (State.DOWN, code, detail)


# What never matches takes all of it.
SHORT = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 500 * MS)
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
ENDLESS = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")


def unfinished(
    kind: str, tmp_path: Path, pattern: str, *parts: bytes, times: dict[str, int] = ONCE
) -> tuple[State, Code, str]:
    """The verdict on a server that sends these parts of a response and then keeps the connection open."""
    release = threading.Event()
    certificate = Certificate(["127.0.0.1"])
    context = certificate.context(tmp_path)

    def talk(client: socket.socket) -> None:
        connection = client if kind == "http" else context.wrap_socket(client, server_side=True)
        with connection:
            connection.recv(65536)
            for part in parts:
                connection.sendall(part)
            release.wait(20)

    params = HttpParams(response_regexp=pattern)
    if kind == "https":
        params = https(insecure_skip_verify=True, response_regexp=pattern)
    with server(talk) as one, probing() as p:
        try:
            web = check("http", one.port, params=params, type=CheckType[kind.upper()], **times)
            target = p.add(web, "127.0.0.1")
            p.wait(lambda: p.of(target), "a verdict")
            first = p.of(target)[0]
            return State(first.to_state), Code(first.code), first.detail
        finally:
            release.set()


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("^ok", (HEAD, b"ok")),
        ("ok", (ENDLESS, b"20\r\nall is ok, and")),
        (r"\Qo.k\E", (HEAD, b"o.k")),
        ("ok.*", (HEAD, b"ok")),
        ("ok$|fine", (HEAD, b"ok, ", b"fine")),
        (r"(?m)^ok$", (HEAD, b"ok\nnot ok")),
        (r"\bok\b", (HEAD, b"it is ok.")),
        ("\u00e4", (HEAD, "\u00e4".encode())),
        ("ok", (HEAD, *[b"."] * 9, b"ok")),
    ],
)
def test_a_body_that_never_ends_passes_when_the_expression_matches(
    kind: str, pattern: str, parts: tuple[bytes, ...], tmp_path: Path
) -> None:
    assert unfinished(kind, tmp_path, pattern, *parts) == (State.UP, Code.L7OK, "200")


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(
    ("pattern", "body"), [("ok$", b"ok"), (r"(?m)ok$", b"ok"), (r"ok\b", b"ok"), (r"ok\B", b"ok"), ("ok.", b"ok")]
)
def test_what_the_next_byte_could_undo_is_no_match_yet(kind: str, pattern: str, body: bytes, tmp_path: Path) -> None:
    answer = unfinished(kind, tmp_path, pattern, HEAD, body, times=SHORT)
    assert answer == (State.DOWN, Code.L7TOUT, "no answer within 500ms")


def test_a_trickle_is_searched_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import re2

    searched: list[int] = []
    compiled = re2.compile

    class Counting:
        def __init__(self, pattern: bytes, options: object) -> None:
            self.found = compiled(pattern, options)

        def search(self, body: bytes) -> object:
            searched.append(len(body))
            return self.found.search(body)

    def trickle(client: socket.socket) -> None:
        client.recv(65536)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(HEAD)
        while not select.select([client], [], [], 0.002)[0]:
            client.sendall(b".")

    monkeypatch.setattr(re2, "compile", Counting)
    with server(trickle) as one, probing() as p:
        target = p.add(check("http", one.port, params=HttpParams(response_regexp="ok"), **SHORT), "127.0.0.1")
        assert p.becomes(target, State.DOWN).code == Code.L7TOUT
        p.engine.remove_target(target)
    # 8, 24, 56, 120, 248 and 504 ms after the first byte, and at the deadline.
    assert 2 <= len(searched) <= 7
    assert searched == sorted(searched)


class Slowly:
    """A server that sends the head of a response, waits until told, and then writes the rest.

    ``acked`` gets how many bytes of each response have reached the client when the connection ends.
    """

    def __init__(self, head: bytes, rest: bytes, context: ssl.SSLContext | None = None) -> None:
        self.head, self.rest, self.context = head, rest, context
        self.go = threading.Semaphore(0)
        self.acked: list[int] = []

    def __call__(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = client
        if self.context is not None:
            connection = self.context.wrap_socket(client, server_side=True, suppress_ragged_eofs=True)
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(self.head)
            self.go.acquire(timeout=20)
            try:
                for at in range(0, len(self.rest), 16384):
                    connection.sendall(self.rest[at : at + 16384])
                if isinstance(connection, ssl.SSLSocket):
                    connection.unwrap()
                else:
                    connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            finally:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
                self.acked.append(struct.unpack_from("=Q", info, 120)[0])


FIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
IN_CHUNKS = FIVE.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(
    ("head", "rest", "state"),
    [
        (FIVE, b"hello", State.UP),
        (IN_CHUNKS, b"5\r\nhello\r\n0\r\n\r\n", State.UP),
        (FIVE.replace(b"200", b"404"), b"sorry", State.DOWN),
    ],
)
def test_a_server_can_write_the_rest_of_its_response_after_the_verdict(
    kind: str, head: bytes, rest: bytes, state: State, tmp_path: Path
) -> None:
    context = Certificate(["127.0.0.1"]).context(tmp_path) if kind == "https" else None
    talk = Slowly(head, rest, context)
    params = https(insecure_skip_verify=True) if context else HttpParams()
    with server(talk) as one, probing() as p:
        times = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 400 * MS)
        target = p.add(check("http", one.port, params=params, type=CheckType[kind.upper()], **times), "127.0.0.1")
        # Several, since a busy machine may need longer than the connection is kept.
        for count in range(20):
            p.wait_probes(target, 1)
            talk.go.release()
            while len(talk.acked) == count:
                p.collect(0.02)
            if talk.acked[-1] >= len(head + rest):
                break
        assert talk.acked[-1] >= len(head + rest)
        assert p.of(target)[-1].to_state == state
        p.engine.remove_target(target)
        talk.go.release(20)


def test_a_rest_that_is_long_is_not_read_to_its_end() -> None:
    talk = Slowly(FIVE.replace(b"5", b"%d" % (1 << 24)), bytes(1 << 24))
    talk.go.release(100)
    with server(talk) as one, probing() as p:
        target = p.add(check("http", one.port, **ONCE), "127.0.0.1")
        assert p.becomes(target, State.UP).code == Code.L7OK
        p.wait(lambda: talk.acked, "the end of the connection")
        assert talk.acked[0] < 1 << 24


def test_a_rest_that_does_not_come_delays_no_probe() -> None:
    def talk(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(FIVE)
        with contextlib.suppress(OSError):
            client.recv(1)  # until the reset

    with server(talk) as one, probing() as p:
        times = {"interval": 20 * MS, "fast_interval": 20 * MS, "timeout": 1000 * MS, "fall": 1}
        target = p.add(check("http", one.port, **times), "127.0.0.1")
        p.wait_probes(target, 20)
        assert [one.to_state for one in p.of(target)] == [State.UP]
        p.engine.remove_target(target)
        p.wait(lambda: p.engine.stats()["in_flight"] == 0, "the last connection to be given up")
