"""HTTP responses, good and bad, at every split."""

from __future__ import annotations

import pytest

from maglev._cores import HttpParser


def parse(*parts: bytes, closed: bool = False, want_body: bool = False, head: bool = False) -> HttpParser:
    parser = HttpParser(range(200, 300), want_body=want_body, head=head)
    for part in parts:
        parser.feed(part)
    if closed:
        parser.eof()
    return parser


RESPONSES = [
    (b"HTTP/1.1 204 OK\r\n\r\n", "complete", 204, "", b""),
    (b"HTTP/1.0 204\r\n\r\n", "complete", 204, "", b""),
    (b"HTTP/1.1 204 No Content\nServer: x\n\n", "complete", 204, "", b""),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "complete", 200, "", b"ok"),
    (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\nHTTP/1.1 503 No\r\n\r\n", "complete", 503, "", b""),
    (b"HTTP/1.1 200 OK\r\ncontent-LENGTH:\t 5 \r\n\r\nhello, surplus", "complete", 200, "", b"hello"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "complete", 200, "", b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "complete", 200, "", b"abc"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "complete",
        200,
        "",
        b"abc0123456789",
    ),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n",
        "complete",
        200,
        "",
        b"z",
    ),
    (b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 5000 + b"\r\nContent-Length: 2\r\n\r\nok", "complete", 200, "", b"ok"),
    (b"HTTP/1.1 200 OK\r\nX: a\r\n Content-Length: 7\r\nContent-Length: 2\r\n\r\nok", "complete", 200, "", b"ok"),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnever", "complete", 404, "", b""),
    (b"SSH-2.0-OpenSSH\r\n", "failed", 0, "not an HTTP response", b""),
    (b"HTTP/2 200\r\n", "failed", 0, "not an HTTP response", b""),
    (b"HTTP/1.1 2000 OK\r\n", "failed", 0, "not an HTTP response", b""),
    (b"HTTP/1.1 099 OK\r\n", "failed", 99, "status 099", b""),
    (b"HTTP/1.1 000\r\n", "failed", 0, "status 000", b""),
    (b"HTTP/1.1 600 What\r\n\r\n", "failed", 600, "status 600", b""),
    (b"HTTP/1.0 999\n", "failed", 999, "status 999", b""),
    (b"HTTP/1.1 6OO What\r\n", "failed", 0, "not an HTTP response", b""),
    # An alert of TLS, which a plain request is answered with, and a handshake.
    (bytes.fromhex("1503010002 0246"), "failed", 0, "answers with TLS: use type https", b""),
    (bytes.fromhex("16030300 4a"), "failed", 0, "answers with TLS: use type https", b""),
    (bytes.fromhex("15020100"), "failed", 0, "not an HTTP response", b""),
    # HTTP/2: SETTINGS with two parameters, without any, GOAWAY; then what only begins like one.
    (bytes.fromhex("00000c0400000000000003000000640004") + bytes(4), "failed", 0, "answers with HTTP/2", b""),
    (bytes.fromhex("000000040000000000"), "failed", 0, "answers with HTTP/2", b""),
    (bytes.fromhex("000008070000000000") + bytes(8), "failed", 0, "answers with HTTP/2", b""),
    (bytes.fromhex("000000000000000000"), "failed", 0, "not an HTTP response", b""),
    (bytes.fromhex("000000040100000000"), "failed", 0, "not an HTTP response", b""),
    (bytes.fromhex("000000040000000001"), "failed", 0, "not an HTTP response", b""),
    (bytes.fromhex("00ff"), "failed", 0, "not an HTTP response", b""),
    (b"HTTP/1.1 20\r\n", "failed", 0, "not an HTTP response", b""),
    (b"\r\nHTTP/1.1 200 OK\r\n", "failed", 0, "not an HTTP response", b""),
    (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "failed", 200, "bad header", b""),
    (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 3000, "failed", 200, "headers longer than 16 KiB", b""),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "failed", 100, "headers longer than 16 KiB", b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n", "failed", 200, "bad content length", b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "failed", 200, "bad content length", b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "failed", 200, "bad content length", b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "failed", 200, "bad content length", b""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "failed", 200, "bad chunk", b""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "failed", 200, "bad chunk", b"a"),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 300 + b"\r\na\r\n",
        "failed",
        200,
        "bad chunk",
        b"",
    ),
]


