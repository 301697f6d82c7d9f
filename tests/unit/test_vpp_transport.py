"""One connection without a socket: what each request gets, wherever the bytes end, and how long it may take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from maglev.vpp.wire.messages import (
    MESSAGES,
    ProtocolError,
    VipKey,
    WeightCall,
    pack_handshake_reply,
    pack_vip_dump,
    reply,
    unpack_vip_details,
    vip_bytes,
)
from maglev.vpp.wire.transport import Connection, ConnectionLost, Reply, Request, set_weight

VIP = VipKey.parse("192.0.2.1/32", 6, 80)
IDS = {name: 100 + number for number, name in enumerate(MESSAGES)}
TABLE = [(number, MESSAGES[name].name_crc) for name, number in IDS.items()]
GREETING = pack_handshake_reply(7, 1, 0, TABLE)
CALLS = [set_weight(WeightCall(VIP, bytes((10, 0, 0, number)), number, False)) for number in range(3)]


class Wire:
    """A transport that only remembers that it was closed."""

    closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class Timer:
    """What ``call_later`` returns."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback

    def cancel(self) -> None:
        self.due = float("inf")


class Loop:
    """As much of a loop as a connection uses, with the test's own time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, callback))
        return self.timers[-1]

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due, self.timers = [t for t in self.timers if t.due <= self.now], [t for t in self.timers if t.due > self.now]
        for timer in due:
            timer.callback()


def connected(loop: Loop | None = None) -> Connection:
    connection = Connection(deadline=5.0, counters=Counter())
    if loop is not None:
        connection._loop = cast(asyncio.AbstractEventLoop, loop)
    connection.connection_made(cast(asyncio.Transport, Wire()))
    return connection


async def introduced(connection: Connection, greeting: bytes = GREETING) -> None:
    shaking = asyncio.ensure_future(connection.handshake("test"))
    await asyncio.sleep(0)
    connection.data_received(greeting)
    await shaking


def weight_reply(context: int, retval: int = 0) -> bytes:
    payload = MESSAGES["lb_as_set_weight_reply"].pack(retval=retval)
    return reply(IDS["lb_as_set_weight_reply"], context, payload)


def details(context: int) -> bytes:
    return reply(IDS["lb_vip_details"], context, vip_bytes(VIP) + bytes(13))


def ping(context: int) -> bytes:
    return reply(IDS["control_ping_reply"], context, MESSAGES["control_ping_reply"].pack(vpe_pid=1))


async def test_a_greeting_that_ends_anywhere_is_no_connection() -> None:
    for offset in range(len(GREETING)):
        connection = connected()
        shaking = asyncio.ensure_future(connection.handshake("test"))
        await asyncio.sleep(0)
        connection.data_received(GREETING[:offset])
        connection.connection_lost(None)
        with pytest.raises(ConnectionLost):
            await shaking
        assert not connection.supports("control_ping")


async def test_replies_that_end_anywhere_answer_what_is_whole_and_fail_the_rest_at_once() -> None:
    """A batch of three calls, a dump and another call; every offset."""
    batch = b"".join(weight_reply(context) for context in (2, 3, 4))
    dump = details(5) + details(5) + ping(6)
    data = batch + dump + weight_reply(7, -6)
    for offset in range(len(data) + 1):
        connection = connected()
        await introduced(connection)
        first = asyncio.ensure_future(connection.send(CALLS))
        second = asyncio.ensure_future(connection.dump("lb_vip_dump", pack_vip_dump()))
        third = asyncio.ensure_future(connection.send(CALLS[:1]))
        await asyncio.sleep(0)
        connection.data_received(data[:offset])
        connection.connection_lost(None)
        got = await asyncio.gather(first, second, third, return_exceptions=True)
        whole = [offset >= len(batch), offset >= len(batch + dump), offset >= len(data)]
        assert [not isinstance(one, ConnectionLost) for one in got] == whole, offset
        if whole[1]:
            assert len(cast(list[bytes], got[1])) == 2
        if whole[2]:
            assert [one.retval for one in cast(list[Reply], got[2])] == [-6]
        with pytest.raises(ConnectionLost):
            await connection.send(CALLS)


@pytest.mark.parametrize("answer", [b"\0\0\0", b""])
async def test_a_reply_that_is_too_short_fails_the_call_that_it_would_have_answered(answer: bytes) -> None:
    connection = connected()
    await introduced(connection)
    sending = asyncio.ensure_future(connection.send(CALLS[:1]))
    await asyncio.sleep(0)
    connection.data_received(reply(IDS["lb_as_set_weight_reply"], 2, answer))
    with pytest.raises(ConnectionLost, match="nonsense"):
        await sending


async def test_a_call_has_its_whole_deadline_though_the_timer_still_runs_for_one_before() -> None:
    loop = Loop()
    connection = connected(loop)
    await introduced(connection)
    first = asyncio.ensure_future(connection.send([Request("control_ping")]))
    await asyncio.sleep(0)
    connection.data_received(ping(2))
    await first
    loop.advance(4.9)
    second = asyncio.ensure_future(connection.send(CALLS[:1]))
    await asyncio.sleep(0)
    loop.advance(0.1)
    loop.advance(4.8)
    assert not connection.lost.done()
    loop.advance(0.1)
    assert connection.lost.result() == "no answer to lb_as_set_weight within 5 s"
    with pytest.raises(ConnectionLost):
        await second


async def test_answers_that_keep_coming_keep_a_slow_batch_alive() -> None:
    loop = Loop()
    connection = connected(loop)
    await introduced(connection)
    sending = asyncio.ensure_future(connection.send(CALLS))
    await asyncio.sleep(0)
    for context in (2, 3, 4):
        loop.advance(4.9)
        connection.data_received(weight_reply(context))
    assert [one.retval for one in await sending] == [0, 0, 0]


async def test_a_dump_without_end_is_bounded_in_bytes() -> None:
    connection = connected()
    await introduced(connection)
    dumping = asyncio.ensure_future(connection.dump("lb_vip_dump", pack_vip_dump()))
    await asyncio.sleep(0)
    many = details(2) * 10_000
    fed = 0
    while not connection.lost.done() and fed < 2_000_000:
        connection.data_received(many)
        fed += 10_000
    with pytest.raises(ConnectionLost, match=r"VPP sent nonsense: lb_vip_dump brings more than .* bytes"):
        await dumping
    assert fed <= 400_000
    assert connection._counters["?", "received", "malformed"] == 1


async def test_replies_of_a_batch_cannot_each_bring_megabytes() -> None:
    connection = connected()
    await introduced(connection)
    sending = asyncio.ensure_future(connection.send(CALLS))
    await asyncio.sleep(0)
    connection.data_received(reply(IDS["lb_as_set_weight_reply"], 2, bytes(1 << 20)))
    with pytest.raises(ConnectionLost, match="lb_as_set_weight_reply has 1048582 bytes"):
        await sending


@pytest.mark.parametrize("what", ["details", "a reply that trickles", "events"])
async def test_what_keeps_coming_without_an_answer_ends_too(what: str) -> None:
    loop = Loop()
    connection = connected(loop)
    await introduced(connection, pack_handshake_reply(7, 1, 0, [*TABLE, (9000, "news_12345678")]))
    dumping = asyncio.ensure_future(connection.dump("lb_vip_dump", pack_vip_dump()))
    await asyncio.sleep(0)
    for number in range(1000):
        loop.advance(4.0)
        if connection.lost.done():
            break
        trickle = ping(2)[:15] if number == 0 else b""
        connection.data_received({"details": details(2), "events": reply(9000, 0)}.get(what, trickle))
    with pytest.raises(ConnectionLost, match=r"no whole answer to lb_vip_dump within 60 s"):
        await dumping


@pytest.mark.parametrize("length", [33, 160, 255])
async def test_a_prefix_longer_than_its_address_is_refused_where_it_is_read(length: int) -> None:
    wire = bytearray(vip_bytes(VIP))
    wire[17] = length
    with pytest.raises(ProtocolError, match=f"a prefix of {length} bits in 192.0.2.1"):
        unpack_vip_details(bytes(wire) + bytes(13))
