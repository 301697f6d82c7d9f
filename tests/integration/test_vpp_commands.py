"""Many servers of a frontend change by commands of VPP's CLI: what VPP is sent, when it counts, and every way it fails.

The flows of servers that stay must stay where they are, whatever goes wrong between the two lines of a command.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Config, MassChanges, OnAllDown
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.wire.commands import probe
from maglev.vppsim.faults import LINE, Refusal
from maglev.vppsim.model import extract
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import (
    AT_ONCE,
    DEADLINE,
    SINGLY,
    WWW,
    Rig,
    eventually,
    programmed,
    stand_in,
    vip_of,
    weights,
    writes,
)

UP, DOWN = State.UP, State.DOWN
MANY = 20
SERVERS = tuple(f"a{number:02}" for number in range(MANY))
STANDBYS = tuple(f"b{number:02}" for number in range(MANY))
ONES, ZEROS = [1] * MANY, [0] * MANY
PROBE = probe(WWW)
FLOWS = range(0, 1 << 20, 2049)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def failover(**options: object) -> Config:
    """Twenty servers and twenty standbys: 10.0.0.1 to .20, and .21 to .40."""
    lb = options.pop("lb", AT_ONCE)
    pools = {"p": dict.fromkeys(SERVERS, 10), "q": dict.fromkeys(STANDBYS, 10)}
    return make_config(pools, lb=lb, **options)  # type: ignore[arg-type]


def halves(server: StandIn) -> tuple[list[int], list[int]]:
    """The weights of the servers, and of the standbys."""
    held = weights(server)
    ordered = [held.get(f"10.0.0.{number + 1}", -1) for number in range(2 * MANY)]
    return ordered[:MANY], ordered[MANY:]


def commands(server: StandIn) -> list[str]:
    """The texts of the commands that VPP was sent, without probes."""
    texts = (entry.values["cmd"] for entry in server.journal.calls("cli_inband"))
    return [text for text in texts if text.startswith("lb as") and text != PROBE]


def singles(server: StandIn) -> list[str]:
    return [call for call in writes(server) if not call.startswith("cli_inband")]


def fail(rig: Rig, names: tuple[str, ...] = SERVERS, state: State = DOWN) -> None:
    for name in names:
        rig.backend(name, state)


def flows(server: StandIn) -> dict[int, bytes]:
    vip = vip_of(server)
    assert vip is not None
    return {flow: extract(server.model.ases[index].address) for flow, index in vip.flows.items()}


def send(server: StandIn) -> None:
    vip = vip_of(server)
    assert vip is not None
    server.model.packets(vip, FLOWS)


def drifted(rig: Rig) -> int:
    return rig.reconciler.counters.drift.total()


async def synced(rig: Rig) -> None:
    async with asyncio.timeout(DEADLINE):
        await rig.reconciler.sync_all()
    await rig.settled()


async def test_a_failover_is_two_commands_and_each_as_counts_once(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        before = rig.reconciler.counters.lbsync["one", "as_weight_updated"]
        fail(rig)
        await rig.settled()
        assert halves(server) == (ZEROS, ONES)
        raises, drops = commands(server)
        assert raises.split("\n")[0].endswith(" 10.0.0.40 del")
        assert raises.split("\n")[1].endswith(" 10.0.0.40 weight 1")
        assert drops.split("\n")[0].endswith(" 10.0.0.20 del flush")
        assert drops.split("\n")[1].endswith(" 10.0.0.20 weight 0")
        assert not singles(server)
        assert rig.reconciler.counters.lbsync["one", "as_weight_updated"] == before + 2 * MANY
        assert not rig.reconciler.owed
        assert not drifted(rig)
        server.journal.clear()
        await synced(rig)
        assert not writes(server)


async def test_the_probe_is_sent_once_on_a_connection(path: Path) -> None:
    async with stand_in(path) as server:
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            await rig.settled()
            fail(rig)
            await rig.settled()
            texts = [entry.values["cmd"] for entry in server.journal.calls("cli_inband")]
            assert texts.count(PROBE) == 1
            connects = rig.client.connects
            server.drop_connections()
            await eventually(lambda: rig.client.connects > connects)
            await rig.settled()
            fail(rig, SERVERS, UP)
            await rig.settled()
            texts = [entry.values["cmd"] for entry in server.journal.calls("cli_inband")]
            assert texts.count(PROBE) == 2
            assert halves(server) == (ONES, ZEROS)


async def test_a_new_vip_is_filled_by_two_lines(path: Path) -> None:
    async with stand_in(path) as server:
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            await rig.settled()
            assert halves(server) == (ONES, ZEROS)
            assert [text.rsplit(" ", 2)[-2:] for text in commands(server)] == [["weight", "1"], ["weight", "0"]]
            (created,) = singles(server)
            assert created.startswith("vip ")
            assert rig.reconciler.counters.lbsync["all", "as_added"] == 2 * MANY


async def test_nothing_counts_before_the_vip_has_been_read_back(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        server.faults.delays["lb_as_v2_dump"] = 0.05
        told = rig.reconciler.counters.lbsync["one", "as_weight_updated"]
        fail(rig)
        await eventually(lambda: halves(server) == (ZEROS, ONES))
        actual = rig.reconciler.actual
        assert actual is not None
        known = {address[-1]: have.weight for address, have in actual.vips[WWW].ases.items()}
        assert known == {number + 1: int(number < MANY) for number in range(2 * MANY)}
        assert len(rig.reconciler.owed) == MANY
        assert rig.reconciler.counters.lbsync["one", "as_weight_updated"] == told
        await rig.settled()
        assert not rig.reconciler.owed
        assert rig.reconciler.counters.lbsync["one", "as_weight_updated"] == told + 2 * MANY


async def test_a_verdict_before_the_read_back_is_planned_from_what_vpp_has(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        server.faults.delays["lb_as_v2_dump"] = 0.02
        fail(rig)
        await eventually(lambda: halves(server) == (ZEROS, ONES))
        fail(rig, SERVERS[:10], UP)
        await rig.settled()
        assert halves(server) == ([1] * 10 + [0] * 10, ZEROS)
        assert not drifted(rig)


async def test_flows_of_drained_servers_and_of_those_that_stay_are_where_they_were(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        send(server)
        before = flows(server)
        assert len(set(before.values())) == MANY
        for name in SERVERS[:15]:
            rig.drain(name)
        await rig.settled()
        assert halves(server) == ([0] * 15 + [1] * 5, ZEROS)
        assert commands(server)
        assert flows(server) == before
        for name in SERVERS[:15]:
            rig.drain(name, False)
        await rig.settled()
        fail(rig, SERVERS[5:15])
        await rig.settled()
        gone = {bytes((10, 0, 0, number + 1)) for number in range(5, 15)}
        assert flows(server) == {flow: address for flow, address in before.items() if address not in gone}


@pytest.mark.parametrize("line", range(4))
async def test_an_error_in_any_line_ends_in_the_desired_state_by_single_calls(
    path: Path, line: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with programmed(path, failover()) as (server, rig):
        send(server)
        before = flows(server)
        server.faults.refusals.append(Refusal(LINE, -6, skip=line, times=1))
        seen: list[int] = []
        _watch_service(server, seen)
        fail(rig)
        await rig.settled()
        assert halves(server) == (ZEROS, ONES)
        assert len(singles(server)) == 2 * MANY if line < 2 else MANY
        assert min(seen) > 0
        assert not rig.reconciler.owed
        assert not drifted(rig)
        assert rig.reconciler.counters.commands_failed == 1
        assert rig.reconciler.refusals == 1
        assert not flows(server)
        assert before
        server.journal.clear()
        await synced(rig)
        assert not writes(server)
        # The full sync has ended that: commands again.
        fail(rig, SERVERS, UP)
        await rig.settled()
        assert halves(server) == (ONES, ZEROS)
        assert not singles(server)


def _watch_service(server: StandIn, seen: list[int]) -> None:
    """Note the sum of the weights after every change."""
    for name in ("set_weight", "delete_ases", "add_ases"):
        real = getattr(server.model, name)

        def call(vip: object, *args: object, real: object = real, **options: object) -> int:
            done: int = real(vip, *args, **options)  # type: ignore[operator]
            seen.append(vip.weights)  # type: ignore[attr-defined]
            return done

        setattr(server.model, name, call)


@pytest.mark.parametrize("line", range(4))
async def test_a_restart_of_the_daemon_after_any_line_ends_in_the_desired_state(path: Path, line: int) -> None:
    """The daemon dies, and the second line of its command has failed: ASes are deleted, and their flows stay."""
    store = MemoryStore()
    async with programmed(path, failover(), store=store) as (server, rig):
        for name in SERVERS:
            rig.drain(name)
        await rig.settled()
        for name in SERVERS:
            rig.drain(name, False)
        await rig.settled()
        send(server)
        before = flows(server)
        sections = set(store.sections)
        server.faults.refusals.append(Refusal(LINE, -6, skip=line))
        server.faults.cut_sent = 1
        for name in SERVERS:
            rig.drain(name)
        await eventually(lambda: server.faults.cut_sent is None)
        assert set(store.sections) == sections
    server.faults.clear()
    async with stand_in_of(server) as alive:
        again = Rig(path, failover(), store=store)
        for name in SERVERS:
            again.states.backends[name].drained = True
        again.load()
        async with again.running():
            await again.settled()
            assert halves(alive) == (ZEROS, ONES)
            assert flows(alive) == before


@asynccontextmanager
async def stand_in_of(server: StandIn) -> AsyncIterator[StandIn]:
    """The same VPP, still there with all that it holds."""
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_a_connection_that_is_lost_before_the_answer_ends_in_the_desired_state(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        fail(rig, SERVERS[:6])
        await rig.settled()
        server.faults.cut_sent = 1
        connects = rig.client.connects
        fail(rig, SERVERS[6:])
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert halves(server) == (ZEROS, ONES)
        assert not rig.reconciler.owed
        assert not drifted(rig)


@pytest.mark.parametrize("fault", ["mute", "wrong_context", "unknown_message", "truncate", "garble"])
async def test_an_answer_that_is_wrong_or_missing_costs_a_connection_and_nothing_else(path: Path, fault: str) -> None:
    async with programmed(path, failover()) as (server, rig):
        fail(rig, SERVERS[:6])
        await rig.settled()
        connects = rig.client.connects
        server.faults.delays["cli_inband"] = 0.001
        setattr(server.faults, fault, 1)
        fail(rig, SERVERS[6:])
        await eventually(lambda: rig.client.connects > connects)
        server.faults.clear()
        await rig.settled()
        assert halves(server) == (ZEROS, ONES)
        assert not rig.reconciler.owed
        assert not drifted(rig)


async def test_a_restart_of_vpp_between_two_commands_ends_in_the_desired_state(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        sent = server.journal.next(lambda entry: entry.message == "cli_inband" and entry.values["cmd"] != PROBE)
        fail(rig)
        await sent
        await server.restart()
        await rig.settled()
        await eventually(lambda: halves(server) == (ZEROS, ONES))
        await rig.settled()
        assert not rig.reconciler.owed


@pytest.mark.parametrize("answer", [(0, ""), (-1, "unknown input `lb as'\n")])
async def test_a_cli_that_behaves_otherwise_is_recognised_and_single_calls_do_the_work(
    path: Path, answer: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with stand_in(path) as server:
        honest = server.api.cli.execute
        server.api.cli.execute = lambda text: answer if text.startswith("lb as") else honest(text)  # type: ignore[method-assign]
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            with caplog.at_level(logging.ERROR, "maglev.vpp"):
                await rig.settled()
            assert halves(server) == (ONES, ZEROS)
            fail(rig)
            await rig.settled()
            assert halves(server) == (ZEROS, ONES)
            assert not commands(server)
            assert not rig.dataplane.figures().mass_changes
            assert "does not answer as expected" in caplog.text


async def test_mass_changes_can_be_turned_off_and_on_by_a_reload(path: Path) -> None:
    async with programmed(path, failover(lb=SINGLY)) as (server, rig):
        assert not rig.dataplane.figures().mass_changes
        fail(rig)
        await rig.settled()
        assert halves(server) == (ZEROS, ONES)
        assert not commands(server)
        rig.load(failover())
        await rig.settled()
        assert rig.dataplane.figures().mass_changes
        fail(rig, SERVERS, UP)
        await rig.settled()
        assert halves(server) == (ONES, ZEROS)
        assert len(commands(server)) == 2


async def test_a_change_by_another_client_before_the_read_back_is_drift_and_is_repaired(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        server.faults.delays["lb_as_v2_dump"] = 0.02
        fail(rig)
        await eventually(lambda: halves(server) == (ZEROS, ONES))
        retval, words = server.api.cli.execute(f"{PROBE.removesuffix(' weight 0')} 10.0.0.1 10.0.0.30 weight 7")
        assert (retval, words) == (0, "")
        await rig.settled()
        await eventually(lambda: halves(server) == (ZEROS, ONES))
        await rig.settled()
        assert rig.reconciler.counters.drift["as_weight"] == 2
        await synced(rig)
        assert halves(server) == (ZEROS, ONES)
        assert not rig.reconciler.owed


async def test_a_deleted_as_is_revived_by_its_own_line_and_never_deleted_again(path: Path) -> None:
    async with programmed(path, failover()) as (server, rig):
        words = " ".join(f"10.0.0.{number}" for number in range(21, 31))
        server.api.cli.execute(f"{PROBE.removesuffix(' weight 0')} {words} del")
        await synced(rig)
        assert halves(server) == (ONES, ZEROS)
        (text,) = commands(server)
        assert text.endswith(f" {words} weight 0")
        assert "del" not in text


async def test_the_dry_run_shows_the_commands_as_they_are_sent_then(path: Path) -> None:
    async with stand_in(path) as server:
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            await rig.settled()
            for name in SERVERS:
                rig.states.backends[name].state = DOWN
            report = await rig.dataplane.plan("www", force=False)
            server.journal.clear()
            await rig.reconciler.sync_one("www")
            sent = commands(server)
            shown = [step for step in report.steps if step.kind == "as_commands"]
            assert [step.text for step in shown] == [
                " ".join(["cli_inband", *(f'"{line}"' for line in text.split("\n"))]) for text in sent
            ]
            assert all(step.stall_ns > 0 for step in shown)
            assert sum(one.buckets_after for one in report.forecasts[0].ases) == 16384


async def test_weights_that_are_kept_survive_a_failed_pair(path: Path) -> None:
    async with programmed(path, failover(on_all_down=OnAllDown.KEEP)) as (server, rig):
        server.faults.refusals.append(Refusal(LINE, -6, skip=3, times=1))
        fail(rig)
        fail(rig, STANDBYS)
        await rig.settled()
        held = halves(server)
        assert sum(held[0]) + sum(held[1]) > 0
        await synced(rig)
        assert halves(server) == held


def test_off_is_a_value_of_the_configuration() -> None:
    assert replace(AT_ONCE, mass_changes=MassChanges.OFF) == SINGLY
