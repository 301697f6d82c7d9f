"""Cookies, parsers and the wheel, for any input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from maglev import _cores
from maglev._cores import HttpParser, TimingWheel

keys = st.binary(min_size=16, max_size=16)
words = st.integers(0, 2**32 - 1)


@given(keys, words)
def test_a_cookie_opens_to_what_it_was_made_of(key: bytes, plain: int) -> None:
    assert _cores.open_cookie(key, _cores.seal_cookie(key, plain)) == plain


@given(keys, st.lists(words, unique=True, max_size=200))
def test_no_two_probes_share_a_cookie(key: bytes, plains: list[int]) -> None:
    assert len({_cores.seal_cookie(key, plain) for plain in plains}) == len(plains)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_crash_the_packet_parsers(data: bytes, v6: bool) -> None:
    kinds = {"malformed", "other", "echo", "syn-ack", "rst", "error-icmp", "error-tcp"}
    assert _cores.read_icmp(data, v6)["kind"] in kinds
    assert _cores.read_tcp(data, v6)["kind"] in kinds


# Bytes that get far: pieces of responses in any order, and noise.
pieces = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"\n",
        b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"abcde",
        b"x" * 5000,
        b" folded\r\n",
        b"\0",
        b"f" * 16 + b"\r\n",
    ]
)
streams = st.lists(pieces | st.binary(max_size=20), max_size=30).map(b"".join)


def outcome(parts: Sequence[bytes], want_body: bool, closed: bool) -> tuple[str, int, str, bytes]:
    parser = HttpParser([200], want_body=want_body)
    for part in parts:
        parser.feed(part)
    if closed:
        parser.eof()
    assert len(parser.body) <= 65536
    if closed:
        assert parser.state != "more"
    return parser.state, parser.status, parser.fault, parser.body


@given(streams, st.lists(st.integers(0, 2000), max_size=10), st.booleans(), st.booleans())
def test_a_response_means_the_same_however_it_is_split(
    data: bytes, cuts: list[int], want_body: bool, closed: bool
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    parts = [data[low:high] for low, high in itertools.pairwise(edges)]
    assert outcome(parts, want_body, closed) == outcome([data], want_body, closed)


class Wheel(RuleBasedStateMachine):
    """The wheel against a dictionary: nothing is lost, nothing comes before the wheel has reached it."""

    SLOTS = 12

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_003
        self.wheel = TimingWheel(self.SLOTS, self.now)
        self.due: dict[int, int] = {}

    @rule(index=st.integers(0, SLOTS - 1), ahead=st.integers(-5, 10_000))
    def put(self, index: int, ahead: int) -> None:
        self.wheel.put(index, self.now + ahead)
        self.due[index] = max(self.now + ahead, self.now + 1)

    @rule(index=st.integers(0, SLOTS - 1))
    def remove(self, index: int) -> None:
        self.wheel.remove(index)
        self.due.pop(index, None)

    @rule(ahead=st.integers(0, 9000))
    def take(self, ahead: int) -> None:
        until = self.now + ahead
        taken = self.wheel.take(until)
        assert len(set(taken)) == len(taken)
        # What is further ahead than the wheel reaches comes by early, a whole number of rounds.
        expected = {
            index
            for index, at in self.due.items()
            if any(self.now < one <= until for one in range(at, self.now, -4096))
        }
        assert set(taken) == expected
        self.now = until
        for index in taken:
            at = self.due.pop(index)
            if at > until:
                self.wheel.put(index, at)
                self.due[index] = at

    @invariant()
    def the_next_look_is_known(self) -> None:
        if not self.due:
            assert self.wheel.next() == -1
        else:
            looks = [at - (at - self.now - 1) // 4096 * 4096 for at in self.due.values()]
            assert self.wheel.next() == min(looks)


TestWheel = Wheel.TestCase
