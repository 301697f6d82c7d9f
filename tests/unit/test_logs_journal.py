"""Priorities in front of each line, where standard error is the journal."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import pytest

from maglev.base.logs.journal import is_journal, prefixed, priority
from maglev.base.logs.record import Entry


def test_only_the_stream_that_the_service_was_started_with_is_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "other").open("w") as other:
        found = os.fstat(one.fileno())
        named = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(one, named)
        assert not is_journal(other, named)
        assert not is_journal(one, {})
        assert not is_journal(io.StringIO(), named)
        for strange in ("", ":", "1", "x:y", f"{found.st_dev}:", "²:³"):
            assert not is_journal(one, {"JOURNAL_STREAM": strange})


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_levels_are_those_of_syslog(level: int, number: int) -> None:
    assert priority(level) == number


def test_every_line_of_a_record_has_the_priority() -> None:
    entry = Entry(0.0, logging.WARNING, "test", "a", "maglev", {})
    assert prefixed(lambda _: "a\nb")(entry) == "<4>a\n<4>b"
