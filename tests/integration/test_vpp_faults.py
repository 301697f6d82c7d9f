"""What goes wrong between the daemon and VPP, fault by fault: in the end VPP holds what it should, nothing is owed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Config
from maglev.vppsim.faults import Refusal
from maglev.vppsim.journal import Entry
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import HASTY, SINGLY, Rig, eventually, failover, programmed, stand_in, weights, writes

UP, DOWN = State.UP, State.DOWN
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def forty() -> Config:
    return make_config({"p": {f"b{number:02}": 10 for number in range(40)}}, lb=SINGLY, new_flows_table_length=1024)


async def nth_weight_call(server: StandIn, number: int) -> None:
    """Wait until VPP has done so many more of them."""
    left = number

    def counted(entry: Entry) -> bool:
        nonlocal left
        left -= entry.message == "lb_as_set_weight"
        return left <= 0

    await server.journal.next(counted)


@pytest.mark.parametrize("done", [1, 7, 30])
async def test_vpp_that_is_killed_in_the_middle_of_a_batch_is_programmed_anew(path: Path, done: int) -> None:
    async with programmed(path, forty()) as (server, rig):
        server.faults.delays["lb_as_set_weight"] = 0.001
        for number in range(1, 40):
            rig.backend(f"b{number:02}", DOWN)
        await nth_weight_call(server, done)
        connects = rig.client.connects
        await server.restart()
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert weights(server) == {f"10.0.0.{number}": int(number == 1) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert not rig.reconciler.counters.drift.total()


@pytest.mark.parametrize("fault", ["mute", "wrong_context", "unknown_message", "truncate", "garble"])
async def test_an_answer_that_is_wrong_or_missing_in_the_middle_of_a_batch_costs_a_connection_and_nothing_else(
    path: Path, fault: str
) -> None:
    async with programmed(path, forty()) as (server, rig):
        for up in (False, True):
            connects = rig.client.connects
            server.faults.delays["lb_as_set_weight"] = 0.001
            for number in range(1, 40):
                rig.backend(f"b{number:02}", UP if up else DOWN)
            await nth_weight_call(server, 10)
            setattr(server.faults, fault, 1)
            await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
            server.faults.clear()
            await rig.settled()
            assert weights(server) == {f"10.0.0.{number}": int(up or number == 1) for number in range(1, 41)}
            assert not rig.reconciler.owed


async def test_a_vpp_that_needs_50_ms_a_call_gets_the_newest_state_of_a_flood_and_each_as_once_a_batch(
    path: Path,
) -> None:
    async with programmed(path, forty()) as (server, rig):
        server.faults.delays["lb_as_set_weight"] = 0.05
        batches = rig.reconciler.counters.batches
        flood = 0
        while flood < 4_000:
            for number in range(40):
                rig.backend(f"b{number:02}", DOWN if (flood + number) % 3 else UP)
                flood += 1
            await asyncio.sleep(0.001)
        for number in range(40):
            rig.backend(f"b{number:02}", DOWN if number >= 5 else UP)
        server.faults.clear()
        await rig.settled()
        assert weights(server) == {f"10.0.0.{number}": int(number <= 5) for number in range(1, 41)}
        assert not rig.reconciler.owed
        assert len(writes(server)) <= 40 * (rig.reconciler.counters.batches - batches)
        assert len(writes(server)) < flood / 10


async def test_disable_and_enable_faster_than_the_round_trip_still_evicts_the_flows_and_once(path: Path) -> None:
    async with programmed(path) as (server, rig):
        server.faults.delays["lb_as_set_weight"] = 0.02
        written = asyncio.ensure_future(nth_weight_call(server, 1))
        rig.backend("b", DOWN)
        rig.backend("b", UP)
        rig.drain("b")  # something to be on its way
        await asyncio.sleep(0)
        for _ in range(3):
            rig.backend("a", State.DISABLED, by="ann")
            rig.backend("a", State.UNKNOWN, by="ann")
            rig.backend("a", UP)
        await written
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
        assert [call for call in writes(server) if "10.0.0.1" in call] == ["weight 10.0.0.1 1 flush"]
        assert not rig.reconciler.owed


@pytest.mark.parametrize("message", ["lb_add_del_vip_v2", "lb_add_del_as_v2", "lb_conf_get", "cli_inband"])
async def test_a_call_that_is_refused_once_while_an_empty_vpp_is_programmed_is_made_up_for(
    path: Path, message: str
) -> None:
    async with stand_in(path) as server:
        server.faults.refusals.append(Refusal(message, -1, times=1))
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            await rig.settled()
            await rig.reconciler.sync(None, force=False, by="test")
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_a_socket_that_is_missing_no_socket_or_another_one_is_told_and_waited_for(path: Path) -> None:
    rig = Rig(path, failover())
    rig.load()
    async with rig.running():
        await eventually(lambda: "No such file" in rig.client.problem)
        os.mknod(path)
        await eventually(lambda: "refused" in rig.client.problem)
        os.unlink(path)
        for _ in range(2):  # the second time, as if VPP had been started anew behind our back
            connects = rig.client.connects
            async with stand_in(path) as server:
                await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
                await rig.settled()
                assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_a_socket_that_may_not_be_opened_is_told_and_tried_again(path: Path) -> None:
    async with stand_in(path) as server:
        rig = Rig(path, failover())
        rig.load()
        os.seteuid(NOBODY)
        try:
            async with rig.running():
                await eventually(lambda: "Permission denied" in rig.client.problem)
                os.seteuid(0)
                await rig.settled()
                assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        finally:
            os.seteuid(0)


async def test_two_daemons_on_one_vpp_take_turns_and_the_second_finds_what_the_first_left(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.backend("a", DOWN)
        await rig.settled()
        server.journal.clear()
        other = Rig(path, failover(), timing=HASTY)
        other.load()
        other.states.set(a=DOWN)
        async with other.running():
            await eventually(lambda: "another daemon" in other.client.problem)
            assert not writes(server)
            await rig.client.close()
            await other.settled()
            assert not writes(server)
            other.backend("a", UP)
            await other.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_a_cli_output_with_absurd_numbers_is_survived_by_the_vital_task(path: Path) -> None:
    async with programmed(path, forty()) as (server, rig):
        honest = server.api.cli.execute
        nonsense = f" ip4-gre4 [{'7' * 6000}] 192.0.2.1/32\r\n"
        server.api.cli.execute = lambda text: (0, nonsense) if "verbose" in text else honest(text)  # type: ignore[method-assign]
        connects = rig.client.connects
        server.drop_connections()
        await eventually(lambda: rig.client.connects > connects + 1)
        server.api.cli.execute = honest  # type: ignore[method-assign]
        rig.backend("b01", DOWN)
        await eventually(lambda: weights(server).get("10.0.0.2") == 0)
        await rig.settled()
