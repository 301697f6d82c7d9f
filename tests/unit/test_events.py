"""The bus: listeners at once, subscriptions a little later, in order, and never more than they have room for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from maglev.base import events
from maglev.base.events import Bus, ConfigEvent, Event


def event(number: int) -> ConfigEvent:
    return ConfigEvent(at_ns=number)


def numbers(seen: Sequence[Event]) -> list[int]:
    return [one.at_ns for one in seen]


class Wants:
    """Wants everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, found: Sequence[Event]) -> Sequence[Event]:
        self.asked += numbers(found)
        return found


async def test_a_listener_hears_at_once_and_a_subscription_at_the_next_turn() -> None:
    bus = Bus()
    heard: list[Event] = []
    bus.listen(heard.append)
    subscription = bus.subscribe(10, list)
    bus.publish(event(1))
    assert numbers(heard) == [1]
    await bus.handed_out()
    assert (numbers((await subscription.batch())[0]), bus.published) == ([1], 1)


async def test_events_come_in_order_to_those_who_want_them() -> None:
    bus = Bus()
    everything = bus.subscribe(100, list)
    even = bus.subscribe(100, lambda found: [event for event in found if event.at_ns % 2 == 0])
    for number in range(10):
        bus.publish(event(number))
    await bus.handed_out()
    assert numbers((await everything.batch())[0]) == list(range(10))
    assert numbers((await even.batch())[0]) == [0, 2, 4, 6, 8]


async def test_a_full_subscription_loses_its_oldest_and_is_told_how_many() -> None:
    bus = Bus()
    subscription = bus.subscribe(3, list)
    for number in range(10):
        bus.publish(event(number))
    await bus.handed_out()
    seen, lost = await subscription.batch()
    assert (numbers(seen), lost, bus.lost) == ([7, 8, 9], 7, 7)
    bus.publish(event(10))
    assert (await subscription.batch()) == ([event(10)], 0)


async def test_many_subscriptions_let_the_loop_run_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SLICE_NS", 0)
    monkeypatch.setattr(events, "AT_ONCE", 1)
    bus = Bus()
    wants = Wants()
    turns: list[int] = []
    bus.subscribe(100, wants)
    for number in range(5):
        bus.publish(event(number))

    async def others() -> None:
        while len(wants.asked) < 5:
            turns.append(len(wants.asked))
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(others(), bus.handed_out())
    assert {1, 2, 3, 4} <= set(turns)


async def test_what_waits_to_be_handed_out_is_bounded_and_nothing_of_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "WAITING", 4)
    monkeypatch.setattr(events, "AT_ONCE", 1)
    bus = Bus()
    wants = Wants()
    subscription = bus.subscribe(100, wants)
    for number in range(10):
        bus.publish(event(number))
    assert wants.asked == list(range(6)), "publishing hands out itself where too much waits"
    await bus.handed_out()
    assert numbers((await subscription.batch())[0]) == list(range(10))


async def test_without_subscriptions_nothing_is_kept() -> None:
    bus = Bus()
    bus.publish(event(1))
    subscription = bus.subscribe(10, list)
    bus.publish(event(2))
    assert numbers((await subscription.batch())[0]) == [2]


async def test_a_closed_subscription_gives_what_it_has_and_then_nothing() -> None:
    bus = Bus()
    subscription = bus.subscribe(10, list)
    bus.publish(event(1))
    await bus.handed_out()
    subscription.close()
    bus.publish(event(2))
    assert numbers((await subscription.batch())[0]) == [1]
    assert await subscription.batch() == ([], 0)
    assert bus.subscribers == 0
