"""The diff under arbitrary states: it converges, is idempotent, keeps every frontend served, flushes what is owed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

from hypothesis import event, given
from hypothesis import strategies as st

from maglev.base.states import State
from maglev.config.model import Backend, Config, Frontend, LbConfig, OnAllDown, Pool, PoolMember, Protocol, Prune
from maglev.judgement.weights import flush_owed
from maglev.vpp.planning.desired import DesiredVip, desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.lost import NOTHING_LOST
from maglev.vpp.planning.model import Actual, ActualAs, ActualVip, vip_key
from maglev.vpp.planning.plan import Cause, FlushKey, Op, Owed, Plan, acknowledge
from maglev.vpp.planning.policy import Policy
from maglev.vpp.wire.messages import Encap, VipKey
from tests.helpers.vpp import UNSET_CONF, FakeBackend, FakeStates, ModelVpp

ADDRESSES = [f"10.0.0.{n}" for n in range(1, 5)]
ADDRESSES6 = [f"2001:db8:1::{n}" for n in range(1, 5)]
VIPS = ["192.0.2.1", "2001:db8::1"]
LIVE = (State.UNKNOWN, State.UP, State.DOWN, State.PAUSED, State.DISABLED)


@dataclass
class Scene:
    """One moment: what is configured, how the backends are, what VPP holds, what is owed."""

    states: FakeStates
    actual: Actual
    owed: dict[FlushKey, Owed]
    policy: Policy

    def wanted(self) -> list[DesiredVip]:
        return desired_vips(self.states.config().frontends, self.states)

    def plan(self, actual: Actual, owed: dict[FlushKey, Owed] | None = None) -> Plan:
        return diff(self.wanted(), actual, self.owed if owed is None else owed, self.policy, lost=NOTHING_LOST)


def copy_of(actual: Actual) -> Actual:
    return Actual(actual.conf, {key: replace(vip, ases=dict(vip.ases)) for key, vip in actual.vips.items()})


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    family6 = draw(st.booleans())
    pool_of_addresses = ADDRESSES6 if family6 else ADDRESSES
    names = [f"b{n}" for n in range(len(pool_of_addresses))]
    backends = {name: Backend(name, ip_address(text)) for name, text in zip(names, pool_of_addresses, strict=True)}
    frontends: dict[str, Frontend] = {}
    for index, (address, port) in enumerate(
        draw(st.sets(st.tuples(st.sampled_from(VIPS), st.sampled_from((80, 443)))))
    ):
        members = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        cut = draw(st.integers(1, len(members)))
        weights = st.sampled_from((0, 1, 10, 50, 100))
        pools = tuple(
            Pool(f"p{number}", tuple(PoolMember(name, draw(weights)) for name in part))
            for number, part in enumerate((members[:cut], members[cut:]))
            if part
        )
        frontends[f"f{index}"] = Frontend(
            f"f{index}",
            ip_address(address),
            pools,
            Protocol.TCP,
            port,
            flush_on_down=draw(st.booleans()),
            src_ip_sticky=draw(st.booleans()),
            on_all_down=draw(st.sampled_from(OnAllDown)),
            new_flows_table_length=draw(st.sampled_from((None, 16, 1024))),
            weight_unit=draw(st.sampled_from((None, 1, 100))),
        )
    config = Config(lb=LbConfig(prune=draw(st.sampled_from(Prune))), backends=backends, frontends=frontends)
    states = FakeStates(config)
    for name in names:
        states.backends[name] = FakeBackend(draw(st.sampled_from(LIVE)), draw(st.booleans()))

    vips: dict[VipKey, ActualVip] = {}
    encaps = {address: draw(st.sampled_from((Encap.GRE4, Encap.GRE6))) for address in VIPS}
    for address, port in draw(st.sets(st.tuples(st.sampled_from(VIPS), st.sampled_from((80, 443))))):
        network = ip_address(address)
        key = VipKey(network.packed, network.max_prefixlen, 6, port)
        texts = ADDRESSES if encaps[address] == Encap.GRE4 else ADDRESSES6
        ases = {
            ip_address(text).packed: ActualAs(draw(st.integers(0, 120)))
            for text in draw(st.lists(st.sampled_from(texts), unique=True))
        }
        length = draw(st.sampled_from((16, 1024, 16384)))
        vips[key] = ActualVip(key, encaps[address], length, draw(st.booleans()), None, ases)
    configured = frozenset(vip_key(frontend) for frontend in frontends.values())
    owed = {
        FlushKey(key, address): Owed(draw(st.sampled_from(Cause)), draw(st.booleans()), serial=1)
        for key in sorted(vips, key=lambda key: key.sort_key)
        for address in vips[key].ases
        if draw(st.booleans())
    }
    owned = frozenset(key for key in sorted(vips, key=lambda key: key.sort_key) if draw(st.booleans()))
    policy = Policy(lb=config.lb, configured=configured, owned=owned | configured)
    return Scene(states, Actual(UNSET_CONF, vips), owed, policy)


def settle(scene: Scene, plan: Plan) -> dict[FlushKey, Owed]:
    """What is still owed when VPP has acknowledged all of a plan."""
    left = {**scene.owed, **plan.incurred}
    for key in plan.settled:
        left.pop(key, None)
    for step in plan.steps:
        for key, _ in step.settles:
            left.pop(key, None)
        if step.op in (Op.DELETE_AS, Op.DELETE_VIP):
            left = {k: v for k, v in left.items() if (k.vip, k.address) != (step.vip, step.address)}
    return left


@given(scenes())
def test_the_plan_converges_and_a_second_one_has_nothing_to_do(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    model = ModelVpp(copy_of(scene.actual))
    model.apply(plan.steps)
    again = scene.plan(model.actual, settle(scene, plan))
    assert [str(step) for step in again.steps] == []
    for wanted in scene.wanted():
        have = model.actual.vips.get(wanted.key)
        if have is None or have.encap != wanted.encap:
            assert any("in the way" in note for note in plan.notes)
            continue
        assert set(have.ases) == {ours.address for ours in wanted.ases}
        for ours in wanted.ases:
            if ours.weight is not None:
                assert have.ases[ours.address].weight == ours.weight
        assert have.sticky == wanted.sticky or any(str(wanted.key) in note for note in plan.notes)
    event(f"{min(len(plan.steps), 10)} steps")


@given(scenes())
def test_the_mirror_follows_vpp_step_by_step(scene: Scene) -> None:
    model, mirror = ModelVpp(copy_of(scene.actual)), copy_of(scene.actual)
    for step in scene.plan(scene.actual).steps:
        model.apply([step])
        acknowledge(mirror, step)
        assert {k: {a: w.weight for a, w in v.ases.items()} for k, v in mirror.vips.items()} == {
            k: {a: w.weight for a, w in v.ases.items()} for k, v in model.actual.vips.items()
        }


@given(scenes())
def test_a_frontend_that_was_and_will_be_served_is_served_at_every_moment(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    model = ModelVpp(copy_of(scene.actual))
    model.apply(plan.steps)
    for wanted in scene.wanted():
        before = scene.actual.vips.get(wanted.key)
        if before is None or wanted.key in plan.recreated:
            continue
        served = before.serves and model.actual.vips[wanted.key].serves
        if served:
            assert all(moment[wanted.key] for moment in model.history)


@given(scenes())
def test_a_refused_raise_never_empties_a_frontend_that_a_healthy_server_serves(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    for wanted in scene.wanted():
        before = scene.actual.vips.get(wanted.key)
        if before is None or wanted.key in plan.recreated or not before.serves or not wanted.usable:
            continue
        # Every raise is refused; what is guarded is then not sent.
        left = {address: have.weight for address, have in before.ases.items()}
        steps = [step for step in plan.steps if step.vip == wanted.key and not step.guarded]
        for step in steps:
            if step.op is Op.DELETE_AS:
                left.pop(step.address)
            elif step.op is Op.SET_WEIGHT and step.weight < step.old_weight:
                left[step.address] = step.weight
        healthy = {ours.address for ours in wanted.ases if ours.state not in (State.DOWN, State.DISABLED)}
        if any(have.weight > 0 and address in healthy for address, have in before.ases.items()):
            assert any(left.values())


@given(scenes())
def test_an_as_is_flushed_only_when_that_is_owed(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    model = ModelVpp(copy_of(scene.actual))
    model.apply(plan.steps)
    deleted = {step.vip for step in plan.steps if step.op is Op.DELETE_VIP}
    states = {(w.key, ours.address): (w, ours) for w in scene.wanted() for ours in w.ases}
    for vip, address in model.flushed:
        if vip in deleted or (vip, address) not in states or FlushKey(vip, address) in scene.owed:
            continue
        wanted, ours = states[vip, address]
        assert scene.actual.vips[vip].ases[address].weight > 0
        assert ours.weight == 0
        assert flush_owed(ours.state, flush_on_down=wanted.flush_on_down)


@given(scenes())
def test_a_flush_that_is_owed_is_made_waits_or_is_void_and_is_never_forgotten(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    made = {key for step in plan.steps for key, _ in step.settles}
    gone = {(step.vip, step.address) for step in plan.steps if step.op is Op.DELETE_AS}
    untouched = set(scene.actual.vips) - {wanted.key for wanted in scene.wanted()}
    for key in scene.owed:
        fates = [key in made, key in plan.waiting, key in plan.settled, (key.vip, key.address) in gone]
        assert any(fates) or key.vip in untouched
        assert not (key in made and key in plan.waiting)


@given(scenes())
def test_an_as_is_written_once_unless_the_scale_of_its_vip_changes(scene: Scene) -> None:
    plan = scene.plan(scene.actual)
    for wanted in scene.wanted():
        if wanted.key in plan.recreated:
            continue
        written = [step.address for step in plan.steps if step.vip == wanted.key and step.op is Op.SET_WEIGHT]
        before = scene.actual.vips.get(wanted.key)
        if len(written) != len(set(written)):
            assert before is not None
            now = {o.address: o.weight for o in wanted.ases if o.weight}
            both = [(now[a], have.weight) for a, have in before.ases.items() if have.weight > 0 and a in now]
            assert all(new >= old for new, old in both) or all(new <= old for new, old in both)
            assert any(new > 2 * old or 2 * new < old for new, old in both)
