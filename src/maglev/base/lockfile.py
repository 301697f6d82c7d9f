"""Advisory locks on files, free again when their holder ends.

A lock is worth something only where strangers cannot hold it. Any process that can *open* a file, for reading too, can
lock it with ``flock``; so the directory must not be writable by strangers (they would make the file first), and the
file must not be readable by them. A stranger is a user who is neither root nor this process, nor of a group that is
trusted with what the lock protects.

Nothing here waits: neither for a lock nor for the other end of a pipe that lies in the place of the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat


class Held(Exception):
    """Another process holds the lock. ``pid``: the number that it wrote into the file, else ``"unknown"``."""

    def __init__(self, path: str, pid: str) -> None:
        super().__init__(f"pid {pid} holds {path}")
        self.pid = pid


class NoPlace(Exception):
    """The file cannot be a lock: it cannot be opened, or strangers could hold it."""


def lock(path: str, *, make: bool, group: int = -1) -> int:
    """Lock the file and write our pid into it; returns its descriptor, which holds the lock until it is closed.

    ``make``: create a missing file. ``group``: its members are trusted; the file is made
    readable for them, so that daemons of different users see each other. Raises ``Held``, ``NoPlace``, and
    ``FileNotFoundError`` if the file is missing and ``make`` is False.
    """
    directory, name = os.path.split(os.path.abspath(path))
    trusted = {0, os.getegid(), group}
    try:
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoPlace(f"{directory}: {error.strerror}") from error
    try:
        status = os.fstat(parent)
        if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid not in trusted):
            raise NoPlace(f"{directory}: strangers can write to it")
        descriptor = _open(parent, name, path, make=make)
    finally:
        os.close(parent)
    try:
        _take(descriptor, path, group, trusted)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(parent: int, name: str, path: str, *, make: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if make:
        # Made for us alone: a stranger who opened it now could hold the lock for as long as it pleases.
        with contextlib.suppress(OSError):
            return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o600, dir_fd=parent)
    try:
        return os.open(name, os.O_RDONLY | flags, dir_fd=parent)
    except FileNotFoundError:
        if make:
            raise NoPlace(f"{path}: cannot be made") from None
        raise
    except OSError as error:
        raise NoPlace(f"{path}: {error.strerror}") from error


def _take(descriptor: int, path: str, group: int, trusted: set[int]) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise NoPlace(f"{path}: not a regular file")
    open_to_group = bool(status.st_mode & stat.S_IRWXG) and status.st_gid not in trusted
    loose = open_to_group or bool(status.st_mode & stat.S_IRWXO)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if loose:
            # Not tightened here: a stranger may hold it already, and would pass for a daemon from then on.
            raise NoPlace(f"{path}: somebody holds it, and strangers can open it") from None
        raise Held(path, _pid(descriptor)) from None
    except OSError as error:
        raise NoPlace(f"{path}: {error.strerror}") from error
    with contextlib.suppress(OSError):
        if group >= 0 and status.st_gid != group:
            os.fchown(descriptor, -1, group)
    # Only its owner may: what another daemon made stays as it is.
    with contextlib.suppress(OSError):
        shared = group >= 0 and os.fstat(descriptor).st_gid == group
        os.fchmod(descriptor, 0o640 if shared else 0o600)
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _pid(descriptor: int) -> str:
    found = re.fullmatch(rb"([0-9]{1,10})\n", os.pread(descriptor, 32, 0))
    return found[1].decode() if found is not None else "unknown"
