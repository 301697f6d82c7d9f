"""Loading in a child process: ``python -m maglev.config.child FILE`` loads, the parent takes the result in slices.

With ``--only-problems`` before the file, the child does not send the configuration itself.

Loading 50,000 backends takes a second of interpreter time, in which the event loop would deliver no verdict, and the
memory that it takes is not returned to the system. The child pays both. ``rows`` defines the lines that it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import IO

from maglev.base.errors import HostTrouble
from maglev.base.lacks import remedy
from maglev.config.load import CheckResult, LoadResult, load_file
from maglev.config.model import Config
from maglev.config.rows import pack, unpack

CHILD_SECONDS = 120.0
"""How long a load may take before the child is killed."""

ONLY_PROBLEMS = "--only-problems"

LONGEST_LINE = 8 << 20
"""Bytes. The longest row, a problem with all its text, has a few thousand; a line has at most a hundred rows."""

OOM_SCORE = FilePath("/proc/self/oom_score_adj")
"""proc(5): a process may raise its own without privilege; 1000 is the most."""

END_SECONDS = 5.0
"""How long the parent waits for a killed child to end."""

LAST_SECONDS = 1.0
"""How long a child that has closed its output may take to end by itself, so that its own status is known."""

NOT_READ = os.EX_TEMPFAIL
"""Exit status of a child that lacked something; the last line of its standard error says what."""

STDERR_KEPT = 2000
"""Bytes from the end of the child's standard error that its failure is reported with."""


async def load_in_child(
    path: str | FilePath, *, deadline: float = CHILD_SECONDS, known: Config | None = None
) -> LoadResult:
    """``load_file`` in a child process; the event loop runs on meanwhile.

    The child sends its result in slices, and each is unpacked in less than a millisecond. After ``deadline`` seconds
    the child is killed. The result shares equal parts with ``known``, the configuration in force.

    Raises ``HostTrouble`` where the child cannot be started, takes too long, dies, or sends an answer that cannot be
    unpacked: that says nothing about the file.
    """
    return await _load(path, deadline=deadline, known=known)


async def check_in_child(path: str | FilePath, *, deadline: float = CHILD_SECONDS) -> CheckResult:
    """The problems of a file only: the configuration stays in the child. Raises ``HostTrouble``."""
    return CheckResult((await _load(path, deadline=deadline, only_problems=True)).problems)


async def _load(
    path: str | FilePath, *, deadline: float, only_problems: bool = False, known: Config | None = None
) -> LoadResult:
    # The child imports from where this process does, and never from its working directory (-P).
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry))
    try:
        # The event loop would fork: this process is large, and the loop would be held while its memory is copied.
        # Popen takes a tenth of that, because the child borrows the parent's memory until it becomes another program.
        with _shielded():
            process = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-P", "-m", "maglev.config.child", *([ONLY_PROBLEMS] * only_problems), str(path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            )  # fmt: skip
    except OSError as error:
        raise HostTrouble(f"cannot start the process that loads the configuration: {remedy(error)}") from error
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_end, process)
        answer = await _reader(process.stdout, stack)
        last_words = asyncio.create_task(_tail(await _reader(process.stderr, stack)))
        stack.callback(last_words.cancel)
        try:
            async with asyncio.timeout(deadline):
                try:
                    return await unpack(answer, known)
                except ValueError as error:
                    # If the child died, its status and its last words say more than the broken answer.
                    ended = answer.at_eof()
                    status = await _end(process, patience=LAST_SECONDS if ended else 0.0)
                    raise HostTrouble(_why_failed(str(error), status if ended else None, await last_words)) from error
        except TimeoutError:
            raise HostTrouble(f"loading took longer than {deadline:g} s, and was given up") from None


def _why_failed(error: str, status: int | None, last_words: str) -> str:
    """What a failed load is reported with. ``status`` None: it was killed here, since its answer made no sense."""
    if status == -signal.SIGKILL:
        return (
            f"the process that loads the configuration was killed ({error}), which the kernel does when memory is "
            "short: make room, or raise the limit of the service (MemoryMax) or of the container, and reload"
        )
    said = last_words.strip().rpartition("\n")[2]
    if status == NOT_READ and said:
        return said
    words = [error, *([f"status {status}"] if status is not None else ()), *([said] if said else ())]
    return f"the process that loads the configuration failed ({'; '.join(words)})"


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """A child that is started within has SIGHUP and SIGINT blocked from its first instruction.

    ``systemctl kill`` and a terminal send a signal to all processes of the service or the group. SIGHUP must not end
    the load that an earlier one asked for; an interrupted daemon kills the child itself. A child inherits the mask of
    the thread that starts it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _reader(pipe: IO[bytes] | None, stack: contextlib.AsyncExitStack) -> asyncio.StreamReader:
    """A reader of a pipe, which is closed with ``stack``."""
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    stack.callback(transport.close)
    return reader


async def _end(process: subprocess.Popen[bytes], patience: float = 0.0) -> int:
    """Kill it if it still runs after ``patience`` seconds, and wait for its end; returns its status."""
    if (status := process.poll()) is not None:
        return status
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        # Without a descriptor its end cannot be awaited: Popen reaps it when the next process starts.
        process.kill()
        return -signal.SIGKILL
    loop.add_reader(descriptor, ended.set)
    try:
        if patience:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await ended.wait()
        process.kill()
        async with asyncio.timeout(END_SECONDS):
            await ended.wait()
    except TimeoutError:
        # It sleeps in the kernel, on a disk that hangs. Reloads must not wait for that.
        return -signal.SIGKILL
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-STDERR_KEPT:]
    return kept.decode(errors="replace")


def main() -> int:
    """The child: load the file named on the command line, write the lines to standard output."""
    arguments = sys.argv[1:]
    only_problems = arguments[:1] == [ONLY_PROBLEMS]
    if len(arguments) != 1 + only_problems:
        print(f"usage: python -m maglev.config.child [{ONLY_PROBLEMS}] FILE", file=sys.stderr)
        return 2
    # Verdicts and the dataplane go first, when the CPU is short and when memory is: the kernel kills the process with
    # the highest score, and a load that fails can be repeated. A sandbox may forbid both.
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError):
        OOM_SCORE.write_text("1000", encoding="ascii")
    out = sys.stdout.buffer
    try:
        result = load_file(arguments[-1])
        for line in pack(LoadResult(None, result.problems) if only_problems else result):
            out.write(line)
        out.flush()
    except BrokenPipeError:
        # The parent has given up, and nothing can be sent. The interpreter would flush again at its end, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HostTrouble, MemoryError) as trouble:
        print(remedy(trouble) if isinstance(trouble, MemoryError) else trouble, file=sys.stderr)
        return NOT_READ
    return 0


if __name__ == "__main__":
    sys.exit(main())
