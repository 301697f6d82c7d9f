"""The cost of a failover of 1,000 ASes to another 1,000 for VPP's main thread, against raw weights written one by one.

By single calls, and by commands of VPP's CLI, which rebuild the table once for a whole list.
By the cost formula; and with VPP_SOCKET, the API socket of a VPP without VIPs and without workers, by the CPU time of
its process, there and back again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from bench._dataplane import config_of
from bench._dataplane import run as on_loop
from bench._vpp import SOCKET, connected
from bench.harness import Figure
from maglev.base.states import State
from maglev.config.model import Config
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import DesiredVip, desired_vips
from maglev.vpp.planning.diff import diff
from maglev.vpp.planning.lost import NOTHING_LOST
from maglev.vpp.planning.model import Actual, vip_key
from maglev.vpp.planning.plan import Op, Step, acknowledge
from maglev.vpp.planning.policy import Policy
from maglev.vpp.wire.messages import VipKey
from tests.helpers.vpp import FakeStates

QUESTION = "1,000 ASes configured 100 fail over to another 1,000: time of VPP's main thread"
MEMBERS = 1000
LENGTH = 16384
ROUNDS = 3
UNITS = {"unit auto": None, "unit 100": 100}
AIMS = {"calls": 0.1, "commands": 0.02}
WAYS = {f"{unit}, {way}": (value, way) for unit, value in UNITS.items() for way in AIMS}


class Scheme:
    """A VIP of its own, with MEMBERS servers and as many standbys, as one way of writing weights has it.

    The naive way writes the file's weights, in numeric order, each drop with its flush.
    """

    def __init__(self, number: int, unit: int | None, *, naive: bool = False, commands: bool = False) -> None:
        config = config_of(1, MEMBERS, pools=2, weight_unit=unit, new_flows_table_length=LENGTH)
        frontend = replace(config.frontends["f0"], address=ip_address("192.0.2.0") + number)
        self.config: Config = replace(config, frontends={"f0": frontend})
        self.key: VipKey = vip_key(frontend)
        self.actual = Actual(None, {})
        self._states = FakeStates(self.config)
        self._naive = naive
        self._commands = commands

    def steps(self, *, first_pool_up: bool) -> Sequence[Step]:
        """The calls of this moment, which then count as done."""
        for member in self.config.frontends["f0"].pools[0].members:
            self._states.backends[member.backend].state = State.UP if first_pool_up else State.DOWN
        (wanted,) = desired_vips(["f0"], self._states)
        present = self.actual.vips.get(self.key)
        policy = Policy(full=present is None, prune_rest=False, commands=self._commands)
        steps: Sequence[Step] = diff([wanted], self.actual, {}, policy, lost=NOTHING_LOST).steps
        if self._naive and present is not None:
            steps = self._in_numeric_order(wanted)
        for step in steps:
            acknowledge(self.actual, step)
        return steps

    def removal(self) -> Sequence[Step]:
        """The calls that remove the VIP again."""
        return diff([], self.actual, {}, Policy(owned=frozenset({self.key})), lost=NOTHING_LOST).steps

    def _in_numeric_order(self, wanted: DesiredVip) -> Sequence[Step]:
        weights = {address: have.weight for address, have in self.actual.vips[self.key].ases.items()}
        cost, total = CostModel(), sum(weights.values())
        steps = []
        for ours in wanted.ases:
            old, new = weights[ours.address], ours.weight or 0
            total += new - old
            spent = cost.rebuild(LENGTH, total) + (cost.flush() if new < old else 0)
            steps.append(
                Step(
                    Op.SET_WEIGHT,
                    self.key,
                    address=ours.address,
                    old_weight=old,
                    weight=new,
                    flush=new < old,
                    cost_ns=spent,
                )
            )
        return steps


def run() -> list[Figure]:
    """Away: the servers are before the standbys, so the naive way drops first. Back: it raises first."""
    names = ("naive", *WAYS)
    formula = dict(zip(names, (_by_formula(scheme) for scheme in _schemes()), strict=True))
    figures = _figures("by the formula", formula)
    # A bound that no order of the calls could beat: drops first, as the naive way has it, at the unit of ``auto``.
    emptied, _ = _by_formula(Scheme(len(names), None, naive=True))
    figures.append(Figure("by the formula, away: unit auto, drops first / naive", emptied / formula["naive"][0], "x"))
    if SOCKET:
        figures += on_loop(lambda: _on_vpp(names, _schemes()))
    return figures


def _schemes() -> list[Scheme]:
    ways = enumerate(WAYS.values(), 1)
    return [Scheme(0, 1, naive=True), *(Scheme(n, unit, commands=way == "commands") for n, (unit, way) in ways)]


def _figures(how: str, seconds: dict[str, tuple[float, float]]) -> list[Figure]:
    figures = []
    for way, direction in enumerate(("away", "back")):
        figures += [Figure(f"{how}, {direction}: {name}", taken[way], "s") for name, taken in seconds.items()]
        for name, (_, kind) in WAYS.items():
            ratio = seconds[name][way] / seconds["naive"][way]
            figures.append(Figure(f"{how}, {direction}: {name} / naive", ratio, "x", AIMS[kind]))
    return figures


def _by_formula(scheme: Scheme) -> tuple[float, float]:
    scheme.steps(first_pool_up=True)
    away, back = (sum(step.cost_ns for step in scheme.steps(first_pool_up=up)) for up in (False, True))
    return away / 1e9, back / 1e9


async def _on_vpp(names: Sequence[str], schemes: Sequence[Scheme]) -> list[Figure]:
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    async with connected() as vpp:
        try:
            for scheme in schemes:
                await vpp.send(scheme.steps(first_pool_up=True))
            for _ in range(ROUNDS):
                for name, scheme in zip(names, schemes, strict=True):
                    taken[name][0].append(await vpp.send(scheme.steps(first_pool_up=False)))
                    taken[name][1].append(await vpp.send(scheme.steps(first_pool_up=True)))
        finally:
            for scheme in schemes:
                await vpp.send(scheme.removal())
    return _figures(
        f"VPP {vpp.version}",
        {name: (statistics.median(away), statistics.median(back)) for name, (away, back) in taken.items()},
    )
