"""The stand-in answers what a real VPP answered, byte for byte, over a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import transcripts
from tests.helpers.vppsim import connected, stand_in


@pytest.mark.parametrize("scenario", transcripts.SCENARIOS)
async def test_a_recording_is_answered_byte_for_byte(scenario: str, tmp_path: Path) -> None:
    # The recordings were made in the first second of a VPP's life: the clock stands still.
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        for number, call in enumerate(transcripts.calls(scenario)):
            found = await client.call(call.message, call.payload)
            expected = [(reply.message, reply.payload) for reply in call.replies]
            assert found == expected, f"call {number}: {call.message} {call.args}"
    assert not server.ignored
    assert server.crashes == []


async def test_recordings_are_answered_alike_under_other_message_ids(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock", first_id=4711) as server, connected(server.path) as client:
        for call in transcripts.calls("basics"):
            assert await client.call(call.message, call.payload) == [(r.message, r.payload) for r in call.replies]
