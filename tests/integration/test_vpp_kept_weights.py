"""Weights that only the state file can give back, against a stand-in: the daemon is killed, and another one starts.

A *killed* daemon stops before one of its calls to VPP, for ever, and what its state file has on the disk at that moment
is all that the next one knows.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from maglev.base.errors import MaglevError
from maglev.base.pace import at_once
from maglev.base.states import State
from maglev.config.model import SECOND, Config, OnAllDown
from maglev.vpp.planning.plan import Step
from maglev.vpp.state.store import Kept, MemoryStore, Nature, kept_from_json, kept_to_json
from maglev.vpp.sync.executor import Executor, Pacer
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import Encap, VipKey
from maglev.vpp.wire.transport import Reply
from maglev.vppsim.faults import Refusal
from maglev.vppsim.server import StandIn
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import (
    AT_ONCE,
    DEADLINE,
    WWW,
    PacedClock,
    Rig,
    eventually,
    failover,
    stand_in,
    vip_of,
    weights,
    writes,
)

KEEP = OnAllDown.KEEP
ONE_BY_ONE = replace(AT_ONCE, max_stall=1)
"""Each call is a write of its own."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


class Full(MaglevError):
    """No space left on device."""


class Disk(MemoryStore):
    """A state file: what is set reaches the disk when somebody waits for it, and not before.

    ``full``: nothing reaches it. ``on_save`` is called while a caller waits.
    """

    lasting = True

    def __init__(self, disk: dict[str, object] | None = None) -> None:
        super().__init__()
        self.disk: dict[str, object] = disk or {}
        self.sections = dict(self.disk)
        self.full = False
        self.on_save: Callable[[], None] = lambda: None

    async def saved(self) -> None:
        await asyncio.sleep(0)
        self.on_save()
        if self.full:
            raise Full("no space left on device")
        self.disk = copy.deepcopy(self.sections)


class Killed(Executor):
    """Hangs before its call ``last``, counted from 0; ``hangs`` is set then."""

    def __init__(self, client: VppClient, pacer: Pacer, last: int) -> None:
        super().__init__(client, pacer)
        self.hangs = asyncio.Event()
        self.last = last
        self.calls = 0

    async def _send(self, chunk: Sequence[Step], cost: int) -> Sequence[Reply]:
        if self.calls + len(chunk) > self.last:
            self.hangs.set()
            await asyncio.Event().wait()
        self.calls += len(chunk)
        return await super()._send(chunk, cost)


async def program(path: Path, config: Config, store: Disk, *, down: bool) -> None:
    """A daemon programs VPP, sees all servers fail if ``down``, and ends in an orderly way."""
    rig = Rig(path, config, store=store)
    rig.load()
    async with rig.running():
        await rig.settled()
        for name in config.backends if down else ():
            rig.backend(name, State.DOWN)
        await rig.settled()
    await store.saved()


async def killed_before(path: Path, config: Config, store: Disk, call: int) -> dict[str, object] | None:
    """A daemon that knows all verdicts begins with ``config``, and is killed before that call. The disk it leaves.

    None: it has ended its work before, with fewer calls.
    """
    made: list[Killed] = []

    def executor(client: VppClient, pacer: Pacer) -> Executor:
        made.append(Killed(client, pacer, call))
        return made[0]

    rig = Rig(path, config, store=store, state=State.DOWN, executor=executor)
    rig.load()
    async with rig.running():
        hangs = asyncio.create_task(made[0].hangs.wait())
        settled = asyncio.create_task(rig.settled())
        await asyncio.wait([hangs, settled], return_when=asyncio.FIRST_COMPLETED)
        disk = copy.deepcopy(store.disk) if hangs.done() else None
        for task in (hangs, settled):
            task.cancel()
    return disk


async def start_again(path: Path, config: Config, disk: dict[str, object], *, settle: State = State.DOWN) -> Rig:
    """Another daemon: no verdict at first, then ``settle`` for all. Ends when nothing is left to do."""
    rig = Rig(path, config, store=Disk(copy.deepcopy(disk)), state=State.UNKNOWN)
    rig.load()
    async with rig.running():
        await rig.settled()
        for name in config.backends:
            if settle is not State.UNKNOWN:
                rig.backend(name, settle)
        await rig.settled()
    return rig


def ones(**options: object) -> Config:
    return failover(ONE_BY_ONE, on_all_down=KEEP, **options)


async def cut_anywhere(
    directory: Path, before: Config, after: Config, *, settle: State = State.DOWN, again: Config | None = None
) -> int:
    """Kill a recreation from ``before`` to ``after`` before each of its calls; returns their number.

    ``again``: the file of the next daemon, if it is another.
    """
    call = 0
    while True:
        path = directory / f"{call}.sock"
        store = Disk()
        async with stand_in(path) as server:
            await program(path, before, store, down=True)
            held = weights(server)
            assert any(held.values())
            disk = await killed_before(path, after, store, call)
            if disk is None:
                assert weights(server) == held
                return call
            rig = await start_again(path, again or after, disk, settle=settle)
            assert weights(server) == held, call
            vip = vip_of(server)
            assert vip is not None
            assert vip.table_length == (again or after).frontends["www"].new_flows_table_length
            assert rig.presumed.names == {name for name in after.backends if held[_address(after, name)]}, call
        call += 1


