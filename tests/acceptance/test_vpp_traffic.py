"""Packets through a real VPP while the daemon changes it: which server gets each flow, and whether a packet is lost.

The rules, for every kind of change: a flow moves only if its server was flushed; a flow of a drained server stays; a
packet goes to a server that was allowed at some moment of the change; no packet is lost while a server is usable.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Config, MassChanges, OnAllDown, Protocol
from maglev.views.dataplane import FlowQuestion, FrontendTable
from maglev.vpp.planning.flow import TCP, UDP, Flow, hash_of
from maglev.vpp.planning.model import vip_key
from maglev.vpp.planning.tables import table_of
from maglev.vpp.state.reader import StateReader, fill, new_vip
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.wire.messages import address_text
from maglev.vpp.wire.transport import Reply, Request
from tests.acceptance.rigs import DOWN, UP, buckets, config_of, driven, halves, held, is_change
from tests.acceptance.traffic import STICKY_BUCKETS, Generator, Traffic, flows_to, generator
from tests.helpers.vpprig import Rig, eventually

pytestmark = pytest.mark.needs_a_free_vpp

VIPS = {4: "192.0.2.201", 6: "2001:db8::201"}
FLOWS = 1000
SLOTS = 4
"""Flows in a bucket of VPP's sticky table."""


def at_vip(config: Config, family: int, **options: object) -> Config:
    """The configuration with its VIP, whatever its servers' family, in this family.

    The stall is so long that a mass change needs no chunks: the servers of each chunk flush the flows that they got
    from the chunk before, and a flow has room for four flushes only.
    """
    www = replace(config.frontends["www"], address=ip_address(VIPS[family]), **options)  # type: ignore[arg-type]
    return replace(config, frontends={"www": www}, lb=replace(config.lb, max_stall=50_000_000))


def one_pool(family: int = 4, count: int = 8, **options: object) -> Config:
    """One pool of servers ``a01`` and on, at weights 1 and 3 by turns."""
    config = halves(family, MassChanges.AUTO)
    www = config.frontends["www"]
    first = replace(www.pools[0], members=www.pools[0].members[:count])
    names = [member.backend for member in first.members]
    www = replace(www, pools=(first,))
    kept = {name: config.backends[name] for name in names}
    return at_vip(replace(config, backends=kept, frontends={"www": www}), family, **options)


def addresses(config: Config, names: Callable[[str], bool] = lambda name: True) -> set[str]:
    """The addresses of the servers with such names."""
    return {str(backend.address) for name, backend in config.backends.items() if names(name)}


@pytest.fixture
async def packets(socket: Path, tmp_path: Path) -> AsyncIterator[Generator]:
    """VPP's packet generator."""
    async with generator(socket, tmp_path) as made:
        yield made


async def forecast(rig: Rig) -> tuple[list[bytes], bool]:
    """The table that VPP has, by the product's own arithmetic, and whether it leaves the ports out."""
    (www,) = rig.states.config().frontends.values()
    reader, key = StateReader(rig.client), vip_key(www)
    vip = new_vip((await reader.vips())[key])
    fill(vip, await reader.ases(key))
    return table_of(vip.ases, vip.length).owners(), www.src_ip_sticky


async def foretold(rig: Rig, flows: Sequence[Flow]) -> dict[Flow, str]:
    """The server of each flow, were it new."""
    table, sticky = await forecast(rig)
    return {flow: address_text(table[hash_of(flow, sticky=sticky) % len(table)]) for flow in flows}


def moved(before: dict[Flow, str], after: dict[Flow, str]) -> dict[Flow, tuple[str, str]]:
    """The flows that have changed their server."""
    assert before.keys() == after.keys()
    return {flow: (before[flow], after[flow]) for flow in before if before[flow] != after[flow]}


@contextmanager
def noting(rig: Rig) -> Iterator[list[Request]]:
    """Collects the requests of the daemon to VPP."""
    sent: list[Request] = []
    real = rig.client.send

    async def send(requests: Sequence[Request]) -> list[Reply]:
        sent.extend(requests)
        return await real(requests)

    rig.client.send = send  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        rig.client.send = real  # type: ignore[method-assign]


