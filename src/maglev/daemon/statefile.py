"""The state file: what has to survive a restart, written atomically, with the copy before it kept.

One JSON document, ``{"version": 1, "sha256": ..., "state": {section: value}}``; the digest is that of the state as
written, so that a torn or edited file is recognised. All of it happens outside the event loop: to a new file,
synced, then renamed over the old one, whose content goes to ``<path>.prev`` first. A file that cannot be read is
replaced by the previous copy: a server under maintenance does not come back because a disk was full.

An unreadable file is never overwritten without a copy: a file of a newer version is kept as ``<path>.v<version>``, any
other as ``<path>.bad``, further ones as ``<path>.bad.2`` and so on. Only regular files are read and replaced:
``/dev/null`` stays a device.

One daemon a file: ``claim`` locks ``<path>.lock`` for as long as the process lives. A daemon that finds the lock held
runs without a state file. It must not end, since its VPP would keep sending traffic to dead servers. It must not write,
since it would undo what operators set at the other. It does not read either: a server that operators took out at the
other daemon would lose its traffic here, and VIPs that are the other's would be deleted from this VPP as its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import filecmp
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import NamedTuple

import orjson

from maglev.base import background, lockfile, logs
from maglev.base.clock import Clock
from maglev.base.errors import MaglevError

log = logs.get(__name__)

VERSION = 1
MAX_BYTES = 64 << 20
RETRY_SECONDS = 10.0
WRITE_SECONDS = 3.0
"""The longest wait for the disk. A write that takes longer goes on, without a caller that learns how it ends.

It is less than ``maglevc`` waits for an answer: a change that is in force must not look like one that failed."""


MOST_ASIDE = 5
"""How many copies of files that were not understood are kept of each kind, ``.bad`` or of a newer version."""

CLAIM_SECONDS = 3.0
"""How long a start waits for the lock: a daemon that is ending has ended by then."""

TAKEN_SECONDS = 300.0
"""How often a daemon that may not write its state file says so again."""

Identity = tuple[int, int, int, int]
"""Distinguishes files of the same name: device, inode, size, time of its last change."""


class Written(NamedTuple):
    """A write: the new file, and the names under which old files were kept that were not understood."""

    identity: Identity
    kept: list[Path]


class NotSaved(MaglevError):
    """The change is in force, but the state file could not be written: it would not survive a restart."""


class BadStateFile(Exception):
    """The file is there and is not one of ours, or not whole. ``suffix``: of the name under which it is kept."""

    def __init__(self, text: str, suffix: str = ".bad") -> None:
        super().__init__(text)
        self.suffix = suffix


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
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is int and VERSION < version < 1_000_000:
        raise BadStateFile(f"version {version}, of a newer maglevd", f".v{version}")
    if not isinstance(document, dict) or version != VERSION:
        raise BadStateFile(f"not a state file of version {VERSION}")
    state = document.get("state")
    if not isinstance(state, dict):
        raise BadStateFile("it holds no state")
    try:
        body = orjson.dumps(state, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        # A document that can be read can still be nested too deeply to be written.
        raise BadStateFile(f"not ours: {error}") from error
    if document.get("sha256") != hashlib.sha256(body).hexdigest():
        raise BadStateFile("its digest is not that of its content")
    return state


class StateFile:
    """Named sections of JSON values, kept in a file (``path`` None: in memory only).

    ``fallbacks`` counts starts for which the previous copy had to be used, ``unreadable`` those for which no copy
    could be, ``failures`` writes that failed. ``taken_by``: pid of the daemon whose file it is; empty: it is ours.
    ``unlocked``: no lock keeps a second daemon off it.
    """

    def __init__(self, path: Path | None, clock: Clock, *, patience: float = WRITE_SECONDS) -> None:
        self.path = path
        self._clock = clock
        self._patience = patience
        self._state: dict[str, object] = {}
        self._changed = 0
        self._written = 0
        # One write at a time; all who wait share it.
        self._writing: asyncio.Future[Written] | None = None
        self._ours: Identity | None = None
        self._suspect = False
        self._lock = -1
        self._device = False
        self.taken_by = ""
        self.unlocked = False
        self._wake = asyncio.Event()
        self.fallbacks = 0
        self.unreadable = 0
        self.failures = 0
        self.written_at_ns = 0

    @property
    def previous(self) -> Path | None:
        """Where the copy before the last is kept."""
        return self.path.with_name(self.path.name + ".prev") if self.path is not None else None

    @property
    def lasting(self) -> bool:
        """Whether anything can survive a restart: not without a file, with a device, or with another daemon's file."""
        return self.path is not None and not self.taken_by and not self._device

    async def claim(self, seconds: float = CLAIM_SECONDS) -> None:
        """Lock the file, before it is loaded; waits at most ``seconds`` for another daemon to end. Never raises."""
        if self.path is None:
            return
        path = self.path
        end = self._clock.monotonic_ns() + int(seconds * 1e9)
        while True:
            try:
                self._lock = await background.start("state-file-lock", lambda: _claim(path))
                return
            except lockfile.Held as held:
                if self._clock.monotonic_ns() >= end:
                    self.taken_by = held.pid
                    log.error(
                        "state-file-taken",
                        f"state file {path} is that of another maglevd (pid {held.pid}): it is neither read nor written"
                        " here, and nothing survives a restart of this one; give each its own --state-file",
                        pid=held.pid,
                    )
                    return
            except (OSError, lockfile.NoPlace) as error:
                self._device = isinstance(error, OSError) and error.errno == errno.EINVAL
                self.unlocked = not self._device
                log.warning("state-file-unlocked", f"nothing keeps a second daemon off the state file {path}: {error}")
                return
            await self._clock.sleep(0.1)

    def load(self) -> None:
        """Read the file, or its previous copy. Never raises: a state that cannot be read is logged and counted."""
        if self.path is None or self.previous is None or self.taken_by:
            return
        try:
            self._state = decode(_read(self.path))
            return
        except (OSError, BadStateFile) as error:
            if isinstance(error, FileNotFoundError) and not self.previous.exists():
                # The first start. A file that is gone though it was written once has been lost as a torn one has.
                return
            log.error("state-file-unreadable", f"state file {self.path}: {error}; trying its previous copy")
        try:
            self._state = decode(_read(self.previous))
            self.fallbacks += 1
            log.warning("state-file-previous", f"using {self.previous}, the state before the last change")
        except (OSError, BadStateFile) as error:
            self.unreadable += 1
            log.error(
                "state-file-lost", f"state file {self.previous}: {error}; what operators had set is not known any more"
            )

    def distrust(self) -> None:
        """Some entry of the file is invalid: keep a copy as ``<path>.bad`` when it is written for the first time."""
        self._suspect = True

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
        if self.taken_by and wanted:
            self.failures += 1
            raise NotSaved(f"state file {self.path}: it is that of another maglevd (pid {self.taken_by})")
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
            writes, state, ours, suspect = self._changed, dict(self._state), self._ours, self._suspect
            self._writing = background.start("state-file", lambda: _write(path, encode(state), ours, suspect=suspect))
            self._writing.add_done_callback(lambda done: self._ended(done, writes))
        try:
            await asyncio.shield(self._writing)
        except Exception as error:
            # The change is in force in any case: the caller must not take it for a failed one.
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NotSaved(f"state file {path}: {why}") from error

    def _ended(self, done: asyncio.Future[Written], writes: int) -> None:
        if done.cancelled():
            return
        if done.exception() is not None:
            self.failures += 1
            return
        result = done.result()
        for kept in result.kept:
            log.warning("state-file-kept-aside", f"what was not understood of the state file is kept as {kept}")
        self._ours, self._suspect = result.identity, False
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
                await self._clock.sleep(TAKEN_SECONDS if self.taken_by else RETRY_SECONDS)


