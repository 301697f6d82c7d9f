"""Flows of a backend, read from a stand-in at an operator's request."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from maglev.base.errors import NotAllowed, Unavailable, UnknownName
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.state.reader import parse_flows
from maglev.vpp.sync.flowtext import MOST_STALL_NS
from maglev.vpp.wire.messages import ProtocolError, VipKey
from maglev.vppsim.server import StandIn
from tests.helpers.vpprig import WWW, PacedClock, eventually, programmed, vip_of

TRANSCRIPTS = Path(__file__).parents[1] / "data" / "transcripts"
A, B = b"\x0a\0\0\1", b"\x0a\0\0\2"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def receive(server: StandIn, flows: int) -> None:
    vip = vip_of(server)
    assert vip is not None
    server.model.packets(vip, range(flows))


def readings(server: StandIn) -> int:
    return len([one for one in server.journal.calls("cli_inband") if "verbose" in str(one.values)])


async def test_a_drained_backend_is_empty_when_its_flows_have_gone_and_the_log_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with programmed(path, clock=PacedClock()) as (server, rig):
        receive(server, 500)
        rig.drain("a")
        await rig.settled()
        first = await rig.dataplane.flows("a")
        (one,) = first.frontends
        assert (one.frontend, one.vip, one.weight) == ("www", "192.0.2.1/32 tcp 80", 0)
        assert first.flows == one.flows
        assert 200 < first.flows < 300
        assert (first.drained, first.empty, first.address) == (True, False, "10.0.0.1")
        assert first.stall_ns > 0
        vip = vip_of(server)
        assert vip is not None
        assert server.model.flush_vip(vip) in (0, None)
        with caplog.at_level(logging.INFO):
            again = await rig.dataplane.flows("a")
            assert again.flows == first.flows  # the same reading serves for some seconds
            assert isinstance(rig.clock, PacedClock)
            rig.clock.advance(6)
            last = await rig.dataplane.flows("a")
        assert (last.flows, last.empty) == (0, True)
        assert [one for one in caplog.records if getattr(one, "maglev_event", "") == "backend-empty"]


async def test_a_backend_with_a_weight_is_not_empty_though_it_has_no_flow(path: Path) -> None:
    async with programmed(path) as (_, rig):
        found = await rig.dataplane.flows("a")
        assert (found.flows, found.empty) == (0, False)


async def test_many_callers_share_one_reading_and_it_is_counted_as_work(path: Path) -> None:
    async with programmed(path) as (server, rig):
        spent = rig.reconciler.pacer.spent_ns
        answers = await asyncio.gather(*(rig.dataplane.flows(name) for name in "abcabc"))
        assert readings(server) == 1
        assert rig.reconciler.pacer.spent_ns >= spent + answers[0].stall_ns
        assert len({one.read_at_ns for one in answers}) == 1


async def test_a_reading_that_would_stop_vpp_for_long_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with programmed(path) as (server, rig):
        monkeypatch.setattr(CostModel, "print_all", lambda self, vips, ases: MOST_STALL_NS + 1)
        with pytest.raises(NotAllowed, match="forward nothing for about 200 ms"):
            await rig.dataplane.flows("a")
        assert readings(server) == 0


async def test_no_flows_of_a_backend_that_is_unknown_or_of_a_vpp_that_is_away(path: Path) -> None:
    async with programmed(path) as (server, rig):
        with pytest.raises(UnknownName):
            await rig.dataplane.flows("nil")
        await server.stop()
        await eventually(lambda: not rig.client.connected)
        with pytest.raises(Unavailable):
            await rig.dataplane.flows("a")


async def test_an_as_that_vpp_lacks_has_no_number(path: Path) -> None:
    async with programmed(path) as (server, rig):
        vip = vip_of(server)
        assert vip is not None
        server.model.delete_vip(vip)
        found = await rig.dataplane.flows("a")
        (one,) = found.frontends
        assert (one.flows, one.weight) == (None, 0)


def test_flows_are_read_from_what_vpp_prints() -> None:
    text = ""
    for line in (TRANSCRIPTS / "basics.jsonl").read_text().splitlines():
        call = json.loads(line)
        if call.get("args", {}).get("cmd") == "show lb vips verbose":
            text = call["replies"][0]["fields"]["reply"]
    removed = b"\x0a\0\0\4"
    assert parse_flows(text, {(WWW, A), (WWW, removed), (WWW, b"\x0a\0\0\x09")}) == {(WWW, A): 0, (WWW, removed): 0}
    text = text.replace(
        "10.0.0.1 weight:55 buckets:377 flows:0", "10.0.0.1 weight:55 buckets:377 flows:18446744073709551615"
    )
    assert parse_flows(text, {(WWW, A)})[WWW, A] == (1 << 64) - 1
    assert parse_flows(text, {(VipKey.parse("192.0.2.1/32", 17, 80), A)}) == {}
    with pytest.raises(ProtocolError):
        parse_flows(text.replace("flows:18446744073709551615", f"flows:{'9' * 6000}"), {(WWW, A)})


def test_flows_of_a_removed_vip_and_of_other_vips_do_not_count() -> None:
    def section(head: str, flows: int) -> str:
        ases = f"  #as:1\n    10.0.0.1 weight:1 buckets:0 flows:{flows} dpo:9 used\n\n"
        return f" {head}\n  new_size:64\n  protocol:6 port:80\n{ases}"

    text = section("ip4-gre4 [1] 192.0.2.1/32 removed", 5) + section("ip4-gre4 [2] 192.0.2.1/32", 7)
    text += section("ip4-gre4 [3] 192.0.2.2/32", 11)
    assert parse_flows(text, {(WWW, A), (WWW, B)}) == {(WWW, A): 7}
