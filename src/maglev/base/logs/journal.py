"""Priorities for the systemd journal: ``<4>`` in front of each line, where standard error is the journal.

journald takes the prefix off and keeps it as the record's priority (sd-daemon(3)), so that ``journalctl -p warning``
finds outages. Without it every line of a service has the priority of ``SyslogLevel=``, which is info.

Each line of a record gets the prefix: journald makes an entry of every line, so a traceback would otherwise be at info.
The JSON form gets it too. The journal keeps the bare JSON object, and no reader of the journal sees the prefix. Whether
standard error is the journal is found as systemd.exec(5) says: ``JOURNAL_STREAM`` holds device and inode of the stream
that the service was started with. A shell that inherits the variable and redirects standard error to a file therefore
gets no prefixes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import IO

from maglev.base.logs.record import Entry


def is_journal(stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether a stream leads to the systemd journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not (device.isascii() and device.isdecimal() and inode.isascii() and inode.isdecimal()):
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        # No descriptor of its own, as a stream in memory, or a closed one.
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode))


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of ``logging``: 3 error, 4 warning, 6 info, 7 debug."""
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def prefixed(line_of: Callable[[Entry], str]) -> Callable[[Entry], str]:
    """``line_of`` with the priority in front of each of its lines."""

    def lines(entry: Entry) -> str:
        prefix = f"<{priority(entry.level)}>"
        return prefix + line_of(entry).replace("\n", f"\n{prefix}")

    return lines
