"""The reconciler against a stand-in on a real socket: the state of VPP afterwards, and the calls that led to it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from maglev.base.errors import NotAllowed, Unavailable, UnknownName
from maglev.base.pace import Pace
from maglev.base.states import State
from maglev.config.model import SECOND, Config, LbConfig, OnAllDown, Panic, PanicAction, Prune
from maglev.rpc.services import DataplaneApi
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import Actual, vip_key
from maglev.vpp.shown.dataplane import Dataplane
from maglev.vpp.state.drift import vip_drift
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.wire.client import Timing
from maglev.vpp.wire.messages import MESSAGES, VipKey, pack_handshake_reply, pack_set_weight
from maglev.vpp.wire.transport import Reply, Request
from maglev.vppsim.faults import Refusal
from maglev.vppsim.journal import Entry
from maglev.vppsim.model import embed, extract
from maglev.vppsim.server import StandIn
from tests.helpers.checker import check
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import (
    AT_ONCE,
    DEADLINE,
    HASTY,
    SINGLY,
    WWW,
    PacedClock,
    Rig,
    drift,
    eventually,
    failover,
    programmed,
    stand_in,
    vip_of,
    weights,
    writes,
)

UP = State.UP
DOWN = State.DOWN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


async def test_an_empty_vpp_is_programmed_and_a_second_sync_makes_no_call(path: Path) -> None:
    lb = replace(AT_ONCE, ipv4_src_address=IPv4Address("192.0.2.99"), flow_timeout=50 * 1_000_000_000)
    async with programmed(path, failover(lb)) as (server, rig):
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert server.model.conf.ip4_src_address == IPv4Address("192.0.2.99").packed
        assert server.model.conf.flow_timeout == 50
        assert server.model.conf.sticky_buckets_per_core == 1024
        result = await rig.reconciler.sync(None, force=False, by="test")
        assert not result.plan.steps
        assert not writes(server)
        assert rig.reconciler.counters.lbsync == {("all", "vip_added"): 1, ("all", "as_added"): 3}


async def test_failover_and_back_read_from_vpp(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.backend("a", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        rig.backend("b", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}
        rig.backend("a", UP)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
        assert writes(server) == [
            "weight 10.0.0.1 0 flush",
            "weight 10.0.0.3 1",
            "weight 10.0.0.2 0 flush",
            "weight 10.0.0.1 1",
            "weight 10.0.0.3 0",
        ]
        assert not rig.reconciler.owed


async def test_a_frontend_that_waits_for_verdicts_is_programmed_when_they_are_there(path: Path) -> None:
    """Neither a batch nor a full sync takes a weight meanwhile. Other frontends do not wait."""
    other = replace(failover().frontends["www"], name="other", port=443)
    async with programmed(path, failover(frontends=[other])) as (server, rig):
        rig.states.waiting.add("www")
        rig.backend("a", DOWN)
        await rig.settled()
        await rig.reconciler.sync_all()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert weights(server, vip_key(other)) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        rig.states.waiting.clear()
        rig.bus.publish_judgement("www", "panic")
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        assert writes(server).count("weight 10.0.0.1 0 flush") == 2


async def test_disable_flushes_once_even_when_already_drained(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.drain("a")
        await rig.settled()
        rig.backend("a", State.DISABLED, by="ann")
        await rig.settled()
        await rig.reconciler.sync(None, force=False, by="test")
        assert writes(server) == ["weight 10.0.0.1 0", "weight 10.0.0.1 0 flush"]


async def test_a_weight_set_with_flush_is_flushed_though_it_stays_above_0(path: Path) -> None:
    async with programmed(path, make_config({"p": {"a": 10, "b": 10}}, lb=AT_ONCE, weight_unit=1)) as (server, rig):
        rig.weight("a", 5, flush=True)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 5 flush"]


async def test_the_last_server_is_flushed_only_when_another_takes_its_flows(path: Path) -> None:
    async with programmed(path) as (server, rig):
        for name in "abc":
            rig.backend(name, DOWN)
        await rig.settled()
        assert not any("flush" in call for call in writes(server))
        server.journal.clear()
        rig.backend("b", UP)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.2 1", "weight 10.0.0.1 0 flush", "weight 10.0.0.3 0 flush"]
        server.journal.clear()
        rig.backend("a", UP)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 1"]


async def test_a_restarted_vpp_is_programmed_again(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.backend("a", DOWN)
        await rig.settled()
        connects = rig.client.connects
        await server.restart()
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_the_source_addresses_are_set_before_the_first_vip_comes_or_tunnels_would_start_nowhere(
    path: Path,
) -> None:
    lb = replace(AT_ONCE, ipv4_src_address=IPv4Address("192.0.2.99"))
    async with programmed(path, failover(lb)) as (server, rig):
        connects = rig.client.connects
        server.journal.clear()
        restart = asyncio.create_task(server.restart())
        await eventually(lambda: not rig.client.connected)
        rig.backend("a", DOWN)
        await restart
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert writes(server)[:2] == ["lb_conf", "vip 192.0.2.1/32"]


async def test_what_changes_while_vpp_is_away_is_made_up_for_with_its_flush(path: Path) -> None:
    async with programmed(path) as (server, rig):
        server.hanging = True
        server.drop_connections()
        await eventually(lambda: not rig.client.connected)
        rig.backend("a", State.DISABLED, by="ann")
        rig.backend("a", State.UNKNOWN, by="ann")
        rig.backend("a", UP)
        server.hanging = False
        await rig.settled()
        await eventually(lambda: not rig.reconciler.owed)
        assert writes(server) == ["weight 10.0.0.1 1 flush"]


async def away(server: StandIn, rig: Rig) -> None:
    """VPP answers no client until ``server.hanging`` is False again."""
    server.hanging = True
    server.drop_connections()
    await eventually(lambda: not rig.client.connected)


async def test_a_flush_that_an_operator_owes_while_vpp_is_away_is_made_also_after_a_restart_of_the_daemon(
    path: Path,
) -> None:
    """The standby has weight 0 already: VPP does not show that its flows are to go."""
    store = MemoryStore()
    async with stand_in(path) as server:
        first = Rig(path, failover(), store=store)
        first.load()
        async with first.running():
            await first.settled()
            await away(server, first)
            first.backend("c", State.DISABLED, by="ann")
        server.hanging = False
        server.journal.clear()
        for expected in (["weight 10.0.0.3 0 flush"], []):
            again = Rig(path, failover(), store=store)
            again.states.set(c=State.DISABLED)
            again.load()
            async with again.running():
                await again.settled()
                assert writes(server) == expected
                assert not again.reconciler.owed
            server.journal.clear()


async def test_the_flush_of_a_failed_server_that_waits_for_another_is_made_also_after_a_restart_of_the_daemon(
    path: Path,
) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        first = Rig(path, failover(), store=store)
        first.load()
        async with first.running():
            await first.settled()
            for name in "abc":
                first.backend(name, DOWN)
            await first.settled()
            owed = set(first.reconciler.owed)
            assert owed
        server.journal.clear()
        again = Rig(path, failover(), store=store, state=State.UNKNOWN)
        again.load()
        async with again.running():
            await again.settled()
            for name in "abc":
                again.backend(name, DOWN)
            await again.settled()
            assert set(again.reconciler.owed) == owed
            assert not writes(server)
            again.backend("c", UP)
            await again.settled()
            assert writes(server) == ["weight 10.0.0.3 1", "weight 10.0.0.1 0 flush", "weight 10.0.0.2 0 flush"]


async def test_what_is_owed_is_flushed_though_the_file_had_it_not_for_a_while_before_vpp_came_back(
    path: Path,
) -> None:
    www = failover().frontends["www"]
    both = replace(failover(), frontends={"www": www, "api": replace(www, name="api", port=443)})
    async with programmed(path, both) as (server, rig):
        rig.drain("b")
        await rig.settled()
        await away(server, rig)
        server.journal.clear()
        rig.backend("b", State.DISABLED, by="ann")
        rig.load(replace(both, frontends={"www": www}))
        await eventually(lambda: len(rig.reconciler.owed) == 1)
        rig.load(both)
        await eventually(lambda: len(rig.reconciler.owed) == 2)
        server.hanging = False
        await rig.settled()
        await eventually(lambda: not rig.reconciler.owed)
        assert writes(server) == ["weight 10.0.0.2 0 flush"] * 2
        rig.load(replace(both, frontends={"api": replace(www, name="api", port=443), "www": www}))
        await rig.settled()
        assert len(writes(server)) == 2, "an order of the file is no transition"


async def test_a_server_that_failed_before_a_restart_and_serves_after_it_keeps_its_flows(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        first = Rig(path, failover(), store=store)
        first.load()
        async with first.running():
            await first.settled()
            await away(server, first)
            first.backend("a", DOWN)
        server.hanging = False
        server.journal.clear()
        again = Rig(path, failover(), store=store, state=State.UNKNOWN)
        again.load()
        async with again.running():
            for name in "abc":
                again.backend(name, UP)
            await again.settled()
            assert not writes(server)
            assert not again.reconciler.owed


async def test_what_is_owed_is_written_down_only_when_it_stays_owed(path: Path) -> None:
    class Counting(MemoryStore):
        written = 0

        def set(self, section: str, value: object) -> None:
            self.written += section == "flushes" and value != self.get(section)
            super().set(section, value)

    store, clock = Counting(), PacedClock()
    async with programmed(path, clock=clock, store=store) as (server, rig):
        for state in (DOWN, UP) * 5:
            rig.backend("a", state)
            await rig.settled()
        await away(server, rig)
        rig.backend("b", State.DISABLED, by="ann")
        rig.backend("c", DOWN)
        assert not store.get("flushes")
        clock.advance(3)
        await eventually(lambda: bool(store.get("flushes")))
        assert store.get("flushes") == {"192.0.2.1/32 tcp 80": {"10.0.0.2": "operator", "10.0.0.3": "down"}}
        server.hanging = False
        await rig.settled()
        await eventually(lambda: not rig.reconciler.owed)
        clock.advance(3)
        await eventually(lambda: store.get("flushes") == {})
        assert store.written <= 3  # at most once empty while nothing was owed


async def test_a_refused_call_is_counted_does_not_stop_the_rest_and_is_tried_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with programmed(path) as (server, rig):
        server.faults.refusals.append(Refusal("lb_as_set_weight", -73, skip=1, times=1))
        rig.backend("a", DOWN)
        rig.backend("b", DOWN)
        with caplog.at_level(logging.ERROR, "maglev.vpp"):
            await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 1}
        assert rig.reconciler.refusals == 1
        assert "as 10.0.0.1 weight 1 -> 0 flush: invalid argument (-73)" in caplog.text
        assert len(rig.reconciler.owed) == 1
        await rig.reconciler.sync(None, force=False, by="test")
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}
        assert not rig.reconciler.owed


async def test_a_call_that_is_always_refused_does_not_keep_vpp_busy(path: Path) -> None:
    async with programmed(path) as (server, rig):
        server.faults.refusals.append(Refusal("lb_as_set_weight", -73))
        rig.backend("a", DOWN)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 0 flush = -73"]


async def test_when_every_raise_is_refused_the_server_that_still_serves_is_not_dropped(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.backend("a", DOWN)
        rig.backend("b", DOWN)
        await rig.settled()
        server.faults.refusals.append(Refusal("lb_as_set_weight", -73, times=2))
        rig.backend("a", UP)
        await rig.settled()
        assert weights(server)["10.0.0.3"] == 1


@pytest.mark.parametrize(("direction", "length"), [("cut_received", 2 * 82 + 1), ("cut_sent", 2 * 26 + 1)])
async def test_a_connection_that_is_cut_after_any_byte_of_a_batch_leaves_vpp_as_desired(
    path: Path, direction: str, length: int
) -> None:
    async with programmed(path) as (server, rig):
        up = True
        for offset in range(length):
            connects = rig.client.connects
            setattr(server.faults, direction, offset)
            up = not up
            rig.backend("a", UP if up else DOWN)
            rig.backend("b", UP if up else DOWN)
            await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
            await rig.settled()
            assert weights(server) == {"10.0.0.1": int(up), "10.0.0.2": int(up), "10.0.0.3": int(not up)}, offset
            # The flushes of the failed are acknowledged, or done again: none is left owed.
            assert not rig.reconciler.owed, offset


@pytest.mark.parametrize("direction", ["cut_received", "cut_sent"])
async def test_a_connection_that_is_cut_after_any_byte_of_the_first_sync_of_an_empty_vpp_leaves_it_as_desired(
    path: Path, direction: str
) -> None:
    """Introduction, dumps, CLI and creations. The message table, of which nothing is used before it is whole, is cut in
    few places here, and at every byte where a connection is tried alone."""
    async with stand_in(path) as server:
        rig = Rig(path, failover(), timing=replace(HASTY, backoff=0.001, backoff_most=0.001))
        rig.load()
        table = len(pack_handshake_reply(1, 1, 0, server.api.table)) if direction == "cut_sent" else 0
        offset = 0
        async with rig.running():
            await rig.settled()
            while True:
                connects = rig.client.connects
                await server.restart()
                setattr(server.faults, direction, offset)
                await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
                await rig.settled()
                assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}, offset
                if getattr(server.faults, direction) is not None:
                    break  # longer than all that is said
                offset = min(offset + 1009, table - 16) if offset < table - 16 else offset + 1
            assert offset > table + 500


async def test_a_flapping_backend_cannot_make_the_queue_grow(path: Path) -> None:
    async with programmed(path) as (server, rig):
        server.faults.delays["lb_as_set_weight"] = 0.05
        for _ in range(200):
            rig.backend("a", DOWN)
            rig.backend("a", UP)
        rig.backend("a", DOWN)
        await rig.settled()
        assert weights(server)["10.0.0.1"] == 0
        assert len(writes(server)) <= 3


async def test_changes_that_come_during_a_batch_go_out_together_with_the_newest_state(path: Path) -> None:
    members = {f"b{n:02}": 10 for n in range(40)}
    async with programmed(path, make_config({"p": members}, lb=SINGLY)) as (server, rig):
        first = server.journal.next(lambda entry: entry.message == "lb_as_set_weight")
        server.faults.delays["lb_as_set_weight"] = 0.02
        rig.backend("b00", DOWN)
        await first
        for name in list(members)[1:20]:
            rig.backend(name, DOWN)
        for name in list(members)[1:10]:
            rig.backend(name, UP)
        await rig.settled()
        assert [call for call in writes(server) if call.startswith("weight 10.0.0.1 ")] == ["weight 10.0.0.1 0 flush"]
        addresses = [call.split()[1] for call in writes(server)]
        assert len(addresses) == len(set(addresses))
        held = weights(server)
        assert [held[f"10.0.0.{n + 1}"] for n in range(40)] == [0] + [1] * 9 + [0] * 10 + [1] * 20


async def test_a_verdict_in_whichever_turn_of_the_loop_a_batch_is_planned_reaches_vpp(path: Path) -> None:
    """A plan is of one moment: with an await between the states and the plan, a verdict of that turn would be lost."""
    async with programmed(path) as (server, rig):
        for turns in range(16):
            state = UP if turns % 2 else DOWN
            rig.backend("a", state)
            for _ in range(turns):
                await asyncio.sleep(0)
            rig.backend("b", state)
            await rig.settled()
            up = int(state is UP)
            assert weights(server) == {"10.0.0.1": up, "10.0.0.2": up, "10.0.0.3": 1 - up}, turns
        assert not rig.reconciler.owed


async def test_a_verdict_in_whichever_turn_of_the_loop_a_full_sync_plans_reaches_vpp(path: Path) -> None:
    async with programmed(path) as (server, rig):
        dump, verdicts = rig.client.dump, set[asyncio.Task[None]]()

        async def verdict(turns: int, state: State) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            rig.backend("a", state)

        for turns in range(16):
            state = UP if turns % 2 else DOWN

            async def watched(name: str, payload: bytes, turns: int = turns, state: State = state) -> list[bytes]:
                bodies = await dump(name, payload)
                if name == "lb_as_v2_dump" and rig.states.backends["a"].state is not state:
                    verdicts.add(asyncio.create_task(verdict(turns, state)))
                return bodies

            rig.client.dump = watched  # type: ignore[method-assign,assignment]
            await rig.reconciler.sync(None, force=False, by="test")
            await asyncio.gather(*verdicts)
            await rig.settled()
            assert weights(server)["10.0.0.1"] == int(state is UP), turns


async def test_a_vip_that_serves_nobody_comes_before_all_that_waits_however_late_it_is_known(path: Path) -> None:
    backends = {f"b{n}": f"10.0.{n // 250}.{n % 250}" for n in range(1200)}
    names = list(backends)
    pools = [{"p": dict.fromkeys(names[n : n + 100], 10)} for n in range(0, 1200, 100)]
    made = [
        make_config(pool, address=f"192.0.2.{n}", backends=backends, new_flows_table_length=1024).frontends["www"]
        for n, pool in enumerate(pools, 1)
    ]
    config = make_config(
        backends=backends,
        lb=AT_ONCE,
        frontends=[replace(frontend, name=f"w{n}") for n, frontend in enumerate(made)],
    )
    async with programmed(path, config) as (server, rig):
        for name in names[1100:]:
            rig.backend(name, DOWN)
        await rig.settled()
        server.journal.clear()
        for name in names[:1100:2]:
            rig.backend(name, DOWN)
        rig.backend("b1150", UP)
        await rig.settled()
        assert writes(server)[0] == "weight 10.0.4.150 1"


class Again:
    """Calls ``again`` after each write to VPP, ``most`` times: what keeps the dataplane busy, batch after batch."""

    def __init__(self, rig: Rig, again: Callable[[], None], most: int) -> None:
        self.writes = 0
        self._again = again
        self._most = most
        self._send = rig.client.send
        rig.client.send = self._watched  # type: ignore[method-assign]

    async def _watched(self, requests: Sequence[Request]) -> list[Reply]:
        replies = await self._send(requests)
        self.writes += 1
        if self.writes < self._most:
            self._again()
        return replies


def with_idle(count: int, *, lb: LbConfig = AT_ONCE) -> Config:
    """The frontend ``www`` of a and b, and before it in the file ``count`` others of one server each."""
    idle, www = several(count), make_config({"p": {"a": 10, "b": 10}}, backends={"a": "10.0.1.1", "b": "10.0.1.2"})
    return replace(
        idle,
        lb=lb,
        backends={**idle.backends, **www.backends},
        frontends={**idle.frontends, **www.frontends},
    )


async def test_a_waiting_frontend_is_overtaken_by_one_batch_of_vips_that_serve_nobody_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maglev.vpp.state.agenda.MOST_MEMBERS", 2)
    async with programmed(path, with_idle(2)) as (server, rig):
        rig.backend("s1", DOWN)
        rig.backend("s2", DOWN)
        await rig.settled()
        server.journal.clear()

        def flush_idle() -> None:
            for number in (1, 2):
                rig.weight(f"s{number}", 10, flush=True, frontend=f"w{number}")

        again = Again(rig, flush_idle, 20)
        rig.backend("a", DOWN)
        flush_idle()
        await rig.settled()
        assert again.writes >= 20
        idle = ["weight 10.0.0.1 0 flush", "weight 10.0.0.2 0 flush"]
        assert writes(server)[:5] == [*idle, "weight 10.0.1.1 0 flush", *idle]


async def test_a_frontend_that_the_budget_cuts_comes_before_vips_that_serve_nobody_and_are_written_again_and_again(
    path: Path,
) -> None:
    one_call = replace(AT_ONCE, max_stall=1)  # a batch ends behind its first call
    async with programmed(path, with_idle(4, lb=one_call)) as (server, rig):
        for number in range(1, 5):
            rig.backend(f"s{number}", DOWN)
        await rig.settled()
        server.journal.clear()

        def flush_idle() -> None:
            for number in range(1, 5):
                rig.weight(f"s{number}", 10, flush=True, frontend=f"w{number}")

        again = Again(rig, flush_idle, 60)
        rig.backend("a", DOWN)
        flush_idle()
        await rig.settled()
        assert again.writes >= 60
        assert writes(server).index("weight 10.0.1.1 0 flush") < 20


@pytest.mark.parametrize("busy_serve", [True, False])
async def test_a_frontend_that_the_budget_cuts_gets_its_drop_however_busy_those_before_it_are(
    path: Path, busy_serve: bool
) -> None:
    busy = {f"w{n}": {"p": {f"x{n}": 10, f"y{n}": 10}} for n in range(8)}
    made = [make_config(pools, address=f"192.0.2.{n}").frontends["www"] for n, pools in enumerate(busy.values(), 10)]
    backends = {name: f"10.0.1.{n}" for n, name in enumerate(b for n in range(8) for b in (f"x{n}", f"y{n}"))}
    last = make_config({"p": {"a": 10, "b": 10}}, address="192.0.2.99").frontends["www"]
    config = make_config(
        backends={**backends, "a": "10.0.0.1", "b": "10.0.0.2"},
        lb=replace(AT_ONCE, max_stall=1),  # one call at a time, and a batch ends after the first
        frontends=[replace(one, name=name) for name, one in zip(busy, made, strict=True)]
        + [replace(last, name="last")],
    )
    key = VipKey.parse("192.0.2.99/32", 6, 80)
    async with programmed(path, config) as (server, rig):

        def change_busy() -> None:
            if not weights(server, key)["10.0.0.1"]:
                return
            for n in range(8):
                state = UP if rig.states.backends[f"x{n}"].state is DOWN else DOWN
                rig.backend(f"x{n}", state)
                if not busy_serve:
                    rig.backend(f"y{n}", state)

        Again(rig, change_busy, 200)
        before = rig.reconciler.counters.batches
        rig.backend("a", DOWN)
        for n in range(8):
            rig.backend(f"x{n}", DOWN)
        await eventually(lambda: weights(server, key)["10.0.0.1"] == 0)
        assert rig.reconciler.counters.batches - before < 30
        await rig.settled()
        assert weights(server, key) == {"10.0.0.1": 0, "10.0.0.2": 1}


async def test_a_restart_of_the_daemon_makes_no_write_whatever_is_still_unknown(path: Path) -> None:
    async with stand_in(path) as server:
        lb = replace(AT_ONCE, startup_min_delay=5 * 1_000_000_000, startup_max_delay=30 * 1_000_000_000)
        first = Rig(path, failover())
        first.load()
        async with first.running():
            await first.settled()
            first.backend("c", DOWN)
            await first.settled()
        server.journal.clear()
        clock = PacedClock()
        rig = Rig(path, failover(lb), clock=clock, state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert rig.presumed.names == {"a", "b"}
            rig.backend("a", UP)
            rig.backend("c", DOWN)
            await rig.settled()
            clock.advance(6)
            await rig.settled()
            clock.advance(30)
            await eventually(lambda: rig.reconciler.counters.full_syncs > 0)
            await rig.settled()
            assert not writes(server)
            assert not rig.reconciler.owed
            rig.backend("b", DOWN)
            await rig.settled()
            assert writes(server) == ["weight 10.0.0.2 0 flush"]


async def test_warm_up_is_silent_then_releases_what_is_known_then_the_rest(path: Path) -> None:
    lb = LbConfig(startup_min_delay=5 * 1_000_000_000, startup_max_delay=30 * 1_000_000_000)
    clock = PacedClock()
    async with stand_in(path) as server:
        rig = Rig(path, failover(lb), clock=clock, state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            for name in "ab":
                rig.backend(name, UP)
            await rig.settled()
            assert rig.dataplane.warmup().phase == "silent"
            plan = await rig.dataplane.plan(None, force=False)
            assert plan.notes == ["the warm-up holds 1 frontend for 30.0 s more at most"]
            # The VIP, both servers by one command, and the standby.
            assert len(plan.steps) == 3
            with pytest.raises(NotAllowed):
                await rig.dataplane.sync(None, force=False, by="ann")
            clock.advance(6)
            await rig.settled()
            assert rig.dataplane.warmup().phase == "releasing"
            assert not writes(server)
            rig.backend("c", UP)
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_at_the_end_of_the_warm_up_an_unknown_backend_keeps_the_weight_it_has(path: Path) -> None:
    lb = LbConfig(startup_min_delay=5 * 1_000_000_000, startup_max_delay=30 * 1_000_000_000)
    clock = PacedClock()
    async with stand_in(path) as server:
        first = Rig(path, failover())
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        rig = Rig(path, failover(lb), clock=clock, state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            rig.backend("a", DOWN)
            clock.advance(31)
            await eventually(lambda: rig.reconciler.counters.full_syncs > 0)
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
            assert writes(server) == ["weight 10.0.0.1 0 flush"]


@pytest.mark.parametrize(("seconds", "interval", "held"), [(0, 1, 60), (90, 1, 90), (0, 10, 80)])
async def test_panic_awaits_first_verdicts_until_the_warm_up_ends_and_a_minute_at_least(
    path: Path, seconds: int, interval: int, held: int
) -> None:
    """Two of four servers can never be probed. They count as healthy in the end, so the frontend does not panic."""
    config = make_config({"p": dict.fromkeys("abcd", 10)}, lb=AT_ONCE, panic=Panic(0.6, PanicAction.ALL))
    config = replace(config, healthchecks={"ping": check(fast_interval=interval * SECOND)})
    clock = PacedClock()
    async with stand_in(path) as server:
        first = Rig(path, config)
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        lb = replace(AT_ONCE, startup_max_delay=seconds * SECOND, sync_interval=3600 * SECOND)
        rig = Rig(path, replace(config, lb=lb), clock=clock, state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            rig.backend("a", DOWN)
            rig.backend("b", UP)
            await rig.settled()
            clock.advance(held - 1)
            await rig.settled()
            assert not writes(server)
            clock.advance(1)
            await eventually(lambda: bool(writes(server)))
            await rig.settled()
            assert writes(server) == ["weight 10.0.0.1 0 flush"]
            assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 1, "10.0.0.4": 1}
            # A verdict that comes later still is the first one.
            rig.backend("c", DOWN)
            await rig.settled()
            assert writes(server)[1:] == ["weight 10.0.0.1 1"]
            assert rig.reconciler.warmup_state.unresolved == {"d"}


async def test_panic_awaits_first_verdicts_of_renamed_servers_for_a_limited_time_too(path: Path) -> None:
    clock = PacedClock()
    lb = replace(AT_ONCE, sync_interval=3600 * SECOND)
    panic = Panic(0.6, PanicAction.KEEP)
    addresses = {name: f"10.0.0.{number}" for number, name in enumerate("abcd", 1)}
    config = make_config({"p": dict.fromkeys("abcd", 10)}, backends=addresses, lb=lb, panic=panic)
    renamed = {"abxy"[number]: address for number, address in enumerate(addresses.values())}
    async with programmed(path, config, clock=clock) as (server, rig):
        clock.advance(60)
        await rig.settled()
        rig.load(make_config({"p": dict.fromkeys("abxy", 10)}, backends=renamed, lb=lb, panic=panic))
        await rig.settled()
        rig.backend("a", DOWN)
        await rig.settled()
        clock.advance(59)
        await rig.settled()
        assert not writes(server)
        clock.advance(1)
        await eventually(lambda: bool(writes(server)))
        assert writes(server) == ["weight 10.0.0.1 0 flush"]
        assert rig.reconciler.warmup_state.unresolved == {"x", "y"}


async def test_a_drain_takes_the_old_address_of_a_server_out_too(path: Path) -> None:
    """A reload gives the only server another address, and VPP keeps the old one until the new one has a verdict."""
    lb = replace(AT_ONCE, startup_max_delay=30 * SECOND)
    clock = PacedClock()
    async with stand_in(path) as server:
        rig = Rig(path, make_config({"p": {"a": 10}}, lb=lb), clock=clock)
        rig.load()
        async with rig.running():
            await rig.settled()
            rig.load(make_config({"p": {"a": 10}}, backends={"a": "10.0.0.9"}, lb=lb))
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.9": 0}
            rig.drain("a")
            await rig.settled()
            assert weights(server) == {"10.0.0.9": 0}


async def test_without_a_vpp_the_presumption_ends_with_the_warm_up(path: Path) -> None:
    lb = LbConfig(startup_min_delay=5 * 1_000_000_000, startup_max_delay=30 * 1_000_000_000)
    clock = PacedClock()
    rig = Rig(path, failover(lb), clock=clock, state=State.UNKNOWN)
    rig.load()
    async with rig.running():
        await eventually(lambda: rig.reconciler.quiet)
        assert rig.presumed.names is None
        clock.advance(31)
        await eventually(lambda: rig.presumed.names is not None)
        assert rig.presumed.names == set()


async def test_a_foreign_scale_is_adopted_without_a_write_until_a_sync_is_asked_for(path: Path) -> None:
    async with stand_in(path) as server:
        raw = Rig(path, failover(weight_unit=1))
        raw.load()
        async with raw.running():
            await raw.settled()
        server.journal.clear()
        rig = Rig(path, failover())
        rig.load()
        async with rig.running():
            await rig.settled()
            assert not writes(server)
            rig.backend("a", DOWN)
            rig.backend("b", DOWN)
            await rig.settled()
            assert weights(server)["10.0.0.3"] == 10
            state = await rig.dataplane.lb_state("www")
            assert "times ours" in state.vips[0].notes[0]
            for name in (None, "www"):
                plan = await rig.dataplane.plan(name, force=False)
                assert [(step.old_weight, step.new_weight) for step in plan.steps] == [(10, 1)]
            await rig.dataplane.sync(None, force=False, by="ann")
            assert weights(server)["10.0.0.3"] == 1


def by_cli(server: StandIn, *commands: str) -> None:
    """A command that is typed on VPP's own command line."""
    for command in commands:
        retval, words = server.api.cli.execute(f"lb {command}")
        assert retval == 0, words


