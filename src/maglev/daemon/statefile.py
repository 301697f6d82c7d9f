"""The state file: what has to survive a restart, written atomically, with the copy before it kept.

One JSON document, ``{"version": 1, "sha256": ..., "state": {section: value}}``; the digest is that of the state as
written, so that a torn or edited file is recognised. All of it happens outside the event loop: to a new file,
synced, then renamed over the old one, whose content goes to ``<path>.prev`` first. A file that cannot be read is
replaced by the previous copy: a server under maintenance does not come back because a disk was full.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from pathlib import Path

import orjson

from maglev.base import background, logs
from maglev.base.clock import Clock
from maglev.base.errors import MaglevError

log = logs.get(__name__)

VERSION = 1
MAX_BYTES = 64 << 20
RETRY_SECONDS = 10.0
WRITE_SECONDS = 5.0
"""The longest wait for the disk. A write that takes longer goes on, without a caller that learns how it ends."""


Identity = tuple[int, int, int, int]
"""Distinguishes files of the same name: device, inode, size, time of its last change."""


class NotSaved(MaglevError):
    """The change is in force, but the state file could not be written: it would not survive a restart."""


class BadStateFile(Exception):
    """The file is there and is not one of ours, or not whole."""


def encode(state: dict[str, object]) -> bytes:
    """The document for a state."""
    body = orjson.dumps(state, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(body).hexdigest()
    return b'{"version":%d,"sha256":"%s","state":%s}\n' % (VERSION, digest.encode(), body)


def decode(data: bytes) -> dict[str, object]:
    """The state in a document; raises ``BadStateFile``."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadStateFile(f"not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise BadStateFile(f"not a state file of version {VERSION}")
    state = document.get("state")
    if not isinstance(state, dict):
        raise BadStateFile("it holds no state")
    body = orjson.dumps(state, option=orjson.OPT_SORT_KEYS)
    if document.get("sha256") != hashlib.sha256(body).hexdigest():
        raise BadStateFile("its digest is not that of its content")
    return state


class StateFile:
    """Named sections of JSON values, kept in a file (``path`` None: in memory only).

    ``fallbacks`` counts starts for which the previous copy had to be used, ``unreadable`` those for which no copy
    could be, ``failures`` writes that failed.
    """

    def __init__(self, path: Path | None, clock: Clock, *, patience: float = WRITE_SECONDS) -> None:
        self.path = path
        self._clock = clock
        self._patience = patience
        self._state: dict[str, object] = {}
        self._changed = 0
        self._written = 0
        # One write at a time; all who wait share it.
        self._writing: asyncio.Future[Identity] | None = None
        self._ours: Identity | None = None
        self._wake = asyncio.Event()
        self.fallbacks = 0
        self.unreadable = 0
        self.failures = 0
        self.written_at_ns = 0

    @property
    def previous(self) -> Path | None:
        """Where the copy before the last is kept."""
        return self.path.with_name(self.path.name + ".prev") if self.path is not None else None

    def load(self) -> None:
        """Read the file, or its previous copy. Never raises: a state that cannot be read is logged and counted."""
        if self.path is None or self.previous is None:
            return
        try:
            self._state = self._read(self.path)
            return
        except (OSError, BadStateFile) as error:
            if isinstance(error, FileNotFoundError) and not self.previous.exists():
                # The first start. A file that is gone though it was written once has been lost as a torn one has.
                return
            log.error("state-file-unreadable", f"state file {self.path}: {error}; trying its previous copy")
        try:
            self._state = self._read(self.previous)
            self.fallbacks += 1
            log.warning("state-file-previous", f"using {self.previous}, the state before the last change")
        except (OSError, BadStateFile) as error:
            self.unreadable += 1
            log.error(
                "state-file-lost", f"state file {self.previous}: {error}; what operators had set is not known any more"
            )

    @staticmethod
    def _read(path: Path) -> dict[str, object]:
        # Opening a pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadStateFile("not a regular file")
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadStateFile(f"larger than {MAX_BYTES} bytes")
        return decode(data)

    def get(self, section: str) -> object:
        """The value of a section, None if there is none."""
        return self._state.get(section)

    def set(self, section: str, value: object) -> None:
        """Change a section; it is written soon (``run``), or as soon as a caller waits for it (``saved``).

        The value must not change any more, since a thread writes it. Fragments of JSON in it (``orjson.Fragment``) have
        their keys in order.
        """
        if self._state.get(section) == value:
            return
        self._state[section] = value
        self._changed += 1
        self._wake.set()

    async def saved(self) -> None:
        """Wait until all that was set before is on the disk. Raises ``NotSaved``; callers share one write."""
        wanted = self._changed
        try:
            async with asyncio.timeout(self._patience):
                while self.path is not None and self._written < wanted:
                    await self._write(self.path)
        except TimeoutError:
            self.failures += 1
            raise NotSaved(f"state file {self.path}: the disk has not answered for {self._patience:g} s") from None

    async def _write(self, path: Path) -> None:
        """Wait for the write that is under way, or begin one. Raises ``NotSaved``."""
        if self._writing is None or self._writing.done():
            # Sections are replaced, never changed: a copy of the whole is of this moment also on another thread.
            writes, state, ours = self._changed, dict(self._state), self._ours
            self._writing = background.start("state-file", lambda: _write(path, encode(state), ours))
            self._writing.add_done_callback(lambda done: self._ended(done, writes))
        try:
            await asyncio.shield(self._writing)
        except OSError as error:
            raise NotSaved(f"state file {path}: {error.strerror or error}") from error

    def _ended(self, done: asyncio.Future[Identity], writes: int) -> None:
        if done.cancelled():
            return
        if done.exception() is not None:
            self.failures += 1
            return
        self._ours = done.result()
        self._written = writes
        self.written_at_ns = self._clock.time_ns()

    async def run(self) -> None:
        """Write what changes, for ever; a write that failed is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.saved()
            except NotSaved as error:
                log.error("state-file-not-written", str(error), failures=self.failures)
                self._wake.set()
                await self._clock.sleep(RETRY_SECONDS)


def _write(path: Path, data: bytes, ours: Identity | None) -> Identity:
    """Put ``data`` in place of the file at ``path``; its old content becomes the previous copy.

    ``ours``: the file that was written last, which need not be looked through again. Returns the new one.
    """
    previous = path.with_name(path.name + ".prev")
    # As with the socket: a daemon that is started by hand finds no directories that a package or systemd made.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    with contextlib.suppress(FileNotFoundError):
        if ours is None or _identity(path) != ours or not _link(path, previous):
            old = path.read_bytes()
            # A broken file must not take the place of a good previous copy.
            with contextlib.suppress(BadStateFile):
                decode(old)
                _replace(previous, old)
    _replace(path, data)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return _identity(path)


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _link(path: Path, other: Path) -> bool:
    """Give the file a second name, replacing a file of that name; False where the file system cannot."""
    new = other.with_name(f".{other.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:
        return False
    os.replace(new, other)
    return True


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise
