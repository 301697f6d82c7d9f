"""The bus: typed events, listeners that must not miss one, and bounded subscriptions for readers that may.

Everything here runs on the daemon's event loop; nothing is thread-safe. ``Bus.publish`` never waits: a *listener* is
called at once (the reconciler, the metrics), a *subscription* is a bounded queue that counts lost events
(``WatchEvents``, where a slow client must not slow the daemon). Subscriptions get their events at the loop's next
turns, some milliseconds' worth at a time: a hundred watchers do not come between a verdict and the dataplane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from maglev.base.states import Code, FrontendState, State

# Not maglev.base.logs: that one publishes here.
log = logging.getLogger(__name__)

# Events that wait to be handed to the subscriptions. Beyond that publishing hands out as it goes.
WAITING = 16_384
SLICE_NS = 2_000_000
"""How long the bus hands out before it gives the event loop a turn."""
AT_ONCE = 32
"""Events between two looks at the clock."""

Wants = Callable[[Sequence["Event"]], Sequence["Event"]]
"""Picks from some events those that a subscription is to get."""


class BackendEvent(NamedTuple):
    """A backend changed its state, or (``from_state == to_state``) is shown to a new subscriber as it is.

    A named tuple, since a mass failure makes thousands at once.

    ``at_ns``: wall clock, nanoseconds since the epoch. ``by``: who asked, empty for a verdict.
    ``drained`` is the operator's drain as it is after the event. ``reason``: an operator's words. ``duration_ns``: how
    long the operator's change lasts, 0 without an end.
    """

    name: str
    address: str
    from_state: State
    to_state: State
    code: Code
    detail: str
    at_ns: int
    by: str = ""
    drained: bool = False
    reason: str = ""
    duration_ns: int = 0

    def __str__(self) -> str:
        words = f"backend {self.name} {self.from_state} -> {self.to_state} ({self.code}"
        words += f": {self.detail})" if self.detail else ")"
        return f"{words} by {self.by}" if self.by else words


@dataclass(frozen=True, slots=True)
class FrontendEvent:
    """A frontend changed its state, or is shown to a new subscriber as it is. ``at_ns`` as in ``BackendEvent``.

    ``cause``: the last change that led to it, in words ("backend web1 down (L4CON)").
    """

    name: str
    from_state: FrontendState
    to_state: FrontendState
    at_ns: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """A frontend is served by another pool than before, by their names.

    ``fallback``: it is not the frontend's first pool. ``cause`` and ``at_ns`` as in ``FrontendEvent``.
    """

    frontend: str
    from_pool: str
    to_pool: str
    fallback: bool
    at_ns: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class WeightEvent:
    """An operator set the weight of a pool member, or went back to the file's (``to_default``).

    ``old`` and ``new`` are the weights in force before and after, 0..100.
    """

    frontend: str
    pool: str
    backend: str
    old: int
    new: int
    flush: bool
    at_ns: int
    by: str = ""
    to_default: bool = False
    reason: str = ""
    duration_ns: int = 0


@dataclass(frozen=True, slots=True)
class DrainEvent:
    """An operator drained a backend or took that back. The state of the backend does not change."""

    name: str
    address: str
    state: State
    drained: bool
    at_ns: int
    by: str = ""
    reason: str = ""
    duration_ns: int = 0


@dataclass(frozen=True, slots=True)
class ConfigEvent:
    """A configuration took effect: at start, or by a reload. ``forced``: an operator forced that reload."""

    at_ns: int
    by: str = ""
    forced: bool = False


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A log record as ``WatchEvents`` gives it: ``level`` is ``debug`` .. ``error``, ``event`` its stable name."""

    level: str
    event: str
    message: str
    at_ns: int
    fields: Mapping[str, str] = field(default_factory=dict)


Event = BackendEvent | FrontendEvent | PoolEvent | WeightEvent | DrainEvent | ConfigEvent | LogEvent

Listener = Callable[[Event], None]


