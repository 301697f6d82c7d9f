"""Standard input, output and error: there at the start, and what could not be written is said at the end.

A process can be started with descriptors 0 to 2 closed. The next files and sockets would take those numbers, and
printed text would go into a socket. ``complete`` opens /dev/null on them first. It opens them for reading only, as
gnulib's ``stdopen`` does: writing fails as it does on a closed descriptor, so lost output stays an error.

A full disk behind standard output (ENOSPC, and /dev/full in tests) shows itself at any write, or only when the buffer
is flushed at the end. ``guarded`` turns it into one line on standard error and a status of its own. A reader that has
had enough (``| head``) is no error. Text that standard error does not take is lost, and changes no status.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

EX_IOERR = 74
"""Exit status when standard output could not be written (EX_IOERR of sysexits.h)."""


def complete() -> None:
    """Open /dev/null on those of the descriptors 0 to 2 that are closed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The kernel gives the lowest free number, and those below are taken by now.
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    # Python has made None of those that were closed.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def tell(text: str) -> None:
    """Write one line to standard error, if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class _Watched(io.FileIO):
    """A descriptor that keeps the first error of a write, also where the writer suppresses it, as argparse does."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error
            raise


def guarded(program: str, main: Callable[[], int]) -> int:
    """Run ``main`` and return its status, or ``EX_IOERR`` when standard output could not be written.

    To be called once, by a process whose standard streams are its own.
    """
    out, err = _watch(sys.stdout), _watch(sys.stderr)
    sys.stdout, sys.stderr = out[0], err[0]
    try:
        status = main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except OSError as error:
        if error not in (out[1].lost, err[1].lost):
            raise
        status = 0 if isinstance(error, BrokenPipeError) else EX_IOERR
    lost = _lost(*out)
    if lost is not None and not isinstance(lost, BrokenPipeError):
        tell(f"{program}: cannot write to standard output: {lost.strerror}")
        status = EX_IOERR
    _lost(*err)
    return status


def _watch(stream: TextIO) -> tuple[TextIO, _Watched]:
    """The same stream, in which errors of writing are kept."""
    stream.flush()
    raw = _Watched(stream.fileno(), "w", closefd=False)
    by_line = raw.isatty() or getattr(stream, "line_buffering", False) or getattr(stream, "write_through", False)
    text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=by_line)
    return text, raw


def _lost(stream: TextIO, raw: _Watched) -> OSError | None:
    """Write what is left in a stream; returns why it cannot be written.

    In that case the rest goes to /dev/null: the interpreter flushes once more at its end, and would return status 120.
    """
    with contextlib.suppress(OSError):
        stream.flush()
    if raw.lost is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, raw.fileno())
        os.close(null)
        with contextlib.suppress(OSError):
            stream.flush()
    return raw.lost
