"""Errors of the kernel that mean that this host lacks something: they say nothing about the file that was to be read.

A missing file, a missing right or a directory is a fault of what the operator wrote. A descriptor table without room is
not: the same file is valid a second later. A caller turns the first into a problem of the file, and the second into
``HostTrouble``.
"""

from __future__ import annotations

import errno
from typing import TypeGuard

_REMEDIES = {
    errno.EMFILE: "raise LimitNOFILE of the service",
    errno.ENFILE: "raise fs.file-max",
    errno.EAGAIN: "raise TasksMax of the service or kernel.pid_max",
    errno.ENOMEM: "make room, or raise MemoryMax of the service",
}

_FOR_A_FILE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def is_lack(error: Exception) -> TypeGuard[OSError]:
    """Whether reading a file failed because this host has no descriptor or no memory left.

    EAGAIN is none: open(2) answers it for a file that another process has leased.
    """
    return isinstance(error, OSError) and error.errno in _FOR_A_FILE


def remedy(error: OSError | MemoryError) -> str:
    """The error in lower case, followed by the limit to raise, in parentheses, if that is known."""
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, "out of memory")
    words = (error.strerror or str(error)).lower()
    advice = _REMEDIES.get(error.errno or 0)
    return f"{words} ({advice})" if advice else words
