"""Supervised tasks and the messages to systemd."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from maglev.daemon.sdnotify import Notifier
from maglev.daemon.supervise import Supervisor
from tests.helpers.checker import FakeClock


async def test_failed_task_is_counted_and_started_again() -> None:
    clock = FakeClock()
    supervisor = Supervisor(clock)
    runs: asyncio.Queue[int] = asyncio.Queue()
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        runs.put_nowait(count)
        if count < 3:
            raise RuntimeError("broken")
        await asyncio.Event().wait()

    supervisor.start("work", work)
    assert await runs.get() == 1
    await asyncio.sleep(0)
    clock.advance(1)
    assert await runs.get() == 2
    await asyncio.sleep(0)
    clock.advance(1)
    await asyncio.sleep(0)
    assert runs.empty()
    clock.advance(1)
    assert await runs.get() == 3
    assert supervisor.failures == {"work": 2}
    assert not supervisor.fatal.done()
    await supervisor.stop_all()
    assert supervisor.names == []


async def test_vital_task_ends_the_daemon() -> None:
    supervisor = Supervisor(FakeClock())

    async def work() -> None:
        raise RuntimeError("broken")

    supervisor.start("heart", work, vital=True)
    assert await supervisor.fatal == "heart"
    assert supervisor.failures == {"heart": 1}


async def test_task_that_will_not_end_is_reported() -> None:
    supervisor = Supervisor(FakeClock())
    entered = asyncio.Event()
    let_go = asyncio.Event()

    async def stubborn() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await let_go.wait()

    supervisor.start("stubborn", stubborn)
    await entered.wait()
    assert not await supervisor.stop("stubborn", seconds=0.01)
    let_go.set()
    assert await supervisor.stop("unknown")


async def test_two_tasks_of_one_name_are_a_mistake() -> None:
    supervisor = Supervisor(FakeClock())
    supervisor.start("one", asyncio.Event().wait)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one"):
        supervisor.start("one", asyncio.Event().wait)  # type: ignore[arg-type]
    await supervisor.stop_all()


def listener(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(path)
    return sock


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_ready_reloading_status_and_watchdog(tmp_path: Path, abstract: bool) -> None:
    name = f"@maglev-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listener("\0" + name[1:] if abstract else name) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog_seconds == 2.0
        notifier.ready("all\nwell")
        assert sock.recv(999) == b"READY=1\nSTATUS=all well"
        notifier.reloading()
        first, second = sock.recv(999).split(b"\n")
        assert first == b"RELOADING=1"
        assert second.startswith(b"MONOTONIC_USEC=")
        notifier.alive()
        assert sock.recv(999) == b"WATCHDOG=1"
        notifier.stopping()
        assert sock.recv(999) == b"STOPPING=1"
        notifier.close()
        assert notifier.lost == 0


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.alive()
    assert notifier.watchdog_seconds == 0
    assert notifier.lost == 0


def test_a_service_manager_that_is_gone_is_counted(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready()
    assert notifier.lost == 1


def test_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "x"), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    assert Notifier(environ).watchdog_seconds == 0
