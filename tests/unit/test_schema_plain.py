"""Dataclasses as lists of plain values: every type hint that has a form comes back, and no other is accepted."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from maglev.schema.plain import form, pack, unpack


class Word(enum.Enum):
    """A word."""

    SEND = "send"
    EXPECT = "expect"


@dataclass(frozen=True, slots=True)
class Step:
    """A nested dataclass."""

    word: Word
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Everything:
    """A field of every kind that has a form."""

    number: int
    share: float
    flag: bool
    text: str | None
    word: Word
    step: Step | None
    steps: tuple[Step, ...]
    ranges: tuple[tuple[int, int], ...]
    words: tuple[Word, ...]
    address: IPv4Address | IPv6Address
    source4: IPv4Address | None
    source6: IPv6Address | None


@dataclass(frozen=True, slots=True)
class Alone:
    """A single field."""

    text: str


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_every_type_comes_back_through_json(address: str) -> None:
    full = Everything(
        1,
        0.5,
        True,
        "x",
        Word.SEND,
        Step(Word.EXPECT, "+PONG"),
        (Step(Word.SEND, "PING"), Step(Word.EXPECT)),
        ((200, 299), (304, 304)),
        (Word.EXPECT, Word.SEND),
        ip_address(address),
        IPv4Address("192.0.2.2"),
        IPv6Address("2001:db8::2"),
    )
    empty = Everything(0, 0.0, False, None, Word.SEND, None, (), (), (), ip_address(address), None, None)
    for thing in (full, empty):
        again = unpack(Everything, json.loads(json.dumps(pack(thing))))
        assert again == thing
        assert repr(again) == repr(thing)
    assert unpack(Alone, pack(Alone("x"))) == Alone("x")


@pytest.mark.parametrize("row", [[], ["send"], ["send", "x", "more"], ["shout", "x"]])
def test_a_row_of_another_shape_is_refused(row: list[object]) -> None:
    with pytest.raises(ValueError, match=r"values for the 2 fields of Step|'shout' is not a valid Word"):
        unpack(Step, row)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A tuple of several types."""

    pair: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Loose:
    """A value of any type."""

    thing: object


@pytest.mark.parametrize("cls", [Mixed, Loose])
def test_a_field_without_a_plain_form_is_refused(cls: type[object]) -> None:
    with pytest.raises(TypeError, match="no plain form"):
        form(cls)
