"""Packet counters of the VIPs, from the stand-in's stats segment to what the API shows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from maglev.errors import Unavailable
from maglev.states import State
from maglev.vpp.dataplane import Dataplane
from maglev.vpp.stats import StatsPoller
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig


def sim(server: StandIn, command: str) -> None:
    retval, output = server.control.execute(command)
    assert retval == 0, output


async def test_counters_by_kind_and_route_and_a_warning_when_servers_are_there_and_packets_find_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, stats = tmp_path / "api.sock", tmp_path / "stats.sock"
    server = StandIn(path, stats_path=stats)
    await server.start()
    rig = Rig(path, make_config({"p": {"a": 10}}, lb=AT_ONCE))
    poller = StatsPoller(str(stats), rig.client, rig.reconciler, rig.clock)
    dataplane = Dataplane(rig.client, rig.reconciler, rig.states, rig.clock, poller)
    rig.load()
    try:
        async with rig.running():
            await rig.settled()
            await poller.read()
            assert poller.problem == ""
            sim(server, "packets 192.0.2.1/32 tcp 80 5")
            sim(server, "packets 192.0.2.1/32 tcp 80 7")
            await poller.read()
            (counters,) = (await dataplane.counters("www")).vips
            assert (counters.first_session, counters.existing_session, counters.no_server) == (7, 5, 0)
            assert (counters.route_packets, counters.route_bytes) == (12, 12 * 64)
            rig.backend("a", State.DOWN)
            await rig.settled()
            sim(server, "packets 192.0.2.1/32 tcp 80 90")
            rig.backend("a", State.UP)
            await rig.settled()
            with caplog.at_level(logging.WARNING, "maglev.vpp"):
                await poller.read()
            assert "has servers, but 83 packets found none" in caplog.text
    finally:
        await server.stop()


async def test_no_segment_means_no_counters_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    server = StandIn(path)
    await server.start()
    rig = Rig(path, make_config({"p": {"a": 10}}, lb=AT_ONCE))
    poller = StatsPoller(str(tmp_path / "none.sock"), rig.client, rig.reconciler, rig.clock)
    dataplane = Dataplane(rig.client, rig.reconciler, rig.states, rig.clock, poller)
    rig.load()
    try:
        async with rig.running():
            await rig.settled()
            await poller.read()
            assert poller.failures == 1
            with pytest.raises(Unavailable, match=r"none\.sock"):
                await dataplane.counters(None)
    finally:
        await server.stop()
