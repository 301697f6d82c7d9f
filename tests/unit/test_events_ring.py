"""What is remembered of the past: how much, for how long, and what is asked of it page by page."""

from __future__ import annotations

import pytest

from maglev.base.errors import BadValue, UnknownName
from maglev.base.events import BackendEvent, ConfigEvent, Event, FrontendEvent, LogEvent, PoolEvent
from maglev.base.states import Code, FrontendState, State
from maglev.config.model import Config
from maglev.events.causes import Causes
from maglev.events.notices import is_notice
from maglev.events.ring import EventRing
from maglev.pb import maglev_pb2 as pb
from maglev.rpc.history import page
from tests.helpers.checker import FakeClock
from tests.helpers.rpc import small_config


def down(name: str, detail: str = "") -> BackendEvent:
    return BackendEvent(name, "192.0.2.1", State.UP, State.DOWN, Code.L4CON, detail, 1)


def ring_of(clock: FakeClock, **bounds: int) -> EventRing:
    return EventRing(clock, Causes(clock, lambda backend: (), tuple), **bounds)


async def asked(ring: EventRing, config: Config | None = None, **request: object) -> tuple[list[int], str]:
    """The numbers of a page's events, and the token of the next page."""
    answer = await page(ring, config or small_config(), pb.ListEventsRequest(**request))  # type: ignore[arg-type]
    return [one.id for one in answer.events], answer.next_page_token


def test_the_oldest_are_forgotten_first() -> None:
    ring = ring_of(FakeClock(), most=3)
    events: list[Event] = [down(f"web{at}") for at in range(5)]
    for event in events:
        ring.take(event)
    assert (len(ring), ring.newest, ring.forgotten) == (3, 5, 2)
    kept = [ring.get(number) for number in range(7)]
    assert [one.event if one is not None else None for one in kept] == [None, None, None, *events[2:], None]


def test_long_texts_do_not_take_more_memory_than_there_is() -> None:
    ring = ring_of(FakeClock(), most=1000, most_bytes=100_000)
    for at in range(1000):
        ring.take(down(f"web{at}", "x" * 1000))
        assert ring.size <= 100_000
    assert 10 < len(ring) < 100
    ring.take(down("huge", "x" * 1_000_000))
    assert len(ring) == 1, "one is kept, however long it is"


def test_the_age_of_an_event_does_not_follow_the_wall_clock() -> None:
    clock = FakeClock()
    ring = ring_of(clock)
    ring.take(down("web0"))
    clock.epoch += 10**18
    clock.advance(90)
    past = ring.get(1)
    assert past is not None
    assert past.age_ns == 90 * 10**9


def test_records_of_the_bus_are_remembered_only_as_notices() -> None:
    ring = ring_of(FakeClock())
    record = LogEvent("warning", "vpp-disconnected", "VPP is away", 1)
    ring.take(record)
    assert len(ring) == 0
    ring.notice(record)
    assert len(ring) == 1
    assert is_notice("vpp-disconnected")
    assert is_notice("clock-step")
    assert not is_notice("backend-transition"), "an event of the bus tells that"


async def test_pages_are_newest_first_and_go_on_whatever_comes_meanwhile() -> None:
    ring = ring_of(FakeClock())
    for at in range(5):
        ring.take(down(f"web{at % 2}"))
    assert await asked(ring, page_size=2) == ([5, 4], "4")
    ring.take(down("web0"))
    assert await asked(ring, page_size=2, page_token="4") == ([3, 2], "2")
    assert await asked(ring, page_size=2, page_token="2") == ([1], "")


async def test_events_are_picked_by_name_and_age() -> None:
    clock = FakeClock()
    ring = ring_of(clock)
    config = small_config()
    frontend = next(iter(config.frontends))
    member = config.frontends[frontend].pools[0].members[0].backend
    other = next(name for name in config.backends if name != member)
    ring.take(down(member))
    clock.advance(100)
    ring.take(FrontendEvent(frontend, FrontendState.UP, FrontendState.DOWN, 1, "backend x down"))
    ring.take(PoolEvent(frontend, "a", "b", True, 1, ""))
    ring.take(ConfigEvent(1, "signal"))
    ring.take(down(other))
    assert await asked(ring, config, backends=[member]) == ([1], "")
    picked, _ = await asked(ring, config, frontends=[frontend])
    assert set(picked) >= {3, 2, 1}
    assert 4 not in picked
    assert await asked(ring, config, last_ns=50 * 10**9) == ([5, 4, 3, 2], "")
    with pytest.raises(UnknownName):
        await asked(ring, config, backends=["nobody"])


@pytest.mark.parametrize("token", ["x", "-1", "1" * 19, "é"])
async def test_strange_tokens_are_refused(token: str) -> None:
    with pytest.raises(BadValue):
        await asked(ring_of(FakeClock()), page_token=token)
