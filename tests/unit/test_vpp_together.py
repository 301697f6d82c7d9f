"""Many changes of one VIP: commands where they cost less, cut to a bound, and never for an AS that goes on serving."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maglev.base.states import State
from maglev.config.model import MS, Config, LbConfig
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.lost import NOTHING_LOST
from maglev.vpp.planning.model import Actual, vip_key
from maglev.vpp.planning.plan import Cause, FlushKey, Op, Owed, Plan, Step, acknowledge
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.together import Bundler, Shape
from maglev.vpp.wire.messages import VipKey
from tests.helpers.vpp import UNSET_CONF, FakeStates, make_config

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
COST = CostModel()


def changes(many: int, old: int, new: int, *, flush: bool = False) -> list[Step]:
    addresses = (bytes((10, 0, number >> 8, number & 255)) for number in range(many))
    cost = COST.rebuild(16384, 1000 * max(old, new)) + (COST.flush() if flush else 0)
    return [
        Step(Op.SET_WEIGHT, WWW, "www", "", one, old_weight=old, weight=new, flush=flush, cost_ns=cost)
        for one in addresses
    ]


def stall(steps: Sequence[Step]) -> int:
    return sum(step.cost_ns for step in steps)


def policy(config: Config, *, stall_ns: int = 5 * MS) -> Policy:
    configured = frozenset(vip_key(frontend) for frontend in config.frontends.values())
    return Policy(commands=True, configured=configured, lb=LbConfig(max_stall=stall_ns))


class Scene:
    """A frontend with servers and standbys; VPP follows every plan."""

    def __init__(self, servers: int, standbys: int, **options: object) -> None:
        names = {"p": {f"a{n:04}": 10 for n in range(servers)}, "q": {f"b{n:04}": 10 for n in range(standbys)}}
        pools = {pool: members for pool, members in names.items() if members}
        self.states = FakeStates(make_config(pools, backends=_addresses(pools), **options))  # type: ignore[arg-type]
        self.actual = Actual(UNSET_CONF)

    def plan(self, *, stall_ns: int = 5 * MS, owed: dict[FlushKey, Owed] | None = None, single: bool = False) -> Plan:
        config = self.states.config()
        limits = policy(config, stall_ns=stall_ns)
        if single:
            limits = Policy(configured=limits.configured, lb=limits.lb)
        return diff(desired_vips(config.frontends, self.states), self.actual, owed or {}, limits, lost=NOTHING_LOST)

    def follow(self, plan: Plan) -> None:
        for step in plan.steps:
            acknowledge(self.actual, step)

    def programmed(self) -> Scene:
        self.follow(self.plan())
        return self

    def fail(self, prefix: str, state: State = State.DOWN) -> None:
        for name, backend in self.states.backends.items():
            if name.startswith(prefix):
                backend.state = state

    @property
    def weights(self) -> dict[bytes, int]:
        return {address: have.weight for address, have in self.actual.vips[WWW].ases.items()}


def _addresses(pools: dict[str, dict[str, int]]) -> dict[str, str]:
    names = [name for members in pools.values() for name in members]
    return {name: f"10.0.{number // 250}.{number % 250 + 1}" for number, name in enumerate(names)}


def test_a_new_vip_is_filled_by_one_line_for_each_weight() -> None:
    plan = Scene(10, 5).plan()
    create, servers, standbys = plan.steps
    assert create.op is Op.CREATE_VIP
    assert servers.commands.startswith("lb as 192.0.2.1/32 protocol tcp port 80 10.0.0.1 10.0.0.2 ")
    assert servers.commands.endswith(" 10.0.0.10 weight 1")
    assert standbys.commands.endswith(" 10.0.0.15 weight 0")
    assert "\n" not in servers.commands + standbys.commands


def test_a_failover_is_a_pair_of_lines_for_the_raises_and_one_for_the_drops() -> None:
    scene = Scene(50, 50).programmed()
    scene.fail("a")
    owed = {FlushKey(WWW, address): Owed(Cause.DOWN, serial=1) for address, weight in scene.weights.items() if weight}
    raises, drops = scene.plan(owed=owed).steps
    first, second = raises.commands.split("\n")
    assert first.endswith(" 10.0.0.100 del")
    assert second == first.removesuffix("del") + "weight 1"
    assert drops.commands.split("\n")[0].endswith(" 10.0.0.50 del flush")
    assert drops.commands.split("\n")[1].endswith(" 10.0.0.50 weight 0")
    assert not raises.guarded
    assert str(raises) == f'cli_inband "{first}" "{second}"'
    assert {debt for member in drops.members for debt in member.settles} == {(key, 1) for key in owed}
    scene.follow(scene.plan(owed=owed))
    assert sorted(scene.weights.values()) == [0] * 50 + [1] * 50
    assert not scene.plan().steps


def test_the_way_back_drops_the_standbys_only_once_something_was_raised() -> None:
    scene = Scene(50, 50).programmed()
    scene.fail("a")
    scene.follow(scene.plan())
    scene.fail("a", State.UP)
    raises, drops = scene.plan().steps
    assert not raises.guarded
    assert drops.guarded
    assert {member.weight for member in raises.members} == {1}
    assert {member.weight for member in drops.members} == {0}


def test_where_no_flow_may_stay_one_flush_of_the_vip_follows_the_drops() -> None:
    scene = Scene(20, 0).programmed()
    scene.fail("a", State.DISABLED)
    owed = {FlushKey(WWW, address): Owed(Cause.OPERATOR, serial=1) for address in scene.weights}
    drops, flush = scene.plan(owed=owed).steps
    assert "flush" not in drops.commands
    assert (flush.op, len(flush.settles)) == (Op.FLUSH_VIP, 20)


def test_several_weights_share_one_deletion() -> None:
    pools = {"p": {f"a{n}": 10 * (1 + n % 2) for n in range(40)}}
    scene = Scene(0, 0)
    scene.states = FakeStates(make_config(pools, backends=_addresses(pools)))
    scene.fail("a")
    scene.programmed()
    scene.fail("a", State.UP)
    (step,) = scene.plan().steps
    lines = step.commands.split("\n")
    assert [line.rsplit(" ", 2)[-2:] for line in lines[1:]] == [["weight", "1"], ["weight", "2"]]
    assert lines[0].endswith(" del")
    assert len(lines[0].split()) == 40 + 8


def test_an_as_that_serves_and_goes_on_serving_keeps_its_buckets() -> None:
    scene = Scene(40, 0, weight_unit=1).programmed()
    for number in range(40):
        scene.states.overrides["www", "p", f"a{number:04}"] = 90
    assert {step.op for step in scene.plan().steps} == {Op.SET_WEIGHT}


def test_few_changes_are_single_calls_in_numeric_order() -> None:
    scene = Scene(3, 3).programmed()
    scene.fail("a")
    assert [(step.op, step.address[-1]) for step in scene.plan().steps] == [
        (Op.SET_WEIGHT, last) for last in (4, 5, 6, 1, 2, 3)
    ]


def test_commands_are_cut_to_the_bound_of_a_stall_and_make_the_same_table() -> None:
    scene = Scene(500, 500).programmed()
    scene.fail("a")
    whole, cut = scene.plan(stall_ns=10**9), scene.plan(stall_ns=2 * MS)
    assert [len(step.members) for step in whole.steps] == [500, 500]
    assert max(step.cost_ns for step in cut.steps) <= 2 * MS
    assert len(cut.steps) > 4
    raised = [any(member.weight for member in step.members) for step in cut.steps]
    assert raised == sorted(raised, reverse=True)
    single = scene.plan(single=True)
    assert cut.stall_ns < single.stall_ns / 5
    ends = []
    for plan in (whole, cut, single):
        vpp = Scene(500, 500).programmed()
        vpp.follow(plan)
        ends.append(vpp.weights)
    assert ends[0] == ends[1] == ends[2]


def test_where_a_rebuild_alone_exceeds_the_bound_one_command_takes_all() -> None:
    scene = Scene(200, 200, new_flows_table_length=65536).programmed()
    scene.fail("a")
    assert [len(step.members) for step in scene.plan(stall_ns=MS // 2).steps] == [200, 200]


def test_flushes_count_towards_the_bound() -> None:
    cost = CostModel(sticky_buckets=65536)
    bundled = Bundler(cost, 5 * MS).bundle(changes(100, 1, 0, flush=True), Shape(16384, 1000, 1000))
    assert max(step.cost_ns for step in bundled) <= 5 * MS
    assert max(len(step.members) for step in bundled) <= 5 * MS // cost.flush()


def test_a_syslog_that_is_slow_makes_single_calls_the_cheaper_way_for_a_few() -> None:
    slow = CostModel(per_line=1_000_000)
    shape = Shape(16384, 40, 40)
    assert Bundler(COST, 5 * MS).bundle(changes(5, 1, 0), shape)[0].op is Op.COMMANDS
    assert Bundler(slow, 5 * MS).bundle(few := changes(5, 1, 0), shape) is few
    assert Bundler(slow, 50 * MS).bundle(changes(40, 1, 0), shape)[0].op is Op.COMMANDS


@pytest.mark.parametrize("weight", [101, 255])
def test_a_weight_that_the_cli_does_not_know_is_set_by_calls(weight: int) -> None:
    steps = changes(50, 0, weight)
    assert Bundler(COST, 5 * MS).bundle(steps, Shape(16384, 50, 0)) is steps


def test_a_vip_without_words_and_one_in_which_commands_failed_change_by_calls() -> None:
    limits = Policy(commands=True, singly=frozenset({WWW}))
    assert not limits.may_command(WWW)
    assert not limits.may_command(VipKey.parse("192.0.2.1/32", 132, 80))
    assert limits.may_command(VipKey.parse("192.0.2.9/32"))
    assert not Policy().may_command(VipKey.parse("192.0.2.9/32"))


@given(
    many=st.integers(4, 300),
    length=st.sampled_from([64, 1024, 16384, 65536]),
    total=st.integers(0, 20_000),
    max_stall=st.integers(MS // 10, 20 * MS),
    weights=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_a_bundle_has_every_change_once_within_the_bound_and_costs_less(
    many: int, length: int, total: int, max_stall: int, weights: list[int]
) -> None:
    steps = [step._replace(weight=weights[n % len(weights)]) for n, step in enumerate(changes(many, 0, 1))]
    steps = [step._replace(cost_ns=COST.rebuild(length, total)) for step in steps]
    bundled = Bundler(COST, max_stall).bundle(steps, Shape(length, many, total))
    if bundled is steps:
        return
    assert stall(bundled) < stall(steps)
    members = [member for step in bundled for member in step.members]
    assert sorted(member.address for member in members) == sorted(step.address for step in steps)
    assert {member.address: member.weight for member in members} == {step.address: step.weight for step in steps}
    # The weights grow from command to command: once a rebuild alone exceeds the bound, the last command takes all.
    assert all(step.cost_ns <= max_stall for step in bundled[:-1])
    for step in bundled:
        assert len(step.commands.split("\n")) == 1 + len({member.weight for member in step.members})