@asynccontextmanager
async def undisturbed(
    packets: Generator, flows: Sequence[Flow], allowed: Collection[str], *, tracked: bool = True
) -> AsyncIterator[Traffic]:
    """A stream of these flows; afterwards: VPP has forwarded every packet, each to a server that was allowed.

    ``tracked``: VPP knew the flow of each packet.
    """
    dropped = await packets.counted("no server configured")
    untracked = await packets.counted("untracked packet")
    async with packets.stream(flows) as traffic:
        yield traffic
        assert await packets.counted("no server configured") == dropped
        assert not tracked or await packets.counted("untracked packet") == untracked
    assert traffic.lost == 0
    assert set(traffic.last()) == set(flows)
    assert {packet.server for packet in traffic.packets} <= set(allowed)


@pytest.mark.parametrize("family", [4, 6])
async def test_a_mass_failover_by_commands_moves_each_flow_once_and_loses_none(
    socket: Path, packets: Generator, family: int
) -> None:
    config = at_vip(halves(family, MassChanges.AUTO), family)
    flows = flows_to(VIPS[family], FLOWS)
    first, standby = (addresses(config, lambda name, half=half: name[0] == half) for half in "ab")  # type: ignore[misc]
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        assert before == await foretold(rig, flows)
        assert set(before.values()) <= first
        async with undisturbed(packets, flows, first | standby) as traffic:
            with noting(rig) as sent:
                for name in config.backends:
                    if name[0] == "a":
                        rig.backend(name, DOWN)
                await rig.settled()
        assert any(is_change(request) for request in sent)
        assert rig.reconciler.counters.commands_failed == 0
        after = await packets.burst(flows)
        assert set(after.values()) <= standby
        # A flow that a flush moved before all standbys were raised may move again among them, but never back.
        for servers in traffic.servers().values():
            assert [server in standby for server in servers] == sorted(server in standby for server in servers)
            assert servers[0] in first
        # Back: nothing was flushed on the standbys, so they keep their flows, and new flows go to the first pool.
        async with undisturbed(packets, flows, standby) as traffic:
            for name in config.backends:
                if name[0] == "a":
                    rig.backend(name, UP)
            await rig.settled()
        assert not moved(after, await packets.burst(flows))
        new = flows_to(VIPS[family], FLOWS, first=FLOWS)
        assert await packets.burst(new) == await foretold(rig, new)


@pytest.mark.parametrize("family", [4, 6])
async def test_a_failure_of_many_moves_their_flows_and_no_others(socket: Path, packets: Generator, family: int) -> None:
    config = one_pool(family, 60)
    flows = flows_to(VIPS[family], FLOWS)
    failing = {name for name in config.backends if int(name[1:]) <= 40}
    gone, left = addresses(config, failing.__contains__), addresses(config, lambda name: name not in failing)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        async with undisturbed(packets, flows, gone | left):
            for name in failing:
                rig.backend(name, DOWN)
            await rig.settled()
        after = await packets.burst(flows)
        assert set(after.values()) <= left
        assert moved(before, after).keys() == {flow for flow, server in before.items() if server in gone}


async def test_servers_that_fail_without_a_flush_keep_their_flows(socket: Path, packets: Generator) -> None:
    config = one_pool(4, 30, flush_on_down=False)
    flows, new = flows_to(VIPS[4], FLOWS), flows_to(VIPS[4], FLOWS, first=FLOWS)
    failing = {name for name in config.backends if int(name[1:]) <= 25}
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        async with undisturbed(packets, flows, addresses(config)) as traffic:
            for name in failing:
                rig.backend(name, DOWN)
            await rig.settled()
        assert not moved(before, traffic.last())
        others = await packets.burst(new)
        assert others == await foretold(rig, new)
        assert set(others.values()) <= addresses(config, lambda name: name not in failing)


@pytest.mark.parametrize("family", [4, 6])
async def test_a_drained_server_keeps_its_flows_and_gets_no_new_one(
    socket: Path, packets: Generator, family: int
) -> None:
    config = one_pool(family)
    flows, new = flows_to(VIPS[family], FLOWS), flows_to(VIPS[family], FLOWS, first=FLOWS)
    drained = str(config.backends["a02"].address)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        async with undisturbed(packets, flows, addresses(config)) as traffic:
            rig.drain("a02")
            await rig.settled()
        assert drained in before.values()
        assert not moved(before, traffic.last())
        assert drained not in (await packets.burst(new)).values()
        async with undisturbed(packets, flows, addresses(config)) as traffic:
            rig.drain("a02", drained=False)
            await rig.settled()
        assert not moved(before, traffic.last())


