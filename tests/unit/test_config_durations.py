"""Durations: Go's grammar and Go's output."""

from __future__ import annotations

import pytest

from maglev.schema.durations import format_duration, parse_duration

MS = 1_000_000
S = 1000 * MS
M = 60 * S
H = 60 * M


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("1ns", 1),
        ("1us", 1000),
        ("1µs", 1000),
        ("1μs", 1000),
        ("200ms", 200 * MS),
        ("5s", 5 * S),
        ("1m30s", 90 * S),
        ("1h", H),
        ("1h1m1s1ms", H + M + S + MS),
        ("1.5s", 1500 * MS),
        (".5s", 500 * MS),
        ("5.s", 5 * S),
        ("0.000000001s", 1),
        ("1s1s", 2 * S),
        ("30s1m", 90 * S),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


TOO_LONG = ["9" * 63, "9223372036854775808ns", "2562048h", "1" * 100 + "s"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "1.5",
        "s",
        ".s",
        "5 s",
        " 5s",
        "5s ",
        "-5s",
        "+5s",
        "5x",
        "5S",
        "1e3s",
        "soon",
        "５s",
        "1..5s",
        *TOO_LONG,
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_missing_unit_is_named() -> None:
    with pytest.raises(ValueError, match="lacks a unit"):
        parse_duration("40")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1100, "1.1µs"),
        (2 * MS + 200_000, "2.2ms"),
        (200 * MS, "200ms"),
        (S, "1s"),
        (3300 * MS, "3.3s"),
        (90 * S, "1m30s"),
        (5 * M, "5m0s"),
        (H, "1h0m0s"),
        (H + 1, "1h0m0.000000001s"),
        (-90 * S, "-1m30s"),
        ((1 << 63) - 1, "2562047h47m16.854775807s"),
    ],
)
def test_durations_are_written_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text
