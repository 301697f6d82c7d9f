"""``ListEvents``: what happened lately, newest first.

A page token is the number of the last event of its page. The next page begins with the event before that one, whatever
has happened meanwhile; when the daemon has started again, numbers begin anew and an old token just shows another part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from maglev.base.errors import BadValue
from maglev.base.events import BackendEvent, DrainEvent, Event, FrontendEvent, LogEvent, PoolEvent, WeightEvent
from maglev.base.limits import check_duration
from maglev.base.pace import Pace
from maglev.config.model import Config
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert, paging
from maglev.rpc.filters import MAX_NAMES, require_names
from maglev.rpc.services import CausesApi, EventsApi

_DIGITS = 18


async def page(ring: EventsApi, config: Config, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
    """One page. Lets the loop run between slices. Raises ``BadValue`` and ``UnknownName``."""
    wants = _filter(config, request.backends, request.frontends)
    last_ns = check_duration(request.last_ns)
    answer = pb.ListEventsResponse(total=len(ring), forgotten=ring.forgotten)
    left = paging.page_size(request.page_size)
    number = _before(request.page_token) if request.page_token else ring.newest
    pace = Pace()
    while (past := ring.get(number)) is not None and not (last_ns and past.age_ns > last_ns):
        if wants(past.event):
            if left == 0:
                answer.next_page_token = str(number + 1)
                break
            event = convert.event(past.event)
            answer.events.append(pb.PastEvent(id=number, age_ns=past.age_ns, event=event, cause=past.cause))
            left -= 1
        number -= 1
        if pace.due():
            await pace.rest()
    return answer


async def causes_page(
    ring: EventsApi, causes: CausesApi, config: Config, request: pb.ListCausesRequest
) -> pb.ListCausesResponse:
    """One page of causes. Lets the loop run between slices. Raises ``BadValue`` and ``UnknownName``."""
    last_ns = check_duration(request.last_ns)
    among = await _causes_of(ring, config, request)
    answer = pb.ListCausesResponse(total=len(causes), forgotten=causes.forgotten)
    left = paging.page_size(request.page_size)
    number = _before(request.page_token) if request.page_token else causes.newest
    pace = Pace()
    # A cause that others joined lately may be older than its neighbours, so age ends nothing here.
    while (found := causes.get(number)) is not None:
        if (among is None or number in among) and not (last_ns and causes.age_ns(found) > last_ns):
            if left == 0:
                answer.next_page_token = str(number + 1)
                break
            answer.causes.append(convert.cause(found))
            left -= 1
        number -= 1
        if pace.due():
            await pace.rest()
    return answer


async def _causes_of(ring: EventsApi, config: Config, request: pb.ListCausesRequest) -> frozenset[int] | None:
    """The causes of the events about the requested names; None: of all."""
    if not (request.backends or request.frontends):
        return None
    wants = _filter(config, request.backends, request.frontends)
    found: set[int] = set()
    number, pace = ring.newest, Pace()
    while (past := ring.get(number)) is not None:
        if past.cause and wants(past.event):
            found.add(past.cause)
        number -= 1
        if pace.due():
            await pace.rest()
    return frozenset(found)


def _before(token: str) -> int:
    """The number of the event before the one that a token names. Raises ``BadValue``."""
    if not (token.isascii() and token.isdecimal() and len(token) <= _DIGITS):
        raise BadValue("the page token is not one of ours")
    return int(token) - 1


def _filter(config: Config, backends: Iterable[str], frontends: Iterable[str]) -> Callable[[Event], bool]:
    """Whether an event is asked for: all without names; else those of the named ones, and of a frontend's backends."""
    of_frontends = frozenset(frontends)
    of_backends = set(backends)
    if len(of_frontends) + len(of_backends) > MAX_NAMES:
        raise BadValue(f"at most {MAX_NAMES} names can be asked for")
    if not (of_frontends or of_backends):
        return lambda event: True
    require_names(config, of_backends, of_frontends)
    of_backends |= {
        member.backend for name in of_frontends for pool in config.frontends[name].pools for member in pool.members
    }

    def wants(event: Event) -> bool:
        match event:
            case BackendEvent() | DrainEvent():
                return event.name in of_backends
            case FrontendEvent():
                return event.name in of_frontends
            case PoolEvent():
                return event.frontend in of_frontends
            case WeightEvent():
                return event.frontend in of_frontends or event.backend in of_backends
            case LogEvent():
                return event.fields.get("backend") in of_backends or event.fields.get("frontend") in of_frontends
        return False

    return wants
