"""One daemon per VPP: advisory locks on files named after its socket.

The file beside the socket is the one that counts, where it can be made: a user who can write to that directory could
replace the socket itself. A daemon that may not make it there falls back to a common directory. So every daemon also
takes the locks that are there already, and daemons of different users meet.

Where no directory will do, VPP is driven without a lock, and the log says so. A dead server that keeps its traffic is
worse than a second daemon, which an operator would have to start.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from maglev.base import lockfile, logs

log = logs.get(__name__)

COMMON = ("/run/vpp-maglev", "/run/lock")
"""Where the lock is without a place beside the socket. On many systems strangers can write to ``/run/lock``: then it
is passed over, as every such directory is."""


class SocketLock:
    """The lock of one VPP. ``missing``: why there is none though VPP is driven; empty otherwise."""

    def __init__(self, socket: str, common: Sequence[str] = COMMON) -> None:
        self._socket = socket
        self._common = common
        self._held: dict[str, int] = {}
        self.missing = ""

    @property
    def paths(self) -> list[str]:
        """The files that are locked."""
        return list(self._held)

    @property
    def held(self) -> bool:
        """Whether the lock is ours."""
        return bool(self._held)

    def acquire(self) -> str:
        """Take or keep the lock; returns why VPP must not be driven, or an empty string. Never waits."""
        if self._held and all(self._is_there(path, fd) for path, fd in self._held.items()):
            return ""
        # The directory was created again (VPP does that with /run/vpp when it starts): our lock is on an unlinked file.
        self.release()
        group = self._group()
        refusals: list[str] = []
        for path in self.candidates():
            try:
                self._held[path] = lockfile.lock(path, make=not self._held, group=group)
            except lockfile.Held as held:
                self.release()
                return f"another daemon (pid {held.pid}) drives this VPP: it holds {path}"
            except FileNotFoundError:
                continue
            except lockfile.NoPlace as refusal:
                refusals.append(str(refusal))
        missing = "" if self._held else "; ".join(refusals)
        if missing and missing != self.missing:
            log.warning(
                "vpp-unlocked",
                f"VPP at {self._socket} is driven without a lock, so nothing keeps a second daemon off: {missing}",
                socket=self._socket,
            )
        self.missing = missing
        return ""

    def release(self) -> None:
        """Let go. The files stay: removing one would let two daemons hold two files of one name."""
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _group(self) -> int:
        """The group whose members may connect to VPP, and so are trusted with its lock; -1: none."""
        try:
            status = os.stat(self._socket)
        except OSError:
            return -1
        return status.st_gid if status.st_mode & 0o060 else -1

    @staticmethod
    def _is_there(path: str, fd: int) -> bool:
        try:
            ours, there = os.fstat(fd), os.stat(path)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def candidates(self) -> list[str]:
        """The paths of the lock, in the order in which they are tried: beside the socket, then the common places."""
        real = os.path.realpath(self._socket)
        name = f"maglevd-{hashlib.sha256(real.encode()).hexdigest()[:16]}.lock"
        return [f"{real}.maglevd-lock", *(str(Path(directory) / name) for directory in self._common)]
