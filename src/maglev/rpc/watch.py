"""``WatchEvents``: the present state, then what happens, to readers who may be slow.

A watcher has one bounded subscription on the bus. While the present state is told to it, slice by slice, an event
about something that has not been told yet is left out, as the telling will include it: the stream never shows a
change before the state that it changes, and nothing twice.

Events are encoded once, however many watch: a batch is the encoded events one behind the other, since that is what a
repeated field is on the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack

from maglev.base import errors
from maglev.base.events import (
    BackendEvent,
    Bus,
    ConfigEvent,
    DrainEvent,
    Event,
    FrontendEvent,
    LogEvent,
    Subscription,
    WeightEvent,
)
from maglev.base.logs import LEVELS
from maglev.base.pace import Pace
from maglev.base.states import Code
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert
from maglev.rpc.services import PROBE_RECORD, CheckerApi, Services

# Events that wait for one reader; some 10 MiB at most. A burst of 10,000 transitions fits.
QUEUE = 16_384
# Events in one message: two milliseconds of work, if nobody else has them.
BATCH = 500
# Open watches, all callers together.
MAX_WATCHERS = 256
# Of these, for callers on the Unix socket alone: strangers who watch do not keep an operator from watching.
LOCAL_WATCHERS = 32
# Names in one request: each is looked up, and traced.
MAX_NAMES = 1_000

_KINDS = frozenset((pb.EVENT_KIND_LOG, pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND))


class TooMany(errors.MaglevError):
    """No room for another: gRPC ``RESOURCE_EXHAUSTED``."""


class GoingAway(errors.Unavailable):
    """The daemon ends: gRPC ``UNAVAILABLE``, as for a daemon that is gone."""


class Encoder:
    """Encodes events for the wire, each once: the last ``size`` are remembered.

    The memory holds the event itself, so that its ``id`` cannot become another's meanwhile.
    """

    def __init__(self, size: int = 4_096) -> None:
        self._size = size
        self._done: dict[int, tuple[Event, bytes]] = {}
        self._order: deque[int] = deque()

    def encode(self, event: Event) -> bytes:
        """A ``WatchEventsResponse`` of this one event; such bytes may be joined."""
        known = self._done.get(id(event))
        if known is not None:
            return known[1]
        data = pb.WatchEventsResponse(events=[convert.event(event)]).SerializeToString()
        if len(self._order) >= self._size:
            del self._done[self._order.popleft()]
        self._done[id(event)] = (event, data)
        self._order.append(id(event))
        return data


class Filter:
    """What one watcher wants to see. ``untold_*``: names whose state has not been told to it yet."""

    def __init__(self, request: pb.WatchEventsRequest) -> None:
        """Raises ``BadValue`` for kinds or levels that do not exist and for too many names."""
        kinds = frozenset(request.kinds) or frozenset((pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND))
        strange = kinds - _KINDS
        if strange:
            raise errors.BadValue(f"{min(strange)} is no kind of event")
        if len(request.backends) + len(request.frontends) > MAX_NAMES:
            raise errors.BadValue(f"at most {MAX_NAMES} names can be watched by name")
        self.log = pb.EVENT_KIND_LOG in kinds
        self.backend = pb.EVENT_KIND_BACKEND in kinds
        self.frontend = pb.EVENT_KIND_FRONTEND in kinds
        self.level = convert.log_level(request.log_level)
        self.backends = frozenset(request.backends)
        self.frontends = frozenset(request.frontends)
        self.untold_backends: set[str] = set()
        self.untold_frontends: set[str] = set()
        self._level = LEVELS[self.level]
        # Without names, every event of these types is wanted as soon as the present state has been told.
        self._whole: frozenset[type[Event]] = frozenset()
        if not (self.backends or self.frontends):
            self._whole = frozenset(
                (*((BackendEvent, DrainEvent) * self.backend), *((FrontendEvent, WeightEvent) * self.frontend))
            )

    def traced(self) -> frozenset[str]:
        """Backends whose single probes are wanted."""
        return self.backends if self.log and self.level == "debug" else frozenset()

    def wants_backend(self, name: str) -> bool:
        """Whether the names let a backend through. Only frontends named: no backend is wanted."""
        return name in self.backends if self.backends or self.frontends else True

    def wants_frontend(self, name: str) -> bool:
        """Whether the names let a frontend through. Only backends named: no frontend is wanted."""
        return name in self.frontends if self.backends or self.frontends else True

    def __call__(self, found: Sequence[Event]) -> list[Event]:
        """Those of some events that are for this watcher. In a mass failure they come in thousands to each."""
        if self.untold_backends or self.untold_frontends:
            return [event for event in found if self.wants(event)]
        whole = self._whole
        return [event for event in found if type(event) in whole or self.wants(event)]

    def wants(self, event: Event) -> bool:
        """Whether ``event`` is for this watcher."""
        match event:
            case BackendEvent() | DrainEvent():
                return self.backend and self.wants_backend(event.name) and event.name not in self.untold_backends
            case FrontendEvent():
                return self.frontend and self.wants_frontend(event.name) and event.name not in self.untold_frontends
            case WeightEvent():
                return self.frontend and (self.wants_frontend(event.frontend) or event.backend in self.backends)
            case LogEvent():
                return self.log and LEVELS.get(event.level, 0) >= self._level and self._wants_record(event)
            case ConfigEvent():
                return self.backend or self.frontend

    def _wants_record(self, event: LogEvent) -> bool:
        backend = event.fields.get("backend")
        if event.event == PROBE_RECORD:
            # Somebody else may have asked for these.
            return backend in self.backends
        if not (self.backends or self.frontends):
            return True
        frontend = event.fields.get("frontend")
        if backend is None and frontend is None:
            return True
        return backend in self.backends or frontend in self.frontends


class Watchers:
    """All open watches. ``close`` ends them all, for a shutdown."""

    def __init__(self, services: Services, *, queue: int = QUEUE, most: int = MAX_WATCHERS) -> None:
        self._bus: Bus = services.bus
        self._checker: CheckerApi = services.checker
        self._tracer = services.tracer
        self._logs = services.logs
        self._now: Callable[[], int] = services.clock.time_ns
        self._encoder = Encoder()
        self._queue = queue
        self._most = most
        self._open: set[Subscription] = set()
        self.closing = False
        self._turn = asyncio.Lock()
        # Refused for want of room, since the start.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every watch: their streams end with ``GoingAway`` as soon as what they write is written."""
        self.closing = True
        for subscription in tuple(self._open):
            subscription.close()

    async def watch(self, request: pb.WatchEventsRequest, *, local: bool = True) -> AsyncIterator[bytes]:
        """Encoded ``WatchEventsResponse`` messages, until the caller goes away or the daemon does.

        ``local``: the caller came by the Unix socket.

        Raises ``BadValue``, ``UnknownName``, ``TooMany``, and ``GoingAway`` at the end of the daemon.
        """
        wants = Filter(request)
        config = self._checker.config()
        for name in wants.backends:
            if name not in config.backends:
                raise errors.UnknownName("backend", name)
        for name in wants.frontends:
            if name not in config.frontends:
                raise errors.UnknownName("frontend", name)
        if self.closing:
            raise GoingAway("the daemon is on its way out")
        if len(self._open) >= (self._most if local else self._most - LOCAL_WATCHERS):
            self.refused += 1
            raise TooMany(f"{len(self._open)} watchers are open, which is the limit")
        with ExitStack() as stack:
            if not request.omit_state:
                if wants.backend:
                    wants.untold_backends = {name for name in config.backends if wants.wants_backend(name)}
                if wants.frontend:
                    wants.untold_frontends = {name for name in config.frontends if wants.wants_frontend(name)}
            subscription = self._bus.subscribe(self._queue, wants)
            self._open.add(subscription)
            stack.callback(self._open.discard, subscription)
            stack.callback(subscription.close)
            if wants.log:
                stack.callback(self._logs.watch(wants.level))
            for name in sorted(wants.traced()):
                stack.callback(self._tracer.trace(name))
            async for message in self._state(wants, list(config.backends), list(config.frontends)):
                yield message
            while True:
                events, lost = await subscription.batch(BATCH)
                if events or lost:
                    # One watcher after the other: a hundred of them in one round of the loop would hold it.
                    async with self._turn:
                        data = self._encoded(events, lost)
                        await asyncio.sleep(0)
                    yield data
                elif subscription.closed:
                    raise GoingAway("the daemon is on its way out")

    def _encoded(self, events: list[Event], lost: int) -> bytes:
        parts = [self._encoder.encode(event) for event in events]
        if lost:
            parts.append(pb.WatchEventsResponse(lost=lost).SerializeToString())
        return b"".join(parts)

    async def _state(self, wants: Filter, backends: list[str], frontends: list[str]) -> AsyncIterator[bytes]:
        """The present state in messages of at most ``BATCH`` events, the last of them marked."""
        told: list[bytes] = []
        pace = Pace()
        # What happened before something is told must have been left out before: it would be told after it.
        await self._bus.handed_out()
        for data in self._told(wants, backends, frontends):
            told.append(data)
            if len(told) >= BATCH:
                yield b"".join(told)
                told.clear()
            await pace.breathe()
            await self._bus.handed_out()
        told.append(pb.WatchEventsResponse(state_complete=True).SerializeToString())
        yield b"".join(told)

    def _told(self, wants: Filter, backends: list[str], frontends: list[str]) -> Iterator[bytes]:
        for name in backends:
            if name in wants.untold_backends:
                # What it is when it is told counts; from here on its events come through.
                wants.untold_backends.discard(name)
                try:
                    yield self._backend(name)
                except errors.UnknownName:
                    # A reload took it away meanwhile; the watcher has never heard of it.
                    continue
        for name in frontends:
            if name in wants.untold_frontends:
                wants.untold_frontends.discard(name)
                try:
                    state = self._checker.frontend_state(name)
                except errors.UnknownName:
                    continue
                yield _encode_once(FrontendEvent(name, state, state, self._now()))

    def _backend(self, name: str) -> bytes:
        status = self._checker.backend_status(name)
        configured = self._checker.config().backends.get(name)
        if configured is None:
            raise errors.UnknownName("backend", name)
        last = status.transitions[-1] if status.transitions else None
        return _encode_once(
            BackendEvent(
                name=name,
                address=str(configured.address),
                from_state=status.state,
                to_state=status.state,
                code=last.code if last else Code.NONE,
                detail=last.detail if last else "",
                at_ns=status.state_since_ns,
                by=last.by if last else "",
                drained=status.drained,
                reason=last.reason if last else "",
            )
        )


def _encode_once(event: Event) -> bytes:
    # Told to one watcher only: not worth remembering.
    return pb.WatchEventsResponse(events=[convert.event(event)]).SerializeToString()
