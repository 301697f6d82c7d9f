"""Filters of requests: names by a regular expression, and the events of a watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import re2

from maglev.base.errors import BadValue, UnknownName
from maglev.base.events import (
    BackendEvent,
    ConfigEvent,
    DrainEvent,
    Event,
    FrontendEvent,
    LogEvent,
    PoolEvent,
    WeightEvent,
)
from maglev.base.logs import LEVELS
from maglev.config.model import Config
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert
from maglev.rpc.services import PROBE_RECORD

MAX_REGEXP = 255
"""Characters of a regular expression."""

MAX_NAMES = 1_000
"""Names in one watch. Each of them is looked up, and may be traced."""

_KINDS = frozenset((pb.EVENT_KIND_LOG, pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND))


def name_matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches. RE2 runs in time linear in the name, whatever the pattern. Raises ``BadValue``."""
    if not pattern:
        return lambda name: True
    if len(pattern) > MAX_REGEXP:
        raise BadValue(f"a regular expression may have {MAX_REGEXP} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options=options)
    except re2.error as error:
        # RE2 gives its explanation as bytes.
        why = b"".join(part for part in error.args if isinstance(part, bytes)).decode("utf-8", "replace")
        raise BadValue(f"{pattern!r} is no regular expression: {why or error}") from None
    return lambda name: compiled.search(name) is not None


def require_names(config: Config, backends: Iterable[str], frontends: Iterable[str]) -> None:
    """Raises ``UnknownName`` for the first name that is not configured."""
    for name in backends:
        if name not in config.backends:
            raise UnknownName("backend", name, among=config.backends)
    for name in frontends:
        if name not in config.frontends:
            raise UnknownName("frontend", name, among=config.frontends)


class EventFilter:
    """Picks the events of one watch.

    It also keeps the order of a watch: while the present state is sent, events about a name are held back until the
    state of that name has been sent, since that state includes them (``hold_back``, ``release_backend``,
    ``release_frontend``).
    """

    def __init__(self, request: pb.WatchEventsRequest) -> None:
        """Raises ``BadValue`` for kinds or levels that do not exist and for too many names."""
        kinds = frozenset(request.kinds) or frozenset((pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND))
        strange = kinds - _KINDS
        if strange:
            raise BadValue(f"{min(strange)} is no kind of event")
        if len(request.backends) + len(request.frontends) > MAX_NAMES:
            raise BadValue(f"at most {MAX_NAMES} names can be watched by name")
        self.log = pb.EVENT_KIND_LOG in kinds
        self.backend = pb.EVENT_KIND_BACKEND in kinds
        self.frontend = pb.EVENT_KIND_FRONTEND in kinds
        self.level = convert.log_level(request.log_level)
        self.backends = frozenset(request.backends)
        self.frontends = frozenset(request.frontends)
        self._held_backends: set[str] = set()
        self._held_frontends: set[str] = set()
        self._level = LEVELS[self.level]
        # Without names, every event of these types is wanted as soon as no name is held back.
        self._whole: frozenset[type[Event]] = frozenset()
        if not (self.backends or self.frontends):
            self._whole = frozenset(
                (
                    *((BackendEvent, DrainEvent) * self.backend),
                    *((FrontendEvent, PoolEvent, WeightEvent) * self.frontend),
                )
            )

    @property
    def traced(self) -> frozenset[str]:
        """Backends whose single probes are wanted."""
        return self.backends if self.log and self.level == "debug" else frozenset()

    def wants_backend(self, name: str) -> bool:
        """Whether a backend is wanted, by kind and name. If only frontends are named, no backend is."""
        return self.backend and (name in self.backends if self.backends or self.frontends else True)

    def wants_frontend(self, name: str) -> bool:
        """Whether a frontend is wanted, by kind and name. If only backends are named, no frontend is."""
        return self.frontend and (name in self.frontends if self.backends or self.frontends else True)

    # ------------------------------------------------------------------------------------------------- present state

    def hold_back(self, backends: Iterable[str], frontends: Iterable[str]) -> None:
        """Hold back events of the wanted ones among these names."""
        self._held_backends = {name for name in backends if self.wants_backend(name)}
        self._held_frontends = {name for name in frontends if self.wants_frontend(name)}

    def release_backend(self, name: str) -> bool:
        """Pass events of a backend from now on. False if they were not held back: its state need not be sent."""
        held = name in self._held_backends
        self._held_backends.discard(name)
        return held

    def release_frontend(self, name: str) -> bool:
        """Pass events of a frontend from now on; as ``release_backend``."""
        held = name in self._held_frontends
        self._held_frontends.discard(name)
        return held

    # -------------------------------------------------------------------------------------------------------- events

    def __call__(self, found: Sequence[Event]) -> list[Event]:
        """The events of ``found`` that the watcher gets. A mass failure brings thousands, for each watcher."""
        if self._held_backends or self._held_frontends:
            return [event for event in found if self.wants(event)]
        whole = self._whole
        return [event for event in found if type(event) in whole or self.wants(event)]

    def wants(self, event: Event) -> bool:
        """Whether the watcher gets ``event``."""
        match event:
            case BackendEvent() | DrainEvent():
                return self.wants_backend(event.name) and event.name not in self._held_backends
            case FrontendEvent():
                return self.wants_frontend(event.name) and event.name not in self._held_frontends
            case PoolEvent():
                return self.wants_frontend(event.frontend) and event.frontend not in self._held_frontends
            case WeightEvent():
                return self.frontend and (self.wants_frontend(event.frontend) or event.backend in self.backends)
            case LogEvent():
                return self.log and LEVELS.get(event.level, 0) >= self._level and self._wants_record(event)
            case ConfigEvent():
                return self.backend or self.frontend

    def _wants_record(self, event: LogEvent) -> bool:
        backend = event.fields.get("backend")
        if event.event == PROBE_RECORD:
            # Another watcher may have asked for these, so they need a name even where all other records pass.
            return backend in self.backends
        if not (self.backends or self.frontends):
            return True
        frontend = event.fields.get("frontend")
        if backend is None and frontend is None:
            return True
        return backend in self.backends or frontend in self.frontends
