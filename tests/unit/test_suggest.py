"""Names that were probably meant."""

from __future__ import annotations

import pytest

from maglev.base.pace import at_once
from maglev.base.suggest import closest, did_you_mean

NAMES = ["nginx0-ams", "nginx1-ams", "static-primary", "www-v6", "WWW-v4"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nginx0-am", ("nginx0-ams",)),
        ("ngnix1-ams", ("nginx1-ams",)),
        ("www-V6", ("www-v6",)),
        ("static_primary", ("static-primary",)),
        ("primary-static", ()),
        ("", ()),
        ("x" * 64, ()),
        ("quite another", ()),
    ],
)
def test_the_closest_names(name: str, meant: tuple[str, ...]) -> None:
    assert at_once(closest(name, NAMES)) == meant


def test_words() -> None:
    assert did_you_mean(()) == ""
    assert did_you_mean(("a",)) == "; did you mean 'a'?"
    assert did_you_mean(("a", "b")) == "; did you mean 'a' or 'b'?"


def test_no_slice_of_the_work_grows_with_the_number_of_names() -> None:
    names = {f"backend-{number:05}": None for number in range(50_000)}
    assert sum(1 for _ in closest("backnd-xx999", names)) > 100, "it can be interrupted"
    assert len(at_once(closest("backnd-xx999", names))) <= 3
