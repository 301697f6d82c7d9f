"""Locks between test processes: one test at a time may use a table that the whole machine shares.

A wait has a deadline. A process that hangs with the lock would otherwise hold up every later test run of this machine,
and nothing would say why.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 300.0
"""Seconds to wait for a lock. A test holds one for a few seconds, a short chaos run for a minute and a half."""

CONFLICT = 75
"""Exit status of flock(1) after the deadline."""


@contextlib.contextmanager
def alone(table: str, *, shared: bool = False, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of ``table`` meanwhile; ``shared``: beside others that hold it shared.

    Raises ``TimeoutError`` after ``patience`` seconds, with the file of the lock: ``lslocks`` names its holder.
    """
    path = Path(tempfile.gettempdir()) / f"maglev-tests-{table}.lock"
    with path.open("w") as lock:
        # flock(2) has no deadline. flock(1) has one, and locks the open file that it inherits: the lock stays when that
        # process ends, and goes when the file is closed here.
        words = ["flock", "--shared" if shared else "--exclusive", "--timeout", str(patience)]
        done = subprocess.run(
            [*words, "--conflict-exit-code", str(CONFLICT), str(lock.fileno())], pass_fds=(lock.fileno(),), check=False
        )
        if done.returncode == CONFLICT:
            raise TimeoutError(f"another process holds {path} for more than {patience:g} s; lslocks names it")
        if done.returncode:
            raise RuntimeError(f"flock(1) ended with status {done.returncode} for {path}")
        yield
