"""Long work in slices."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from maglev.base import pace


class _Thing:
    pass


async def test_what_is_let_go_is_freed_piece_by_piece_while_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SLICE_NS", 0)
    things: list[object] = [_Thing() for _ in range(5)]
    left = [weakref.ref(thing) for thing in things]
    seen = []

    async def others() -> None:
        while things:
            seen.append(sum(ref() is not None for ref in left))
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    things.append(list(things))  # goes first, and holds none of them then
    await pace.let_go(things)
    await other
    assert seen == [5, 4, 3, 2, 1]
    assert not any(ref() for ref in left)