async def test_weights_change_shares_of_new_flows_and_move_none(socket: Path, packets: Generator) -> None:
    config = one_pool(weight_unit=1, new_flows_table_length=1024)
    flows = flows_to(VIPS[4], FLOWS)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        for turn, weights in enumerate(((100, 1), (1, 100), (0, 50)), 1):
            async with undisturbed(packets, flows, addresses(config)) as traffic:
                for name, weight in zip(("a01", "a02"), weights, strict=True):
                    rig.weight(name, weight)
                await rig.settled()
            assert not moved(before, traffic.last())
            new = flows_to(VIPS[4], FLOWS, first=FLOWS * turn)
            assert await packets.burst(new) == await foretold(rig, new)


async def test_a_flush_moves_the_flows_of_its_server_alone(socket: Path, packets: Generator) -> None:
    config = one_pool()
    flows = flows_to(VIPS[4], FLOWS)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        changes: dict[str, Callable[[], None]] = {
            "a02": lambda: rig.weight("a02", 0, flush=True),
            "a03": lambda: rig.backend("a03", State.DISABLED),
            "a04": lambda: rig.backend("a04", DOWN),
        }
        for name, change in changes.items():
            flushed = str(config.backends[name].address)
            async with undisturbed(packets, flows, addresses(config)):
                change()
                await rig.settled()
            after = await packets.burst(flows)
            assert flushed not in after.values()
            assert moved(before, after).keys() == {flow for flow, server in before.items() if server == flushed}
            before = after


async def test_a_server_that_drained_and_then_fails_loses_its_flows(socket: Path, packets: Generator) -> None:
    config = one_pool()
    flows = flows_to(VIPS[4], FLOWS)
    failing = str(config.backends["a02"].address)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        rig.drain("a02")
        await rig.settled()
        async with undisturbed(packets, flows, addresses(config)):
            rig.backend("a02", DOWN)
            await rig.settled()
        after = await packets.burst(flows)
        assert failing not in after.values()
        assert moved(before, after).keys() == {flow for flow, server in before.items() if server == failing}


async def test_a_frontend_without_a_usable_server_keeps_its_flows_until_another_pool_serves(
    socket: Path, packets: Generator
) -> None:
    config = config_of()
    flows = flows_to(VIPS[4], FLOWS)
    async with driven(socket, config) as rig:
        rig.backend("c", DOWN)
        await rig.settled()
        before = await packets.burst(flows)
        async with packets.stream(flows) as traffic:
            for name in "ab":
                rig.backend(name, DOWN)
            await rig.settled()
        # No flush pins the flows to nothing. b was the only one left when a failed, so its flows were flushed to it.
        assert set(await held_weights(rig)) == {0}
        assert traffic.lost == 0
        assert {server for flow, server in traffic.last().items() if before[flow] == "10.9.0.2"} == {"10.9.0.2"}
        async with packets.stream(flows) as traffic:
            rig.backend("c", UP)
            await rig.settled()
        assert traffic.lost == 0
        assert set((await packets.burst(flows)).values()) == {"10.9.0.3"}


async def held_weights(rig: Rig) -> list[int]:
    """The weights of all servers in VPP."""
    return list((await held(rig)).values())


async def test_a_connection_that_breaks_in_the_middle_of_a_mass_change_loses_no_packet(
    socket: Path, packets: Generator
) -> None:
    config = at_vip(halves(4, MassChanges.AUTO), 4)
    flows = flows_to(VIPS[4], FLOWS)
    async with driven(socket, config) as rig:
        await packets.burst(flows)
        for state in (DOWN, UP, DOWN):
            connects = rig.client.connects
            async with undisturbed(packets, flows, addresses(config), tracked=False):
                for name in config.backends:
                    if name[0] == "a":
                        rig.backend(name, state)
                await asyncio.sleep(0)
                rig.client.drop("the test cuts it")
                await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
                await rig.settled()
        assert set((await packets.burst(flows)).values()) <= addresses(config, lambda name: name[0] == "b")
        assert not rig.reconciler.owed


async def test_a_frontend_that_keeps_its_weights_serves_on_when_all_its_servers_are_down(
    socket: Path, packets: Generator
) -> None:
    config = one_pool(on_all_down=OnAllDown.KEEP)
    flows, new = flows_to(VIPS[4], FLOWS), flows_to(VIPS[4], FLOWS, first=FLOWS)
    async with driven(socket, config) as rig:
        first = await packets.burst(flows)
        async with undisturbed(packets, flows, addresses(config)) as traffic:
            for name in config.backends:
                rig.backend(name, DOWN)
            await rig.settled()
        assert not moved(first, traffic.last())
        # The last servers keep their weights, so new flows are served too.
        assert (await packets.burst(new)).keys() == set(new)


