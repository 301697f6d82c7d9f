"""Settings of the process: the limit of open files, and when the garbage collector runs."""

from __future__ import annotations

import gc
import resource

from maglev.base import logs

log = logs.get(__name__)

YOUNG, MIDDLE, NEVER = 5_000, 4, 1 << 30
"""Thresholds of the collector's three generations: objects made before it looks at the youngest, runs of the youngest
for each of the middle one, and of the middle one for each of the oldest.

Python's defaults, 700 and 10, took a tenth of the CPU time of a mass failure. With these the collector holds the event
loop for 2 ms at most. The oldest generation is never looked at on its own: the task ``garbage`` does that."""


def raise_file_limit() -> int:
    """Raise the limit of open files to the hard limit, since checks by connect need one each; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("file-limit", f"the limit of open files stays at {soft}: {error}", limit=soft)
            return soft
    return hard


def settle_collector() -> None:
    """Take everything made so far out of the collector's sight, and keep it from old objects during a mass failure.

    At 50,000 backends one look at all objects would hold the event loop for 50 to 120 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
