"""VIPs that leave the configuration otherwise than by a reload, against a stand-in: they stay until an operator agrees.

A *restart* here is another reconciler with the state file of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Config, LbConfig, Protocol, Prune
from maglev.vpp.state.store import MemoryStore
from maglev.vpp.wire.messages import VipKey
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig, eventually, stand_in, vip_of, weights


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def key(number: int) -> VipKey:
    return VipKey.parse(f"192.0.2.{number}/32", 6, 80)


def vips(*numbers: int, lb: LbConfig = AT_ONCE, backends: tuple[str, ...] = ("a", "b")) -> Config:
    """Frontends f1, f2, ... on 192.0.2.1, .2, ..., all with the same servers."""
    config = make_config({"p": dict.fromkeys(backends, 10)}, lb=lb)
    www = config.frontends["www"]
    made = [replace(www, name=f"f{n}", address=ip_address(f"192.0.2.{n}")) for n in numbers]
    return replace(config, frontends={one.name: one for one in made})


EIGHT = range(1, 9)


def there(server: StandIn) -> set[int]:
    """The live VIPs in VPP, by the last byte of their address."""
    return {number for number in range(1, 60) if vip_of(server, key(number)) is not None}


@contextlib.asynccontextmanager
async def run(path: Path, config: Config, store: MemoryStore) -> AsyncIterator[Rig]:
    """A daemon's life. It begins settled."""
    rig = Rig(path, config, store=store)
    rig.load()
    async with rig.running():
        await rig.settled()
        yield rig


async def test_a_file_that_was_cut_off_deletes_nothing_at_the_start_and_all_else_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            assert there(server) == set(EIGHT)
        held = weights(server, key(5))
        for _ in range(2):  # the hold survives restarts
            caplog.clear()
            async with run(path, vips(1, 20), store) as rig:
                assert there(server) == {*EIGHT, 20}
                rig.backend("a", State.DOWN)
                await rig.settled()
                assert weights(server, key(1)) == {"10.0.0.1": 0, "10.0.0.2": 1}
                assert weights(server, key(5)) == held
                await rig.reconciler.sync(None, force=False, by="test")
                await rig.reconciler.sync(None, force=True, by="test")  # about sticky buckets, not about this
                assert there(server) == {*EIGHT, 20}
                (record,) = [one for one in caplog.records if getattr(one, "maglev_event", "") == "vpp-prune-held"]
                assert record.levelno == logging.ERROR
                assert "7 VIPs wait for an operator" in record.getMessage()
                assert "192.0.2.2/32 tcp 80" in record.getMessage()
                assert "sync vpp lb state prune" in record.getMessage()
                assert rig.dataplane.figures().waiting_vips == rig.dataplane.waiting_vips() == 7


async def test_waiting_vips_are_shown_and_the_verb_deletes_them(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(1), store) as rig:
            server.journal.clear()
            state = await rig.dataplane.lb_state(None)
            assert [vip.waiting for vip in state.vips] == [False] + [True] * 7
            assert "sync vpp lb state prune" in state.vips[1].notes[0]
            plan = await rig.dataplane.plan(None, force=True)
            assert (list(plan.steps), len(plan.waiting_vips)) == ([], 7)
            assert "7 VIPs wait" in plan.notes[0]
            after = await rig.dataplane.plan(None, force=False, config=vips(1, 2, 3))
            assert [step.kind for step in after.steps if "vip" in step.kind] == []
            assert len(after.waiting_vips) == 5
            pruned = await rig.dataplane.plan(None, force=False, prune=True)
            assert sum(step.kind == "vip_remove" for step in pruned.steps) == 7
            assert not server.journal.writes()
            report = await rig.dataplane.sync(None, force=False, prune=True, by="ann")
            assert (there(server), report.failures) == ({1}, ())
            assert rig.dataplane.waiting_vips() == 0
            assert store.get("vips") == ["192.0.2.1/32 tcp 80"]


async def test_a_file_without_frontends_deletes_nothing_until_it_is_forced(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(1), store):
            pass
        empty = vips()
        async with run(path, empty, store) as rig:
            assert (there(server), rig.dataplane.waiting_vips()) == ({1}, 1)
            rig.load(replace(empty))
            await rig.settled()
            assert there(server) == {1}
            rig.load(replace(empty), forced=True)
            await rig.settled()
            assert there(server) == set()


async def test_a_corrected_file_ends_the_wait_for_what_it_has_again(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(1), store) as rig:
            rig.load(vips(*range(1, 8)))
            rig.states.set(a=State.UP, b=State.UP)
            await rig.settled()
            assert (there(server), rig.dataplane.waiting_vips()) == (set(EIGHT), 1)
            # A later reload takes VIPs away as ever, and not the one that waits.
            rig.load(vips(*range(1, 6)))
            await rig.settled()
            assert (there(server), rig.dataplane.waiting_vips()) == ({1, 2, 3, 4, 5, 8}, 1)


