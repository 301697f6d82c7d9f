"""Whatever two numbers a network makes of a failure, its text is short and printable."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from maglev import _probe

words = st.integers(0, 2**32 - 1)


@given(st.integers(0, 15), words | st.integers(0, 300), st.none() | st.just("www.example.org"))
def test_every_detail_has_a_text(kind: int, value: int, name: str | None) -> None:
    assume(kind != 1 or value < 2**31)  # an errno is an int
    text = _probe.render_detail(kind, value, name)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 200
    assert not (kind == 0 and text)


@given(st.integers(0, 20), st.integers(0, 200), st.none() | st.just("dataplane"))
def test_every_block_has_a_text(kind: int, error: int, netns: str | None) -> None:
    text = _probe.render_blocked(kind, error, netns)
    assert text.isprintable()
    assert bool(text) == (kind != 0)