def _address(config: Config, name: str) -> str:
    return str(config.backends[name].address)


async def test_weights_that_are_kept_survive_a_kill_before_each_call_of_a_recreation(tmp_path: Path) -> None:
    assert await cut_anywhere(tmp_path, ones(new_flows_table_length=64), ones(new_flows_table_length=128)) == 11


async def test_servers_that_cannot_be_probed_after_the_kill_get_their_weights_back(tmp_path: Path) -> None:
    before, after = (failover(ONE_BY_ONE, on_all_down=KEEP, new_flows_table_length=length) for length in (64, 128))
    assert await cut_anywhere(tmp_path, before, after, settle=State.UNKNOWN) == 11


async def test_a_file_that_is_put_back_after_the_kill_gives_the_weights_back(tmp_path: Path) -> None:
    before, after = ones(new_flows_table_length=64), ones(new_flows_table_length=128)
    assert await cut_anywhere(tmp_path, before, after, again=before) == 11


async def test_the_record_is_on_the_disk_before_the_first_call(path: Path) -> None:
    store = Disk()
    async with stand_in(path) as server:
        await program(path, ones(new_flows_table_length=64), store, down=True)
        server.journal.clear()
        disk = await killed_before(path, ones(new_flows_table_length=128), store, 0)
        assert disk is not None
        assert not writes(server)
        assert dict(kept_from_json(disk["weights"])) == {
            WWW: Kept({b"\x0a\0\0\1": 1, b"\x0a\0\0\2": 1, b"\x0a\0\0\3": 0}, Nature(Encap.GRE4, 64, False))
        }


async def test_a_record_of_a_recreation_that_never_began_does_not_overrule_what_health_did_since(path: Path) -> None:
    """The disk keeps the record of an old recreation for good; VPP has gone on, and is what counts."""
    store = Disk()
    async with stand_in(path) as server:
        await program(path, ones(new_flows_table_length=64), store, down=False)
        after = ones(new_flows_table_length=128)
        rig = Rig(path, after, store=store)
        rig.load()
        async with rig.running():
            await rig.settled()
            stale = copy.deepcopy(store.disk)
            assert stale["weights"]
            for name in "abc":
                rig.backend(name, State.DOWN)
                await rig.settled()
            held = weights(server)
        assert held == {"10.0.0.1": 0, "10.0.0.2": 0, "10.0.0.3": 1}
        server.journal.clear()
        await start_again(path, after, stale)
        assert (weights(server), writes(server)) == (held, [])


async def test_a_full_disk_puts_a_recreation_off_and_verdicts_go_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Disk()
    async with stand_in(path) as server:
        await program(path, ones(new_flows_table_length=64), store, down=False)
        server.journal.clear()
        store.full = True
        rig = Rig(path, ones(new_flows_table_length=128), store=store)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert not writes(server)
            (line,) = [one for one in caplog.records if getattr(one, "maglev_event", "") == "vpp-recreation-waits"]
            assert "192.0.2.1/32 tcp 80" in line.getMessage()
            assert "no space left" in line.getMessage()
            rig.backend("a", State.DOWN)
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
            result = await rig.reconciler.sync(None, force=False, by="test")
            assert any("cannot be written to the state file" in note for note in result.plan.notes)
            store.full = False
            await rig.reconciler.sync(None, force=False, by="test")
            vip = vip_of(server)
            assert vip is not None
            assert vip.table_length == 128
            assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}


async def test_without_a_state_file_a_recreation_does_not_wait_for_one(path: Path) -> None:
    async with stand_in(path) as server:
        for length in (64, 128):
            rig = Rig(path, ones(new_flows_table_length=length), store=MemoryStore())
            rig.load()
            async with rig.running():
                await rig.settled()
        vip = vip_of(server)
        assert vip is not None
        assert vip.table_length == 128


async def test_a_verdict_while_the_disk_is_waited_for_is_in_the_record(path: Path) -> None:
    store = Disk()
    async with stand_in(path) as server:
        await program(path, ones(new_flows_table_length=64), store, down=False)
        rig = Rig(path, ones(new_flows_table_length=128), store=store)

        def fail() -> None:
            store.on_save = lambda: None
            rig.backend("a", State.DOWN)

        store.on_save = fail
        rig.load()
        async with rig.running():
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 0}
            vip = vip_of(server)
            assert vip is not None
            assert vip.table_length == 128


@pytest.mark.parametrize("settle", [State.DOWN, State.UNKNOWN])
async def test_a_vpp_that_restarts_while_the_daemon_is_down_gets_the_last_weights(path: Path, settle: State) -> None:
    store = Disk()
    async with stand_in(path) as server:
        config = ones()
        await program(path, config, store, down=True)
        held = weights(server)
        assert any(held.values())
        await server.restart()
        assert not weights(server)
        await start_again(path, config, store.disk, settle=settle)
        assert weights(server) == held