@pytest.mark.parametrize("family", [4, 6])
async def test_a_vip_that_is_created_again_serves_by_its_new_table(
    socket: Path, packets: Generator, family: int
) -> None:
    config = one_pool(family)
    flows = flows_to(VIPS[family], FLOWS)
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        www = replace(config.frontends["www"], new_flows_table_length=4096, src_ip_sticky=True)
        async with packets.stream(flows) as traffic:
            rig.load(replace(config, frontends={"www": www}))
            await rig.settled()
        # A VIP that is taken down forwards nothing. Every forwarded packet went to one of its servers.
        assert {packet.server for packet in traffic.packets} <= addresses(config)
        # Some flows met the new VIP while its servers came, and stay where they went then.
        after = await packets.burst(flows)
        assert set(after.values()) <= addresses(config)
        assert moved(before, after)
        new = flows_to(VIPS[family], FLOWS, first=FLOWS)
        later = await packets.burst(new)
        assert later == await foretold(rig, new)
        by_source: dict[object, set[str]] = {}
        for flow, server in later.items():
            by_source.setdefault(flow.source, set()).add(server)
        assert {len(servers) for servers in by_source.values()} == {1}


async def test_a_restart_of_the_daemon_moves_no_flow_and_loses_none(socket: Path, packets: Generator) -> None:
    config, store = one_pool(), MemoryStore()
    flows = flows_to(VIPS[4], FLOWS)
    first = Rig(socket, config, store=store)
    first.load()
    async with first.running():
        await first.settled()
        first.backend("a01", DOWN)
        await first.settled()
        before = await packets.burst(flows)
    # A restarted daemon has no verdict; then a server of before is down, and one is found down.
    async with undisturbed(packets, flows, addresses(config)) as traffic:
        second = Rig(socket, config, store=store, state=State.UNKNOWN)
        second.load()
        async with second.running():
            await second.settled()
            assert not second.reconciler.counters.lbsync
            for name in config.backends:
                second.backend(name, DOWN if name == "a01" else UP)
            await second.settled()
    assert not moved(before, traffic.last())
    async with driven(socket, config, store=store) as rig:
        rig.backend("a01", UP)
        await rig.settled()
        assert not moved(before, await packets.burst(flows))


async def test_a_repair_of_drift_moves_no_flow_and_loses_none(socket: Path, packets: Generator) -> None:
    config = one_pool(4, 4)
    flows, new = flows_to(VIPS[4], FLOWS), flows_to(VIPS[4], FLOWS, first=FLOWS)
    foreign = "10.9.3.77"
    async with driven(socket, config) as rig:
        before = await packets.burst(flows)
        vip = f"lb as {VIPS[4]}/32 protocol tcp port 80"
        async with undisturbed(packets, flows, addresses(config)) as traffic:
            await packets.cli(f"{vip} 10.9.2.1 weight 0")
            await packets.cli(f"{vip} 10.9.2.2 weight 77")
            await packets.cli(f"{vip} 10.9.2.3 del")
            await packets.cli(f"{vip} {foreign} weight 3")
            await rig.reconciler.sync(None, force=False, by="test")
            await rig.settled()
        assert rig.reconciler.counters.drift.total() == 4
        assert not moved(before, traffic.last())
        later = await packets.burst(new)
        assert later == await foretold(rig, new)
        assert foreign not in later.values()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_a_flow_moves_only_when_its_server_was_flushed(
    socket: Path, packets: Generator, seed: int
) -> None:
    """Changes at random, of which some come while others are under way; one server of the last pool stays up."""
    config = halves(4, MassChanges.AUTO)
    # So short a stall that mass changes go out in chunks, with verdicts between them.
    config = replace(config, lb=replace(config.lb, max_stall=2_000_000))
    chance = random.Random(seed)
    changing = [name for name in config.backends if name != "b60"]
    async with driven(socket, config) as rig:
        for turn in range(8):
            flows = flows_to(VIPS[4], FLOWS, first=FLOWS * turn)
            flushed: set[str] = set()
            async with undisturbed(packets, flows, addresses(config), tracked=False) as traffic:
                for _ in range(4):
                    for name in chance.sample(changing, chance.choice((1, 2, 20, 60))):
                        change = chance.choice(("down", "up", "up", "drain", "undrain", "weight", "disable"))
                        apply(rig, name, change, chance)
                        if change in ("down", "disable"):
                            flushed.add(str(config.backends[name].address))
                    if chance.random() < 0.5:
                        await rig.settled()
                    else:
                        await asyncio.sleep(0)
                await rig.settled()
            servers = traffic.servers()
            # Each flush of a flow leaves one of the four slots of its bucket taken. VPP forgets a flow without a slot.
            for flow in alone(flows, flows_to(VIPS[4], FLOWS * turn)):
                assert set(servers[flow][:-1][: SLOTS - 1]) <= flushed
        assert not rig.reconciler.owed
        assert not rig.reconciler.counters.drift.total()


