"""HTTP checks against real servers, the odd and the hostile ones too; what the parser alone does is tested with it."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable

import pytest

from maglev.base.states import Code, State
from maglev.config.model import HttpParams
from tests.helpers.engine import MS, check, probing
from tests.helpers.tls import server

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