@pytest.mark.parametrize(("data", "state", "status", "fault", "body"), RESPONSES, ids=range(len(RESPONSES)))
def test_a_response_ends_the_same_at_every_split(data: bytes, state: str, status: int, fault: str, body: bytes) -> None:
    splits = range(len(data) + 1) if len(data) < 400 else range(0, len(data) + 1, 97)
    for at in splits:
        parser = parse(data[:at], data[at:], want_body=True)
        assert (parser.state, parser.status, parser.fault, parser.body) == (state, status, fault, body)
    parser = parse(*(data[i : i + 1] for i in range(len(data))), want_body=True)
    assert (parser.state, parser.status, parser.fault, parser.body) == (state, status, fault, body)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "closed without a response"),
        (b"HTTP/1.1 2", "closed within the headers"),
        (b"\x15", "not an HTTP response"),
        (bytes.fromhex("0000000400"), "not an HTTP response"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "closed within the headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "closed within the body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", "closed within the body"),
    ],
)
def test_a_server_that_closes_early_gave_no_response(data: bytes, fault: str) -> None:
    parser = parse(data, closed=True, want_body=True)
    assert (parser.state, parser.fault) == ("failed", fault)


def test_without_a_length_the_close_ends_the_body() -> None:
    assert parse(b"HTTP/1.0 200 OK\r\n\r\nsome body", want_body=True).state == "more"
    parser = parse(b"HTTP/1.0 200 OK\r\n\r\nsome body", want_body=True, closed=True)
    assert (parser.state, parser.body) == ("complete", b"some body")


def test_a_body_is_read_only_where_it_is_wanted_and_can_be() -> None:
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert parse(data).state == "complete"
    assert parse(data, want_body=True, head=True).state == "complete"
    assert parse(data, want_body=True).state == "more"
    assert parse(data.replace(b"200", b"204"), want_body=True).state == "complete"


def test_a_body_is_kept_up_to_64_kib() -> None:
    parser = parse(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 1000] * 65, want_body=True)
    assert parser.state == "more"
    parser.feed(b"y" * 1000)
    assert parser.state == "complete"
    assert parser.body == b"x" * 65000 + b"y" * 536


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (HEAD, b"hello"),
        (CHUNKED, b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n"),
        (CHUNKED, b"what is no chunk\r\n"),
    ],
)
def test_the_end_of_a_response_is_found_after_its_verdict(head: bytes, rest: bytes) -> None:
    for at in range(len(rest)):
        parser = parse(head, rest[:at])
        assert parser.state == "complete"
        parser.feed(rest[at:])
        assert (parser.state, parser.rest, parser.fault, parser.body) == ("complete", False, "", b"")
    assert parse(head).rest
    assert parse(head, rest[:1]).rest


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", False),
        (HEAD, True),
        (HEAD.replace(b"200", b"204"), False),
        (HEAD.replace(b"200", b"304"), False),
        (HEAD.replace(b"5", b"0"), False),
    ],
)
def test_a_response_whose_end_is_unknown_or_here_has_no_rest(data: bytes, head: bool) -> None:
    parser = parse(data, head=head)
    assert (parser.state, parser.rest) == ("complete", False)


def test_no_more_than_64_kib_of_a_rest_are_worth_reading() -> None:
    parser = parse(HEAD.replace(b"5", b"100000"), *[b"x" * 1000] * 65)
    assert parser.rest
    parser.feed(b"x" * 1000)
    assert not parser.rest
