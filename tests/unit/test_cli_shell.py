"""The shell's parts that need no terminal."""

from __future__ import annotations

import pytest

from maglev.cli.shell import SERVER_COLUMNS, shown


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("unix:/run/vpp-maglev/maglevd.sock", ""),
        ("localhost:9090", "localhost:9090 "),
        ("unix:/run/other.sock", "unix:/run/other.sock "),
        ("unix:/srv/site-a/vpp-maglev/maglevd.sock", "...p-maglev/maglevd.sock "),
        ("a\x1b[2J", "a\\x1b[2J "),
    ],
)
def test_the_prompt_leaves_room_for_the_command(server: str, expected: str) -> None:
    assert shown(server) == expected
    assert len(shown(server)) <= SERVER_COLUMNS + 1
