"""The memory of the pool that served last: time, the start, and reloads."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from maglev.base.states import State
from maglev.config.model import SECOND, Backend, Config, Frontend, Pool, PoolMember, Threshold
from maglev.judgement.pools import ActivePools
from maglev.judgement.weights import PoolCounts, WeightTable, fill, frontend_weights, pool_counts
from tests.helpers.vpp import FakeStates


def frontend(
    least: int = 2, again: int = 3, after: int = 0, *, names: tuple[str, str] = ("main", "spare"), size: int = 4
) -> Frontend:
    main = tuple(PoolMember(f"a{number}") for number in range(size))
    pools = (
        Pool(names[0], main, Threshold(least), Threshold(again), after * SECOND),
        Pool(names[1], (PoolMember("b"),)),
    )
    return Frontend("www", ip_address("192.0.2.80"), pools)


def states_of(conf: Frontend, *, up: tuple[str, ...]) -> FakeStates:
    names = [member.backend for pool in conf.pools for member in pool.members]
    backends = {name: Backend(name, ip_address("192.0.2.1")) for name in names}
    states = FakeStates(Config(backends=backends, frontends={conf.name: conf}))
    states.set(**{name: State.UP if name in up else State.UNKNOWN for name in names})
    return states


class Rig:
    """A table with its memory. ``serving``: the pool that VPP serves at the start."""

    def __init__(self, conf: Frontend, serving: str = "") -> None:
        self.pools = ActivePools()
        self.now = 0
        self.load(conf)
        self.pools.begin({"www": serving} if serving else {})
        self.pools.restore(self.table)
        for pool in conf.pools:
            for member in pool.members if pool.name == serving else ():
                self.table.presume(member.backend)

    def load(self, conf: Frontend) -> None:
        self.table = WeightTable()
        for _ in fill(self.table, [conf]):
            pass
        self.pools.configure([conf])
        self.pools.restore(self.table)

    def up(self, *names: str) -> int:
        return self.set(State.UP, *names)

    def down(self, *names: str) -> int:
        return self.set(State.DOWN, *names)

    def set(self, state: State, *names: str) -> int:
        for name in names:
            self.table.set_backend(name, state)
            self.pools.follow("www", self.table, self.now)
        return self.active()

    def later(self, seconds: int) -> int:
        self.now += seconds * SECOND
        self.pools.follow("www", self.table, self.now)
        return self.active()

    def active(self) -> int:
        return self.table.frontend("www").active_pool


def test_a_pool_below_min_up_hands_over_and_returns_with_resume_up() -> None:
    rig = Rig(frontend())
    assert rig.up("a0", "a1", "a2", "a3", "b") == 0
    assert rig.down("a0", "a1") == 0
    assert rig.down("a2") == 1
    assert rig.up("a2") == 1
    assert rig.up("a1") == 0


def test_less_than_min_up_serves_where_no_pool_is_usable() -> None:
    rig = Rig(frontend())
    rig.up("a0", "a1", "b")
    assert rig.down("a0") == 1
    assert rig.down("b") == 0
    assert rig.table.frontend("www").usable


def test_resume_after_waits_and_starts_again_when_the_pool_falls_below() -> None:
    rig = Rig(frontend(after=30))
    rig.up("a0", "a1", "a2", "b")
    assert rig.down("a0", "a1") == 1
    assert rig.up("a0", "a1") == 1
    assert rig.later(29) == 1
    assert rig.down("a0") == 1
    assert rig.up("a0") == 1
    assert rig.pools.due() == {"www": rig.now + 30 * SECOND}
    assert rig.later(29) == 1
    assert rig.later(1) == 0
    assert rig.pools.due() == {}


def test_a_pool_that_waits_takes_over_at_once_when_the_other_one_fails() -> None:
    rig = Rig(frontend(after=30))
    rig.up("a0", "a1", "a2", "b")
    rig.down("a0", "a1")
    assert rig.up("a1") == 1
    assert rig.down("b") == 0
    assert rig.up("b") == 0


def test_a_start_goes_on_with_the_pool_that_vpp_serves() -> None:
    rig = Rig(frontend(), serving="spare")
    assert rig.up("b", "a0", "a1") == 1
    assert rig.up("a2") == 0


def test_the_first_answer_of_a_standby_does_not_end_the_turn_of_the_pool_that_vpp_serves() -> None:
    rig = Rig(frontend(), serving="main")
    rig.up("b")
    assert rig.up("a0", "a1") == 0
    rig.down("a2")
    assert rig.down("a3") == 0
    assert rig.down("a1") == 1


def test_without_traffic_in_vpp_nothing_is_remembered_before_the_earlier_servers_have_verdicts() -> None:
    rig = Rig(frontend())
    rig.up("b")
    assert rig.pools.memory(frontend()).pool == -1
    assert rig.up("a0", "a1") == 0
    rig.down("a2", "a3")
    assert rig.pools.memory(frontend()).pool == 0


def test_nothing_is_remembered_before_vpp_was_read() -> None:
    pools = ActivePools()
    table = WeightTable()
    for _ in fill(table, [frontend()]):
        pass
    pools.configure([frontend()])
    for name in ("a0", "a1", "a2", "a3"):
        table.set_backend(name, State.DOWN)
    table.set_backend("b", State.UP)
    assert not pools.follow("www", table, 0)
    pools.begin({"www": "spare"})
    pools.restore(table)
    assert pools.memory(frontend()).pool == 1


def test_a_reload_keeps_the_memory_by_the_name_of_the_pool() -> None:
    rig = Rig(frontend(), serving="spare")
    moved = frontend()
    moved = Frontend("www", moved.address, (Pool("new", (PoolMember("n"),)), *moved.pools))
    assert rig.pools.memory(moved).pool == 2
    rig.load(frontend(names=("main", "other")))
    assert rig.pools.memory(frontend()).pool == -1


def test_servers_that_a_reload_adds_do_not_make_a_share_fall_short() -> None:
    share = Threshold(80, percent=True)
    main = tuple(PoolMember(f"a{number}") for number in range(4))
    conf = Frontend(
        "www",
        ip_address("192.0.2.80"),
        (Pool("main", main, share, share), Pool("spare", (PoolMember("b"),), resume_up=Threshold(1))),
    )
    states = states_of(conf, up=("a0", "a1", "b"))
    assert frontend_weights(conf, states).active_pool == 0
    states.backends["a2"].state = State.DOWN
    assert frontend_weights(conf, states).active_pool == 1


def test_the_counts_say_what_a_share_takes_now() -> None:
    share = Threshold(50, percent=True)
    conf = Frontend(
        "www",
        ip_address("192.0.2.80"),
        (
            Pool("main", tuple(PoolMember(f"a{n}") for n in range(5)), share, Threshold(4)),
            Pool("s", (PoolMember("b"),)),
        ),
    )
    states = states_of(conf, up=("a0", "a1", "a2"))
    states.backends["a3"].state = State.DOWN
    states.backends["a4"].state = State.DOWN
    assert pool_counts(conf, frontend_weights(conf, states)) == [
        PoolCounts(up=3, min_up=3, resume_up=4, healthy=300, whole=500),
        PoolCounts(up=0, min_up=1, resume_up=1, healthy=100, whole=100),
    ]
    states.backends["a4"].drained = True
    assert pool_counts(conf, frontend_weights(conf, states))[0] == PoolCounts(3, 2, 4, 300, 400)


def test_the_first_server_with_a_verdict_is_not_taken_for_all_of_its_pool() -> None:
    """After a start, while the pool that VPP serves goes on. Half of four is two."""
    conf = frontend()
    half = Threshold(50, percent=True)
    rig = Rig(replace(conf, pools=(replace(conf.pools[0], min_up=half, resume_up=half), conf.pools[1])), "spare")
    assert rig.up("b") == 1
    assert rig.up("a0") == 1
    assert rig.down("a1") == 1
    assert rig.up("a2") == 0
    # Servers that a reload adds end no turn.
    rig.set(State.UNKNOWN, "a1", "a3")
    assert rig.set(State.UNKNOWN, "a2") == 0
