"""Slow start: a backend that comes back gets its weight in steps. Pure.

A server that comes back from ``down``, or joins while another one serves, has cold caches. With ``slow-start`` it gets
25, 50, 75 and then 100 % of its weight, each rounded up to a unit. A step that changes nothing is not made.

**When.** It begins when a backend comes up while another backend of the frontend has a weight: from ``down``, or from
``unknown`` where a reload brought it, or an operator enabled or resumed it. It never begins with the first verdict
since the start of the daemon, nor for a server that VPP serves already, nor in panic. Panic ignores a slow start that
is under way. The end of a drain begins none: the server has been serving its established flows.

**Steps** fall on multiples of a third of ``slow-start`` since the epoch: with 60 s on the seconds 0, 20 and 40 of every
minute. So all nodes step together, and they build equal tables most of the time. The first part is shorter than the
others: full weight comes after two thirds of the time at least, and after all of it at most.

The wall clock decides only where the first step falls. From there on the monotonic clock counts, so a wall clock that
is set makes no slow start longer. A reload keeps it by the names of frontend and backend; a restart of the daemon ends
it.

**Cost.** Each step builds a table with other weights, which moves flows between *other* servers too.
``maglev.config.rampcost`` computes how many for a frontend, and ``config check`` states it.

Sources: HAProxy's ``slowstart`` (configuration manual), Envoy's slow start mode.

Times are nanoseconds; wall-clock times are since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from maglev.judgement.weights import NO_SHARES, RAMP, WeightTable

STEPS = len(RAMP) - 1
"""Steps from the first part of the weight to all of it."""


def steps_of(duration_ns: int, wall_ns: int, now_ns: int) -> tuple[int, ...]:
    """The monotonic times of the steps of a slow start that begins now, at ``wall_ns`` of the wall clock."""
    step = max(duration_ns // STEPS, 1)
    first = now_ns + step - wall_ns % step
    return tuple(first + number * step for number in range(STEPS))


class Ramps:
    """The backends that start slowly, of each frontend that has ``slow-start``."""

    def __init__(self) -> None:
        self._durations: dict[str, int] = {}
        # By frontend and backend: the monotonic times of the steps that are to come, the next one first.
        self._steps: dict[str, dict[str, tuple[int, ...]]] = {}
        # By frontend: when its next step is due.
        self._next_ns: dict[str, int] = {}

    def __contains__(self, frontend: str) -> bool:
        """Whether a frontend has slow start."""
        return frontend in self._durations

    def apart(self, names: Iterable[str]) -> Ramps:
        """A copy of the memory of these frontends, to try something out."""
        twin = Ramps()
        kept = [name for name in names if name in self._durations]
        twin._durations = {name: self._durations[name] for name in kept}
        twin._steps = {name: dict(self._steps[name]) for name in kept if name in self._steps}
        twin._next_ns = {name: self._next_ns[name] for name in kept if name in self._next_ns}
        return twin

    def configure(self, durations: Mapping[str, int]) -> None:
        """Another configuration is in force. ``durations``: of the frontends that have slow start."""
        self._durations = dict(durations)
        self._steps = {name: steps for name, steps in self._steps.items() if name in self._durations}
        self._next_ns = {name: at for name, at in self._next_ns.items() if name in self._steps}

    def shares(self, frontend: str) -> Mapping[str, int]:
        """The shares of the weight, in percent, of the backends of a frontend that start slowly."""
        steps = self._steps.get(frontend)
        return {name: RAMP[STEPS - len(left)] for name, left in steps.items()} if steps else NO_SHARES

    def restore(self, table: WeightTable) -> None:
        """Enter the memory into a new table of weights."""
        for name in self._steps:
            table.set_shares(name, self.shares(name))

    def begin(self, frontend: str, backends: Iterable[str], table: WeightTable, wall_ns: int, now_ns: int) -> list[str]:
        """These backends have come up; returns those that start slowly: none unless another one serves.

        A slow start of theirs from before they went down is over in any case.
        """
        joining = list(backends)
        if frontend not in self._durations:
            return []
        if not table.serves_without(frontend, joining):
            self._end(frontend, joining, table)
            return []
        steps = steps_of(self._durations[frontend], wall_ns, now_ns)
        of_frontend = self._steps.setdefault(frontend, {})
        for name in joining:
            of_frontend[name] = steps
        self._next_ns[frontend] = min(steps[0], self._next_ns.get(frontend, steps[0]))
        table.set_shares(frontend, dict.fromkeys(joining, RAMP[0]))
        return joining

    def _end(self, frontend: str, backends: Iterable[str], table: WeightTable) -> None:
        """These backends have all of their weight from now on."""
        under_way = self._steps.get(frontend, {})
        ended = [name for name in backends if under_way.pop(name, None) is not None]
        table.set_shares(frontend, dict.fromkeys(ended, 100))
        if under_way:
            self._next_ns[frontend] = min(times[0] for times in under_way.values())
        elif ended:
            del self._steps[frontend], self._next_ns[frontend]

    def follow(self, frontend: str, table: WeightTable, now_ns: int) -> bool:
        """Take the steps that are due; returns whether there were any."""
        if self._next_ns.get(frontend, now_ns + 1) > now_ns:
            return False
        left = {name: tuple(at for at in times if at > now_ns) for name, times in self._steps[frontend].items()}
        table.set_shares(frontend, {name: RAMP[STEPS - len(times)] for name, times in left.items()})
        going_on = {name: times for name, times in left.items() if times}
        if going_on:
            self._steps[frontend] = going_on
            self._next_ns[frontend] = min(times[0] for times in going_on.values())
        else:
            del self._steps[frontend], self._next_ns[frontend]
        return True

    def due(self) -> dict[str, int]:
        """When the next step of each frontend is due."""
        return dict(self._next_ns)
