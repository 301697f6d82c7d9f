"""Conformance, failover and faults against a real VPP. Its VIPs are on 192.0.2.0/24 and 2001:db8::/32, and removed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Config, MassChanges, OnAllDown
from maglev.vpp.planning.buckets import differing
from maglev.vpp.planning.model import vip_key
from maglev.vpp.state.reader import StateReader, fill, new_vip
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.wire.messages import VipKey, pack_set_weight
from maglev.vpp.wire.transport import Reply, Request
from tests.acceptance.rigs import DOWN, UP, buckets, config_of, driven, halves, held, is_change
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig, eventually


def many(mass: MassChanges = MassChanges.AUTO) -> Config:
    """Forty servers at weight 1 in a table whose calls cost something."""
    backends = {f"b{number}": f"10.9.1.{number}" for number in range(1, 41)}
    lb = replace(AT_ONCE, max_stall=1_000_000, mass_changes=mass)  # so that a batch is many writes
    return make_config({"p": dict.fromkeys(backends, 10)}, backends=backends, address="192.0.2.201", lb=lb)


async def flood(rig: Rig) -> None:
    """Some thousand transitions while calls are under way; in the end five of the forty serve."""
    names = list(rig.states.config().backends)
    for turn in range(100):
        for number, name in enumerate(names):
            rig.backend(name, DOWN if (turn + number) % 3 else UP)
        await asyncio.sleep(0.002)
    for number, name in enumerate(names):
        rig.backend(name, UP if number < 5 else DOWN)
    await rig.settled()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("length", [2, 64, 1024, 65536])
async def test_the_table_is_built_as_foretold(socket: Path, family: int, length: int) -> None:
    async with driven(socket, config_of(family, new_flows_table_length=length, weight_unit=1)) as rig:
        reader = StateReader(rig.client)
        (key,) = (vip_key(frontend) for frontend in rig.states.config().frontends.values())
        vip = new_vip((await reader.vips())[key])
        assert vip.length == length
        for weights in ((10, 20), (100, 1), (0, 37)):
            for name, weight in zip("ab", weights, strict=True):
                rig.weight(name, weight)
            await rig.settled()
            fill(vip, await reader.ases(key))
            assert not differing(vip)
        assert rig.reconciler.counters.bucket_mismatches == 0


async def test_what_was_deleted_lingers_and_is_told_from_the_living(socket: Path) -> None:
    config = config_of()
    async with driven(socket, config) as rig:
        pools = tuple(replace(pool, members=pool.members[:1]) for pool in config.frontends["www"].pools)
        frontend = replace(config.frontends["www"], pools=pools)
        rig.load(replace(config, frontends={"www": frontend}))
        await rig.settled()
        assert await held(rig) == {"10.9.0.1": 1, "10.9.0.3": 0}
        rig.load(config)
        await rig.settled()
        assert await held(rig) == {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}


async def test_a_weight_for_an_as_that_is_not_there_is_refused(socket: Path) -> None:
    async with driven(socket, config_of()) as rig:
        key = VipKey.parse("192.0.2.201/32", 6, 80)
        payload = pack_set_weight(key, ip_address("10.9.0.77").packed, 1, flush=False)
        (reply,) = await rig.client.send([Request("lb_as_set_weight", payload)])
        assert reply.retval == -6


async def test_failover_and_back(socket: Path) -> None:
    async with driven(socket, config_of()) as rig:
        assert await held(rig) == {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}
        rig.backend("a", DOWN)
        await rig.settled()
        assert await held(rig) == {"10.9.0.1": 0, "10.9.0.2": 2, "10.9.0.3": 0}
        rig.backend("b", DOWN)
        await rig.settled()
        assert await held(rig) == {"10.9.0.1": 0, "10.9.0.2": 0, "10.9.0.3": 1}
        rig.backend("b", UP)
        await rig.settled()
        assert await held(rig) == {"10.9.0.1": 0, "10.9.0.2": 2, "10.9.0.3": 0}
        assert not rig.reconciler.owed
        assert rig.reconciler.refusals == 0


async def test_a_second_sync_makes_no_call_and_a_restart_of_the_daemon_neither(socket: Path) -> None:
    store = MemoryStore()
    config = config_of()
    async with driven(socket, config, store=store) as rig:
        assert not (await rig.reconciler.sync(None, force=False, by="test")).done
        rig.backend("a", DOWN)
        await rig.settled()
    first = Rig(socket, config, store=store)
    first.load()
    async with first.running():
        await first.settled()
    async with driven(socket, config, store=store, state=State.UNKNOWN) as rig:
        assert rig.presumed.names == {"a", "b"}
        assert not rig.reconciler.counters.lbsync


async def test_drift_is_repaired(socket: Path) -> None:
    async with driven(socket, config_of()) as rig:
        await rig.client.cli("lb as 192.0.2.201/32 protocol tcp port 80 10.9.0.2 weight 77")
        await rig.client.cli("lb as 192.0.2.201/32 protocol tcp port 80 10.9.0.1 del")
        assert await held(rig) == {"10.9.0.2": 77, "10.9.0.3": 0}
        await rig.reconciler.sync(None, force=False, by="test")
        assert await held(rig) == {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}


async def test_a_plan_foretells_the_buckets_and_leaves_vpp_alone_until_it_is_carried_out(socket: Path) -> None:
    async with driven(socket, config_of()) as rig:
        await rig.client.cli("lb as 192.0.2.201/32 protocol tcp port 80 10.9.0.2 weight 77")
        await rig.client.cli("lb as 192.0.2.201/32 protocol tcp port 80 10.9.0.7 weight 3")
        before = await buckets(rig)
        for frontend in ("www", None):
            (forecast,) = (await rig.dataplane.plan(frontend, force=False)).forecasts
            assert {one.address: one.buckets_before for one in forecast.ases} == before
            assert 0 < forecast.moved_share < 1
        assert await buckets(rig) == before
        await rig.dataplane.sync("www", force=False, by="test")
        assert {one.address: one.buckets_after for one in forecast.ases if one.buckets_after} == {
            address: many for address, many in (await buckets(rig)).items() if many
        }
        assert rig.reconciler.counters.drift == Counter({"as_weight": 1, "as_foreign": 1})


async def test_a_vip_that_is_created_again_is_not_taken_for_the_one_that_lingers(socket: Path) -> None:
    config = config_of(new_flows_table_length=64)
    async with driven(socket, config) as rig:
        for length in (128, 64, 1024):
            rig.load(
                replace(config, frontends={"www": replace(config.frontends["www"], new_flows_table_length=length)})
            )
            await rig.settled()
            assert await held(rig) == {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}
            assert sum((await buckets(rig)).values()) == length
            assert not (await rig.reconciler.sync(None, force=False, by="test")).done
        assert not rig.reconciler.counters.drift.total()


async def test_a_vip_that_is_created_again_in_many_batches_keeps_the_weights_that_are_kept(socket: Path) -> None:
    config = many()
    www = replace(config.frontends["www"], on_all_down=OnAllDown.KEEP, new_flows_table_length=65536)
    config = replace(config, lb=replace(config.lb, max_stall=10_000), frontends={"www": www})
    async with driven(socket, config) as rig:
        for name in config.backends:
            rig.backend(name, DOWN)
        await rig.settled()
        kept = await held(rig)
        assert any(kept.values())
        rig.load(replace(config, frontends={"www": replace(www, new_flows_table_length=32768)}))
        await rig.settled()
        assert await held(rig) == kept
        assert (await rig.reconciler.refresh()).vips[vip_key(www)].length == 32768


async def test_a_vip_that_somebody_made_again_with_another_stickiness_is_made_as_it_was(socket: Path) -> None:
    async with driven(socket, config_of()) as rig:
        vip = "lb vip 192.0.2.201/32 protocol tcp port 80"
        await rig.client.cli(f"{vip} del")
        await rig.client.cli(f"{vip} encap gre4 new_len 16384 src_ip_sticky")
        for address, weight in {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}.items():
            await rig.client.cli(f"lb as 192.0.2.201/32 protocol tcp port 80 {address} weight {weight}")
        await rig.reconciler.sync(None, force=False, by="test")
        await rig.settled()
        assert rig.reconciler.counters.drift["vip_changed"] == 1
        assert not (await StateReader(rig.client).verbose())[VipKey.parse("192.0.2.201/32", 6, 80)].sticky
        assert await held(rig) == {"10.9.0.1": 1, "10.9.0.2": 2, "10.9.0.3": 0}


async def test_a_flood_of_transitions_ends_with_the_newest_state(socket: Path) -> None:
    async with driven(socket, many()) as rig:
        await flood(rig)
        assert await held(rig) == {f"10.9.1.{number}": int(number <= 5) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert rig.reconciler.counters.bucket_mismatches == 0


async def test_a_connection_that_breaks_in_the_middle_of_a_batch_leaves_vpp_as_desired(socket: Path) -> None:
    members = {f"b{number}": 10 for number in range(40)}
    async with driven(socket, make_config({"p": members}, address="192.0.2.201", lb=AT_ONCE)) as rig:
        for down in (True, False):
            connects = rig.client.connects
            for name in list(members)[:39]:
                rig.backend(name, DOWN if down else UP)
            await asyncio.sleep(0)
            rig.client.drop("the test cuts it")
            await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
            await rig.settled()
            assert sum((await held(rig)).values()) == (1 if down else 40)
            assert not rig.reconciler.owed


@pytest.mark.parametrize("family", [4, 6])
async def test_commands_and_single_calls_make_the_same_table(socket: Path, family: int) -> None:
    tables: list[list[dict[str, int]]] = []
    for mass in MassChanges:
        tables.append([])
        async with driven(socket, halves(family, mass)) as rig:
            tables[-1].append(await buckets(rig))
            sent: list[Request] = []
            real = rig.client.send

            async def send(
                requests: Sequence[Request],
                sent: list[Request] = sent,
                real: Callable[[Sequence[Request]], Awaitable[list[Reply]]] = real,
            ) -> list[Reply]:
                sent.extend(requests)
                return await real(requests)

            rig.client.send = send  # type: ignore[method-assign]
            for state in (DOWN, UP):
                for name in rig.states.config().backends:
                    if name[0] == "a":
                        rig.backend(name, state)
                await rig.settled()
                tables[-1].append(await buckets(rig))
            changes, commands = len(sent), [request for request in sent if is_change(request)]
            assert bool(commands) is (mass is MassChanges.AUTO)
            assert changes == 240 if mass is MassChanges.OFF else changes < 60
            assert rig.reconciler.counters.lbsync["one", "as_weight_updated"] == 240
            assert rig.reconciler.counters.commands_failed == 0
            assert rig.reconciler.counters.bucket_mismatches == 0
            assert not rig.reconciler.owed
            assert not rig.reconciler.counters.drift.total()
    assert tables[0] == tables[1]


async def test_a_second_daemon_is_kept_off(socket: Path) -> None:
    async with driven(socket, config_of()):
        other = Rig(socket, config_of())
        async with other.running():
            await eventually(lambda: "another daemon" in other.client.problem)


def pid_of(rig: Rig) -> int:
    """The process of the VPP that the rig is connected to."""
    info = rig.client.info()
    assert info is not None
    assert info.pid > 1
    return info.pid


@contextmanager
def struck(rig: Rig, number: int, signal_number: int) -> Iterator[None]:
    """VPP gets a signal right after the n-th write of a batch."""
    pid = pid_of(rig)
    real = rig.client.send
    left = number

    async def send(requests: Sequence[Request]) -> list[Reply]:
        nonlocal left
        sending = asyncio.ensure_future(real(requests))
        await asyncio.sleep(0)
        left -= requests[0].name == "lb_as_set_weight" or is_change(requests[0])
        if left == 0:
            os.kill(pid, signal_number)
        return await sending

    rig.client.send = send  # type: ignore[method-assign]
    try:
        yield
    finally:
        rig.client.send = real  # type: ignore[method-assign]


@pytest.mark.stops_vpp
async def test_a_vpp_that_stands_still_in_the_middle_of_a_batch_is_given_up_and_found_again(socket: Path) -> None:
    async with driven(socket, many(MassChanges.OFF)) as rig:
        pid, connects = pid_of(rig), rig.client.connects
        try:
            with struck(rig, 2, signal.SIGSTOP):
                for name in list(rig.states.config().backends)[1:]:
                    rig.backend(name, DOWN)
                await eventually(lambda: not rig.client.connected)
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert await held(rig) == {f"10.9.1.{number}": int(number == 1) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert not rig.reconciler.counters.drift.total()


@pytest.mark.stops_vpp
async def test_a_slow_vpp_gets_the_newest_state_of_a_flood_on_one_connection(socket: Path) -> None:
    async with driven(socket, many()) as rig:
        pid, connects = pid_of(rig), rig.client.connects

        async def hold_up() -> None:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.05)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.01)

        holding = asyncio.create_task(hold_up())
        try:
            await flood(rig)
        finally:
            holding.cancel()
            await asyncio.wait([holding])
            os.kill(pid, signal.SIGCONT)
        assert await held(rig) == {f"10.9.1.{number}": int(number <= 5) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert rig.client.connects == connects


@pytest.mark.kills_vpp
@pytest.mark.parametrize(("write", "mass"), [(1, MassChanges.OFF), (3, MassChanges.OFF), (1, MassChanges.AUTO)])
async def test_a_vpp_that_is_killed_in_the_middle_of_a_batch_is_programmed_anew(
    socket: Path, start_command: str, write: int, mass: MassChanges
) -> None:
    async with driven(socket, many(mass)) as rig:
        connects = rig.client.connects
        with struck(rig, write, signal.SIGKILL):
            for name in list(rig.states.config().backends)[1:]:
                rig.backend(name, DOWN)
            await eventually(lambda: not rig.client.connected)
        subprocess.run(start_command, shell=True, check=True, timeout=30)  # noqa: ASYNC221 - its owner's own words
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert await held(rig) == {f"10.9.1.{number}": int(number == 1) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert not rig.reconciler.counters.drift.total()
