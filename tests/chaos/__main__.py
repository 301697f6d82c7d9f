"""``python -m tests.chaos [--seconds N] [--seed N] [--off NAME]``: the chaos run. Exit status 0: nothing was found."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from tests.chaos.run import Run
from tests.chaos.stage import Stage
from tests.chaos.table import ROWS
from tests.helpers.trouble import neighbour_table_left_alone

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "build" / "chaos"

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000


def alone() -> None:
    """Leave the machine's mounts and network: what the run mounts, and its loopback, are its own, and end with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: the chaos run needs root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in groups of exceptions."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


async def chaos(options: argparse.Namespace, seed: int) -> int:
    """One run; returns the exit status."""
    stage = Stage(LOGS, seed)
    names = options.only or [row.name for row in ROWS if row.on]
    run = Run(stage, options.seconds, [row for row in ROWS if row.name in names and row.name not in options.off])
    failures: list[str] = []
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # An interrupted run removes its namespaces and processes, too.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await run.run()
    except (Exception, asyncio.CancelledError) as error:
        failures = [f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error)]
        if not options.brief:
            traceback.print_exception(error)
    finally:
        await stage.stop()
    print(run.table())
    if failures:
        log = stage.daemon.log.read_text(errors="replace").splitlines()
        print("\n".join(["the last that maglevd said:", *log[-20:]]))
        print("\n".join(f"chaos: FAILED (seed {seed}): {failure}" for failure in failures))
        print(f"chaos: logs are in {LOGS}; again: make chaos CHAOS_SECONDS={options.seconds:g} CHAOS_SEED={seed}")
        return 1
    print("chaos: nothing found")
    return 0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, at least a whole pass of all rows")
    parser.add_argument("--seed", type=int, help="of all that is random (default: another each time)")
    parser.add_argument("--off", action="append", default=[], choices=[row.name for row in ROWS], help="leave out")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="these, on or not")
    parser.add_argument("--brief", action="store_true", help="no tracebacks")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"chaos: seed {seed}", flush=True)
    faulthandler.register(signal.SIGUSR1)
    alone()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    os.chdir(ROOT)
    with neighbour_table_left_alone():
        return asyncio.run(chaos(options, seed))


if __name__ == "__main__":
    sys.exit(main())