async def test_reloads_one_by_one_while_vpp_is_away_are_no_cut_off_file_not_even_after_a_restart(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store) as rig:
            await server.stop()
            await eventually(lambda: not rig.client.connected)
            for left in range(7, 0, -1):
                rig.load(vips(*range(1, left + 1)))
                await eventually(lambda: not rig.reconciler._rooms.announced.reloading)
        await server.start()
        async with run(path, vips(1), store) as rig:
            assert (there(server), rig.dataplane.waiting_vips()) == ({1}, 0)


async def test_a_forced_reload_counts_though_a_restart_came_before_the_sync(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store) as rig:
            await server.stop()
            await eventually(lambda: not rig.client.connected)
            rig.load(vips(1), forced=True)
            await eventually(lambda: not rig.reconciler._rooms.announced.reloading)
        await server.start()
        async with run(path, vips(1), store):
            assert there(server) == {1}


async def test_a_forced_reload_of_the_file_that_is_in_force_deletes_what_waits(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(1), store) as rig:
            assert rig.dataplane.waiting_vips() == 7
            rig.load(forced=True)
            await rig.settled()
            assert (there(server), rig.dataplane.waiting_vips()) == ({1}, 0)


@pytest.mark.parametrize(("prune", "waiting"), [(Prune.OWNED, 0), (Prune.ALL, 7), (Prune.NONE, 0)])
async def test_a_lost_state_file_deletes_nothing(path: Path, prune: Prune, waiting: int) -> None:
    """With ``owned`` nothing is ours any more; with ``all`` everything is, and that is for an operator to say."""
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), MemoryStore()):
            pass
        lb = replace(AT_ONCE, prune=prune)
        async with run(path, vips(1, *range(11, 31), lb=lb), MemoryStore()) as rig:
            assert there(server) == {*EIGHT, *range(11, 31)}
            assert rig.dataplane.waiting_vips() == waiting
            await rig.reconciler.sync(None, force=False, by="test", prune=True)
            assert there(server) == ({1, *range(11, 31)} if waiting else {*EIGHT, *range(11, 31)})


async def test_a_reload_to_prune_all_does_not_delete_many_vips_of_others(path: Path) -> None:
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), MemoryStore()):
            pass
        async with run(path, vips(20), MemoryStore()) as rig:
            assert rig.dataplane.waiting_vips() == 0
            rig.load(vips(20, lb=replace(AT_ONCE, prune=Prune.ALL)))
            await rig.settled()
            assert (there(server), rig.dataplane.waiting_vips()) == ({*EIGHT, 20}, 8)


async def test_a_state_file_of_another_deployment_deletes_nothing(path: Path) -> None:
    theirs, store = MemoryStore(), MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), theirs):
            pass
        store.set("vips", theirs.get("vips"))
        async with run(path, vips(*range(11, 31)), store) as rig:
            assert (there(server), rig.dataplane.waiting_vips()) == ({*EIGHT, *range(11, 31)}, 8)


async def test_a_restart_that_deletes_a_few_vips_deletes_them(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(*range(1, 6)), store) as rig:
            assert (there(server), rig.dataplane.waiting_vips()) == (set(range(1, 6)), 0)


async def test_a_restarted_vpp_has_nothing_that_waits(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(1), store) as rig:
            connects = rig.client.connects
            await server.restart()
            await eventually(lambda: rig.client.connects > connects)
            await rig.settled()
            assert (there(server), rig.dataplane.waiting_vips()) == ({1}, 0)


async def test_a_vip_that_waits_is_not_removed_for_another_on_its_address(path: Path) -> None:
    """An any-port VIP does not fit beside one with a port: the new one waits, and the plan says for what."""
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        config = vips(1)
        other = replace(
            config.frontends["f1"], name="any", address=ip_address("192.0.2.5"), protocol=Protocol.ANY, port=0
        )
        config = replace(config, frontends={**config.frontends, "any": other})
        async with run(path, config, store) as rig:
            assert there(server) == set(EIGHT)
            plan = await rig.dataplane.plan(None, force=False)
            assert any("192.0.2.5/32 tcp 80 (gre4) is in the way" in note for note in plan.notes)
            await rig.reconciler.sync(None, force=False, by="test", prune=True)
            assert vip_of(server, VipKey.parse("192.0.2.5/32")) is not None
            assert there(server) == {1}


async def test_the_verb_while_a_verdict_comes_is_no_reason_to_wait(path: Path) -> None:
    store = MemoryStore()
    async with stand_in(path) as server:
        async with run(path, vips(*EIGHT), store):
            pass
        async with run(path, vips(1), store) as rig:
            pruning = asyncio.create_task(rig.reconciler.sync(None, force=False, by="test", prune=True))
            rig.backend("a", State.DOWN)
            await pruning
            await rig.settled()
            assert (there(server), weights(server, key(1))) == ({1}, {"10.0.0.1": 0, "10.0.0.2": 1})
