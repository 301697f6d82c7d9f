"""Loading in a child process: same result, slices; a child that fails in any way says nothing about the file."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import orjson
import pytest

from maglev.base.errors import HostTrouble
from maglev.config import child
from maglev.config.child import check_in_child, load_in_child
from maglev.config.load import LoadResult, load_file, load_text
from maglev.config.model import Config
from maglev.config.rows import SLICE, pack, unpack

FULL = Path(__file__).parent.parent / "data" / "config" / "full.yaml"


async def lines(items: Iterable[bytes]) -> AsyncIterator[bytes]:
    for item in items:
        yield item


def many(count: int) -> str:
    backends = ",".join(f'"b{index}": {{"address": "10.0.{index >> 8}.{index & 255}"}}' for index in range(count))
    members = ",".join(f'"b{index}": {{"weight": {index % 101}}}' for index in range(count))
    return (
        f'{{"maglev": {{"vpp": {{"lb": {{"ipv4-src-address": "192.0.2.1"}}}}, "backends": {{{backends}}}, '
        f'"frontends": {{"f": {{"address": "192.0.2.80", "pools": [{{"name": "p", "backends": {{{members}}}}}]}}}}}}}}'
    )


def stand_in(path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in the interpreter's place; it is called as ``-P -m maglev.config.child FILE``."""
    script = path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


def gone(file: Path) -> bool:
    """Whether the process whose id is in ``file`` is no more, not even as a zombie."""
    return not Path(f"/proc/{file.read_text().strip()}").exists()


async def test_errors_and_warnings_come_over(tmp_path: Path) -> None:
    file = tmp_path / "maglev.yaml"
    for text in ("maglev: {colour: red}", "maglev: {healthchecks: {a: {type: icmp, rise: 0, timeout: 3s}}}", "[", ""):
        file.write_text(text)
        assert await load_in_child(file) == load_file(file)
        assert (await check_in_child(file)).problems == load_file(file).problems


async def test_who_asks_for_problems_is_not_sent_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []

    async def seen(answer: AsyncIterator[bytes], known: Config | None) -> LoadResult:
        taken.extend([line async for line in answer])
        return await unpack(lines(taken))

    monkeypatch.setattr(child, "unpack", seen)
    assert (await check_in_child(FULL)).problems == load_file(FULL).problems
    assert {orjson.loads(line)[0] for line in taken} <= {"problems", "end"}


async def test_large_result_comes_in_slices() -> None:
    result = load_text(many(2000), json=True)
    assert result.config is not None
    packed = list(pack(result))
    rows = [orjson.loads(line)[1] for line in packed]
    assert max(len(part) for part in rows) <= SLICE
    again = await unpack(lines(packed))
    assert again == result
    assert again.config is not None
    assert list(again.config.backends) == list(result.config.backends)


async def test_what_is_as_before_is_the_object_of_before() -> None:
    known = load_text(many(300), json=True).config
    changed = many(300).replace('{"weight": 7}', '{"weight": 0}', 1).replace('"10.0.0.9"', '"10.9.0.9"')
    result = load_text(changed, json=True)
    assert known is not None
    again = await unpack(lines(list(pack(result))), known)
    assert again == result
    assert again.config is not None
    others = [name for name, backend in again.config.backends.items() if backend is not known.backends[name]]
    assert len(others) == 1
    members = zip(again.config.frontends["f"].pools[0].members, known.frontends["f"].pools[0].members, strict=True)
    assert [new.weight for new, old in members if new is not old] == [0]
    same = await unpack(lines(list(pack(load_text(many(300), json=True)))), known)
    assert same.config is not None
    assert same.config.frontends["f"] is known.frontends["f"]


@pytest.mark.parametrize("reload", [False, True])
async def test_loop_has_a_turn_after_each_slice(monkeypatch: pytest.MonkeyPatch, reload: bool) -> None:
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    result = load_text(many(2000), json=True)
    known = result.config if reload else None
    packed = list(pack(result))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await unpack(lines(packed), known)
    counter.cancel()
    # Whom a configuration in force has in its one pool is looked at in slices, too.
    assert turns >= len(packed) - 1 + 2000 * reload


