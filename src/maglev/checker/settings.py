"""The settings of operators at run time: their beginning, what they want of a backend, and their end.

Owns the overrides and their ends. An override ends by the opposite verb, by its duration, or when a reload makes it
obsolete: the file's own value for that very item changes, or the item now means something else.

Durations count by the monotonic clock, so that nothing ends early or late because the wall clock is set. Moments of the
wall clock are only shown and kept in the state file. They are kept by the wall clock as it was at ``_offset``; after a
step they are shown moved by that step (``all``, ``of``), and kept so from the next change or ``rebase`` on.

Settings change nothing about a backend. The caller brings the backend to them (``backends``).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable

import orjson

from maglev.base import logs
from maglev.base.clock import Clock, Moments
from maglev.base.states import State
from maglev.checker.backend import LiveBackend
from maglev.checker.overrides import LAST_MOMENT_NS, OverrideStore, drain_key, enabled_key, pause_key
from maglev.config.model import Backend, Config
from maglev.views.backends import Override, OverrideKey, OverrideKind

log = logs.get(__name__)

STEP_NS = 1_000_000_000
"""How far the wall clock has to be set before moments move with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """The author of a setting, the reason, and the duration (``duration_ns`` 0: until it is taken back)."""

    by: str
    reason: str = ""
    duration_ns: int = 0