AS_OF_WWW = "as 192.0.2.1/32 protocol tcp port 80"
WWW_AT_THE_CLI = "vip 192.0.2.1/32 protocol tcp port 80"


@pytest.mark.parametrize(
    ("commands", "kinds", "words"),
    [
        ([f"{AS_OF_WWW} 10.0.0.2 weight 77"], {"as_weight": 1}, "10.0.0.2 has weight 77 instead of 1"),
        ([f"{AS_OF_WWW} 10.0.0.1 del"], {"as_missing": 1}, "10.0.0.1 is gone"),
        (
            [f"{AS_OF_WWW} 10.0.0.77 10.0.0.78 weight 3"],
            {"as_foreign": 2},
            "10.0.0.77 has come with weight 3; 10.0.0.78 has come with weight 3",
        ),
        (
            [f"{AS_OF_WWW} 10.0.0.1 10.0.0.2 10.0.0.3 del", f"{WWW_AT_THE_CLI} del"],
            {"vip_missing": 1},
            "VIP 192.0.2.1/32 tcp 80: it is gone",
        ),
        (
            ["vip 198.51.100.1/32 protocol tcp port 443 encap gre4 new_len 64"],
            {"vip_foreign": 1},
            "VIP 198.51.100.1/32 tcp 443: it has come",
        ),
        (
            [f"{WWW_AT_THE_CLI} del", f"{WWW_AT_THE_CLI} encap gre4 new_len 64"],
            {"vip_changed": 1},
            "its table length is 64 instead of 1024",
        ),
        (["conf timeout 77"], {"conf": 1}, "the global settings are others"),
    ],
)
async def test_drift_of_each_kind_is_found_by_the_periodic_sync_told_counted_and_repaired(
    path: Path, caplog: pytest.LogCaptureFixture, commands: list[str], kinds: dict[str, int], words: str
) -> None:
    clock = PacedClock()
    config = failover(replace(AT_ONCE, flow_timeout=50 * 1_000_000_000), new_flows_table_length=1024)
    async with programmed(path, config, clock=clock) as (server, rig):
        by_cli(server, *commands)
        syncs = rig.reconciler.counters.full_syncs
        with caplog.at_level(logging.WARNING, "maglev.vpp"):
            clock.advance(31)
            await eventually(lambda: rig.reconciler.counters.full_syncs > syncs)
            await rig.settled()
        assert rig.reconciler.counters.drift == Counter(kinds)
        assert words in caplog.text
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        vip = vip_of(server)
        assert vip is not None
        assert vip.table_length == 1024
        assert server.model.conf.flow_timeout == 50
        await rig.reconciler.sync(None, force=False, by="test")
        assert rig.reconciler.counters.drift == Counter(kinds)


