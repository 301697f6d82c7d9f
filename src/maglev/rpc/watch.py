"""``WatchEvents``: the present state, then every event, for readers that may be slow.

A watcher has one bounded subscription on the bus. It subscribes first and then sends the present state, slice by slice.
Meanwhile the filter holds back events about a name whose state has not been sent yet, since that state will include
them. So the stream never shows a change before the state that it changes, and shows nothing twice.

Events are encoded once for all watchers. A batch is the encoded events one after the other: that is how a repeated
field is encoded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

from maglev.base.errors import UnknownName
from maglev.base.events import BackendEvent, Bus, Event, FrontendEvent, Subscription
from maglev.base.pace import Pace
from maglev.base.states import Code
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert
from maglev.rpc.filters import EventFilter, require_names
from maglev.rpc.services import CheckerApi, Services
from maglev.rpc.status import GoingAway, TooMany

QUEUE = 16_384
"""Events that wait for one reader, some 10 MiB at most. A burst of 10,000 transitions fits."""

BATCH = 500
"""Events in one message: two milliseconds of work, unless another watcher had them encoded already."""

MAX_WATCHERS = 256
"""Open watches of all callers together."""

LOCAL_WATCHERS = 32
"""Of these, how many are reserved for the Unix socket: watches of strangers do not keep an operator from watching."""


class Encoder:
    """Encodes events for the wire, each once: the last ``size`` are remembered.

    Events are remembered by ``id``. The memory holds the event itself too, so its ``id`` cannot become that of another
    event meanwhile.
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
        data = _encoded(event)
        if len(self._order) >= self._size:
            del self._done[self._order.popleft()]
        self._done[id(event)] = (event, data)
        self._order.append(id(event))
        return data


class Watchers:
    """All open watches. ``close`` ends them all, for a shutdown. ``refused`` counts watches beyond the limits."""

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
        self._turn = asyncio.Lock()
        self.closing = False
        self.refused = 0

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every watch: its stream ends with ``GoingAway`` as soon as the message under way is written."""
        self.closing = True
        for subscription in tuple(self._open):
            subscription.close()

    async def watch(self, request: pb.WatchEventsRequest, *, local: bool = True) -> AsyncIterator[bytes]:
        """Encoded ``WatchEventsResponse`` messages, until the caller goes away or the daemon does.

        ``local``: the caller came by the Unix socket.

        Raises ``BadValue``, ``UnknownName``, ``TooMany``, and ``GoingAway`` at the end of the daemon.
        """
        wants = EventFilter(request)
        config = self._checker.config()
        require_names(config, wants.backends, wants.frontends)
        self._require_room(local)
        with ExitStack() as stack:
            if not request.omit_state:
                wants.hold_back(config.backends, config.frontends)
            subscription = self._subscribe(wants, stack)
            async for message in self._state(wants, list(config.backends), list(config.frontends)):
                yield message
            while True:
                events, lost = await subscription.batch(BATCH)
                if events or lost:
                    # One watcher after the other: encoding for a hundred of them in one round would hold the loop.
                    async with self._turn:
                        data = self._joined(events, lost)
                        await asyncio.sleep(0)
                    yield data
                elif subscription.closed:
                    raise GoingAway("the daemon is on its way out")

    def _require_room(self, local: bool) -> None:
        if self.closing:
            raise GoingAway("the daemon is on its way out")
        if len(self._open) >= (self._most if local else self._most - LOCAL_WATCHERS):
            self.refused += 1
            raise TooMany(f"{len(self._open)} watchers are open, which is the limit")

    def _subscribe(self, wants: EventFilter, stack: ExitStack) -> Subscription:
        """Subscribe to the bus, and to log records and probes if they are wanted; ``stack`` ends all of that."""
        subscription = self._bus.subscribe(self._queue, wants)
        self._open.add(subscription)
        stack.callback(self._open.discard, subscription)
        stack.callback(subscription.close)
        if wants.log:
            stack.callback(self._logs.watch(wants.level))
        for name in sorted(wants.traced):
            stack.callback(self._tracer.trace(name))
        return subscription

    def _joined(self, events: list[Event], lost: int) -> bytes:
        parts = [self._encoder.encode(event) for event in events]
        if lost:
            parts.append(pb.WatchEventsResponse(lost=lost).SerializeToString())
        return b"".join(parts)

    async def _state(self, wants: EventFilter, backends: list[str], frontends: list[str]) -> AsyncIterator[bytes]:
        """The present state in messages of at most ``BATCH`` events, the last of them marked."""
        ready: list[bytes] = []
        pace = Pace()
        # The bus hands events out some turns after they are published. The state of a name includes all that was
        # published before it, so the filter must have seen (and held back) those events before the name is released.
        await self._bus.handed_out()
        for data in self._present(wants, backends, frontends):
            ready.append(data)
            if len(ready) >= BATCH:
                yield b"".join(ready)
                ready.clear()
            await pace.breathe()
            await self._bus.handed_out()
        ready.append(pb.WatchEventsResponse(state_complete=True).SerializeToString())
        yield b"".join(ready)

    def _present(self, wants: EventFilter, backends: list[str], frontends: list[str]) -> Iterator[bytes]:
        """The state of each name at the moment at which it is yielded; from then on its events pass."""
        for name in backends:
            if wants.release_backend(name):
                try:
                    yield self._backend(name)
                except UnknownName:
                    # A reload removed it meanwhile, and the watcher has never seen it.
                    continue
        for name in frontends:
            if wants.release_frontend(name):
                try:
                    state = self._checker.frontend_state(name)
                except UnknownName:
                    continue
                yield _encoded(FrontendEvent(name, state, state, self._now()))

    def _backend(self, name: str) -> bytes:
        status = self._checker.backend_status(name)
        configured = self._checker.config().backends.get(name)
        if configured is None:
            raise UnknownName("backend", name, among=self._checker.config().backends)
        last = status.transitions[-1] if status.transitions else None
        return _encoded(
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


def _encoded(event: Event) -> bytes:
    return pb.WatchEventsResponse(events=[convert.event(event)]).SerializeToString()