class Subscription:
    """A bounded queue of events for one reader: when it is full the oldest event is lost and counted."""

    def __init__(self, bus: Bus, limit: int, wants: Wants) -> None:
        self._bus = bus
        self._limit = limit
        self._wants = wants
        self._queue: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._lost = 0
        self.closed = False

    def offer(self, events: Sequence[Event]) -> None:
        """Queue those of ``events`` that the reader wants. Never waits."""
        wanted = self._wants(events)
        if not wanted:
            return
        self._queue.extend(wanted)
        lost = len(self._queue) - self._limit
        if lost > 0:
            for _ in range(lost):
                self._queue.popleft()
            self._lost += lost
            self._bus.lost += lost
        self._ready.set()

    async def batch(self, most: int = 1000) -> tuple[list[Event], int]:
        """Wait for events; return up to ``most`` of them and how many were lost since the last call.

        Returns ``([], lost)`` once the subscription is closed and empty.
        """
        while not self._queue and not self.closed:
            self._ready.clear()
            await self._ready.wait()
        events = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        lost, self._lost = self._lost, 0
        return events, lost

    def close(self) -> None:
        """Take the subscription off the bus; a reader that waits is woken."""
        self.closed = True
        self._ready.set()
        self._bus.unsubscribe(self)


class EventSource(Protocol):
    """The bus as the dataplane needs it: it calls a listener with every event, at once."""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every event from now on; the returned function ends that."""
        ...

    def listen_judgements(self, listener: Callable[[str, str], None]) -> Callable[[], None]:
        """Call ``listener`` with every frontend that was judged again without an event, and the mechanism's name."""
        ...


class Bus:
    """Where events are published. ``lost`` counts what slow subscriptions lost, ``published`` everything."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._judgement_listeners: list[Callable[[str, str], None]] = []
        self._subscriptions: list[Subscription] = []
        # Events that no subscription has got yet, oldest first.
        self._waiting: deque[Event] = deque()
        self._handed_out = asyncio.Event()
        self._handed_out.set()
        self.published = 0
        self.lost = 0
        self.failures = 0

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every event from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def listen_judgements(self, listener: Callable[[str, str], None]) -> Callable[[], None]:
        """Call ``listener`` with every frontend that was judged again without an event, and the mechanism's name.

        The returned function ends that. See ``publish_judgement``.
        """
        self._judgement_listeners.append(listener)
        return lambda: self._judgement_listeners.remove(listener)

    def publish_judgement(self, frontend: str, mechanism: str) -> None:
        """The weights of a frontend may have changed, although no backend and no operator changed anything just now.

        ``mechanism``: whose decision it was, in words; empty where nothing was decided.
        For the dataplane alone: an operator sees the ``FrontendEvent`` or ``PoolEvent`` that follows, if any.
        """
        for listener in tuple(self._judgement_listeners):
            listener(frontend, mechanism)

    def subscribe(self, limit: int, wants: Wants) -> Subscription:
        """A bounded queue of the events that ``wants`` picks."""
        subscription = Subscription(self, limit, wants)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription; doing it twice is harmless."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Call every listener with ``event``, in the order they came; subscriptions get it at one of the next turns.

        A listener that raises is logged and counted (``failures``); the others get the event nevertheless.
        """
        self.published += 1
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                self.failures += 1
                log.exception("a listener failed on %s", type(event).__name__)
        if not self._subscriptions:
            return
        self._waiting.append(event)
        if len(self._waiting) > WAITING:
            self._offer()
        if self._handed_out.is_set():
            self._handed_out.clear()
            asyncio.get_running_loop().call_soon(self._hand_out)

    async def handed_out(self) -> None:
        """Wait until the subscriptions have been given all that was published before."""
        while self._waiting:
            await self._handed_out.wait()

    def _hand_out(self) -> None:
        end = time.monotonic_ns() + SLICE_NS
        while self._waiting:
            self._offer()
            if time.monotonic_ns() >= end and self._waiting:
                asyncio.get_running_loop().call_soon(self._hand_out)
                return
        self._handed_out.set()

    def _offer(self) -> None:
        events = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
        for subscription in tuple(self._subscriptions):
            subscription.offer(events)
