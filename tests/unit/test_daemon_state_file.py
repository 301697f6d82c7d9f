"""The state file: torn writes, previous copies, failures that are reported."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from maglev.base.clock import SystemClock
from maglev.checker.overrides import OverrideStore, from_json, to_json
from maglev.cli.client import CALL_SECONDS
from maglev.daemon.statefile import WRITE_SECONDS, BadStateFile, NotSaved, StateFile, decode, encode
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
    (tmp_path / "state.json.prev").mkdir()
    file.set("section", "new")
    with pytest.raises(NotSaved, match=r"state\.json"):
        await file.saved()
    assert file.failures == 1
    assert loaded(path).get("section") == "old"
    (tmp_path / "state.json.prev").rmdir()
    await file.saved()
    assert loaded(path).get("section") == "new"


async def test_a_disk_that_does_not_answer_is_told_and_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    answers = threading.Event()
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        answers.wait(10)
        honest(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    # Real time: long enough for the last write to end in time on a busy machine.
    file = StateFile(path, FakeClock(), patience=0.3)
    file.set("section", "new")
    for failures in (1, 2):
        with pytest.raises(NotSaved, match="has not answered"):
            await file.saved()
        assert file.failures == failures
    # It answers again: the one write that was begun comes to its end, and the file is whole.
    answers.set()
    await file.saved()
    assert loaded(path).get("section") == "new"


def special(path: Path, kind: str) -> None:
    """Something that is no regular file."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    else:
        path.symlink_to("/dev/null")


@pytest.mark.parametrize("name", ["state.json", "state.json.prev"])
@pytest.mark.parametrize("kind", ["FIFO", "directory", "socket", "link to a device"])
async def test_what_is_no_regular_file_is_refused_at_once_and_left_alone(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "state.json"
    there = tmp_path / name
    special(there, kind)
    before = there.lstat()
    file = StateFile(path, FakeClock(), patience=5)
    file.load()
    file.set("section", "new")
    with pytest.raises(NotSaved, match=rf"state file .*: .*/{name} is not a regular file, and is left alone"):
        await file.saved()
    assert file.get("section") == "new"
    assert there.lstat() == before
    if there.is_dir():
        there.rmdir()
    else:
        there.unlink()
    await file.saved()
    assert loaded(path).get("section") == "new"


async def test_links_planted_under_temporary_names_stop_no_write_and_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".state.json.new", ".state.json.prev.new"):
        (tmp_path / name).symlink_to(victim)
    await saved(path, "one", "two")
    assert loaded(path).get("section") == "two"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "aside"), [("state.json", "state.json.v2"), ("state.json.prev", "state.json.prev.v2")]
)
async def test_a_file_of_a_future_version_is_kept_under_a_name(
    tmp_path: Path, name: str, aside: str, caplog: pytest.LogCaptureFixture
) -> None:
    future = b'{"version":2,"sha256":"x","state":{"overrides":"in another form"}}\n'
    path = tmp_path / "state.json"
    (tmp_path / name).write_bytes(future)
    file = loaded(path)
    assert "version 2, of a newer maglevd" in caplog.text
    for value in ("one", "two", "three"):
        file.set("section", value)
        await file.saved()
    assert (tmp_path / aside).read_bytes() == future
    assert f"is kept as {tmp_path / aside}" in caplog.text
    assert loaded(path).get("section") == "three"
    assert sorted(os.listdir(tmp_path)) == sorted(["state.json", "state.json.prev", aside])


async def test_a_file_with_an_entry_that_makes_no_sense_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    await saved(path, "old")
    before = path.read_bytes()
    file = loaded(path)
    file.distrust()
    for value in ("one", "two"):
        file.set("section", value)
        await file.saved()
    assert (tmp_path / "state.json.bad").read_bytes() == before


async def test_whatever_keeps_a_change_from_the_disk_is_told_as_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    file = StateFile(path, FakeClock())
    file.set("section", 1 << 70)
    with pytest.raises(NotSaved, match=r"state\.json: Integer exceeds 64-bit range"):
        await file.saved()
    assert file.get("section") == 1 << 70