@pytest.mark.parametrize("cut", [0, 1, 3, -1])
async def test_answer_that_ends_early_is_an_error(cut: int) -> None:
    packed = list(pack(load_file(FULL)))
    with pytest.raises(ValueError, match="ends early"):
        await unpack(lines(packed[:cut]))


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"",
        b"5",
        b"[]",
        b'["config", 5]',
        b'["backends", [[1, 2, 3]]]',
        b'["backends", [["a", "zz", null, true]]]',
        b'["frontends", [[]]]',
        b'["problems", [["no kind", "", ""]]]',
        b'["problems", [["parse"]]]',
        b'["other", []]',
    ],
)
async def test_answer_that_makes_no_sense_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        await unpack(lines([line, b'["end", []]']))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo nonsense", "failed"),
        ("exit 3", "the answer ends early"),
        ("kill -9 $$", "the answer ends early"),
        ("echo 'out of luck' >&2; exit 1", "out of luck"),
        ("head -c 20000000 /dev/zero", "failed"),
        ("head -c 1000000 /dev/zero >&2; exit 1", "the answer ends early"),
    ],
)
async def test_child_that_fails_is_trouble_of_the_host(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, body, monkeypatch)
    with pytest.raises(HostTrouble, match=message):
        await load_in_child(FULL)


async def test_child_that_cannot_start_is_trouble_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(HostTrouble, match="cannot start the process"):
        await load_in_child(FULL)


async def test_child_that_finds_no_descriptor_says_what_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(HostTrouble, match=r"too many open files \(raise LimitNOFILE of the service\)$"):
        await load_in_child(FULL)


async def test_child_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "pid"
    stand_in(tmp_path, f"echo $$ > {mark}; exec sleep 1000", monkeypatch)
    with pytest.raises(HostTrouble, match=r"took longer than 0\.5 s"):
        await load_in_child(FULL, deadline=0.5)
    assert gone(mark)


async def test_child_whose_end_cannot_be_seen_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "exec sleep 1000", monkeypatch)
    monkeypatch.setattr(child, "END_SECONDS", 0.05)
    for unseen in (lambda _: os.eventfd(0), lambda _: os.open("/nonexistent", os.O_RDONLY)):
        monkeypatch.setattr(os, "pidfd_open", unseen)
        with pytest.raises(HostTrouble, match=r"took longer than 0\.1 s"):
            await load_in_child(FULL, deadline=0.1)


async def test_cancelling_kills_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "started"
    pid = tmp_path / "pid"
    os.mkfifo(pipe)
    stand_in(tmp_path, f"echo $$ > {pid}; echo > {pipe}; exec sleep 1000", monkeypatch)
    task = asyncio.create_task(load_in_child(FULL))
    await asyncio.to_thread(pipe.read_text)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)


async def test_child_needs_no_working_directory_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file that happens to lie where the daemon was started must not be imported.
    (tmp_path / "yaml.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    assert (await load_in_child(FULL)).config is not None


async def test_child_refuses_a_wrong_call() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "maglev.config.child", stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"usage" in err


async def test_a_killed_child_is_trouble_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "kill -KILL $$", monkeypatch)
    with pytest.raises(HostTrouble, match=r"was killed \(the answer ends early\), which the kernel does"):
        await load_in_child(FULL)


def test_the_kernel_is_told_to_kill_the_child_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = tmp_path / "oom_score_adj"
    monkeypatch.setattr(child, "OOM_SCORE", score)
    monkeypatch.setattr(sys, "argv", ["child", "--only-problems", str(FULL)])
    monkeypatch.setattr(os, "nice", lambda increment: increment)
    assert child.main() == 0
    assert score.read_text() == "1000"