async def test_last_weights_are_written_some_seconds_after_they_changed_and_survive_a_kill(path: Path) -> None:
    store, clock = Disk(), PacedClock()
    async with stand_in(path) as server:
        config = ones()
        rig = Rig(path, config, store=store, clock=clock)
        rig.load()
        async with rig.running():
            await rig.settled()
            for name in "abc":
                rig.backend(name, State.DOWN)
            await rig.settled()
            held = weights(server)
            clock.advance(4)
            await eventually(lambda: bool(store.sections.get("weights")))
            disk = copy.deepcopy(store.sections)
        await server.restart()
        await start_again(path, config, disk)
        assert weights(server) == held


async def test_weights_that_are_kept_do_not_bring_a_disabled_server_back(path: Path) -> None:
    store = Disk()
    async with stand_in(path) as server:
        config = ones()
        await program(path, config, store, down=True)
        held = weights(server)
        assert held == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        await server.restart()
        rig = Rig(path, config, store=Disk(store.disk), state=State.DOWN)
        rig.states.set(a=State.DISABLED)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert weights(server) == held | {"10.0.0.1": 0}


async def test_the_old_address_of_a_backend_serves_after_a_kill_in_the_middle(tmp_path: Path) -> None:
    lb = replace(ONE_BY_ONE, startup_max_delay=60 * SECOND)
    before = make_config({"p": {"a": 10}}, lb=lb, new_flows_table_length=64)
    moved = make_config({"p": {"a": 10}}, backends={"a": "10.0.0.9"}, lb=lb, new_flows_table_length=128)
    for call in range(20):
        path, store = tmp_path / f"{call}.sock", Disk()
        async with stand_in(path) as server:
            await program(path, before, store, down=False)
            # The reload that moves the backend, and changes the table, in the running daemon.
            made: list[Killed] = []

            def executor(client: VppClient, pacer: Pacer, made: list[Killed] = made, last: int = call) -> Executor:
                made.append(Killed(client, pacer, last))
                return made[0]

            rig = Rig(path, before, store=store, executor=executor)
            rig.load()
            async with rig.running():
                await rig.settled()
                rig.load(moved)
                hangs = asyncio.create_task(made[0].hangs.wait())
                settled = asyncio.create_task(rig.settled())
                async with asyncio.timeout(DEADLINE):
                    await asyncio.wait([hangs, settled], return_when=asyncio.FIRST_COMPLETED)
                ended = not hangs.done()
                disk = copy.deepcopy(store.disk) | {"held": store.sections["held"]}
                for task in (hangs, settled):
                    task.cancel()
            again = Rig(path, moved, store=Disk(disk), state=State.UNKNOWN, clock=PacedClock())
            again.load()
            async with again.running():
                await again.settled()
                again.backend("a", State.DOWN)  # a verdict, or the warm-up would hold the frontend
                await again.settled()
                assert weights(server) == {"10.0.0.1": 1, "10.0.0.9": 0}, call
            if ended:
                assert call > 4
                return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("value", [
    7,
    {"no VIP": {"ases": {}}},
    {"192.0.2.1/32 tcp 80": 7},
    {"192.0.2.1/32 tcp 80": {"ases": {"10.0.0.1": 256}}},
    {"192.0.2.1/32 tcp 80": {"ases": {"10.0.0.1": True}}},
    {"192.0.2.1/32 tcp 80": {"ases": {"nowhere": 1}}},
    {"192.0.2.1/32 tcp 80": {"ases": {}, "nature": [1, 2]}},
    {"192.0.2.1/32 tcp 80": {"ases": {}, "nature": [1, "2", None]}},
])  # fmt: skip
def test_entries_that_make_no_sense_are_left_out(value: object) -> None:
    assert [kept for kept in kept_from_json(value) if kept[1].weights] == []


def test_weights_come_back_from_json_as_they_were() -> None:
    kept = {
        WWW: Kept({b"\x0a\0\0\1": 3}, Nature(0, 64, None)),
        VipKey.parse("2001:db8::1/128"): Kept({bytes(15) + b"\1": 0}, None),
    }
    assert dict(kept_from_json(at_once(kept_to_json(kept.items())))) == kept


async def test_a_vip_that_vpp_refuses_to_delete_is_recorded_and_follows_the_verdicts_after_a_restart(
    path: Path,
) -> None:
    store = Disk()
    async with stand_in(path) as server:
        await program(path, ones(new_flows_table_length=64), store, down=False)
        server.faults.refusals.append(Refusal("lb_add_del_vip_v2", -73))
        after = ones(new_flows_table_length=128)
        rig = Rig(path, after, store=store)
        rig.load()
        async with rig.running():
            await rig.settled()
            assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        await store.saved()
        await start_again(path, after, store.disk, settle=State.UP)
        assert weights(server) == {"10.0.0.1": 1, "10.0.0.2": 1, "10.0.0.3": 0}
        assert isinstance(server, StandIn)
