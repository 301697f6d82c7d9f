"""Blocking work off the event loop, on a thread that nothing waits for at the end of the process.

``asyncio.to_thread`` uses a pool whose threads the interpreter joins when it ends: one write to a disk that does not
answer would keep the daemon from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def start(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Call ``work()`` on a new thread; the future has its result, or its exception. Cancelling it stops nothing."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        # RuntimeError: the loop was closed meanwhile, so no task waits for this result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
