"""Tasks that do not die silently: what ends unexpectedly is logged with its traceback, counted, and started again or
ends the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from maglev.base import logs
from maglev.base.clock import Clock

log = logs.get(__name__)

RESTART_SECONDS = 1.0
RESTART_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0


class Supervisor:
    """Runs the daemon's tasks. ``failures`` counts by name how often one ended by an exception.

    A *restarted* task is started again after a pause that doubles up to 30 s, and begins at 1 s again once it has run
    for a minute. A *vital* task ends the daemon: ``fatal`` is done then, with its name.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failures: dict[str, int] = {}
        self.fatal: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Callable[[], Awaitable[None]], *, vital: bool = False) -> None:
        """Run ``work()`` as a task of that name. It is meant to run until it is cancelled; an orderly end is one."""
        if name in self._tasks:
            raise ValueError(f"a task {name!r} runs already")
        self.failures.setdefault(name, 0)
        self._tasks[name] = asyncio.create_task(self._run(name, work, vital), name=f"maglev-{name}")

    async def _run(self, name: str, work: Callable[[], Awaitable[None]], vital: bool) -> None:
        pause = RESTART_SECONDS
        while True:
            began = self._clock.monotonic_ns()
            try:
                await work()
                return
            except Exception as error:
                self.failures[name] += 1
                what = "the daemon ends" if vital else f"it starts again in {pause:g} s"
                log.exception("task-failed", f"task {name} failed, {what}: {error}", error, task=name)
            if vital:
                if not self.fatal.done():
                    self.fatal.set_result(name)
                return
            await self._clock.sleep(pause)
            steady = self._clock.monotonic_ns() - began > STEADY_SECONDS * 1e9
            pause = RESTART_SECONDS if steady else min(pause * 2, RESTART_SECONDS_MAX)

    @property
    def names(self) -> list[str]:
        """Names of the tasks that run."""
        return [name for name, task in self._tasks.items() if not task.done()]

    async def stop(self, name: str, seconds: float = 1.0) -> bool:
        """Cancel a task and wait for its end, for at most ``seconds``; False if it has not ended by then."""
        task = self._tasks.pop(name, None)
        if task is None:
            return True
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=seconds)
        if pending:
            log.error("task-stuck", f"task {name} did not end within {seconds:g} s", task=name)
        return not pending

    async def stop_all(self, seconds: float = 1.0) -> None:
        """Cancel all tasks and wait for their ends together."""
        tasks, self._tasks = set(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=seconds)
            for task in pending:
                log.error("task-stuck", f"{task.get_name()} did not end within {seconds:g} s", task=task.get_name())