class Settings:
    """All overrides. ``on_change`` is called after changes, so that they can be kept for a restart."""

    def __init__(self, clock: Clock, on_change: Callable[[], None] | None) -> None:
        self._clock = clock
        self._on_change = on_change
        self._store = OverrideStore()
        self._reported = 0
        self._ends: dict[OverrideKey, int] = {}
        self._sooner = asyncio.Event()
        self._moments = Moments(clock)
        self._offset = self._moments.offset()

    # ---------------------------------------------------------------------------------------------------- questions

    def all(self) -> list[Override]:
        """Every override, oldest first."""
        return self._now(sorted(self._store, key=lambda override: override.since_ns))

    def of(self, backend: str) -> list[Override]:
        """The overrides of one backend, oldest first."""
        found = self._store.of(backend)
        # Lists ask this of 50,000 backends, of which almost none has any.
        return self._now(sorted(found, key=lambda override: override.since_ns) if len(found) > 1 else found)

    def fragments(self) -> list[orjson.Fragment]:
        """Every override as the state file holds it."""
        return self._store.written()

    def weights(self) -> list[Override]:
        """The run-time weights of pool members."""
        return [override for override in self._store if override.kind is OverrideKind.WEIGHT]

    def weight(self, frontend: str, pool: str, backend: str) -> int | None:
        """The run-time weight of a pool member; None where the file's counts."""
        return self._store.weight(frontend, pool, backend)

    def drained(self, backend: str) -> bool:
        """Whether a backend is to be drained."""
        return backend in self._store and self._store.get(drain_key(backend)) is not None

    def stopped(self, conf: Backend) -> State | None:
        """DISABLED or PAUSED where file and operators want a backend so, None where it is to be probed."""
        enabled = conf.enabled
        if conf.name in self._store:
            override = self._store.get(enabled_key(conf.name))
            if override is not None:
                enabled = override.kind is OverrideKind.ENABLE
            if enabled and self._store.get(pause_key(conf.name)) is not None:
                return State.PAUSED
        return None if enabled else State.DISABLED

    def obsolete(self, config: Config) -> list[tuple[OverrideKey, str]]:
        """Overrides that end with a new configuration, and why."""
        return [(override.key, why) for override in self._store if (why := _why_obsolete(override, config))]

    def apart(self, backends: Iterable[str]) -> Settings:
        """A copy of the settings of these backends, to try something out: it is kept nowhere."""
        twin = Settings(self._clock, None)
        twin._offset = self._offset
        for override in (one for name in backends for one in self._store.of(name)):
            twin._store.put(override)
            if override.key in self._ends:
                twin._ends[override.key] = self._ends[override.key]
        return twin

    # ------------------------------------------------------------------------------------------------------ changes

    def restore(self, records: Iterable[Override], moved_ns: int = 0) -> None:
        """Put back what operators had set before a restart.

        ``moved_ns``: by how much the wall clock was set since they were written, as far as that is known.
        """
        self._offset = self._moments.offset()
        for override in records:
            self._put(_moved(override, moved_ns))
        self._reported = self._store.version

    def rebase(self) -> None:
        """If the wall clock was set: from here on the moments are kept by the clock as it is now."""
        step = self._step()
        if step:
            self._offset += step
            for override in self._store:
                self._store.put(_moved(override, step))

    def set(self, live: LiveBackend, kind: OverrideKind, request: Request) -> bool:
        """Record an override of a backend. True if it is new.

        Repeated, the newest author, reason and end count, and the time since when it is set stays.
        """
        override = self._override(live, kind, request)
        before = self._store.get(override.key)
        if before is not None and before.kind is kind:
            override = dataclasses.replace(override, since_ns=before.since_ns)
        self._put(override)
        return before is None or before.kind is not kind

    def set_weight(
        self, live: LiveBackend, frontend: str, pool: str, weight: int, file_weight: int, request: Request
    ) -> None:
        """Record the weight of a pool member, in place of an earlier one."""
        override = self._override(live, OverrideKind.WEIGHT, request)
        self._put(dataclasses.replace(override, frontend=frontend, pool=pool, weight=weight, file_weight=file_weight))

    def unset(self, key: OverrideKey) -> bool:
        """Forget an override. True if there was one."""
        self._ends.pop(key, None)
        return self._store.drop(key) is not None

    def end(self, key: OverrideKey, why: str) -> Override | None:
        """An override ends by itself, which is logged; None if there is none."""
        self._ends.pop(key, None)
        override = self._store.drop(key)
        if override is not None:
            log.info(
                "override-ended",
                f"{override.kind.value} of {override.backend} ended: {why}",
                kind=override.kind.value,
                backend=override.backend,
                frontend=override.frontend,
                pool=override.pool,
                why=why,
            )
        return override

    def end_due(self) -> list[Override]:
        """End the overrides whose time is over, and return them."""
        now = self._clock.monotonic_ns()
        due = [key for key, end in self._ends.items() if end <= now]
        return [override for key in due if (override := self.end(key, "its time is over")) is not None]

    def next_end_ns(self) -> int | None:
        """Nanoseconds until the next override ends; None if none does."""
        now = self._clock.monotonic_ns()
        return min((end - now for end in self._ends.values()), default=None)

    async def wait(self) -> None:
        """Wait until the next override ends, or until another one may end sooner."""
        self._sooner.clear()
        left = self.next_end_ns()
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._sooner.wait())]
        if left is not None:
            waits.append(asyncio.ensure_future(self._clock.sleep(max(left, 0) / 1e9)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def report(self) -> None:
        """Call ``on_change`` if anything has changed since the last call."""
        if self._store.version != self._reported:
            self._reported = self._store.version
            if self._on_change is not None:
                self._on_change()

    def _step(self) -> int:
        """By how much the wall clock was set since the moments were written down; 0: by no more than a second."""
        step = self._moments.offset() - self._offset
        return step if abs(step) > STEP_NS else 0

    def _now(self, overrides: list[Override]) -> list[Override]:
        """The overrides with their moments by the wall clock as it is now."""
        step = self._step() if overrides else 0
        return [_moved(override, step) for override in overrides] if step else overrides

    def _override(self, live: LiveBackend, kind: OverrideKind, request: Request) -> Override:
        self.rebase()
        now = self._clock.time_ns()
        return Override(
            kind=kind,
            backend=live.name,
            address=live.address,
            since_ns=now,
            until_ns=now + request.duration_ns if request.duration_ns else 0,
            by=request.by,
            reason=request.reason,
            file_enabled=live.conf.enabled,
        )

    def _put(self, override: Override) -> None:
        self._store.put(override)
        self._ends.pop(override.key, None)
        if override.until_ns:
            left = override.until_ns - self._clock.time_ns()
            # A wall clock that is wrong after a start must not make more of a span than was asked for.
            if override.until_ns > override.since_ns:
                left = min(left, override.until_ns - override.since_ns)
            self._ends[override.key] = self._clock.monotonic_ns() + left
            self._sooner.set()


def _moved(override: Override, step_ns: int) -> Override:
    """The override with its moments moved by ``step_ns``, within what the API can tell."""
    if not step_ns:
        return override

    def moved(at_ns: int) -> int:
        return min(max(at_ns + step_ns, 1), LAST_MOMENT_NS) if at_ns else 0

    return dataclasses.replace(override, since_ns=moved(override.since_ns), until_ns=moved(override.until_ns))


def file_weight(config: Config, frontend: str, pool: str, backend: str) -> int | None:
    """The file's weight of a pool member; None if the pool has no member of this name."""
    conf = config.frontends.get(frontend)
    for candidate in conf.pools if conf is not None else ():
        if candidate.name == pool:
            for member in candidate.members:
                if member.backend == backend:
                    return member.weight
    return None


def _why_obsolete(override: Override, config: Config) -> str:
    """Why an override ends with a new configuration; empty if it goes on."""
    conf = config.backends.get(override.backend)
    if conf is None:
        return "the backend is gone"
    if str(conf.address) != override.address:
        return "the backend has another address"
    if override.kind in (OverrideKind.DISABLE, OverrideKind.ENABLE) and conf.enabled != override.file_enabled:
        return "the file's own value changed"
    if override.kind is OverrideKind.WEIGHT:
        weight = file_weight(config, override.frontend, override.pool, override.backend)
        if weight is None:
            return "the pool member is gone"
        if weight != override.file_weight:
            return "the file's own value changed"
    return ""
