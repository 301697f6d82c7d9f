"""Text for people: escaping, durations, tables, flags, servers."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest

from maglev.base.limits import MAX_DURATION_NS
from maglev.cli import grammar
from maglev.cli.client import Client, default_server, target
from maglev.cli.errors import UsageError
from maglev.cli.main import help_lines, parse_flags
from maglev.cli.text import (
    Style,
    Table,
    duration,
    escape,
    escape_json,
    explained,
    fields,
    parse_duration,
    parse_endpoint,
    wrap,
)

SECOND = 10**9


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("plain text", "plain text"),
        ("ümlaut 日本", "ümlaut 日本"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\r\ttab", "two\\nlines\\r\\ttab"),
        ("csi \x9b31m", "csi \\x9b31m"),
        ("right \u202eleft", "right \\u202eleft"),
        ("\x00\x7f", "\\x00\\x7f"),
    ],
)
def test_escape_leaves_nothing_that_a_terminal_could_act_upon(raw: str, escaped: str) -> None:
    assert escape(raw) == escaped
    assert escape(raw).isprintable()


def test_escaped_json_means_the_same() -> None:
    value = {"detail": "csi \x9b31m \x7f \u202e \U000e0001 日本 ü"}
    text = escape_json(json.dumps(value, ensure_ascii=False))

    assert text.isprintable()
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0ns"),
        (999, "999ns"),
        (1_500, "1.5us"),
        (2_000_000, "2ms"),
        (9_960_000, "10ms"),
        (999_600_000, "1s"),
        (3_400_000_000, "3.4s"),
        (59_700 * 10**6, "1m"),
        (312 * SECOND, "5m12s"),
        (3_599_900 * 10**6, "1h"),
        (7_500 * SECOND, "2h5m"),
        (90_061 * SECOND, "1d1h"),
        (400 * 86_400 * SECOND, "400d"),
        (-3 * SECOND, "-3s"),
    ],
)
def test_durations_have_two_units_at_most(ns: int, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("text", "ns"), [("90s", 90 * SECOND), ("1h30m", 5_400 * SECOND), ("1.5h", 5_400 * SECOND), ("200ms", SECOND // 5)]
)
def test_durations_are_read_as_go_writes_them(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "0s", "1d", "5sx", "9" * 400 + "h", "1e3s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0s", "0h", "8785h"])
def test_a_duration_out_of_range_is_not_called_none(text: str) -> None:
    with pytest.raises(UsageError, match=f"^'{text}': a duration here is above 0 and at most 366 days"):
        parse_duration(text)
    assert parse_duration("8784h") == MAX_DURATION_NS


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1", ("192.0.2.1", None)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("192.0.2.1:0", ("192.0.2.1", 0)),
        ("2001:db8::1", ("2001:db8::1", None)),
        ("[2001:DB8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_addresses_are_read_with_and_without_a_port(text: str, endpoint: tuple[str, int | None]) -> None:
    assert parse_endpoint(text) == endpoint


OTHERS = (
    "|web0|web0:80|192.0.2.1:|192.0.2.1:x|192.0.2.1:65536|192.0.2.1:-1|192.0.2:80|[192.0.2.1|[2001:db8::1"
    "|[2001:db8::1]80|[2001:db8::1]:|[2001:db8::1]x:80|[]:80|192.0.2.1:\u0661"
)


@pytest.mark.parametrize("text", OTHERS.split("|"))
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(text)


def test_tables_align_and_end_no_line_in_blanks() -> None:
    table = Table(Style(False), ("NAME", "STATE", "REST"), paint=("STATE",))
    lines = [
        *table.lines([("a", "up", "x"), ("longer-name", "down", "")]),
        *table.lines([("b", "up", ""), ("a-much-longer-name", "up", "y")]),
    ]

    assert lines == [
        "NAME         STATE  REST",
        "a            up     x",
        "longer-name  down",
        "b                   up",
        "a-much-longer-name  up     y",
    ]


def test_a_row_that_is_wider_than_the_terminal_goes_on_below() -> None:
    table = Table(Style(False, lambda: 30), ("NAME", "ADDRESS", "STATE", "N"), right=("N",), indent=2)
    rows = [("a-name", "2001:db8:1111::1", "up", "1"), ("b", "192.0.2.1", "", ""), ("c" * 31, "", "up", "100")]

    assert list(table.lines(rows[:2])) == [
        "  NAME    ADDRESS",
        "    STATE  N",
        "  a-name  2001:db8:1111::1",
        "    up     1",
        "  b       192.0.2.1",
    ]
    assert list(table.lines(rows[2:])) == [
        "  NAME",
        "    ADDRESS           STATE",
        "      N",
        "  " + "c" * 28,
        "  ccc",
        "                      up",
        "    100",
    ], "the headings come again, as the columns have moved"


def test_a_pipe_gets_a_line_for_each_row_and_one_for_the_headings() -> None:
    table = Table(Style(False), ("NAME", "TEXT"))

    assert list(table.lines([("a", "x" * 300)])) == ["NAME  TEXT", "a     " + "x" * 300]
    assert list(table.lines([("a" * 90, "y")])) == ["a" * 90 + "  y"]


def test_a_long_detail_is_cut_before_rows_take_two_lines_and_is_whole_in_a_pipe() -> None:
    detail = "connection refused by the firewall of the other site, as it says itself in its ICMP message"
    rows = [("web0", "192.0.2.1", "up", ""), ("web1", "192.0.2.2", "down", detail)]
    headings = ("BACKEND", "ADDRESS", "STATE", "DETAIL")

    narrow = list(Table(Style(False, lambda: 80), headings, shorten=("DETAIL",)).lines(rows))
    pipe = list(Table(Style(False), headings, shorten=("DETAIL",)).lines(rows))

    assert len(narrow) == 3, "a line for each row"
    assert narrow[2] == "web1     192.0.2.2  down   " + detail[:52] + "…"
    assert len(narrow[2]) == 80
    assert pipe[2].endswith(detail)


def test_what_is_cut_for_want_of_room_is_cut_no_more_than_that() -> None:
    fits = list(Table(Style(False, lambda: 12), ("A", "DETAIL"), shorten=("DETAIL",)).lines([("a", "x" * 9)]))

    assert fits == ["A  DETAIL", "a  " + "x" * 9]


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 20, 79, 80, 200])
def test_no_table_is_wider_than_its_terminal(columns: int) -> None:
    rows = [(f"backend-{at}", "2001:db8::" + "f" * at, "up drained", "word " * at + ".") for at in range(40)]
    style = Style(False, lambda: columns)
    shown = list(Table(style, ("BACKEND", "ADDRESS", "STATE", "DETAIL"), paint=("STATE",)).lines(rows))

    # What is below is indented by two, and a column has room for a character.
    assert max(map(len, shown)) <= max(columns, 3)
    letters = Counter("".join(cell for row in rows for cell in row)) + Counter("BACKENDADDRESSSTATEDETAIL")
    assert Counter("".join(shown)) - letters - Counter({" ": sys.maxsize}) == Counter()
    assert letters - Counter("".join(shown)) - Counter({" ": sys.maxsize}) == Counter(), "nothing was left out"


def test_long_values_go_on_below_their_beginning() -> None:
    style = Style(False, lambda: 30)
    value = "a description that does not fit on one line"

    assert list(fields(style, [("name", value), ("other", "x")])) == [
        "  name   a description that",
        "         does not fit on one",
        "         line",
        "  other  x",
    ]


def test_a_line_is_broken_between_words_and_goes_on_further_in() -> None:
    line = "  note: the unit of www is 10, so that VPP is given 5"

    assert list(wrap(line, 24)) == [
        "  note: the unit of www",
        "    is 10, so that VPP",
        "    is given 5",
    ]
    assert list(wrap(line, 24, 0))[1:] == ["  is 10, so that VPP is", "  given 5"]
    assert list(wrap(line, len(line))) == list(wrap(line, 0)) == [line], "what fits stays, and what is no terminal's"


def test_a_word_that_is_too_long_is_broken_behind_its_punctuation_or_anywhere() -> None:
    assert list(wrap("/etc/vpp-maglev/maglev.yaml:12: " + "x" * 21, 20)) == [
        "/etc/vpp-maglev/",
        "  maglev.yaml:12:",
        "  " + "x" * 18,
        "  xxx",
    ]


def test_colours_take_no_room_and_go_on() -> None:
    style = Style(True)
    bold, end = style.paint("|", "bold").split("|")
    line = (
        style.paint("  vip 192.0.2.80 tcp 80", "bold") + " (frontend www) [" + style.paint("warning", "warning") + "]"
    )

    assert list(wrap(style.paint("one two", "bold"), 7)) == [style.paint("one two", "bold")]
    assert list(wrap(style.paint("  one two ", "bold"), 6)) == [f"  {bold}one", f"   two{end}"]
    for columns in range(1, 50):
        pieces = list(wrap(line, columns))
        assert re.findall(r"\x1b\[\d+m", "".join(pieces)) == re.findall(r"\x1b\[\d+m", line)
        plain = [re.sub(r"\x1b\[\d+m", "", piece) for piece in pieces]
        assert max(map(len, plain)) <= columns
        assert "".join("".join(plain).split()) == "".join(re.sub(r"\x1b\[\d+m", "", line).split())


@pytest.mark.parametrize("columns", [1, 5, 20, 36, 60, 79, 80, 200])
def test_help_fits_the_terminal_and_80_columns(columns: int) -> None:
    # The headings of --help are as they are.
    shown = [*explained(grammar.usage(), columns, 38), *(help_lines(columns) if columns > 30 else ())]

    assert max(map(len, shown)) <= min(columns, 80)
    words = "".join(" ".join(shown).split())
    for syntax, text in grammar.usage():
        assert "".join(syntax.split()) in words
        assert "".join(text.split()) in words


def test_help_stands_beside_what_it_explains_or_below() -> None:
    pairs = [("show version", "who answers: versions, uptime, what is configured"), ("a-term-of-20-letters", "x")]

    assert list(explained(pairs, 0, 12)) == [
        "  show version  who answers: versions, uptime, what is configured",
        "  a-term-of-20-letters",
        "                x",
    ]
    assert list(explained(pairs, 40, 12)) == [
        "  show version  who answers: versions,",
        "                uptime, what is",
        "                configured",
        "  a-term-of-20-letters",
        "                x",
    ]
    assert list(explained(pairs, 36, 12)) == [
        "  show version",
        "      who answers: versions, uptime,",
        "      what is configured",
        "  a-term-of-20-letters",
        "      x",
    ]


def test_colours_do_not_move_columns() -> None:
    plain = Table(Style(False), ("NAME", "STATE", "REST"), paint=("STATE",))
    coloured = Table(Style(True), ("NAME", "STATE", "REST"), paint=("STATE",))
    rows = [("a", "up", "x"), ("b", "down drained", "y")]

    stripped = [re.sub(r"\x1b\[\d+m", "", line) for line in coloured.lines(rows)]
    assert stripped == list(plain.lines(rows))


def test_cells_are_escaped() -> None:
    table = Table(Style(False), ("NAME", "REST"))

    assert list(table.lines([("\x1b[2J", "x")]))[1] == "\\x1b[2J  x"
    assert list(fields(Style(False), [("name", "a\nb"), ("empty", "")])) == ["  name  a\\nb"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["show", "version"], {"words": ["show", "version"]}),
        (["--json", "show", "version"], {"json": True, "words": ["show", "version"]}),
        (["show", "version", "-json"], {"json": True, "words": ["show", "version"]}),
        (["--server", "a:1"], {"server": "a:1"}),
        (["-server=a:1"], {"server": "a:1"}),
        (["--color"], {"colour": True}),
        (["-color=false"], {"colour": False}),
        (["--color=true"], {"colour": True}),
        (["--version"], {"version": True}),
        (["--tls-ca", "ca.pem", "--tls-server-name=x"], {"tls_ca": "ca.pem", "tls_server_name": "x"}),
        (["--", "--json"], {"words": ["--json"]}),
    ],
)
def test_flags_with_one_dash_or_two(arguments: list[str], expected: dict[str, object]) -> None:
    flags = parse_flags(arguments, {})

    for name, value in expected.items():
        assert getattr(flags, name) == value
    assert flags.words == expected.get("words", [])


def test_the_flag_wins_over_the_environment() -> None:
    environment = {"MAGLEV_SERVER": "env:1"}

    assert parse_flags([], environment).server == "env:1"
    assert parse_flags(["--server", "flag:1"], environment).server == "flag:1"


@pytest.mark.parametrize("arguments", [["--bogus"], ["--server"], ["--color=blue"], ["-x"]])
def test_bad_flags_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_flags(arguments, {})


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("/run/x.sock", "unix:/run/x.sock"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("lb1.example.org", "dns:lb1.example.org:9090"),
        ("lb1.example.org:1234", "dns:lb1.example.org:1234"),
        ("192.0.2.1:1234", "dns:192.0.2.1:1234"),
        ("[2001:db8::1]:1234", "dns:[2001:db8::1]:1234"),
        ("[2001:db8::1]", "dns:[2001:db8::1]:9090"),
        ("2001:db8::1", "dns:[2001:db8::1]:9090"),
    ],
)
def test_servers(server: str, expected: str) -> None:
    assert target(server) == expected


def test_the_default_server_is_the_socket_if_it_can_be_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "maglevd.sock")

    assert default_server(path) == ("localhost:9090", f"{path}: No such file or directory")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert default_server(path) == ("localhost:9090", f"{path}: Connection refused")
        listener.listen()
        assert default_server(path) == (f"unix:{path}", "")


class Failed(grpc.RpcError):
    """A call that gRPC gave up."""

    def __init__(self, words: str) -> None:
        self._words = words

    def details(self) -> str:
        return self._words

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: "
         "Connection refused", "Connection refused"),
        ("errors resolving lb1:9090: [field:hostname lookup error:address lookup failed for lb1:9090: Domain name not "
         "found]", "Domain name not found"),
        ("something else: of another kind", "something else: of another kind"),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9443: Tls handshake failed "
         "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"
         "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK",
         "its certificate is not verified: unable to get local issuer certificate; --tls-ca names the authorities"),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9090: Tls handshake failed "
         "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: "
         "Invalid certificate verification context: OK", "it does not speak TLS: leave the TLS flags out"),
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9443: Custom verification check "
         "failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
         "its certificate is for another name: --tls-server-name says which"),
        ("failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:9443: Socket closed",
         "it closed the connection: it may want TLS (--tls-ca), or a certificate (--tls-cert, --tls-key)"),
        ("Socket closed", "Socket closed"),
    ],
)  # fmt: skip
def test_who_cannot_be_reached_is_told_in_few_words(details: str, told: str) -> None:
    client = Client("lb1", instead="/x: Permission denied")
    try:
        failure = client.failure(Failed(details))
    finally:
        client.close()
    assert (failure.status, str(failure)) == (3, f"cannot reach lb1: {told} (not asked: /x: Permission denied)")


@pytest.mark.parametrize("server", ["", "a b", "host:port", "host:0", "host:70000", "x\x1b:1"])
def test_bad_servers_are_refused(server: str) -> None:
    with pytest.raises(UsageError):
        target(server)
