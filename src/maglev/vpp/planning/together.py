"""Changes of many ASes of one VIP: by single calls, or by commands that rebuild the table once for each line. Pure.

Each single call rebuilds the VIP's table. A line of VPP's CLI rebuilds it once for a list of ASes, but the rest of its
cost grows with the list and with the VIP. ``Bundler`` compares both ways by the cost model and takes the cheaper one.

Commands change only what may be changed by deleting and reviving: ASes that go from weight 0 to another, or to weight
0. Such an AS has no bucket before, or none after, so an AS that serves keeps its buckets all the time. ASes that VPP
does not have need no deletion first.

A list is cut into commands of at most ``max-stall`` each. Cutting does not make the whole cheaper: it bounds how long
VPP's workers stand still at a time. Where the rebuilds alone exceed that bound, no cut helps: one command takes all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.plan import Op, Step
from maglev.vpp.wire.commands import MOST_WEIGHT, most_addresses

FEWEST_NEW, FEWEST_LIVE = 2, 4
"""Fewest ASes of a command. Live ones need two rebuilds: below four, single calls cost about as much, and VPP
acknowledges each of them on its own."""


class Shape(NamedTuple):
    """The VIP of a bundle: the length of its table, its ASes (with those that linger), the sum of their weights."""

    length: int
    ases: int
    total: int


class Bundler:
    """Turns single steps into commands where that costs less. ``max_stall_ns``: bound of one command."""

    def __init__(self, cost: CostModel, max_stall_ns: int) -> None:
        self._cost = cost
        self._max_stall = max_stall_ns

    def bundle(self, steps: Sequence[Step], shape: Shape) -> Sequence[Step]:
        """The same changes in the cheaper way. ``shape``: the VIP before them.

        ``steps``: ``ADD_AS``, or ``SET_WEIGHT`` from or to 0, of one VIP; either all raise the weight, or all drop it
        to 0, and all or none flush and are guarded.
        """
        fewest = FEWEST_NEW if steps[0].op is Op.ADD_AS else FEWEST_LIVE
        if len(steps) < fewest or any(step.weight > MOST_WEIGHT for step in steps):
            return steps
        # Members of one weight stand side by side: each distinct weight of a command needs a line.
        ordered = sorted(steps, key=lambda step: step.weight)
        commands = list(self._commands(_Lists(ordered, shape), self._cost))
        if sum(command.cost_ns for command in commands) >= sum(step.cost_ns for step in steps):
            return steps
        return commands

    def _commands(self, lists: _Lists, cost: CostModel) -> Iterator[Step]:
        most = most_addresses(lists.vip, [lists.steps[0].address])
        start = 0
        while start < len(lists.steps):
            end = self._end(lists, start, min(len(lists.steps), start + most), cost)
            yield lists.command(start, end, cost)
            start = end

    def _end(self, lists: _Lists, start: int, most: int, cost: CostModel) -> int:
        """The end of the longest list from ``start`` that a command may take."""
        if lists.cost(start, most, cost) <= self._max_stall or lists.cost(start, start + 1, cost) > self._max_stall:
            return most
        fits, exceeds = start + 1, most
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if lists.cost(start, middle, cost) <= self._max_stall:
                fits = middle
            else:
                exceeds = middle
        return fits


class _Lists:
    """The steps of a bundle in the order of their weights, with sums over them: any part has its cost at once."""

    def __init__(self, steps: Sequence[Step], shape: Shape) -> None:
        first = steps[0]
        assert first.vip is not None
        self.steps = steps
        self.vip = first.vip
        self._shape = shape
        self._adds = first.op is Op.ADD_AS
        self._flush = first.flush
        self._old = [0, *accumulate(step.old_weight for step in steps)]
        self._new = [0, *accumulate(step.weight for step in steps)]
        changes = (step.weight != before.weight for before, step in pairwise(steps))
        self._changes = [0, *accumulate(changes)]

    def cost(self, start: int, end: int, cost: CostModel) -> int:
        """One command for the steps from ``start`` to ``end``, after commands for those before."""
        length, ases, total = self._shape
        listed = end - start
        deleted = total + self._new[start] - self._old[end]
        after = deleted + self._new[end] - self._new[start]
        if self._adds:
            ases += end
        # Every line but the first of a weight costs a rebuild more; the lists of all lines add up to the whole list.
        further = self._changes[end - 1] - self._changes[start]
        stall = further * cost.line(length, after, 0, 0)
        stall += cost.line(length, after, listed, ases, new=listed if self._adds else 0)
        if not self._adds:
            stall += cost.line(length, deleted, listed, ases)
        return stall + (listed * cost.flush() if self._flush else 0)

    def command(self, start: int, end: int, cost: CostModel) -> Step:
        """The command for the steps from ``start`` to ``end``."""
        members = tuple(step._replace(cost_ns=0, reason="cli_inband") for step in self.steps[start:end])
        first, last = members[0], members[-1]
        return Step(
            Op.COMMANDS,
            first.vip,
            first.frontend,
            old_weight=max(member.old_weight for member in members),
            weight=last.weight,
            flush=self._flush,
            cost_ns=self.cost(start, end, cost),
            guarded=first.guarded,
            members=members,
        )