def _claim(path: Path) -> int:
    """Lock the file for this process; returns the descriptor that holds the lock. Removes what broken writes left."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    # No lock beside what is never written: /dev/null.lock would be a surprise.
    _refuse_special(path)
    descriptor = lockfile.lock(f"{path}.lock", make=True)
    for other in path.parent.iterdir():
        if other.name.startswith(f".{path.name}.") and other.name.endswith(".new"):
            with contextlib.suppress(OSError):
                other.unlink()
    return descriptor


def _read(path: Path) -> bytes:
    """The contents of a regular file. Raises ``BadStateFile`` for anything else, and never waits for a writer."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadStateFile("not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadStateFile(f"larger than {MAX_BYTES} bytes")
    return data


def _write(path: Path, data: bytes, ours: Identity | None, *, suspect: bool = False) -> Written:
    """Put ``data`` in place of the file at ``path``; its old content becomes the previous copy.

    ``ours``: the file that was written last, which need not be looked through again. ``suspect``: keep a copy of the
    old file in any case.
    """
    previous = path.with_name(path.name + ".prev")
    # As with the socket: a daemon that is started by hand finds no directories that a package or systemd made.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    for one in (path, previous):
        _refuse_special(one)
    kept: list[Path | None] = []
    if suspect and path.exists():
        kept.append(_keep(path, ".bad"))
    if ours is None:
        # Written by another run: it is replaced below, or by the next write.
        kept.append(_good_or_kept(previous)[1])
    with contextlib.suppress(FileNotFoundError):
        if ours is None or _identity(path) != ours or not _link(path, previous):
            # A broken file must not take the place of a good previous copy.
            old, aside = _good_or_kept(path)
            kept.append(aside)
            if old is not None:
                _replace(previous, old)
    _replace(path, data)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return Written(_identity(path), [name for name in kept if name is not None])


def _refuse_special(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{path} is not a regular file, and is left alone")


def _good_or_kept(path: Path) -> tuple[bytes | None, Path | None]:
    """The contents; for a file of another kind, the name under which it is kept. An empty one is not kept."""
    try:
        data = _read(path)
        decode(data)
    except FileNotFoundError:
        return None, None
    except BadStateFile as error:
        return None, _keep(path, error.suffix) if path.stat().st_size else None
    return data, None


def _keep(path: Path, suffix: str) -> Path:
    """Keep the file under its name with a suffix, and beside older ones of that name: the first may be the best.

    Of ``MOST_ASIDE`` copies the newest is replaced, and the log says so. A copy of the same content is not made twice.
    """
    names = [
        path.with_name(path.name + suffix + (f".{number}" if number > 1 else "")) for number in range(1, MOST_ASIDE + 1)
    ]
    for other in names:
        if not other.exists():
            break
        if filecmp.cmp(path, other, shallow=False):
            return other
    else:
        log.warning(
            "state-file-copy-replaced",
            f"{path} was not understood, and {MOST_ASIDE} copies of such files are kept already: {other} is replaced by"
            " a newer one",
        )
    if not _link(path, other):
        try:
            _replace(other, _read(path))
        except BadStateFile as error:
            raise OSError(errno.EFBIG, f"{path} cannot be kept as {other}: {error}") from error
    return other


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _new(path: Path) -> Path:
    """A name beside ``path`` for its successor. Others cannot predict it, and so cannot place a file there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")


def _link(path: Path, other: Path) -> bool:
    """Give the file a second name, replacing a file of that name; False where the file system cannot."""
    new = _new(other)
    try:
        os.link(path, new)
    except OSError:
        return False
    try:
        os.replace(new, other)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return True


def _replace(path: Path, data: bytes) -> None:
    new = _new(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o640)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
