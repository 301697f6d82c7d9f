"""The stats segment of the stand-in, read by VPP's own reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vpp_papi.vpp_stats import VPPStats

from maglev.vpp.wire.messages import VipKey
from maglev.vppsim.api import Identity
from maglev.vppsim.statseg import Entry, Kind, Segment, SegmentFull
from tests.helpers.vppsim import DEADLINE, connected, stand_in

WEB = VipKey.parse("192.0.2.1/32", 6, 80)
NAMES = ("packet from existing sessions", "first session packet", "untracked packet", "no server configured")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Any]:
    found = VPPStats(socketname=str(tmp_path / "stats.sock"))
    yield found
    found.disconnect()


async def _read(work: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE):
        return await asyncio.to_thread(work)


@pytest.mark.parametrize("workers", [0, 3])
async def test_vpps_reader_finds_the_counters_of_vips_and_routes(tmp_path: Path, reader: Any, workers: int) -> None:
    options = {"stats_path": tmp_path / "stats.sock", "identity": Identity(workers=workers)}
    async with stand_in(tmp_path / "api.sock", **options) as server, connected(server.path) as client:
        await _read(reader.connect)
        assert not set(NAMES) & set(reader.directory)  # they appear with the first VIP
        vip: dict[str, Any] = {"pfx": WEB.prefix, "protocol": 6, "port": 80}
        await client.call("lb_add_del_vip_v2", **vip, new_flows_table_length=16)
        await client.values("cli_inband", cmd="sim packets 192.0.2.1/32 tcp 80 3")
        await client.call("lb_add_del_as_v2", **vip, as_address=bytes([10, 0, 0, 1]))
        await client.values("cli_inband", cmd="sim packets 192.0.2.1/32 tcp 80 5")
        await client.values("cli_inband", cmd="sim packets 192.0.2.1/32 tcp 80 7")
        counters = await _read(lambda: reader.dump(NAMES))
        assert [counters[name][:, 1].sum() for name in NAMES] == [5, 7, 0, 3]
        assert [len(counters[name]) for name in NAMES] == [workers + 1] * 4
        route = await client.values("ip_route_lookup", prefix=WEB.prefix, exact=1)
        traffic = (await _read(lambda: reader["/net/route/to"]))[:, route["route"].stats_index]
        assert (traffic.sum_packets(), traffic.sum_octets()) == (15, 15 * 64)
        assert await _read(lambda: reader["/sys/num_worker_threads"]) == workers


async def test_a_restart_hands_out_a_new_segment(tmp_path: Path, reader: Any) -> None:
    async with stand_in(tmp_path / "api.sock", stats_path=tmp_path / "stats.sock") as server:
        async with connected(server.path) as client:
            await client.call("lb_add_del_vip_v2", pfx=WEB.prefix, protocol=6, port=80, new_flows_table_length=16)
        await _read(reader.connect)
        assert set(NAMES) <= set(reader.directory)
        await server.restart()
        await _read(reader.disconnect)
        await _read(reader.connect)
        assert not set(NAMES) & set(reader.directory)
    assert not (tmp_path / "stats.sock").exists()


def test_a_segment_that_is_full_keeps_its_content() -> None:
    segment = Segment(1 << 16)
    try:
        segment.publish([Entry("/sys/heartbeat", Kind.SCALAR, 1)])
        with pytest.raises(SegmentFull):
            segment.publish([Entry("no server configured", Kind.SIMPLE, [[0] * 10_000])])
        segment.publish([Entry("/sys/heartbeat", Kind.SCALAR, 2)])
    finally:
        segment.close()