def alone(flows: Sequence[Flow], before: Sequence[Flow]) -> list[Flow]:
    """Those of ``flows`` that share their bucket of VPP's sticky table with none of the others, nor of ``before``."""
    bucket = {flow: hash_of(flow, sticky=False) % min(STICKY_BUCKETS) for flow in (*before, *flows)}
    many = Counter(bucket.values())
    found = [flow for flow in flows if many[bucket[flow]] == 1]
    assert len(found) > len(flows) // 2
    return found


def apply(rig: Rig, name: str, change: str, chance: random.Random) -> None:
    """One change of a server."""
    if change in ("drain", "undrain"):
        rig.drain(name, drained=change == "drain")
    elif change == "weight":
        pool = "p" if name[0] == "a" else "q"
        rig.weight(name, chance.choice((10, 20, 30)), pool=pool)
    else:
        rig.backend(name, {"down": DOWN, "up": UP, "disable": State.DISABLED}[change])


@pytest.mark.parametrize("sticky", [False, True], ids=["ports", "sticky"])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP, Protocol.ANY])
@pytest.mark.parametrize(("vip", "servers"), [(4, 4), (4, 6), (6, 4), (6, 6)])
async def test_the_server_of_each_of_thousands_of_flows_is_foretold(
    socket: Path, packets: Generator, vip: int, servers: int, protocol: Protocol, sticky: bool
) -> None:
    port = 0 if protocol is Protocol.ANY else 443
    config = replace(one_pool(servers, 20), frontends={})
    www = one_pool(servers, 20).frontends["www"]
    www = replace(www, address=ip_address(VIPS[vip]), protocol=protocol, port=port, src_ip_sticky=sticky)
    numbers = [TCP, UDP] if protocol is Protocol.ANY else [int(protocol)]
    flows = [flow for number in numbers for flow in flows_to(VIPS[vip], 3000, protocol=number, port=443)]
    async with driven(socket, replace(config, frontends={"www": www})) as rig:
        chosen = await packets.burst(flows)
        wanted = await foretold(rig, flows)
    assert len(chosen) == len(flows)
    assert not {flow: (server, wanted[flow]) for flow, server in chosen.items() if server != wanted[flow]}
    assert len(set(chosen.values())) == 20


async def test_the_api_names_the_server_of_a_flow_now_and_before_the_last_change(
    socket: Path, packets: Generator
) -> None:
    config = one_pool(4, 20)
    flows = flows_to(VIPS[4], FLOWS // 4)

    def answers(rig: Rig) -> tuple[dict[Flow, str], dict[Flow, str]]:
        now, before = {}, {}
        for flow in flows:
            question = FlowQuestion(str(flow.source), flow.source_port, VIPS[4], flow.destination_port)
            answer = rig.dataplane.flow(question)
            assert answer.server is not None
            now[flow] = answer.server.address
            if answer.server_before is not None:
                before[flow] = answer.server_before.address
        return now, before

    async with driven(socket, config) as rig:
        first = await packets.burst(flows)
        assert answers(rig) == (first, {})
        fingerprint = shown(rig).fingerprint
        for name in list(config.backends)[::2]:
            rig.backend(name, State.DISABLED)
        await rig.settled()
        second = await packets.burst(flows)
        # A flow whose server stayed is where it was, whatever the new table says of it.
        now, before = answers(rig)
        assert before == first
        stayed = addresses(config, lambda name: name in list(config.backends)[1::2])
        assert second == {flow: first[flow] if first[flow] in stayed else now[flow] for flow in flows}
        assert shown(rig).fingerprint != fingerprint
        for name in config.backends:
            rig.backend(name, UP)
        await rig.settled()
        assert shown(rig).fingerprint == fingerprint
        assert {str(config.backends[name].address): many for name, many in shown(rig).buckets.items()} == (
            await buckets(rig)
        )


def shown(rig: Rig) -> FrontendTable:
    """The table as the API shows it."""
    table = rig.dataplane.table("www", with_buckets=True)
    assert table is not None
    return table
