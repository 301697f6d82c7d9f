"""The configuration file of a running daemon: checking it, and putting it into effect."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from maglev.base import background, logs
from maglev.base.clock import Clock, Moments
from maglev.base.errors import HostTrouble, NotAllowed
from maglev.checker import Checker
from maglev.config.child import check_in_child, load_in_child
from maglev.config.diff import ConfigChange, diff_configs
from maglev.config.load import CheckResult, LoadResult
from maglev.config.model import Config
from maglev.config.source import collector_at_rest
from maglev.daemon.sdnotify import Notifier
from maglev.schema.problems import Problem

log = logs.get(__name__)

OUTCOMES = ("ok", "parse_error", "semantic_error", "refused", "not_read")


class ConfigFile:
    """Loads outside the process, so that verdicts go on meanwhile. ``outcomes`` counts reloads by how they ended.

    ``before`` looks at a configuration before it takes effect, and may raise; its second argument is True at the start.
    """

    def __init__(
        self,
        path: Path,
        checker: Checker,
        notifier: Notifier,
        clock: Clock,
        *,
        before: Callable[[Config, bool], Awaitable[None]] | None = None,
    ) -> None:
        self._path = _absolute(path)
        self._checker = checker
        self._notifier = notifier
        self._clock = clock
        self._before = before
        self._busy = asyncio.Lock()
        self._moments = Moments(clock)
        # Monotonic: the wall clock may be set later. 0: nothing is loaded.
        self._loaded_ns = 0
        self._loaded_by = ""
        self._last_error = ""
        self.outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)

    @property
    def file(self) -> str:
        """Absolute path of the file: callers of the API have other working directories."""
        return str(self._path)

    @property
    def loaded_at_ns(self) -> int:
        """When the configuration in force took effect, wall clock."""
        return self._moments.shown(self._loaded_ns) if self._loaded_ns else 0

    @property
    def loaded_by(self) -> str:
        """The requester of that load: ``start``, ``signal`` or the caller of a reload."""
        return self._loaded_by

    @property
    def last_error(self) -> str:
        """Why the last reload was refused; empty: it was not."""
        return self._last_error

    async def check(self) -> CheckResult:
        """Read the file and say what is wrong with it; changes nothing. Raises ``HostTrouble``."""
        return await check_in_child(self._path)

    async def load(self) -> LoadResult:
        """Read the file; changes nothing. Raises ``HostTrouble``."""
        return await load_in_child(self._path, known=self._checker.config())

    async def diff(self, new: Config) -> Sequence[ConfigChange]:
        """Differences between the configuration in force and ``new``."""
        # Comparing large files takes long. On a thread, the interpreter switches to the event loop every few
        # milliseconds. Both configurations are immutable, so no lock is needed.
        old = self._checker.config()
        return await background.start("config-diff", lambda: diff_configs(old, new))

    def needs_force(self, new: Config) -> bool:
        """Whether a reload to ``new`` deletes so many VIPs that it is refused unless forced."""
        return bool(self._checker.needs_force(new))

    async def start(self) -> LoadResult:
        """The first load: like a reload, without anything to compare with."""
        return await self.reload(force=True, by="start")

    async def reload(self, *, force: bool, by: str) -> LoadResult:
        """Read the file and put it into effect if it has no error.

        Errors are logged, counted and returned, and nothing is changed. Raises ``NotAllowed`` where it takes ``force``,
        and ``HostTrouble`` where a lack of descriptors, memory or time kept the file from being read.
        """
        async with self._busy:
            first = self._loaded_ns == 0
            if not first:
                self._notifier.reloading()
            try:
                # The new configuration stays, so the collector need not walk over it, now or ever. At 50,000 backends
                # each walk would hold the loop for 50 to 120 ms. The old configuration has no cycles: reference counts
                # free it.
                with collector_at_rest():
                    result = await self._reload(force, by)
                    if result.config is not None:
                        gc.freeze()
                    return result
            finally:
                if not first:
                    self._notifier.ready()

    async def _reload(self, force: bool, by: str) -> LoadResult:
        try:
            result = await self.load()
        except HostTrouble as error:
            self.outcomes["not_read"] += 1
            self._last_error = str(error)
            stays = "" if self._loaded_ns == 0 else ", and the configuration in force stays"
            log.error("config-not-read", f"{self.file} was not read{stays}: {error}", file=self.file, by=by)
            raise
        for problem in result.problems:
            _log_problem(problem, str(self._path))
        if result.config is None:
            errors = result.parse_errors or result.semantic_errors
            self.outcomes["parse_error" if result.parse_errors else "semantic_error"] += 1
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            self._last_error = errors[0].render(self.file) + more
            log.error(
                "config-refused",
                f"{self.file} is not put into effect: {len(errors)} error{'s' if len(errors) > 1 else ''}",
                file=self.file,
                errors=len(errors),
                by=by,
            )
            return result
        if self._before is not None:
            await self._before(result.config, self._loaded_ns == 0)
        try:
            await self._checker.apply(result.config, by=by, force=force)
        except NotAllowed as error:
            self.outcomes["refused"] += 1
            self._last_error = str(error)
            log.error("config-refused", f"{self.file} is not put into effect: {error}", file=self.file, by=by)
            raise
        self.outcomes["ok"] += 1
        self._last_error = ""
        self._loaded_ns = self._clock.monotonic_ns()
        self._loaded_by = by
        return result


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError:  # the working directory is gone; reading the file says so
        return path


def _log_problem(problem: Problem, file: str) -> None:
    kind = problem.kind.name.lower()
    if kind == "warning":
        log.warning("config-warning", problem.render(file), path=problem.path)
    else:
        log.error("config-error", problem.render(file), path=problem.path, kind=kind)
