"""Packet counters of the VIPs, from the stand-in's stats segment to what the API shows."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import mmap
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from maglev.base.errors import Unavailable
from maglev.base.states import State
from maglev.vpp.shown.dataplane import Dataplane
from maglev.vpp.shown.stats import Segment, StatsPoller
from maglev.vppsim import statseg
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig, drift, eventually

CONFIG = make_config({"p": {"a": 10}}, lb=AT_ONCE)


class Counting(NamedTuple):
    """A dataplane on a stand-in, with all that reads its counters."""

    server: StandIn
    rig: Rig
    poller: StatsPoller
    dataplane: Dataplane


@contextlib.asynccontextmanager
async def counting(directory: Path, *, segment: bool = True) -> AsyncIterator[Counting]:
    """Programmed with ``CONFIG``; without ``segment``, the poller looks for one that is not there."""
    path, stats = directory / "api.sock", directory / "stats.sock"
    server = StandIn(path, stats_path=stats if segment else None)
    await server.start()
    rig = Rig(path, CONFIG)
    poller = StatsPoller(str(stats), rig.client, rig.reconciler, rig.clock)
    rig.load()
    try:
        async with rig.running():
            await rig.settled()
            yield Counting(server, rig, poller, Dataplane(rig.client, rig.reconciler, rig.states, rig.clock, poller))
    finally:
        await server.stop()


def sim(server: StandIn, command: str) -> None:
    retval, output = server.control.execute(command)
    assert retval == 0, output


async def test_counters_by_kind_and_route_and_a_warning_when_servers_are_there_and_packets_find_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with counting(tmp_path) as (server, rig, poller, dataplane):
        await poller.read()
        assert poller.problem == ""
        sim(server, "packets 192.0.2.1/32 tcp 80 5")
        sim(server, "packets 192.0.2.1/32 tcp 80 7")
        await poller.read()
        (counters,) = (await dataplane.counters("www")).vips
        assert (counters.first_session, counters.existing_session, counters.no_server) == (7, 5, 0)
        assert (counters.route_packets, counters.route_bytes) == (12, 12 * 64)
        with caplog.at_level(logging.WARNING, "maglev.vpp"):
            rig.backend("a", State.DOWN)
            await rig.settled()
            sim(server, "packets 192.0.2.1/32 tcp 80 90")
            await poller.read()
            rig.backend("a", State.UP)
            await rig.settled()
            await poller.read()
            assert "should have servers" not in caplog.text
            drift(server, "10.0.0.1", 0)
            sim(server, "packets 192.0.2.1/32 tcp 80 100")
            await poller.read()
        assert "should have servers, but 93 packets found none and 0 were not tracked" in caplog.text


async def test_figures_and_traffic_are_what_the_api_shows_and_end_with_the_connection(tmp_path: Path) -> None:
    async with counting(tmp_path) as (server, rig, poller, dataplane):
        await poller.read()
        figures = dataplane.figures()
        assert figures.vpp is not None
        assert figures.vpp.version == dataplane.info().version
        assert 0 <= figures.vpp.connected_ns <= figures.vpp.uptime_ns
        assert (figures.connects, figures.refused_calls, figures.unmanaged_vips) == (1, 0, 0)
        assert figures.lbsync == rig.reconciler.counters.lbsync
        assert figures.api_total == rig.client.api_total
        assert list(dataplane.traffic()) == (await dataplane.counters(None)).vips
        await server.stop()
        await eventually(lambda: not rig.client.connected)
        away = dataplane.figures()
        assert away.vpp is None
        assert (away.connects, away.lbsync) == (1, figures.lbsync)
        assert list(dataplane.traffic()) == []


async def test_counters_of_a_vip_that_was_removed_are_gone_at_once(tmp_path: Path) -> None:
    async with counting(tmp_path) as (_, rig, poller, dataplane):
        await poller.read()
        assert len((await dataplane.counters(None)).vips) == 1
        rig.load(replace(CONFIG, frontends={}, backends={}))
        await rig.settled()
        assert list((await dataplane.counters(None)).vips) == []
        assert list(poller.vips) == []


async def test_no_segment_means_no_counters_and_says_why(tmp_path: Path) -> None:
    async with counting(tmp_path, segment=False) as (_, _, poller, dataplane):
        await poller.read()
        assert poller.failures == 1
        with pytest.raises(Unavailable, match=r"stats\.sock.*--vpp-stats-addr"):
            await dataplane.counters(None)


@contextlib.contextmanager
def segment_of_a_dead_vpp(path: Path, **header: int) -> Iterator[None]:
    """Hand out a segment as VPP left it; ``header`` changes words of it (``in_progress``, ``directory``)."""
    segment = statseg.Segment(1 << 20)
    segment.publish([statseg.Entry("/sys/heartbeat", statseg.Kind.SCALAR, 1)])
    with mmap.mmap(segment.fd, 1 << 20) as memory:
        for name, value in header.items():
            struct.pack_into("=Q", memory, {"in_progress": 24, "directory": 32}[name], value)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def hand_out() -> None:
            while True:
                try:
                    reader, _ = listener.accept()
                except OSError:
                    return
                with reader:
                    reader.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [segment.fd]))])

        thread = threading.Thread(target=hand_out)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            segment.close()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"in_progress": 1}, "does not come to an end"),
        ({"directory": 0x7F00_0000_0014}, "makes no sense"),  # its length: 32,512 entries
    ],
)
def test_segment_that_never_becomes_whole_is_given_up(tmp_path: Path, header: dict[str, int], why: str) -> None:
    path = tmp_path / "stats.sock"
    with segment_of_a_dead_vpp(path, **header), pytest.raises(OSError, match=why):
        Segment(str(path)).read(1, {}, {})


async def test_poller_that_ended_can_be_run_again(tmp_path: Path) -> None:
    async with counting(tmp_path) as (_, _, poller, _):
        for _ in range(2):
            running = asyncio.create_task(poller.run())
            await eventually(lambda: poller.read_at_ns != 0)
            running.cancel()
            await asyncio.wait([running])
            assert poller.problem == ""
            poller.read_at_ns = 0