async def test_a_file_that_is_nested_too_deeply_stops_neither_start_nor_write(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"version":1,"sha256":"x","state":{"a":' + b"[" * 500 + b"]" * 500 + b"}}")
    file = loaded(path)
    assert file.unreadable == 1
    file.set("section", "new")
    await file.saved()
    assert loaded(path).get("section") == "new"
    assert (tmp_path / "state.json.bad").exists()


def test_a_caller_hears_of_a_slow_disk_before_it_gives_up() -> None:
    assert WRITE_SECONDS + 1 <= CALL_SECONDS


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
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.bad", "state.json.prev"]
    assert (tmp_path / "state.json.bad").read_bytes() == b"torn"


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
    blocker = tmp_path / "state.json.prev"
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


@pytest.mark.parametrize("key", ["until_ns", "since_ns"])
def test_moments_that_the_api_cannot_tell_are_limited(key: str) -> None:
    override = from_json({**to_json(WEIGHT), key: (1 << 64) - 1, "file_weight": 1 << 40})
    assert getattr(override, key) == (1 << 63) - 1
    assert override.file_weight == 100


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


async def test_a_second_daemon_says_who_has_the_file_and_neither_reads_nor_writes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    first, second = StateFile(path, FakeClock()), StateFile(path, FakeClock())
    await first.claim()
    first.set("section", "first")
    await first.saved()
    await second.claim(0)
    who = f"another maglevd (pid {os.getpid()})"
    assert f"state file {path} is that of {who}: it is neither read nor written here" in caplog.text
    second.load()
    assert second.get("section") is None
    second.set("section", "second")
    with pytest.raises(NotSaved, match=r"state\.json: it is that of another maglevd \(pid [0-9]+\)"):
        await second.saved()
    assert (second.get("section"), second.failures) == ("second", 1)
    first.set("section", "first again")
    await first.saved()
    assert loaded(path).get("section") == "first again"


async def test_copies_of_what_was_not_understood_never_replace_the_first_and_are_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    for number in (0, 1, 1, 2, 3, 4, 5, 6):
        path.write_bytes(b"torn %d" % number)
        file = StateFile(path, FakeClock())
        file.load()
        file.set("section", number)
        await file.saved()
    kept = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path) if ".bad" in name}
    assert kept == {
        "state.json.bad": b"torn 0",
        "state.json.bad.2": b"torn 1",
        "state.json.bad.3": b"torn 2",
        "state.json.bad.4": b"torn 3",
        "state.json.bad.5": b"torn 6",
    }
    assert caplog.text.count("state.json.bad.5 is replaced by a newer one") == 2


async def test_only_a_file_of_ours_lasts(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    ours = StateFile(path, FakeClock())
    await ours.claim()
    theirs = StateFile(path, SystemClock())
    await theirs.claim(0)
    nothing, device = StateFile(None, FakeClock()), StateFile(Path("/dev/null"), FakeClock())
    await device.claim()
    assert [one.lasting for one in (ours, theirs, nothing, device)] == [True, False, False, False]


async def test_a_daemon_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    code = (
        "import sys; from maglev.base.lockfile import lock; lock(sys.argv[1], make=True);"
        "print('held', flush=True); sys.stdin.read()"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, f"{path}.lock", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"held\n"
    file = StateFile(path, SystemClock())
    claiming = asyncio.ensure_future(file.claim(20))
    await asyncio.sleep(0.3)
    assert not claiming.done()
    child.kill()
    await child.wait()
    async with asyncio.timeout(10):
        await claiming
    assert file.taken_by == ""


async def test_a_claim_removes_what_broken_writes_left_and_locks_no_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    for name in (".state.json.12ab.new", ".state.json.prev.12ab.new", ".other.new"):
        (tmp_path / name).write_bytes(b"")
    await StateFile(path, FakeClock()).claim()
    assert sorted(os.listdir(tmp_path)) == [".other.new", "state.json.lock"]
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    file = StateFile(device, FakeClock())
    await file.claim()
    assert "is not a regular file" in caplog.text
    assert not (tmp_path / "device.lock").exists()


async def test_a_state_file_where_strangers_can_write_is_used_without_a_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chmod(tmp_path, 0o1777)
    file = StateFile(tmp_path / "state.json", FakeClock())
    await file.claim()
    assert f"{tmp_path}: strangers can write to it" in caplog.text
    file.set("section", 1)
    await file.saved()
    assert loaded(tmp_path / "state.json").get("section") == 1
