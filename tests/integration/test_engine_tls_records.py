"""Answers over TLS in any cut: many small records at once, large ones, records between which the server does else.

A server that has said everything and leaves the connection open sends no event any more. What OpenSSL has read ahead
must be read nevertheless.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from maglev.base.states import CheckType, Code, State
from tests.helpers.engine import MS, check, probing
from tests.helpers.tls import Certificate, Server, https, server

NAME = "www.example.org"
PATIENT = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 10_000 * MS)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: "

BOTH = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return Certificate(["authority of records"], ca=True)


@pytest.fixture
def ca(authority: Certificate, tmp_path: Path) -> Path:
    return authority.write(tmp_path / "ca.pem")


@pytest.fixture
def context(authority: Certificate, tmp_path: Path) -> ssl.SSLContext:
    return Certificate([NAME, "127.0.0.1"], authority).context(tmp_path)


def pieces(response: bytes, size: int) -> list[bytes]:
    return [response[at : at + size] for at in range(0, len(response), size)]


def body_of(length: int) -> bytes:
    """A response with a body of that length; only its end is what a check looks for."""
    return HEAD + str(length).encode() + b"\r\n\r\n" + b"." * (length - 4) + b"last"


def corked(client: socket.socket, on: bool) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


class AtOnce:
    """A server that sends an answer in these records, all in one go, and leaves the connection open."""

    def __init__(self, context: ssl.SSLContext, records: Iterable[bytes]) -> None:
        self.context = context
        self.records = list(records)

    def __call__(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(client, server_side=True) as connection:
            connection.recv(65536)
            corked(connection, True)
            for record in self.records:
                connection.sendall(record)
            corked(connection, False)
            connection.recv(1)  # the other side closes


@contextlib.contextmanager
def first_verdict(one: Server, ca: Path, regexp: str | None) -> Iterator[tuple[State, Code]]:
    with probing() as p:
        params = https(ca, response_regexp=regexp)
        kind = check("http", one.port, type=CheckType.HTTPS, params=params, **PATIENT)
        target = p.add(kind, "127.0.0.1")
        p.wait(lambda: p.of(target), "a verdict")
        first = p.of(target)[0]
        yield State(first.to_state), Code(first.code)


def assert_up(talk: Callable[[socket.socket], None], ca: Path, regexp: str | None = "last$") -> None:
    with server(talk) as one, first_verdict(one, ca, regexp) as seen:
        assert seen == (State.UP, Code.L7OK)


@BOTH
@pytest.mark.parametrize("count", [8, 9, 18, 40, 300])
def test_an_answer_in_many_small_records_is_read_to_its_end(
    ca: Path, context: ssl.SSLContext, version: ssl.TLSVersion, count: int
) -> None:
    context.minimum_version = context.maximum_version = version
    response = body_of(10 * count)
    assert_up(AtOnce(context, pieces(response, len(response) // count)), ca)


@BOTH
def test_a_whole_body_may_come_in_records_of_one_byte(
    ca: Path, context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    context.minimum_version = context.maximum_version = version
    assert_up(AtOnce(context, pieces(body_of(65_536), 1)), ca)


@BOTH
def test_a_head_alone_may_come_in_records_of_one_byte(
    ca: Path, context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    context.minimum_version = context.maximum_version = version
    head = b"HTTP/1.1 200 OK\r\n" + b"X-Filling: " + b"x" * 15_000 + b"\r\n\r\n"
    assert_up(AtOnce(context, pieces(head, 1)), ca, None)


@BOTH
@pytest.mark.parametrize("packet", [1, 100, 5000])
def test_a_record_of_full_size_may_be_split_over_packets(
    ca: Path, context: ssl.SSLContext, version: ssl.TLSVersion, packet: int
) -> None:
    context.minimum_version = context.maximum_version = version
    response = body_of(16_384 - 100)

    def talk(client: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.sendall(outgoing.read())
                incoming.write(client.recv(65536))
        client.sendall(outgoing.read())
        with contextlib.suppress(ssl.SSLWantReadError):
            session.read(1)
        session.write(response)
        data = outgoing.read()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        for part in [*pieces(data[: 300 * packet], packet), data[300 * packet :]]:
            client.sendall(part)
        client.recv(65536)
        client.recv(1)

    assert_up(talk, ca)


_OPENSSL = ctypes.CDLL(ctypes.util.find_library("ssl"))
for _name in ("TLS_server_method", "SSL_CTX_new", "SSL_new"):
    getattr(_OPENSSL, _name).restype = ctypes.c_void_p


class BetweenRecords:
    """A server by OpenSSL itself, which does something between two records of its answer: ``act`` gets its SSL."""

    def __init__(
        self, pem: Path, version: int, records: Iterable[bytes], act: Callable[[ctypes.c_void_p], None]
    ) -> None:
        self._context = ctypes.c_void_p(_OPENSSL.SSL_CTX_new(ctypes.c_void_p(_OPENSSL.TLS_server_method())))
        for command in (123, 124):  # SSL_CTRL_SET_MIN_PROTO_VERSION, SSL_CTRL_SET_MAX_PROTO_VERSION
            assert _OPENSSL.SSL_CTX_ctrl(self._context, command, ctypes.c_long(version), None) == 1
        name = str(pem).encode()
        assert _OPENSSL.SSL_CTX_use_certificate_chain_file(self._context, name) == 1
        assert _OPENSSL.SSL_CTX_use_PrivateKey_file(self._context, name, 1) == 1
        self._records = list(records)
        self._act = act

    def __call__(self, client: socket.socket) -> None:
        client.setblocking(True)
        session = ctypes.c_void_p(_OPENSSL.SSL_new(self._context))
        buffer = ctypes.create_string_buffer(65536)
        try:
            _OPENSSL.SSL_set_fd(session, client.fileno())
            if _OPENSSL.SSL_accept(session) != 1 or _OPENSSL.SSL_read(session, buffer, 65536) <= 0:
                return
            corked(client, True)
            for record in self._records:
                _OPENSSL.SSL_write(session, record, len(record))
                self._act(session)
            corked(client, False)
            _OPENSSL.SSL_read(session, buffer, 1)
        finally:
            _OPENSSL.SSL_free(session)

    def close(self) -> None:
        _OPENSSL.SSL_CTX_free(self._context)


def new_keys(session: ctypes.c_void_p) -> None:
    _OPENSSL.SSL_key_update(session, 1)  # SSL_KEY_UPDATE_REQUESTED: the other side has to change its keys, too
    _OPENSSL.SSL_do_handshake(session)


def ticket(session: ctypes.c_void_p) -> None:
    _OPENSSL.SSL_new_session_ticket(session)
    _OPENSSL.SSL_do_handshake(session)


def renegotiation(session: ctypes.c_void_p) -> None:
    _OPENSSL.SSL_renegotiate(session)
    _OPENSSL.SSL_do_handshake(session)


@pytest.mark.parametrize(
    ("version", "act", "count"),
    [(0x0304, new_keys, 30), (0x0304, ticket, 30), (0x0303, renegotiation, 1)],
    ids=["key update", "ticket", "renegotiation"],
)
def test_the_handshake_may_go_on_between_two_records(
    ca: Path,
    authority: Certificate,
    tmp_path: Path,
    version: int,
    act: Callable[[ctypes.c_void_p], None],
    count: int,
) -> None:
    mine = Certificate(["127.0.0.1"], authority)
    mine.context(tmp_path)
    pem = tmp_path / f"{mine.certificate.serial_number}.pem"
    response = body_of(600)
    talk = BetweenRecords(pem, version, pieces(response, len(response) // count), act)
    try:
        assert_up(talk, ca)
    finally:
        talk.close()


@BOTH
def test_a_server_that_never_ends_its_small_records_holds_up_no_other(
    ca: Path, authority: Certificate, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    endless = Certificate(["127.0.0.1"], authority).context(tmp_path)
    endless.minimum_version = endless.maximum_version = version
    others = Certificate(["127.0.0.1"], authority).context(tmp_path)

    def talk(client: socket.socket) -> None:
        with contextlib.suppress(OSError), endless.wrap_socket(client, server_side=True) as connection:
            connection.recv(65536)
            connection.sendall(HEAD + b"1000000000\r\n\r\n")
            while True:
                connection.sendall(b".")

    quick = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 500 * MS)
    with server(talk) as bad, server(AtOnce(others, pieces(body_of(600), 20))) as good, probing() as p:
        kind = {"type": CheckType.HTTPS, "params": https(ca, response_regexp="last$"), **quick}
        bads = [p.add(check("http", bad.port, **kind), "127.0.0.1") for _ in range(4)]
        one = p.add(check("http", good.port, **kind), "127.0.0.1")
        p.becomes(one, State.UP)
        p.wait_probes(one, 3)
        p.becomes(bads[0], State.DOWN)
        assert p.last(one)[0] is Code.L7OK
        assert [State(each.to_state) for each in p.of(one)] == [State.UP]
