"""The board of ``maglevc top``: what it begins with, and weights in the room that there is."""

from __future__ import annotations

import pytest

from maglev.cli.text import Style
from maglev.cli.top import Board, _fitting
from maglev.pb import maglev_pb2 as pb

SECOND = 10**9


def _past(number: int, age_ns: int, name: str) -> pb.PastEvent:
    event = pb.BackendEvent(name=name, from_state=pb.BACKEND_STATE_UP, to_state=pb.BACKEND_STATE_DOWN, at_ns=SECOND)
    return pb.PastEvent(id=number, age_ns=age_ns, event=pb.Event(backend=event))


def _drawn(board: Board) -> list[str]:
    return list(board.lines(Style(False, lambda: 80), 24))


def test_the_board_begins_with_what_happened_before() -> None:
    board = Board("unix:/run/x.sock", clock=lambda: 1_000.0)

    board.remember([_past(2, 30 * SECOND, "late"), _past(1, 300 * SECOND, "early")])

    shown = "\n".join(_drawn(board))
    assert "backend early  up -> down" in shown
    assert "backend late  up -> down" in shown
    assert "transitions 1 in 60 s" in shown, "the earlier one is minutes old"


def test_events_from_before_are_not_put_behind_newer_ones() -> None:
    board = Board("unix:/run/x.sock", clock=lambda: 1_000.0)
    board.remember([_past(1, SECOND, "first")])

    board.remember([_past(2, SECOND, "again")])

    assert "again" not in "\n".join(_drawn(board))


@pytest.mark.parametrize(
    ("room", "text"),
    [
        (80, "web0 100, web1 100, web2 50"),
        (27, "web0 100, web1 100, web2 50"),
        (26, "web0 100, web1 100 +1"),
        (20, "web0 100 +2"),
        (1, "web0 100 +2"),
    ],
)
def test_a_weight_is_whole_or_not_there(room: int, text: str) -> None:
    assert _fitting(["web0 100", "web1 100", "web2 50"], room) == text
