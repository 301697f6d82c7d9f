"""Tables of frontends, fingerprints and servers of flows, as the dataplane shows them of what a stand-in holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maglev.base.errors import BadValue, Unavailable, UnknownName
from maglev.base.states import State
from maglev.config.model import Config, Frontend, Pool, PoolMember, Protocol
from maglev.views.dataplane import FlowAnswer, FlowQuestion, FlowServer, VipFingerprint
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig, drift, eventually, failover, programmed, vip_of


def ask(rig: Rig, source_port: int | None = 4711, **options: Any) -> FlowAnswer:
    """The server of a flow to www, or as ``options`` say otherwise."""
    question = FlowQuestion("198.51.100.7", source_port, "192.0.2.1", 80)
    return rig.dataplane.flow(replace(question, **options))


def shared(rig: Rig) -> dict[str, int]:
    table = rig.dataplane.table("www", with_buckets=True)
    assert table is not None
    return dict(table.buckets)


def fingerprint(rig: Rig, frontend: str = "www") -> str:
    table = rig.dataplane.table(frontend, with_buckets=False)
    assert table is not None
    assert not table.buckets
    return table.fingerprint


async def test_a_frontend_shows_the_buckets_of_its_members_as_vpp_has_them(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock", failover(new_flows_table_length=1024)) as (server, rig):
        vip = vip_of(server)
        assert vip is not None
        assert sum(shared(rig).values()) == 1024
        assert set(shared(rig)) == {"a", "b"}
        rig.weight("a", 30)
        await rig.settled()
        assert vip.buckets is not None
        counts = [vip.buckets.get(index, 0) for index, _ in enumerate(server.model.ases)]
        assert sorted(shared(rig).values()) == sorted(count for count in counts if count)
        assert shared(rig)["a"] > shared(rig)["b"]


async def test_a_fingerprint_follows_what_is_read_from_vpp(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock") as (server, rig):
        first = fingerprint(rig)
        value = int(first, 16) >> 11
        assert list(rig.dataplane.fingerprints()) == [VipFingerprint("www", "192.0.2.1/32", "tcp", 80, value)]
        rig.backend("a", State.DOWN)
        await rig.settled()
        without = fingerprint(rig)
        assert without != first
        # Another controller's change is in it when it has been read, and gone when it was repaired.
        drift(server, "10.0.0.2", 7)
        assert fingerprint(rig) == without
        await rig.reconciler.refresh(["www"])
        assert fingerprint(rig) not in (first, without)
        await rig.reconciler.sync(None, force=False, by="test")
        await rig.settled()
        assert fingerprint(rig) == without
        rig.backend("a", State.UP)
        await rig.settled()
        assert fingerprint(rig) == first


async def test_two_vpps_with_the_same_servers_have_the_same_fingerprint(tmp_path: Path) -> None:
    async with programmed(tmp_path / "one.sock") as (_, one), programmed(tmp_path / "two.sock") as (_, two):
        assert fingerprint(one) == fingerprint(two)
        two.drain("b")
        await two.settled()
        assert fingerprint(one) != fingerprint(two)


async def test_a_flow_has_its_server_now_and_before_the_last_change(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock") as (_, rig):
        now = ask(rig)
        assert (now.frontend, now.vip, now.by_address, now.table_length) == ("www", "192.0.2.1/32 tcp 80", False, 16384)
        assert now.bucket == now.hash % 16384
        assert now.server is not None
        assert (now.server_before, now.changed_at_ns) == (None, 0)
        gone = now.server.backend
        other = "b" if gone == "a" else "a"
        rig.backend(gone, State.DOWN)
        await rig.settled()
        after = ask(rig)
        assert after.server is not None
        assert (after.server.backend, after.server_before) == (other, now.server)
        assert (after.hash, after.bucket) == (now.hash, now.bucket)
        assert 0 < after.changed_at_ns <= after.read_at_ns


async def test_a_change_of_many_servers_is_one_change(tmp_path: Path) -> None:
    members = {f"b{number}": 10 for number in range(40)}
    async with programmed(tmp_path / "api.sock", make_config({"p": members}, lb=AT_ONCE)) as (_, rig):
        before = ask(rig).server
        for name in list(members)[:39]:
            rig.backend(name, State.DOWN)
        await rig.settled()
        after = ask(rig)
        assert after.server == FlowServer("10.0.0.40", "b39")
        assert after.server_before == before


async def test_a_flow_without_any_server_says_so(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock") as (_, rig):
        before = ask(rig).server
        for name in "abc":
            rig.backend(name, State.DOWN)
        await rig.settled()
        assert (ask(rig).server, ask(rig).server_before) == (None, before)


async def test_ports_matter_only_where_vpp_reads_them(tmp_path: Path) -> None:
    base = failover()
    www = base.frontends["www"]
    sticky = replace(www, name="sticky", port=81, src_ip_sticky=True)
    config = replace(base, frontends={"www": www, "sticky": sticky})
    async with programmed(tmp_path / "api.sock", config) as (_, rig):
        assert len({ask(rig, port).hash for port in range(1, 9)}) == 8
        assert len({ask(rig, port, port=81).hash for port in range(1, 9)} | {ask(rig, None, port=81).hash}) == 1
        assert ask(rig, None, port=81).by_address
        with pytest.raises(BadValue, match="frontend www chooses servers by port too"):
            ask(rig, None)


def with_any() -> Config:
    """www for TCP port 80, dns for UDP and TCP port 53, and all of 192.0.2.2 for any protocol."""
    base = failover()
    www = base.frontends["www"]
    dns = [replace(www, name=f"dns-{one}", protocol=one, port=53) for one in (Protocol.UDP, Protocol.TCP)]
    pools = (Pool("p", (PoolMember("a", 10), PoolMember("b", 10))),)
    both = Frontend("all", replace(www).address + 1, pools)
    return replace(base, frontends={one.name: one for one in (www, *dns, both)})


async def test_a_flow_is_found_by_protocol_and_port_or_on_a_vip_for_any_protocol(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock", with_any()) as (_, rig):
        assert ask(rig, port=53).frontend == "dns-tcp"
        assert ask(rig, port=53, protocol=Protocol.UDP).frontend == "dns-udp"
        whole: dict[str, Any] = {"address": "192.0.2.2", "port": 443}
        assert ask(rig, **whole).frontend == "all"
        assert not ask(rig, **whole, protocol=Protocol.UDP).by_address
        assert ask(rig, None, **whole, protocol=Protocol.ANY).by_address
        assert not ask(rig, **whole).by_address
        assert ask(rig, None, address="192.0.2.2", port=0).by_address
        nowhere = ({"port": 8080}, {"protocol": Protocol.ANY}, {"protocol": Protocol.UDP}, {"address": "192.0.2.3"})
        for options in nowhere:
            with pytest.raises(UnknownName, match="no VIP named"):
                ask(rig, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "client"}, "the source is an IP address, not 'client'"),
        ({"address": "192.0.2.0/24"}, "the VIP is an IP address"),
        ({"source": "2001:db8::1"}, "both addresses are of one family"),
        ({"port": 65536}, "a port is 0 to 65535, not 65536"),
        ({"source_port": 65536}, "a port is 0 to 65535, not 65536"),
    ],
)
async def test_what_is_no_flow_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    async with programmed(tmp_path / "api.sock") as (_, rig):
        with pytest.raises(BadValue, match=words):
            ask(rig, **options)


async def test_nothing_is_known_while_vpp_is_away_and_the_change_meanwhile_is_seen_after_it(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock") as (server, rig):
        before, print_before = ask(rig).server, fingerprint(rig)
        await server.stop()
        await eventually(lambda: not rig.client.connected)
        assert rig.dataplane.table("www", with_buckets=True) is None
        assert not list(rig.dataplane.fingerprints())
        with pytest.raises(Unavailable):
            ask(rig)
        assert before is not None
        drift(server, before.address, 0)
        await server.start()
        await rig.settled()
        assert fingerprint(rig) == print_before
        assert ask(rig).server == before


async def test_what_has_no_frontend_has_no_table(tmp_path: Path) -> None:
    async with programmed(tmp_path / "api.sock") as (_, rig):
        assert rig.dataplane.table("nowhere", with_buckets=True) is None
        rig.load(replace(rig.states.config(), frontends={}), forced=True)
        await rig.settled()
        assert rig.dataplane.table("www", with_buckets=True) is None
