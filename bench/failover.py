"""What a failover of 1,000 ASes to another 1,000 costs VPP's main thread, against raw weights written one by one."""

from __future__ import annotations

from dataclasses import replace

from bench._dataplane import config_of
from bench.harness import Figure
from maglev.states import State
from maglev.vpp.desired import desired_vips
from maglev.vpp.model import Actual
from maglev.vpp.sync import CostModel, Policy, acknowledge, diff
from tests.helpers.vpp import FakeStates

QUESTION = "1,000 ASes configured 100 fail over to another 1,000: main-thread time of the calls by the cost formula"
MEMBERS = 1000
LENGTH = 16384


def run() -> list[Figure]:
    """The naive way goes through the ASes in numeric order and writes each the weight of the file, with its flush."""
    figures: list[Figure] = []
    for unit in (None, 100):
        ours = _ours(unit)
        for order, upwards in (("servers before standbys", True), ("standbys before servers", False)):
            naive = _naive(upwards)
            name = "auto" if unit is None else unit
            figures.append(Figure(f"unit {name}, {order}: share of the naive time", ours / naive, "", 0.1))
        figures.append(Figure(f"unit {name}: time", ours / 1e9, "s"))
    figures.append(Figure("naive, servers before standbys: time", _naive(True) / 1e9, "s"))
    return figures


def _ours(unit: int | None) -> int:
    config = config_of(1, MEMBERS, pools=2, weight_unit=unit, new_flows_table_length=LENGTH)
    states, actual = FakeStates(config), Actual(None, {})
    policy = Policy(full=True, prune_rest=False, cost=CostModel())
    for step in diff(desired_vips(["f0"], states), actual, {}, policy).steps:
        acknowledge(actual, step)
    for member in config.frontends["f0"].pools[0].members:
        states.backends[member.backend].state = State.DOWN
    return diff(desired_vips(["f0"], states), actual, {}, replace(policy, full=False)).stall_ns


def _naive(servers_first: bool) -> int:
    cost, total, spent = CostModel(), 100 * MEMBERS, 0
    changes = [-100] * MEMBERS + [100] * MEMBERS
    for change in changes if servers_first else reversed(changes):
        total += change
        spent += cost.rebuild(LENGTH, total) + (cost.flush() if change < 0 else 0)
    return spent
