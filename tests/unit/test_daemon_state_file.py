"""The state file: torn writes, previous copies, failures that are reported."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from maglev.checker.overrides import OverrideStore, from_json, to_json
from maglev.daemon.statefile import BadStateFile, NotSaved, StateFile, decode, encode
from maglev.views.backends import Override, OverrideKind
from tests.helpers.checker import FakeClock


async def saved(path: Path, *values: object) -> StateFile:
    file = StateFile(path, FakeClock())
    for value in values:
        file.set("section", value)
        await file.saved()
    return file


def loaded(path: Path) -> StateFile:
    file = StateFile(path, FakeClock())
    file.load()
    return file


async def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, ["one", 2, {"three": True}])
    again = loaded(path)
    assert again.get("section") == ["one", 2, {"three": True}]
    assert again.get("other") is None
    assert os.stat(path).st_mode & 0o777 & ~0o640 == 0


async def test_no_file_is_no_state_and_no_trouble(tmp_path: Path) -> None:
    file = loaded(tmp_path / "state.json")
    assert file.get("section") is None
    assert (file.fallbacks, file.unreadable) == (0, 0)


@pytest.mark.parametrize("cut", [0, 1, 20, 90, -2])
async def test_a_torn_file_is_replaced_by_the_previous_copy(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old", "new")
    path.write_bytes(path.read_bytes()[:cut])
    again = loaded(path)
    assert again.get("section") == "old"
    assert again.fallbacks == 1


async def test_a_file_that_vanished_is_replaced_by_the_previous_copy(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old", "new")
    path.unlink()
    again = loaded(path)
    assert (again.get("section"), again.fallbacks, again.unreadable) == ("old", 1, 0)
    path.with_name("state.json.prev").unlink()
    assert loaded(path).get("section") is None


async def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old", "new")
    path.write_bytes(path.read_bytes().replace(b"new", b"nEw"))
    assert loaded(path).get("section") == "old"


async def test_a_torn_file_does_not_take_the_place_of_a_good_previous_copy(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old", "new")
    path.write_bytes(b"torn")
    again = loaded(path)
    again.set("section", "newer")
    await again.saved()
    path.write_bytes(b"torn again")
    assert loaded(path).get("section") == "old"


async def test_both_copies_lost_is_counted_and_does_not_stop_the_start(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old", "new")
    path.write_bytes(b"{}")
    path.with_name("state.json.prev").write_bytes(b"[]")
    again = loaded(path)
    assert again.get("section") is None
    assert again.unreadable == 1


async def test_a_write_that_fails_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = await saved(path, "old")
    (tmp_path / ".state.json.new").mkdir()
    file.set("section", "new")
    with pytest.raises(NotSaved, match=r"state\.json"):
        await file.saved()
    assert file.failures == 1
    assert loaded(path).get("section") == "old"
    (tmp_path / ".state.json.new").rmdir()
    await file.saved()
    assert loaded(path).get("section") == "new"


async def test_a_disk_that_does_not_answer_is_told_and_holds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    os.mkfifo(path)
    # Real time: long enough for the last write to end in time on a busy machine.
    file = StateFile(path, FakeClock(), patience=0.3)
    file.load()
    assert file.unreadable == 1
    file.set("section", "new")
    for failures in (1, 2):
        with pytest.raises(NotSaved, match="has not answered"):
            await file.saved()
        assert file.failures == failures
    # It answers again: the one write that was begun comes to its end, and the file is whole.
    os.close(os.open(path, os.O_WRONLY))
    await file.saved()
    assert loaded(path).get("section") == "new"


async def test_overrides_are_kept_as_json_and_by_backend(tmp_path: Path) -> None:
    store = OverrideStore()
    drain = Override(OverrideKind.DRAIN, "b", "192.0.2.1", 1, reason='"quoted" \u20ac')
    store.put(drain)
    store.put(WEIGHT)
    path = tmp_path / "state.json"
    await saved(path, store.written())
    kept = loaded(path).get("section")
    assert isinstance(kept, list)
    assert {from_json(item) for item in kept} == {drain, WEIGHT}
    assert store.of("b") == [drain]
    store.drop(drain.key)
    store.drop(WEIGHT.key)
    assert (store.of("b"), store.of(WEIGHT.backend), store.written()) == ([], [], [])


async def test_the_previous_copy_is_the_file_before_the_last_change_also_where_somebody_edited_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state.json"
    file = await saved(path, "one", "two", "three")
    previous = path.with_name("state.json.prev")
    assert decode(previous.read_bytes()) == {"section": "two"}
    path.write_bytes(encode({"section": "by hand"}))
    file.set("section", "four")
    await file.saved()
    assert decode(previous.read_bytes()) == {"section": "by hand"}
    path.write_bytes(b"torn")
    file.set("section", "five")
    await file.saved()
    assert decode(previous.read_bytes()) == {"section": "by hand"}
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.prev"]


async def test_a_missing_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    path = tmp_path / "none" / "state.json"
    await saved(path, 1)
    assert loaded(path).get("section") == 1
    assert os.stat(path.parent).st_mode & 0o777 & ~0o750 == 0


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"in the way")
    file = StateFile(tmp_path / "none" / "state.json", FakeClock())
    file.set("section", 1)
    with pytest.raises(NotSaved, match="none"):
        await file.saved()


async def test_without_a_path_everything_is_kept_in_memory() -> None:
    file = StateFile(None, FakeClock())
    file.load()
    file.set("section", 1)
    await file.saved()
    assert file.get("section") == 1


async def test_run_writes_what_changes_and_tries_again_after_a_failure(tmp_path: Path) -> None:
    clock = FakeClock()
    path = tmp_path / "state.json"
    blocker = tmp_path / ".state.json.new"
    blocker.mkdir()
    file = StateFile(path, clock)
    task = asyncio.ensure_future(file.run())
    file.set("section", "value")
    async with asyncio.timeout(10):
        while not file.failures:
            await asyncio.to_thread(lambda: None)
        blocker.rmdir()
        clock.advance(10)
        while not file.written_at_ns:
            await asyncio.to_thread(lambda: None)
            clock.advance(10)
    task.cancel()
    assert loaded(path).get("section") == "value"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"version":2}', b'{"version":1,"sha256":"x","state":{}}', b'{"version":1,"state":[]}']
)
def test_what_is_not_ours_is_refused(data: bytes) -> None:
    with pytest.raises(BadStateFile):
        decode(data)


def test_encode_and_decode_are_inverse() -> None:
    state: dict[str, object] = {"b": [1, 2], "a": {"x": "\u00e9"}}
    assert decode(encode(state)) == state


WEIGHT = Override(
    OverrideKind.WEIGHT, "a", "192.0.2.1", 5, 9, "op", "why", frontend="www", pool="p", weight=3, file_weight=100
)


def test_overrides_go_to_json_and_back() -> None:
    for override in (WEIGHT, Override(OverrideKind.ENABLE, "b", "2001:db8::1", 7, file_enabled=False)):
        assert from_json(to_json(override)) == override


@pytest.mark.parametrize(
    "broken",
    [
        [],
        {},
        {**to_json(WEIGHT), "kind": "explode"},
        {**to_json(WEIGHT), "weight": 101},
        {**to_json(WEIGHT), "weight": True},
        {**to_json(WEIGHT), "since_ns": -1},
        {**to_json(WEIGHT), "by": 3},
        {**to_json(WEIGHT), "file_enabled": "yes"},
    ],
)
def test_broken_override_is_refused(broken: object) -> None:
    with pytest.raises(ValueError, match=r"override|not a valid"):
        from_json(broken)


def test_store_keeps_one_override_a_thing() -> None:
    store = OverrideStore()
    store.put(Override(OverrideKind.DISABLE, "a", "192.0.2.1", 1))
    store.put(Override(OverrideKind.ENABLE, "a", "192.0.2.1", 2))
    store.put(WEIGHT)
    assert [o.kind for o in store] == [OverrideKind.ENABLE, OverrideKind.WEIGHT]
    assert store.weight("www", "p", "a") == 3
    assert store.drop(WEIGHT.key) is WEIGHT
    assert store.drop(WEIGHT.key) is None
    assert store.weight("www", "p", "a") is None
    assert len(store) == 1
