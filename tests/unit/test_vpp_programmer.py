"""From a snapshot to an outcome: a plan is of one moment, and what each acknowledgement and refusal changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from maglev.base.errors import Unavailable
from maglev.base.states import State
from maglev.config.model import Config
from maglev.events.causes import NO_TRAIL
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.model import Actual
from maglev.vpp.planning.plan import NO_REFUSALS, Cause, FlushKey, Op, Refusals, Step, refusal_key
from maglev.vpp.state.adoption import Adoption, Found
from maglev.vpp.state.agenda import Admission, Agenda
from maglev.vpp.state.announced import Announced
from maglev.vpp.state.debts import Debts
from maglev.vpp.state.kept import KeptWeights, nature_of
from maglev.vpp.state.mirror import Mirror
from maglev.vpp.state.ownership import Ownership
from maglev.vpp.state.pruning import Pruning
from maglev.vpp.state.recreations import Recreations
from maglev.vpp.state.store import Kept, MemoryStore
from maglev.vpp.state.tables import Tables
from maglev.vpp.sync.counters import Counters
from maglev.vpp.sync.executor import Executor, Outcome
from maglev.vpp.sync.programmer import Extent, Programmer
from maglev.vpp.sync.rooms import Rooms, Signals
from maglev.vpp.sync.timetable import Timetable
from maglev.vpp.sync.verification import Verification
from maglev.vpp.wire.messages import VipKey
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import UNSET_CONF, FakeStates, make_config
from tests.helpers.vpprig import SINGLY

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
A, B, C, NEW = (bytes((10, 0, 0, last)) for last in (1, 2, 3, 9))
ALL = Extent("all", full=True, prune_rest=True)


class Wire:
    """A connection that is always there."""

    usable = True
    excuse = ""


class Scripted(Executor):
    """A VPP that acknowledges steps, but for those that it is to refuse; ``most``: how many a budget holds."""

    commands_usable = True

    def __init__(self) -> None:
        self.plans: list[list[Step]] = []
        self.refuse: Callable[[Step], bool] = lambda step: False
        self.while_running: Callable[[], None] = lambda: None
        self.most = 1000

    async def run(
        self, steps: Sequence[Step], *, budget_ns: int, on_done: Callable[[Step], None], skip: Refusals = NO_REFUSALS
    ) -> Outcome:
        self.plans.append(list(steps))
        outcome = Outcome(rest=steps[self.most :])
        self.while_running()
        for step in steps[: self.most]:
            if refusal_key(step) in skip.get(step.vip, ()):
                continue
            if self.refuse(step):
                outcome.refused.add(refusal_key(step))
            else:
                on_done(step)
                outcome.done.append(step)
        return outcome


class Room:
    """All rooms of a dataplane with one frontend, www: servers a and b, standby c; VPP is empty and was read."""

    def __init__(self, config: Config | None = None) -> None:
        self.states = FakeStates(config or make_config({"p": {"a": 10, "b": 10}, "q": {"c": 10}}, lb=SINGLY))
        self.clock = FakeClock()
        self.rooms = Rooms(
            Announced(self.states, self.clock),
            Agenda(),
            Mirror(Wire()),
            Tables(self.clock),
            Debts(),
            Adoption(self.clock, 0, None),
            Recreations(),
            Ownership(MemoryStore()),
            Pruning(MemoryStore()),
            KeptWeights(MemoryStore()),
            Verification(),
            Timetable(0),
            Counters(),
            NO_TRAIL,
            Signals(),
        )
        self.executor = Scripted()
        self.programmer = Programmer(self.rooms, self.executor, CostModel, self.clock)
        self.take_over()
        self.rooms.mirror.install(Actual(UNSET_CONF))

    def take_over(self) -> None:
        step = self.rooms.announced.step(self.rooms.mirror.may_serve)
        self.rooms.announced.take(step)
        self.rooms.ownership.configure(step.after.vips)

    @property
    def dirty(self) -> list[str]:
        return list(self.rooms.agenda.choose((), lambda _: Admission.ADMITTED, lambda _: 1).names)

    def weights(self) -> dict[bytes, int]:
        found = self.rooms.mirror.find(WWW)
        assert found is not None
        return {address: have.weight for address, have in found.ases.items()}

    async def programmed(self) -> Room:
        """The same, and VPP has all of it."""
        await self.programmer.apply(["www"], ALL)
        assert self.weights()[A] == 1
        return self

    async def recreated(self) -> None:
        """The sync before has ended. The next creates the VIP again, once its weights are in the state file."""
        self.rooms.kept.settle(())
        plan, _ = await self.programmer.apply(["www"], ALL)
        assert (plan.steps, plan.unrecorded) == ([], [WWW])
        found = self.rooms.mirror.find(WWW)
        assert found is not None
        await self.rooms.kept.record({WWW: Kept(self.weights(), nature_of(found))})
        plan, _ = await self.programmer.apply(["www"], ALL)
        assert plan.recreated == [WWW]


async def test_what_is_acknowledged_is_in_the_mirror_counted_ours_and_to_be_read_back() -> None:
    room = Room()
    room.rooms.agenda.again(["www"])
    plan, outcome = await room.programmer.apply(["www"], Extent("one", full=True))
    assert outcome.done == plan.steps
    assert room.weights() == {A: 1, B: 1, C: 0}
    assert room.rooms.counters.lbsync == {("one", "vip_added"): 1, ("one", "as_added"): 3}
    assert room.rooms.verification.take() == WWW
    assert room.dirty == []
    await room.programmer.apply(["www"], ALL)
    assert room.executor.plans[1] == []


async def test_an_event_while_a_plan_is_carried_out_is_newer_than_the_plan() -> None:
    room = await Room().programmed()
    room.states.set(a=State.DOWN)
    room.executor.while_running = lambda: room.rooms.agenda.mark("www", WWW)
    room.rooms.agenda.again(["www"])
    await room.programmer.apply(["www"], Extent())
    assert room.dirty == ["www"]


async def test_a_connection_that_is_lost_makes_all_that_was_planned_dirty_and_its_vips_uncertain() -> None:
    room = await Room().programmed()
    known = room.rooms.mirror.demand()

    def lose() -> None:
        raise Unavailable("gone")

    room.executor.while_running = lose
    room.states.set(a=State.DOWN)
    with pytest.raises(Unavailable):
        await room.programmer.apply(["www"], Extent())
    assert room.dirty == ["www"]
    room.rooms.mirror.disconnected()
    read = Actual(UNSET_CONF, {WWW: replace(known.vips[WWW], ases={})})
    compared = room.rooms.mirror.compare(read, started_ns=0, connected_ns=1)
    assert not [fact for fact in compared.facts() if fact.drift]


async def test_a_refused_call_is_not_tried_again_and_its_vip_is_read_first() -> None:
    room = await Room().programmed()
    room.states.set(a=State.DOWN)
    room.executor.refuse = lambda step: step.address == A
    await room.programmer.apply(["www"], Extent())
    assert room.weights()[A] == 1
    assert room.rooms.mirror.stale([WWW]) == [WWW]
    _, outcome = await room.programmer.apply(["www"], Extent())
    assert not outcome.done
    assert not outcome.refused
    room.rooms.agenda.forget_refusals()
    room.executor.refuse = lambda step: False
    await room.programmer.apply(["www"], Extent())
    assert room.weights()[A] == 0


async def test_a_frontend_that_a_budget_cuts_is_dirty_and_comes_first() -> None:
    room = Room()
    room.executor.most = 2
    _, outcome = await room.programmer.apply(["www"], ALL)
    assert len(outcome.rest) == 2
    assert room.dirty == ["www"]
    assert list(room.rooms.agenda.cut) == ["www"]
    await room.programmer.apply(["www"], ALL, first=room.rooms.agenda.cut)
    assert list(room.rooms.agenda.cut) == []


async def test_a_flush_that_is_owed_is_settled_when_vpp_acknowledges_it() -> None:
    room = await Room().programmed()
    room.states.set(a=State.DOWN)
    room.rooms.debts.owe(FlushKey(WWW, A), Cause.DOWN)
    room.executor.refuse = lambda step: True
    await room.programmer.apply(["www"], Extent())
    assert room.rooms.debts.owed
    room.rooms.agenda.forget_refusals()
    room.executor.refuse = lambda step: False
    await room.programmer.apply(["www"], Extent())
    assert not room.rooms.debts.owed


async def test_an_as_that_comes_back_with_flows_that_are_to_go_is_dirty_again() -> None:
    room = await Room().programmed()
    room.states.set(a=State.DISABLED)
    room.rooms.debts.owe(FlushKey(WWW, A), Cause.OPERATOR)
    found = room.rooms.mirror.find(WWW)
    assert found is not None
    del found.ases[A]
    found.lingering = 1
    await room.programmer.apply(["www"], Extent())
    assert room.dirty == ["www"]
    await room.programmer.apply(room.dirty, Extent())
    assert not room.rooms.debts.owed


async def test_a_vip_that_is_created_again_and_not_by_the_file_is_counted_and_then_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = await Room(make_config({"p": {"a": 10}}, new_flows_table_length=1024)).programmed()
    for attempt in (1, 2):
        found = room.rooms.mirror.find(WWW)
        assert found is not None
        found.length = 16
        await room.recreated()
        assert room.rooms.counters.recreations_given_up == (attempt == 2)
    assert room.rooms.recreations.frozen == {WWW}
    assert "left as it is" in caplog.text


async def test_a_vip_that_left_the_configuration_is_ours_until_vpp_has_deleted_it() -> None:
    room = await Room().programmed()
    room.states.load(make_config(backends={"a": "10.0.0.1"}))
    room.take_over()
    current = room.rooms.announced.current
    assert room.rooms.ownership.left_by(current.vips) == {WWW}
    await room.programmer.apply([], ALL)
    assert room.rooms.mirror.find(WWW) is None
    assert room.rooms.ownership.left_by(current.vips) == frozenset()


async def test_a_vip_that_vpp_does_not_delete_is_stuck() -> None:
    room = await Room(make_config({"p": {"a": 10}}, new_flows_table_length=1024)).programmed()
    room.states.load(make_config({"p": {"a": 10}}, new_flows_table_length=2048))
    room.take_over()
    room.executor.refuse = lambda step: step.op is Op.DELETE_VIP
    await room.recreated()
    assert room.rooms.recreations.stuck == {WWW}
    assert not room.rooms.counters.recreations_given_up, "the file explains it"


async def test_while_a_reload_is_under_way_what_it_moves_is_put_off_and_nothing_is_removed() -> None:
    config = make_config({"p": {"a": 10, "b": 10}, "q": {"c": 10}}, lb=SINGLY)
    room = await Room(config).programmed()
    moved = replace(config.backends["a"], address=IPv4Address("10.0.0.9"))
    room.states.load(replace(config, backends={**config.backends, "a": moved}))
    room.states.set(b=State.DOWN)
    plan, _ = await room.programmer.apply(["www"], ALL)
    assert plan.steps == []
    assert room.dirty == ["www"]
    room.states.load(config)
    room.states.set(a=State.UP)
    room.states.load(replace(config, frontends={}))
    plan, _ = await room.programmer.apply(["www"], ALL)
    assert [step.op for step in plan.steps] == [Op.SET_WEIGHT], "by the old configuration, and nothing deleted"


async def test_a_policy_is_a_snapshot() -> None:
    room = await Room().programmed()
    room.rooms.adoption.adopt(Found(set(), {}, []))
    room.states.load(make_config(backends={"a": "10.0.0.1"}))
    room.take_over()
    policy = room.programmer.policy(ALL, room.states.config())
    room.rooms.ownership.disown(WWW)
    room.rooms.recreations.refused(WWW)
    assert policy.owned == {WWW}
    assert policy.stuck == frozenset()