@pytest.mark.parametrize("vips", [1, 3])
async def test_a_vip_that_is_made_again_with_nothing_but_another_stickiness_is_found_told_and_repaired_at_once(
    path: Path, vips: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The list of VIPs does not say so. Its place in the list shows it, and its old ASes linger beside it."""
    clock = PacedClock()
    key = VipKey.parse("192.0.2.1/32", 6, 1)
    async with programmed(path, several(vips), clock=clock) as (server, rig):
        drifts = rig.reconciler.counters.drift
        words = "vip 192.0.2.1/32 protocol tcp port 1"
        by_cli(server, f"{words} del", f"{words} encap gre4 new_len 16384 src_ip_sticky")
        by_cli(server, "as 192.0.2.1/32 protocol tcp port 1 10.0.0.1 weight 1")
        syncs = rig.reconciler.counters.full_syncs
        with caplog.at_level(logging.WARNING):
            clock.advance(31)
            await eventually(lambda: rig.reconciler.counters.full_syncs > syncs)
            await rig.settled()
        vip = vip_of(server, key)
        assert vip is not None
        assert (vip.src_ip_sticky, weights(server, key)) == (False, {"10.0.0.1": 1})
        assert {kind: count for kind, count in drifts.items() if count} == {"vip_changed": 1}
        assert "its src-ip-sticky is True instead of False" in caplog.text


async def test_an_as_that_somebody_deletes_is_no_reason_to_ask_the_cli(path: Path) -> None:
    clock = PacedClock()
    async with programmed(path, clock=clock) as (server, rig):
        for commands in (
            [f"{AS_OF_WWW} 10.0.0.1 del"],
            [f"{AS_OF_WWW} 10.0.0.3 del", f"{AS_OF_WWW} 10.0.0.3 weight 2"],
        ):
            by_cli(server, *commands)
            syncs = rig.reconciler.counters.full_syncs
            clock.advance(31)
            await eventually(lambda syncs=syncs: rig.reconciler.counters.full_syncs > syncs)  # type: ignore[misc]
            await rig.settled()
        assert not [entry for entry in server.journal.calls("cli_inband") if "verbose" in str(entry.values)]
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_what_a_second_controller_does_is_drift_whoever_reads_it_and_counted_once(path: Path) -> None:
    async with programmed(path) as (server, rig):
        payload = pack_set_weight(WWW, b"\x0a\x00\x00\x02", 9, flush=False)
        assert server.api.call(MESSAGES["lb_as_set_weight"], MESSAGES["lb_as_set_weight"].unpack(payload), 0)
        await rig.dataplane.lb_state(None)
        assert rig.reconciler.counters.drift == Counter({"as_weight": 1})
        await rig.reconciler.sync(None, force=False, by="ann")
        assert weights(server)["10.0.0.2"] == 1
        assert rig.reconciler.counters.drift == Counter({"as_weight": 1})


async def test_what_somebody_changes_while_there_is_no_connection_is_drift(path: Path) -> None:
    async with programmed(path) as (server, rig):
        connects = rig.client.connects
        server.drop_connections()
        by_cli(server, f"{AS_OF_WWW} 10.0.0.77 weight 3", f"{AS_OF_WWW} 10.0.0.1 del")
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert rig.reconciler.counters.drift == Counter({"as_foreign": 1, "as_missing": 1})


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_known_of_a_vpp_is_set_beside_what_it_holds_in_slices(
    path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    async with programmed(path, several(3)) as (server, rig):
        turns: list[int] = []
        turn = 0

        async def ticking() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        def at(real: Any) -> Any:
            def call(*args: object) -> object:
                turns.append(turn)
                return real(*args)

            return call

        monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
        monkeypatch.setattr(LostWeights, "lose", at(LostWeights.lose))
        monkeypatch.setattr("maglev.vpp.state.drift.vip_drift", at(vip_drift))
        ticker = asyncio.create_task(ticking())
        connects = rig.client.connects
        if restarted:
            await server.restart()
        else:
            server.drop_connections()
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        ticker.cancel()
        assert len(set(turns)) >= 3, "one VIP a turn"


@pytest.mark.parametrize("connected", [False, True])
async def test_weights_that_are_kept_come_back_with_a_vip_that_somebody_deleted(path: Path, connected: bool) -> None:
    async with programmed(path, failover(on_all_down=OnAllDown.KEEP)) as (server, rig):
        for name in "abc":
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert held["10.0.0.1"] > 0
        vip = vip_of(server)
        assert vip is not None
        if not connected:
            await away(server, rig)
        server.model.delete_vip(vip)
        if connected:
            await rig.reconciler.sync(None, force=False, by="test")
        server.hanging = False
        await rig.settled()
        assert weights(server) == held
        assert not rig.reconciler.lost


async def test_a_vpp_that_is_started_while_a_read_waits_for_its_turn_has_lost_what_the_one_before_had(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with programmed(path, failover(on_all_down=OnAllDown.KEEP)) as (server, rig):
        for name in "abc":
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert any(held.values())
        connects = rig.client.connects

        async def turn() -> None:
            if rig.client.connects == connects:
                await server.restart()
                await eventually(lambda: rig.client.connects > connects and rig.client.usable)

        monkeypatch.setattr(rig.reconciler.pacer, "turn", turn)
        with pytest.raises(Unavailable):
            await rig.reconciler.sync(None, force=False, by="test")
        await rig.settled()
        assert weights(server) == held
        assert rig.reconciler.counters.drift.total() == 0


async def test_what_was_planned_for_a_vpp_is_not_sent_to_the_one_that_is_started_while_it_waits_for_its_turn(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with programmed(path) as (server, rig):
        connects = rig.client.connects

        async def turn() -> None:
            if rig.client.connects == connects:
                await server.restart()
                await eventually(lambda: rig.client.connects > connects and rig.client.usable)

        monkeypatch.setattr(rig.reconciler.pacer, "turn", turn)
        rig.backend("b", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}
        assert rig.reconciler.refusals == 0


async def test_a_vpp_that_restarts_with_another_configuration_has_drift_and_one_that_restarts_empty_has_none(
    path: Path,
) -> None:
    async with programmed(path) as (server, rig):
        for commands, kinds in (
            ([], {}),
            (
                [f"{WWW_AT_THE_CLI} encap gre4 new_len 16384", f"{AS_OF_WWW} 10.0.0.1 10.0.0.77 weight 3"],
                {"as_weight": 1, "as_foreign": 1},
            ),
        ):
            connects = rig.client.connects
            await server.restart()
            by_cli(server, *commands)
            await eventually(lambda connects=connects: rig.client.connects > connects)  # type: ignore[misc]
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
            assert rig.reconciler.counters.drift == Counter(kinds)


@pytest.mark.parametrize("back", [False, True])
async def test_what_was_read_of_a_vpp_that_goes_before_it_is_taken_over_is_no_mirror_of_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    async with programmed(path) as (server, rig):
        connects = rig.client.connects
        breaths = 0

        async def breathe(_: Pace) -> None:
            nonlocal breaths
            breaths += 1
            if breaths > 1:
                return
            if back:
                await server.restart()
                await eventually(lambda: rig.client.connects == connects + 2 and rig.client.usable)
            else:
                await server.stop()
                await eventually(lambda: not rig.client.connected)

        monkeypatch.setattr(Pace, "breathe", breathe)
        failed = rig.reconciler.counters.failed_syncs
        server.drop_connections()
        await eventually(lambda: rig.reconciler.counters.failed_syncs > failed)
        if not back:
            assert rig.reconciler.actual is None
            await server.restart()
        await eventually(lambda: rig.client.connects == connects + 2)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert breaths > 1
        assert not rig.reconciler.counters.drift.total()


async def test_calls_that_a_lost_connection_leaves_open_are_no_drift(path: Path) -> None:
    async with programmed(path) as (server, rig):
        server.faults.cut_sent = 10
        connects = rig.client.connects
        rig.backend("a", DOWN)
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        rig.backend("a", UP)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert not rig.reconciler.counters.drift.total()


async def test_settings_that_a_lost_connection_left_open_are_no_drift(path: Path) -> None:
    async with programmed(path) as (server, rig):
        connects = rig.client.connects

        def lost_when_done(entry: Entry) -> bool:
            if entry.message == "lb_conf":
                server.drop_connections()  # before the answer to this is sent
            return entry.message == "lb_conf"

        done = server.journal.next(lost_when_done)
        rig.load(failover(replace(AT_ONCE, flow_timeout=50 * 1_000_000_000)))
        async with asyncio.timeout(DEADLINE):
            await done
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert server.model.conf.flow_timeout == 50
        assert not rig.reconciler.counters.drift.total()


async def test_a_periodic_sync_reads_vip_by_vip_and_asks_the_cli_nothing(path: Path) -> None:
    clock = PacedClock()
    async with programmed(path, clock=clock) as (server, rig):
        syncs = rig.reconciler.counters.full_syncs
        clock.advance(31)
        await eventually(lambda: rig.reconciler.counters.full_syncs > syncs)
        asked = [entry.message for entry in server.journal if entry.message != "control_ping"]
        assert asked == ["lb_conf_get", "lb_vip_dump", "lb_as_v2_dump"]


def several(count: int) -> Config:
    """VIPs of one server each; a verdict on server n is for VIP n."""
    frontends = [
        replace(make_config({"p": {f"s{n}": 10}}).frontends["www"], name=f"w{n}", port=n) for n in range(1, count + 1)
    ]
    return make_config(backends={f"s{n}": f"10.0.0.{n}" for n in range(1, count + 1)}, lb=AT_ONCE, frontends=frontends)


async def test_what_should_serve_is_worked_out_in_slices_and_a_reload_may_come_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = several(3)
    async with programmed(path, config) as (_, rig):
        for name in config.backends:
            rig.backend(name, DOWN)
        await rig.settled()
        monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
        assert await rig.reconciler.serving() == frozenset()
        rig.backend("s1", UP)
        rig.backend("s3", UP)
        working = asyncio.create_task(rig.reconciler.serving())
        await asyncio.sleep(0)
        assert not working.done()
        rig.load(replace(config, frontends={"w1": config.frontends["w1"]}, backends={"s1": config.backends["s1"]}))
        assert await working == {WWW._replace(port=1)}


async def test_what_a_vpp_holds_is_read_vip_by_vip_also_at_connect(path: Path) -> None:
    async with stand_in(path) as server:
        first = Rig(path, several(3))
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        rig = Rig(path, several(3))
        rig.load()
        async with rig.running():
            await rig.settled()
            dumps = [entry.values["port"] for entry in server.journal.calls("lb_as_v2_dump")]
            assert sorted(dumps) == [1, 2, 3]
            assert rig.presumed.names == {"s1", "s2", "s3"}
            assert not writes(server)


async def test_reading_back_is_paced_by_the_length_of_the_table_that_vpp_walks_for_it(path: Path) -> None:
    async with programmed(path, failover(new_flows_table_length=65536)) as (_, rig):
        spent, read = rig.reconciler.pacer.spent_ns, rig.reconciler.cost().read(65536, 3)
        await rig.reconciler.sync(None, force=False, by="ann")
        assert rig.reconciler.pacer.spent_ns - spent == read
        assert read > 30 * rig.reconciler.cost().read(1024, 3)


async def test_a_verdict_during_a_full_sync_waits_for_the_read_of_one_vip_at_most(path: Path) -> None:
    async with programmed(path, several(5)) as (server, rig):
        server.faults.delays["lb_as_v2_dump"] = 0.02
        syncing = asyncio.create_task(rig.reconciler.sync(None, force=False, by="ann"))
        await server.journal.next(lambda entry: entry.message == "lb_as_v2_dump")
        rig.backend("s5", DOWN)
        await syncing
        await rig.settled()
        order = [entry.message for entry in server.journal if entry.message != "control_ping"]
        # The one that was under way, and the one that may have been asked for in the meantime.
        assert order.index("lb_as_set_weight") - order.index("lb_as_v2_dump") <= 2
        assert not rig.reconciler.counters.drift.total()


async def test_a_verdict_that_comes_with_the_reply_to_a_read_is_not_behind_the_next_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with programmed(path, several(10)) as (server, rig):
        dump = rig.client.dump

        async def dump_and_fail(name: str, payload: bytes) -> list[bytes]:
            bodies = await dump(name, payload)
            if len(server.journal.calls("lb_as_v2_dump")) == 3:
                rig.backend("s1", DOWN)
            return bodies

        monkeypatch.setattr(rig.client, "dump", dump_and_fail)
        server.journal.clear()
        await rig.reconciler.sync_all()
        await rig.settled()
        order = [entry.message for entry in server.journal if entry.message != "control_ping"]
        assert order[:6] == ["lb_conf_get", "lb_vip_dump", *["lb_as_v2_dump"] * 3, "lb_as_set_weight"]


async def test_a_vip_that_somebody_deleted_comes_back(path: Path) -> None:
    async with programmed(path) as (server, rig):
        vip = vip_of(server)
        assert vip is not None
        server.model.delete_vip(vip)
        await rig.reconciler.sync(None, force=False, by="ann")
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_recreation_that_drift_causes_again_and_again_is_given_up(path: Path) -> None:
    async with programmed(path, failover(new_flows_table_length=1024)) as (server, rig):
        for attempt in range(4):
            vip = vip_of(server)
            assert vip is not None
            vip.table_length = 16
            result = await rig.reconciler.sync(None, force=False, by="ann")
            recreated = any(str(step).startswith("lb_add_del_vip_v2 ") for step in result.done)
            assert recreated == (attempt < 2)
        assert rig.reconciler.counters.recreations_given_up == 1
        await rig.reconciler.sync(None, force=True, by="ann")
        vip = vip_of(server)
        assert vip is not None
        assert vip.table_length == 1024


async def test_a_frontend_that_leaves_the_file_is_emptied_and_removed_and_foreign_vips_stay(path: Path) -> None:
    store = MemoryStore()
    async with programmed(path, store=store) as (server, rig):
        assert store.get("vips") == ["192.0.2.1/32 tcp 80"]
        other = make_config({"p": {"a": 10}}, address="192.0.2.7", lb=AT_ONCE)
        rig.load(other)
        rig.states.set(a=UP)
        await rig.settled()
        assert weights(server) == {}
        assert vip_of(server) is None
        assert writes(server)[-5:] == [
            "lb_flush_vip 192.0.2.1/32",
            "as del 10.0.0.1",
            "as del 10.0.0.2",
            "as del 10.0.0.3",
            "vip del 192.0.2.1/32",
        ]
        assert store.get("vips") == ["192.0.2.7/32 tcp 80"]


@pytest.mark.parametrize(("prune", "left"), [(Prune.OWNED, 1), (Prune.ALL, 0)])
async def test_a_vip_of_somebody_else_is_left_alone_shown_and_counted(path: Path, prune: Prune, left: int) -> None:
    async with stand_in(path) as server:
        foreign = Rig(path, failover())
        foreign.load()
        async with foreign.running():
            await foreign.settled()
        config = make_config({"p": {"a": 10}}, address="192.0.2.7", lb=replace(AT_ONCE, prune=prune))
        rig = Rig(path, config)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert len(rig.reconciler.unmanaged) == left
            assert (vip_of(server) is not None) == bool(left)
            state = await rig.dataplane.lb_state(None)
            assert [vip.notes for vip in state.vips if not vip.wanted] == [["not configured, and left alone"]] * left


async def test_the_state_lists_vips_in_the_order_of_the_file_and_then_those_of_others(path: Path) -> None:
    async with stand_in(path):
        foreign = Rig(path, make_config({"p": {"a": 10}}, address="192.0.2.1", lb=AT_ONCE))
        foreign.load()
        async with foreign.running():
            await foreign.settled()
        first = make_config({"p": {"a": 10}}, address="192.0.2.9").frontends["www"]
        second = replace(first, name="early", address=IPv4Address("192.0.2.2"))
        config = make_config(
            {"p": {"a": 10}}, address="192.0.2.9", frontends=[second], lb=replace(AT_ONCE, prune=Prune.OWNED)
        )
        rig = Rig(path, config)
        rig.load()
        async with rig.running():
            await rig.settled()
            state = await rig.dataplane.lb_state(None)
            assert [(vip.frontend, vip.wanted) for vip in state.vips] == [("www", True), ("early", True), ("", False)]


async def test_a_backend_with_a_new_address_serves_at_its_old_one_until_it_is_known(path: Path) -> None:
    config = make_config({"p": {"a": 10}}, backends={"a": "10.0.0.1"}, lb=replace(AT_ONCE, startup_max_delay=10**12))
    clock = PacedClock()
    async with stand_in(path) as server:
        rig = Rig(path, config, clock=clock)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1}
            rig.load(replace(config, backends={"a": replace(config.backends["a"], address=IPv4Address("10.0.0.9"))}))
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.9": 0}
            rig.backend("a", UP)
            await rig.settled()
            assert weights(server) == {"10.0.0.9": 1}
            assert writes(server)[-2:] == ["weight 10.0.0.9 1", "as del 10.0.0.1 flush"]


def with_another_name() -> Config:
    """The configuration ``failover``, but that a is called x."""
    addresses = {"x": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
    return make_config({"p": {"x": 10, "b": 10}, "fallback": {"c": 10}}, backends=addresses, lb=AT_ONCE)


@pytest.mark.parametrize("verdict", [UP, DOWN, State.UNKNOWN])
async def test_the_old_address_of_a_backend_stays_over_a_restart_of_the_daemon_as_long_as_without_one(
    path: Path, verdict: State
) -> None:
    lb = replace(AT_ONCE, startup_max_delay=60 * SECOND)
    moved = make_config({"p": {"a": 10}}, backends={"a": "10.0.0.9"}, lb=lb)
    store, clock = MemoryStore(), PacedClock()
    async with stand_in(path) as server:
        first = Rig(path, make_config({"p": {"a": 10}}, lb=lb), store=store, clock=clock)
        first.load()
        async with first.running():
            await first.settled()
            first.load(moved)
            await first.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.9": 0}
        clock = PacedClock()
        again = Rig(path, moved, store=store, clock=clock, state=State.UNKNOWN)
        again.load()
        async with again.running():
            await again.settled()
            again.backend("a", verdict)
            await again.settled()
            served = {"10.0.0.9": 1} if verdict is UP else {"10.0.0.1": 1, "10.0.0.9": 0}
            assert weights(server) == served
            clock.advance(61)
            await again.settled()
            await eventually(lambda: weights(server) == {"10.0.0.9": int(verdict is UP)})
            await eventually(lambda: not store.get("held"))


async def test_another_name_for_a_server_takes_no_traffic_from_it(path: Path) -> None:
    renamed = with_another_name()
    async with programmed(path) as (server, rig):
        rig.load(renamed)
        await rig.settled()
        assert rig.states.backends["x"].state is State.UNKNOWN
        assert writes(server) == []
        rig.backend("x", DOWN)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 0 flush"]


async def test_another_name_for_a_server_that_comes_before_vpp_was_read_takes_no_traffic_from_it(path: Path) -> None:
    async with stand_in(path) as server:
        first = Rig(path, failover())
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        again = Rig(path, failover(), state=State.UNKNOWN)
        again.load()
        again.load(with_another_name())
        async with again.running():
            again.backend("b", UP)
            await again.settled()
            assert again.states.backends["x"].state is State.UNKNOWN
            assert writes(server) == []


async def test_servers_that_swap_their_names_keep_their_traffic(path: Path) -> None:
    config = failover()
    a, b = config.backends["a"], config.backends["b"]
    swapped = dict(config.backends, a=replace(a, address=b.address), b=replace(b, address=a.address))
    async with programmed(path) as (server, rig):
        rig.load(replace(config, backends=swapped))
        await rig.settled()
        assert writes(server) == []
        rig.backend("a", UP)
        rig.backend("b", DOWN)
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 0 flush"]


async def test_on_all_down_keep_leaves_the_weights(path: Path) -> None:
    async with programmed(path, failover(on_all_down=OnAllDown.KEEP)) as (server, rig):
        for name in "cab":
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert any(held.values())
        server.journal.clear()
        rig.backend("c", UP)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}


async def test_a_restart_while_all_are_down_and_kept_makes_no_write_until_one_is_up(path: Path) -> None:
    config = failover(on_all_down=OnAllDown.KEEP)
    async with stand_in(path) as server:
        first = Rig(path, config)
        first.load()
        async with first.running():
            await first.settled()  # a and b serve; all three fail while no daemon runs
        server.journal.clear()
        again = Rig(path, config, state=State.UNKNOWN)
        again.load()
        async with again.running():
            await again.settled()
            for name in "cab":
                again.backend(name, DOWN)
                await again.settled()
            await again.reconciler.sync(None, force=False, by="test")
            assert not writes(server)
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
            again.backend("b", UP)
            await again.settled()
            assert writes(server) == ["weight 10.0.0.1 0 flush"]


async def test_weights_that_are_kept_are_kept_through_a_restart_of_vpp_or_health_would_fail_closed(path: Path) -> None:
    config = failover(on_all_down=OnAllDown.KEEP)
    async with programmed(path, config) as (server, rig):
        rig.backend("a", State.DISABLED, by="ann")
        for name in "cb":
            rig.backend(name, DOWN)
        await rig.settled()
        connects = rig.client.connects
        await server.restart()
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        await rig.reconciler.sync(None, force=False, by="test")
        vip = vip_of(server)
        assert vip is not None
        server.model.delete_ases(vip, [embed(b"\x0a\x00\x00\x02")], flush=False)
        await rig.reconciler.sync(None, force=False, by="test")
        assert weights(server)["10.0.0.2"] == 0, "what VPP had is what it had last"


@pytest.mark.parametrize("done", [0, 1, 30])
async def test_weights_that_are_kept_are_kept_when_vpp_goes_again_before_it_is_all_programmed(
    path: Path, done: int
) -> None:
    config = make_config(
        {"p": dict.fromkeys((f"b{number:02}" for number in range(40)), 10)},
        lb=SINGLY,
        new_flows_table_length=65536,
        on_all_down=OnAllDown.KEEP,
    )
    async with programmed(path, config) as (server, rig):
        for name in config.backends:
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert any(held.values())
        server.faults.delays.update({"lb_add_del_vip_v2": 0.005, "lb_add_del_as_v2": 0.001})
        left = next(iter(held))  # all but this are gone, and this is not as it was
        left_as_0 = [f"{WWW_AT_THE_CLI} encap gre4 new_len 65536", f"{AS_OF_WWW} {left} weight 0"]
        syncs = rig.reconciler.counters.full_syncs
        for commands in ([], left_as_0, []):
            await server.restart()
            by_cli(server, *commands)
            added = 0

            def so_far(entry: Entry) -> bool:
                nonlocal added
                added += entry.message == "lb_add_del_as_v2"
                return added >= done and entry.message in ("lb_add_del_vip_v2", "lb_add_del_as_v2")

            async with asyncio.timeout(DEADLINE):
                await server.journal.next(so_far)
        assert rig.reconciler.counters.full_syncs == syncs
        server.faults.clear()
        connects = rig.client.connects
        await server.restart()
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        assert weights(server) == held


async def test_what_a_restarted_vpp_has_lost_is_not_remembered_beyond_the_sync_that_gives_it_back(path: Path) -> None:
    config = failover(on_all_down=OnAllDown.KEEP)
    www = config.frontends["www"]
    smaller = replace(config, frontends={"www": replace(www, pools=www.pools[1:])})
    async with programmed(path, config) as (server, rig):
        for name in "cba":
            rig.backend(name, DOWN)
        await rig.settled()
        assert weights(server)["10.0.0.1"] == 1
        await away(server, rig)
        rig.load(smaller)
        server.hanging = False
        await server.restart()
        await rig.settled()
        assert weights(server) == {"10.0.0.3": 0}
        rig.load(config)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 0}


def crowd(*, length: int, on_all_down: OnAllDown = OnAllDown.DRAIN, lb: LbConfig = AT_ONCE) -> Config:
    """100 servers, and a budget that ends within a few calls."""
    servers = {"p": dict.fromkeys((f"b{number:02}" for number in range(100)), 10)}
    lb = replace(lb, max_stall=10_000)
    return make_config(servers, lb=lb, new_flows_table_length=length, on_all_down=on_all_down)


async def test_a_recreation_that_takes_more_than_one_budget_is_not_undone_by_the_batches_between(path: Path) -> None:
    async with programmed(path, crowd(length=65536, lb=SINGLY)) as (server, rig):
        held = weights(server)
        server.journal.clear()
        rig.load(crowd(length=32768, lb=SINGLY))
        await rig.settled()
        assert weights(server) == held
        # Each of them: weight 0, deleted, added. And one flush, and the VIP deleted and created.
        assert len(writes(server)) == 3 * 100 + 3


async def test_a_vip_that_vpp_refuses_to_delete_serves_as_it_was_and_is_created_again_by_the_next_full_sync(
    path: Path,
) -> None:
    async with programmed(path, crowd(length=65536)) as (server, rig):
        held = weights(server)
        server.faults.refusals.append(Refusal("lb_add_del_vip_v2", -73, times=1))
        rig.load(crowd(length=32768))
        await rig.settled()
        vip = vip_of(server)
        assert vip is not None
        assert (weights(server), vip.table_length) == (held, 65536)
        await rig.reconciler.sync(None, force=False, by="test")
        vip = vip_of(server)
        assert vip is not None
        assert (weights(server), vip.table_length) == (held, 32768)


async def test_a_vip_that_vpp_refuses_to_delete_follows_the_verdicts(path: Path) -> None:
    async with programmed(path, failover(new_flows_table_length=1024)) as (server, rig):
        server.faults.refusals.append(Refusal("lb_add_del_vip_v2", -73, times=1))
        rig.load(failover(new_flows_table_length=2048))
        await rig.settled()
        rig.backend("a", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        assert not rig.reconciler.owed
        rig.backend("b", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}


async def test_a_vip_that_vpp_always_refuses_to_delete_is_not_emptied_by_each_full_sync(path: Path) -> None:
    async with programmed(path, failover(new_flows_table_length=1024)) as (server, rig):
        server.faults.refusals.append(Refusal("lb_add_del_vip_v2", -73))
        rig.load(failover(new_flows_table_length=2048))
        await rig.settled()
        for _ in range(5):
            await rig.reconciler.sync(None, force=False, by="test")
        # The difference that the file explains, and two more.
        assert writes(server).count("lb_flush_vip 192.0.2.1/32") == 3
        assert rig.reconciler.counters.recreations_given_up == 1
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        server.faults.refusals.clear()
        await rig.reconciler.sync(None, force=True, by="test")
        vip = vip_of(server)
        assert vip is not None
        assert vip.table_length == 2048


async def test_a_verdict_during_a_recreation_is_in_what_is_created(path: Path) -> None:
    async with programmed(path, crowd(length=65536)) as (server, rig):
        held = weights(server)
        rig.load(crowd(length=32768))
        async with asyncio.timeout(DEADLINE):
            await server.journal.next(lambda entry: entry.message == "lb_as_set_weight")
        rig.backend("b07", DOWN)
        await rig.settled()
        assert weights(server) == {**held, "10.0.0.8": 0}


async def test_weights_that_are_kept_are_kept_through_a_recreation_that_takes_more_than_one_budget(path: Path) -> None:
    keep = OnAllDown.KEEP
    async with programmed(path, crowd(length=65536, on_all_down=keep)) as (server, rig):
        for name in rig.states.config().backends:
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert any(held.values())
        rig.load(crowd(length=32768, on_all_down=keep))
        await rig.settled()
        assert weights(server) == held


@pytest.mark.parametrize("direction", ["cut_received", "cut_sent"])
async def test_weights_that_are_kept_are_kept_through_a_recreation_that_a_lost_connection_cuts_anywhere(
    path: Path, direction: str
) -> None:
    async with programmed(path, failover(on_all_down=OnAllDown.KEEP)) as (server, rig):
        for name in "cab":
            rig.backend(name, DOWN)
        await rig.settled()
        held = weights(server)
        assert any(held.values())
        lengths = cycle((1024, 2048))
        for offset in range(0, 1500, 17):  # from the first read of the sync to behind its last write
            setattr(server.faults, direction, offset)
            rig.load(failover(on_all_down=OnAllDown.KEEP, new_flows_table_length=next(lengths)))
            await rig.settled()
            assert weights(server) == held, offset


async def test_the_old_address_of_a_backend_stays_through_a_recreation_or_its_frontend_would_be_dark(
    path: Path,
) -> None:
    lb = replace(AT_ONCE, startup_max_delay=60 * SECOND)
    async with programmed(path, make_config({"p": {"a": 10}}, lb=lb), clock=PacedClock(), state=UP) as (server, rig):
        moved = make_config({"p": {"a": 10}}, backends={"a": "10.0.0.9"}, lb=lb, new_flows_table_length=1024)
        rig.load(moved)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.9": 0}
        rig.backend("a", UP)
        await rig.settled()
        assert weights(server) == {"10.0.0.9": 1}


async def test_a_plan_is_shown_before_it_is_made_and_changes_nothing(path: Path) -> None:
    async with programmed(path) as (server, rig):
        rig.states.set(a=DOWN)
        plan = await rig.dataplane.plan(None, force=False)
        assert [str(step) for step in plan.steps] == [
            "lb_as_set_weight 192.0.2.1/32 tcp 80 as 10.0.0.1 weight 1 -> 0 flush"
        ]
        (forecast,) = plan.forecasts
        assert [(one.backend, one.buckets_before, one.buckets_after) for one in forecast.ases] == [
            ("a", 8192, 0),
            ("b", 8192, 16384),
            ("c", 0, 0),
        ]
        assert plan.stall_ns > 0
        assert not writes(server)
        later = make_config({"p": {"b": 10}}, backends={"b": "10.0.0.2"}, lb=AT_ONCE)
        after = await rig.dataplane.plan(None, force=False, config=later)
        assert [step.kind for step in after.steps] == ["as_remove", "as_remove"]
        rig.states.set(a=UP)
        renamed = with_another_name()
        probed = {name: replace(backend, healthcheck="web") for name, backend in renamed.backends.items()}
        after = await rig.dataplane.plan(None, force=False, config=replace(renamed, backends=probed))
        assert list(after.steps) == []


async def test_a_plan_for_many_vips_is_made_in_slices_and_says_what_one_in_one_piece_would(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with programmed(path, apart(several(6))) as (server, rig):
        for number in range(1, 7):
            drift(server, f"10.0.0.{number}", 7, VipKey.parse(f"192.0.2.{number}/32", 6, number))
        by_cli(server, "conf timeout 77", "vip 198.51.100.1/32 protocol tcp port 443 encap gre4 new_len 64")
        config = replace(apart(several(5)), lb=replace(AT_ONCE, flow_timeout=50 * SECOND, prune=Prune.ALL))
        whole = await rig.dataplane.plan(None, force=False, config=config)
        monkeypatch.setattr("maglev.vpp.sync.fullsync.PIECE_MEMBERS", 1)
        monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
        turns = 0

        async def ticking() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        await rig.reconciler.refresh()
        monkeypatch.setattr(rig.reconciler, "refresh", known(rig))
        ticker = asyncio.create_task(ticking())
        assert await rig.dataplane.plan(None, force=False, config=config) == whole
        ticker.cancel()
        assert turns >= 5 + len(whole.forecasts) + len(whole.steps)
        kinds = ["conf", *["as_weight"] * 6, "vip_flush", "as_remove", "vip_remove", "vip_remove"]
        assert [step.kind for step in whole.steps] == kinds


def apart(config: Config) -> Config:
    """The same frontends, each on an address whose last byte is its port."""
    frontends = {
        name: replace(one, address=IPv4Address(f"192.0.2.{one.port}")) for name, one in config.frontends.items()
    }
    return replace(config, frontends=frontends)


def known(rig: Rig) -> Callable[[], Coroutine[Any, Any, Actual]]:
    """The known state of VPP, for a reader that sends no call."""

    async def refresh() -> Actual:
        assert rig.reconciler.actual is not None
        return rig.reconciler.actual

    return refresh


async def test_the_state_shows_what_vpp_holds_beside_what_is_wanted(path: Path) -> None:
    async with programmed(path) as (server, rig):
        drift(server, "10.0.0.1", 3)
        state = await rig.dataplane.lb_state("www")
        (vip,) = state.vips
        assert (vip.frontend, vip.encap, vip.present, vip.in_sync, vip.unit) == ("www", "gre4", True, False, 10)
        assert [(one.backend, one.programmed_weight, one.vpp_weight) for one in vip.ases] == [
            ("a", 1, 3),
            ("b", 1, 1),
            ("c", 0, 0),
        ]
        assert all(one.buckets == one.predicted_buckets for one in vip.ases)
        with pytest.raises(UnknownName):
            await rig.dataplane.lb_state("nope")


async def test_without_vpp_requests_are_unavailable(path: Path) -> None:
    rig = Rig(path, failover())
    rig.load()
    async with rig.running():
        for request in (
            rig.dataplane.lb_state(None),
            rig.dataplane.plan(None, force=False),
            rig.dataplane.sync("www", force=False, by="ann"),
            rig.dataplane.counters(None),
        ):
            with pytest.raises(Unavailable):
                await request
        with pytest.raises(Unavailable):
            rig.dataplane.info()
        assert not rig.dataplane.connection().connected


async def test_a_silent_vpp_costs_the_sync_and_not_the_daemon(path: Path) -> None:
    async with programmed(path, timing=Timing(deadline=0.2, ping=60, backoff=0.01)) as (server, rig):
        server.hanging = True
        rig.backend("a", DOWN)
        await eventually(lambda: not rig.client.connected)
        server.hanging = False
        await rig.settled()
        await eventually(lambda: not rig.reconciler.owed)
        assert weights(server)["10.0.0.1"] == 0


async def test_in_flight_is_at_most_max_stall_of_estimated_work(path: Path) -> None:
    members = {f"b{n:02}": 100 for n in range(50)}
    lb = replace(SINGLY, max_stall=1_000_000)
    config = make_config({"p": members}, lb=lb, weight_unit=1, new_flows_table_length=16384)
    clock = PacedClock()
    async with programmed(path, config, clock=clock) as (_, rig):
        sizes: list[int] = []
        send = rig.client.send

        async def watched(requests: object) -> object:
            sizes.append(len(requests))  # type: ignore[arg-type]
            return await send(requests)  # type: ignore[arg-type]

        rig.client.send = watched  # type: ignore[method-assign,assignment]
        rig.reconciler.pacer.factor = 1.0
        before = clock.now
        for name in list(members)[:25]:
            rig.backend(name, DOWN)
        await rig.settled()
        cheapest = CostModel().rebuild(16384, 25 * 100)
        assert max(sizes) <= lb.max_stall // cheapest + 1
        assert len(sizes) > 5
        assert clock.now - before >= rig.reconciler.pacer.spent_ns // 4


async def test_a_stranger_on_the_connection_cannot_confuse_the_mirror(path: Path) -> None:
    async with programmed(path) as (server, rig):
        await rig.client.call("lb_as_set_weight", pack_set_weight(WWW, b"\x0a\x00\x00\x01", 9, flush=False))
        rig.backend("b", DOWN)
        await rig.settled()
        await rig.reconciler.sync_one("www")
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 0, "10.0.0.3": 0}


def test_the_dataplane_is_what_the_api_needs(path: Path) -> None:
    async def build() -> DataplaneApi:
        rig = Rig(path, failover())
        api: DataplaneApi = rig.dataplane
        return api

    assert isinstance(asyncio.run(build()), Dataplane)


async def test_a_verdict_reaches_vpp_while_a_reload_is_under_way(path: Path) -> None:
    config = failover()
    async with programmed(path, config) as (server, rig):
        rig.states.load(replace(config, transition_history=7))  # in force, and not announced yet
        rig.backend("a", DOWN)
        await eventually(lambda: bool(writes(server)))
        assert writes(server) == ["weight 10.0.0.1 0 flush"]
        rig.load()
        await rig.settled()
        assert writes(server) == ["weight 10.0.0.1 0 flush"]


async def test_a_reload_is_not_seen_half_done_or_a_new_server_would_get_traffic_before_its_first_probe(
    path: Path,
) -> None:
    config = failover()
    async with programmed(path, config) as (server, rig):
        moved = replace(config.backends["a"], address=IPv4Address("10.0.0.9"))
        rig.states.load(replace(config, backends={**config.backends, "a": moved}))
        rig.states.set(a=UP)  # the checker has not come to it yet
        rig.backend("b", DOWN)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await rig.dataplane.sync("www", force=False, by="ann")
        assert not writes(server)
        rig.states.set(a=State.UNKNOWN)
        rig.load()
        await rig.settled()
        assert weights(server) == {"10.0.0.9": 0, "10.0.0.2": 0, "10.0.0.3": 1}


async def test_a_reload_that_is_never_announced_is_in_force_after_ten_seconds(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, clock = failover(), PacedClock()
    async with programmed(path, config, clock=clock) as (server, rig):
        moved = replace(config.backends["a"], address=IPv4Address("10.0.0.9"))
        rig.states.load(replace(config, backends={**config.backends, "a": moved}))
        rig.backend("b", DOWN)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not writes(server), "the frontend waits for the end of the reload"
        clock.advance(11)
        rig.backend("c", DOWN)
        await rig.settled()
        assert "a configuration is in force that was not announced" in caplog.text
        assert weights(server) == {"10.0.0.9": 0, "10.0.0.2": 0, "10.0.0.3": 0}


async def test_a_reload_that_takes_servers_away_during_the_warm_up_ends_neither_a_sync_nor_a_request(
    path: Path,
) -> None:
    lb = LbConfig(startup_min_delay=0, startup_max_delay=30 * SECOND)
    config, clock = failover(lb), PacedClock()
    async with stand_in(path) as server:
        rig = Rig(path, config, clock=clock)
        rig.load()
        async with rig.running():
            await rig.settled()
            smaller = make_config({"p": {"b": 10}}, backends={"b": "10.0.0.2"}, lb=lb)
            rig.states.load(smaller)  # in force, and not announced yet
            assert not rig.reconciler.released("nope")
            rig.reconciler.released("www")
            rig.load()
            await rig.settled()
            assert weights(server) == {"10.0.0.2": 1}


async def test_a_frontend_that_a_reload_removes_during_a_sync_does_not_end_the_sync(path: Path) -> None:
    both = [replace(failover().frontends["www"], name=f"w{n}", port=n) for n in (81, 82)]
    config = replace(failover(), frontends={frontend.name: frontend for frontend in both})
    async with programmed(path, config) as (server, rig):
        server.faults.delays["lb_vip_dump"] = 0.1
        syncing = asyncio.create_task(rig.reconciler.sync(None, force=False, by="ann"))
        await server.journal.next(lambda entry: entry.message == "lb_conf_get")
        rig.load(replace(config, frontends={"w82": both[1]}))
        await syncing
        await rig.settled()
        assert len([vip for vip in server.model.visible_vips() if vip.used]) == 1


async def test_a_reload_that_begins_while_a_sync_sets_the_global_settings_does_not_end_the_sync(path: Path) -> None:
    both = [replace(failover().frontends["www"], name=f"w{n}", port=n) for n in (81, 82)]
    config = replace(
        failover(replace(AT_ONCE, flow_timeout=50 * SECOND)), frontends={frontend.name: frontend for frontend in both}
    )
    async with programmed(path, config) as (server, rig):
        server.model.conf = replace(server.model.conf, flow_timeout=40)
        server.faults.delays["lb_conf"] = 0.2
        syncing = asyncio.create_task(rig.reconciler.sync(None, force=False, by="ann"))
        await server.journal.next(lambda entry: entry.message == "lb_conf")
        reloaded = replace(config, frontends={"w82": both[1]})
        rig.states.load(reloaded)  # in force, and not announced yet
        await asyncio.sleep(0.3)
        rig.load(reloaded)
        await syncing
        await rig.settled()
        assert len([vip for vip in server.model.visible_vips() if vip.used]) == 1
        assert server.model.conf.flow_timeout == 50


async def test_a_standby_gets_no_traffic_while_the_servers_before_it_cannot_be_probed(path: Path) -> None:
    lb = LbConfig(startup_min_delay=0, startup_max_delay=1_000_000_000)
    async with stand_in(path) as server:
        first = Rig(path, failover())
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        clock = PacedClock()
        rig = Rig(path, failover(lb), clock=clock, state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            rig.backend("c", UP)
            clock.advance(2)
            await eventually(lambda: rig.reconciler.counters.full_syncs > 0)
            await rig.settled()
            assert not writes(server)
            rig.backend("a", DOWN)
            await rig.settled()
            assert writes(server) == ["weight 10.0.0.1 0 flush"]
            rig.backend("b", DOWN)
            await rig.settled()
            assert writes(server)[1:] == ["weight 10.0.0.3 1", "weight 10.0.0.2 0 flush"]


async def test_disable_flushes_even_when_it_is_the_first_that_is_known_of_a_server_since_the_start(path: Path) -> None:
    async with stand_in(path) as server:
        first = Rig(path, failover())
        first.load()
        async with first.running():
            await first.settled()
        server.journal.clear()
        rig = Rig(path, failover(), state=State.UNKNOWN)
        rig.load()
        async with rig.running():
            await rig.settled()
            rig.backend("c", State.DISABLED, by="ann")  # a standby: its flows are older than we
            await rig.settled()
            assert writes(server) == ["weight 10.0.0.3 0 flush"]


async def test_buckets_are_read_back_and_a_difference_is_told_and_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with programmed(path) as (server, rig):
        rig.backend("a", DOWN)
        await rig.settled()
        assert rig.reconciler.counters.bucket_mismatches == 0
        assert server.journal.calls("lb_as_v2_dump")
        buckets = server.model.buckets
        server.model.buckets = lambda vip: {index: n + 1 for index, n in buckets(vip).items()}  # type: ignore[method-assign]
        with caplog.at_level(logging.ERROR, "maglev.vpp"):
            rig.backend("a", UP)
            await rig.settled()
        assert rig.reconciler.counters.bucket_mismatches == 1
        assert "10.0.0.1 8193 instead of 8192" in caplog.text


async def test_a_connection_that_is_made_anew_while_a_batch_reads_ends_the_batch_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with programmed(path) as (server, rig):
        server.faults.refusals.append(Refusal("lb_as_set_weight", -73, times=1))
        rig.drain("b")
        await rig.settled()  # a refused call: the VIP is read before the next batch writes to it
        turn, broken = rig.reconciler.pacer.turn, 0

        async def turn_that_takes_long() -> None:
            nonlocal broken
            if not broken:
                broken = rig.client.connects
                server.drop_connections()
                await eventually(lambda: rig.client.connects > broken and rig.client.usable)
            await turn()

        monkeypatch.setattr(rig.reconciler.pacer, "turn", turn_that_takes_long)
        rig.drain("b", False)
        rig.backend("a", DOWN)
        await eventually(lambda: broken > 0)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
        assert not rig.reconciler.owed


async def test_a_connection_that_is_lost_while_a_read_back_waits_for_its_turn_ends_nothing(path: Path) -> None:
    async with programmed(path) as (server, rig):
        connects = rig.client.connects
        server.faults.delays["lb_vip_dump"] = 1.0
        written = server.journal.next(lambda entry: entry.message == "lb_as_set_weight")
        rig.backend("a", DOWN)
        await written
        refreshing = asyncio.create_task(rig.reconciler.refresh())  # comes between the batch and the read back
        await server.journal.next(lambda entry: entry.message == "lb_conf_get")
        server.faults.clear()
        server.drop_connections()
        with pytest.raises(Unavailable):
            await refreshing
        assert not server.journal.calls("lb_as_v2_dump")
        await eventually(lambda: rig.client.connects > connects)
        await rig.settled()
        rig.backend("b", DOWN)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}


async def test_what_somebody_else_changes_right_behind_us_is_found_when_it_is_read_back(path: Path) -> None:
    async with programmed(path) as (server, rig):
        written = server.journal.next(lambda entry: entry.message == "lb_as_set_weight")
        server.faults.delays["lb_as_v2_dump"] = 0.05
        rig.backend("a", DOWN)
        await written
        drift(server, "10.0.0.2", 9)
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_a_verdict_that_comes_while_a_full_sync_writes_to_its_frontend_is_not_lost(path: Path) -> None:
    async with programmed(path) as (server, rig):
        drift(server, "10.0.0.2", 7)
        server.faults.delays["lb_as_set_weight"] = 0.05
        written = server.journal.next(lambda entry: entry.message == "lb_as_set_weight")
        send = rig.client.send

        async def watched(requests: Sequence[Request]) -> list[Reply]:
            if requests[0].name == "lb_as_set_weight" and rig.states.backends["a"].state is UP:
                rig.backend("a", DOWN)  # the call is on its way, and planned without this
            return await send(requests)

        rig.client.send = watched  # type: ignore[method-assign]
        await rig.reconciler.sync(None, force=False, by="ann")
        await written
        await rig.settled()
        assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_what_is_owed_to_an_as_that_somebody_deleted_is_flushed_when_it_comes_back_with_its_flows(
    path: Path,
) -> None:
    async with programmed(path) as (server, rig):
        vip = vip_of(server)
        assert vip is not None
        server.model.packets(vip, range(0, 1 << 16, 257))
        server.model.delete_ases(vip, [embed(b"\x0a\x00\x00\x01")], flush=False)
        rig.backend("a", State.DISABLED, by="ann")
        await rig.settled()
        await rig.reconciler.sync(None, force=False, by="ann")
        await rig.settled()
        assert [one.flows for one in server.model.ases_of(vip) if extract(one.address) == b"\x0a\x00\x00\x01"] == [0]
